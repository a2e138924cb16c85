"""Saved worlds as folders: what a save may replace, what it leaves alone, and where it stops."""

from __future__ import annotations

import json
import os
import threading

import pytest
from fakes import PixelModel
from pixel_worlds import camera, picture, started

from mirage_ros.errors import MirageError
from mirage_ros.files import SAVED, SAVING, WORLD, header_of_world, world_file
from mirage_ros.world import files as world_files
from mirage_ros.world.world import World

OWN = {"memory.safetensors", "latents.safetensors", WORLD}


def is_saved_world(folder) -> bool:
    return header_of_world(world_file(folder, WORLD)) is not None


def renewed(world: World, stamp_ns: int) -> World:
    world.reset(picture(stamp_ns), camera(), None, stamp_ns)
    return world


def loaded(folder) -> World:
    world = World(PixelModel())
    world.load(folder)
    return world


@pytest.fixture
def world() -> World:
    return started(PixelModel())


@pytest.mark.parametrize(
    "told", ['{"name": "x"}', "[]", "{", "[" * 100_000, '{"version": Infinity}', ""]
)
def test_a_folder_with_somebody_else_s_world_json_is_refused_and_stays(world, tmp_path, told):
    game = tmp_path / "game"
    (game / "src").mkdir(parents=True)
    (game / WORLD).write_text(told)
    (game / "precious.txt").write_text("mine")
    with pytest.raises(MirageError, match="no saved world; choose another folder"):
        world.save(game)
    assert {path.name for path in game.iterdir()} == {"src", WORLD, "precious.txt"}
    assert (game / WORLD).read_text() == told and not is_saved_world(game)


def test_a_folder_of_files_and_a_file_are_refused(world, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.tex").touch()
    with pytest.raises(MirageError, match="no saved world"):
        world.save(tmp_path / "mine")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.tex"]
    with pytest.raises(MirageError, match="no folder"):
        world.save(tmp_path / "mine/thesis.tex")


def test_a_user_s_files_in_a_saved_world_outlive_every_save(world, tmp_path):
    folder = tmp_path / "world"
    world.save(folder)
    (folder / "notes").mkdir()
    (folder / "notes/today.txt").write_text("mine")
    (folder / "decoder.safetensors").write_text("mine as well")
    identity = folder.stat().st_ino
    renewed(world, 7).save(folder)
    assert (folder / "notes/today.txt").read_text() == "mine"
    assert (folder / "decoder.safetensors").read_text() == "mine as well"
    assert {path.name for path in folder.iterdir()} == OWN | {"notes", "decoder.safetensors"}
    assert folder.stat().st_ino == identity and loaded(folder).stamp_ns == 7


def test_a_symbolic_link_is_written_through(world, tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "lnk").symlink_to(tmp_path / "disk")
    (tmp_path / "dangling").symlink_to(tmp_path / "new")
    for name, target in (("lnk", "disk"), ("lnk", "disk"), ("dangling", "new")):
        world.save(tmp_path / name)
        assert (tmp_path / name).is_symlink()
        assert {path.name for path in (tmp_path / target).iterdir()} == OWN
    assert {path.name for path in tmp_path.iterdir()} == {"disk", "lnk", "dangling", "new"}


def test_a_world_that_was_saved_before_its_format_had_a_name_is_one(world, tmp_path):
    world.save(tmp_path)
    told = json.loads((tmp_path / WORLD).read_text())
    del told["format"]
    (tmp_path / WORLD).write_text(json.dumps(told))
    assert is_saved_world(tmp_path)
    world.save(tmp_path)


@pytest.mark.parametrize("stop", range(5))
@pytest.mark.parametrize("first", [False, True])
def test_whoever_stops_between_two_renames_leaves_a_whole_world(
    world, tmp_path, monkeypatch, stop, first
):
    """As a kill at each of them does: nothing is tidied up."""
    folder, count, rename = tmp_path / "world", [0], os.rename

    class Killed(BaseException):
        pass

    def stopping(*names):
        count[0] += 1
        if count[0] > stop:
            raise Killed
        rename(*names)

    if not first:
        world.save(folder)
    renewed(world, 7)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(os, "rename", stopping)
        patch.setattr(world_files.shutil, "rmtree", lambda *_, **__: None)
        patch.setattr(world_files.Path, "rmdir", lambda _: None)
        world.save(folder)
        raise Killed  # after the last rename
    if stop == 0 and first:
        assert not is_saved_world(folder)
    else:
        assert is_saved_world(folder)
        assert loaded(folder).stamp_ns == (7 if stop else 0)
    renewed(world, 8).save(folder)
    assert loaded(folder).stamp_ns == 8 and {path.name for path in folder.iterdir()} == OWN


def test_a_save_that_fails_leaves_nothing_behind(world, tmp_path, monkeypatch):
    def full(*_):
        raise MirageError("The disk is full.")

    monkeypatch.setattr(world_files, "write_file", full)
    for name in ("new", "there"):
        with pytest.raises(MirageError, match="full"):
            world.save(tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_being_saved_to_is_not_saved_to_twice(world, tmp_path, monkeypatch):
    write, inside, leave = world_files._write_world, threading.Event(), threading.Event()

    def slow(*told):
        inside.set()
        leave.wait(20)
        write(*told)

    world.save(tmp_path)
    monkeypatch.setattr(world_files, "_write_world", slow)
    thread = threading.Thread(target=world.save, args=(tmp_path,))
    thread.start()
    assert inside.wait(20)
    with pytest.raises(MirageError, match="right now"):
        world.save(tmp_path)
    leave.set()
    thread.join()
    assert loaded(tmp_path).memory.tokens == world.memory.tokens
    assert not (tmp_path / SAVING).exists() and not (tmp_path / SAVED).exists()


@pytest.mark.parametrize("name", sorted(OWN))
def test_a_pipe_in_a_saved_world_is_refused_at_once(world, tmp_path, name):
    world.save(tmp_path)
    (tmp_path / name).unlink()
    os.mkfifo(tmp_path / name)
    with pytest.raises(MirageError, match="no regular file"):
        world.load(tmp_path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("version", float("inf")),
        ("version", float("nan")),
        ("version", None),
        ("version", 99),
        ("frames_seen", "many"),
        ("frame_ids", [5]),
        ("size", [10]),
        ("model", ["x"] * 1000),
        ("stamp_ns", 1.5),
        ("world_from_camera", [[1e400] * 4] * 4),
    ],
)
def test_a_world_that_tells_what_cannot_be_is_refused_in_a_sentence(world, tmp_path, key, value):
    """Well-formed, checksum and all."""
    save = world_files.save_tensors

    def spoilt(path, kind, tensors, info):
        info[key] = value
        save(path, kind, tensors, info)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(world_files, "save_tensors", spoilt)
        world.save(tmp_path)
    with pytest.raises(MirageError) as raised:
        world.load(tmp_path)
    assert len(str(raised.value)) < 600 and str(tmp_path) in str(raised.value)


def test_a_header_nested_too_deep_is_refused(world, tmp_path):
    world.save(tmp_path)
    deep = "[" * 200_000
    (tmp_path / WORLD).write_text(deep)
    with pytest.raises(MirageError, match="whole saved world"):
        world.load(tmp_path)
    renewed_folder = tmp_path / "other"
    world.save(renewed_folder)
    head = deep.encode()
    (renewed_folder / "memory.safetensors").write_bytes(len(head).to_bytes(8, "little") + head)
    with pytest.raises(MirageError, match="header is damaged"):
        world.load(renewed_folder)
