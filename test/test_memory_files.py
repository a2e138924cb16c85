"""The latent memory on disk: whole or not at all, and never believed when damaged."""

import json
import os
import resource
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from analytic import CONFIG, loop, remember, room, written
from safetensors.numpy import load_file, save_file

from mirage_ros.errors import MirageError
from mirage_ros.memory import LatentMemory, files
from mirage_ros.memory import files as memory_files
from mirage_ros.memory.files import save_tensors
from mirage_ros.memory.rows import VIEW_FIELDS


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    memory = written(loop(6), room())
    path = tmp_path_factory.mktemp("memory") / "memory.safetensors"
    memory.save(path)
    return memory, path


def test_a_saved_memory_comes_back_and_goes_on_the_same(saved):
    memory, path = saved
    again, original = LatentMemory.load(path), memory.fork()
    for _ in range(2):
        batch = loop()
        one, other = original.read(batch), again.read(batch)
        np.testing.assert_array_equal(one.index, other.index)
        assert torch.equal(one.latents, other.latents)
        assert original.nbytes == again.nbytes
        for each in (original, again):
            remember(each, loop(), room(), first_id=200)
        assert original.tokens == again.tokens
    assert list(path.parent.iterdir()) == [path]


def test_any_reader_of_safetensors_can_open_a_saved_memory(saved):
    memory, path = saved
    tensors = load_file(path)
    assert tensors["features"].shape == (memory.tokens, 4)
    assert tensors["features"].dtype == np.float16
    place, rays = tensors["places"][:, None], tensors["view.rays"].astype(float)
    rays, row, column = rays[place[:, 0] >> 42], place >> 34 & 255, place >> 26 & 255
    depth = ((place & 0x1FFFFFF) + (95 << 19) << 4).astype(np.int32).view(np.float32)
    depth = depth.astype(float)
    places = rays[:, 3] + depth * (rays[:, 0] * column + rays[:, 1] * row + rays[:, 2])
    np.testing.assert_array_equal(places.astype(np.float32), memory.to_points().xyz)


def test_whoever_is_killed_while_saving_leaves_a_whole_file(tmp_path):
    """MIRAGE_KILLS says how many are killed (default 3)."""
    kills = os.environ.get("MIRAGE_KILLS", "3")
    script = Path(__file__).with_name("kill_saver.py")
    command = [sys.executable, script, tmp_path, kills, "60"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60 + 2 * int(kills))
    assert run.returncode == 0, run.stderr
    older, newer, left_over = map(int, run.stdout.split())
    assert older + newer == int(kills)
    # Only who dies between naming and renaming leaves a name, which is rare.
    assert left_over <= max(1, int(kills) // 50)


def test_a_full_disk_leaves_the_old_file_and_nothing_else(saved, tmp_path):
    memory, path = saved
    target = tmp_path / "memory"
    target.write_bytes(path.read_bytes())
    _, hard = limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
        with pytest.raises(MirageError, match="cannot be written.*free space"):
            memory.save(target)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert LatentMemory.load(target).tokens == memory.tokens
    assert list(tmp_path.iterdir()) == [target]


def test_a_smaller_cap_keeps_the_latest(saved):
    memory, path = saved
    config = replace(CONFIG, max_bytes=128 * 2**10)
    small = LatentMemory.load(path, config)
    assert 0 < small.tokens < memory.tokens and small.nbytes <= 128 * 2**10


@pytest.mark.parametrize("keep", [0, 5, 100, 1000, -1])
def test_a_truncated_file_is_refused(saved, tmp_path, keep):
    (tmp_path / "cut").write_bytes(saved[1].read_bytes()[:keep])
    with pytest.raises(MirageError, match="damaged"):
        LatentMemory.load(tmp_path / "cut")


def test_any_flipped_bit_is_noticed(saved, tmp_path):
    """Every bit of what tells the version and the tensors, and some of the tensors."""
    data = saved[1].read_bytes()
    head = 8 + int.from_bytes(data[:8], "little")
    version = data.index(b"version")
    places = [*range(8), *range(version, version + 20), *range(head - 8, head)]
    rng = np.random.default_rng(0)
    places += [*rng.integers(0, head, 40), *rng.integers(head, len(data), 20)]
    for place in places:
        for bit in range(8):
            flipped = bytearray(data)
            flipped[place] ^= 1 << bit
            (tmp_path / "flipped").write_bytes(flipped)
            with pytest.raises(MirageError):
                LatentMemory.load(tmp_path / "flipped")


def test_a_file_that_does_not_tell_real_pictures_goes_by_their_ids(tmp_path, monkeypatch):
    """As version 3 was written: the seed is frame 0, observed pictures come from 2**30 on."""
    memory = LatentMemory(CONFIG)
    for frame in (0, 7, 2**30 + 1):
        remember(memory, loop(3)[:1], room(), first_id=frame)
    fields = {name: kind for name, kind in VIEW_FIELDS.items() if name != "real"}
    monkeypatch.setattr(memory_files, "VIEW_FIELDS", fields)
    monkeypatch.setattr(files, "VERSION", 3)
    memory.save(tmp_path / "old")
    monkeypatch.undo()
    store = LatentMemory.load(tmp_path / "old")._store
    real_by_frame = dict(zip(store.views["frame_ids"].tolist(), store.views["real"].tolist(), strict=True))
    assert real_by_frame == {i: i != 7 for i in real_by_frame} and 2**30 + 1 in real_by_frame


def test_unfit_files_are_refused_with_the_reason(saved, tmp_path):
    with pytest.raises(MirageError, match="4 channels where 5"):
        LatentMemory.load(saved[1], replace(CONFIG, channels=5))
    with pytest.raises(MirageError, match="cannot be read"):
        LatentMemory.load(tmp_path / "none")
    other = tmp_path / "other"
    for version, advice in ((99, "update mirage_ros"), (1, "make it anew")):
        header = {"kind": "memory", "version": version, "info": {}, "sha256": ""}
        save_file({"x": np.zeros(1)}, other, {"mirage_ros": json.dumps(header)})
        with pytest.raises(MirageError, match=f"version {version};.*{advice}"):
            LatentMemory.load(other)
    save_file({"x": np.zeros(1)}, other, {})
    with pytest.raises(MirageError, match="not a saved memory"):
        LatentMemory.load(other)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda store: store["places"].__setitem__(3, 77 << 42),
        lambda store: store.views["rays"].__setitem__((1, 2, 0), np.nan),
        lambda store: store.views["rays"].__setitem__((1, 2, 0), 1e30),
        lambda store: store.views["rays"].__setitem__((1, 3, 0), 1e30),
        lambda store: store.views["focals"].__setitem__(0, 0),
        lambda store: store.views["focals"].__setitem__(0, np.inf),
        lambda store: store.arrays.pop("rgb"),
    ],
)
def test_a_sound_file_of_an_impossible_memory_is_refused(tmp_path, spoil):
    memory = written(loop(2), room())
    spoil(memory._store)
    tensors = {name: memory._store[name] for name in memory._store.arrays}
    tensors |= {f"view.{name}": memory._store.views[name] for name in VIEW_FIELDS}
    info = {"channels": 4, "max_bytes": 2**20, "tick": 3, "dtype": "float16"}
    save_tensors(tmp_path / "memory", "memory", tensors, info)
    with pytest.raises(MirageError, match="fields of a latent memory"):
        LatentMemory.load(tmp_path / "memory")
