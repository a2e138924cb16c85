"""LeRobot datasets: what their readers rely on, and that nothing finished is ever lost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from lerobot_reading import COLOR, DEPTH, digest, expect_whole, read_info, read_rows, write
from recorded_frames import FEATURES, RATE_HZ, config, frame, record, values

from mirage_ros.errors import MirageError
from mirage_ros.recording import RecordingConfig
from mirage_ros.recording import lerobot as lerobot_schema
from mirage_ros.recording.formats import begin_episode, open_dataset, open_recorder, recover
from mirage_ros.recording.lerobot import DepthCodes
from mirage_ros.recording.lerobot import dataset as lerobot_dataset
from mirage_ros.recording.lerobot.episode import NAMES, QUANTILES, count_levels, counted_statistics
from mirage_ros.recording.video import ENCODERS, StreamWriter, join_streams, read_stream

CHECK = Path(__file__).parents[1] / "resource" / "lerobot_check" / "check.sh"


@pytest.mark.parametrize("codec", ["h264", "av1"])
def test_dataset_holds_what_was_recorded(tmp_path, codec):
    root = write(tmp_path / "data", video_codec=codec)
    expect_whole(root, (5, 8, 3))
    rows, info = read_rows(root), read_info(root)
    assert info["codebase_version"] == "v3.0" and info["fps"] == RATE_HZ
    assert info["features"][COLOR]["info"]["video.codec"] == codec
    assert (
        info["features"][DEPTH]["info"] | {"is_depth_map": True, "depth_unit": "m"}
        == info["features"][DEPTH]["info"]
    )
    for name in FEATURES:
        told = np.concatenate(
            [[values(n, e)[name] for n in range(f)] for e, f in enumerate((5, 8, 3))]
        )
        assert np.array_equal(rows[name].reshape(16, -1), told), name
    assert rows["stamp_ns"][5] == frame(0, 1).stamp_ns
    assert rows["task_index"].tolist() == [0] * 5 + [1] * 8 + [0] * 3
    assert pq.read_table(root / "meta/tasks.parquet")["task"].to_pylist() == ["task 0", "task 1"]
    assert not (root / ".parts").exists()


def test_statistics_are_those_of_what_readers_decode(tmp_path):
    root = write(tmp_path / "data")
    stats = json.loads((root / "meta/stats.json").read_text())
    shown = {
        COLOR: [
            p / 255
            for _, p in read_stream(root / f"videos/{COLOR}/chunk-000/file-000.mp4", "rgb24")
        ],
        DEPTH: [
            DepthCodes().table_m[p][..., None]
            for _, p in read_stream(root / f"videos/{DEPTH}/chunk-000/file-000.mp4", "gray12le")
        ],
    }
    columns = {name: rows.reshape(16, -1) for name, rows in read_rows(root).items()}
    columns |= {key: np.stack(p).reshape(-1, p[0].shape[-1]) for key, p in shown.items()}
    assert set(columns) == set(stats)
    for name, data in columns.items():
        data = data.astype(float)
        expected = {
            "min": data.min(0),
            "max": data.max(0),
            "mean": data.mean(0),
            "std": data.std(0),
        }
        expected |= {
            key: np.quantile(data, q, axis=0) for key, q in zip(NAMES, QUANTILES, strict=True)
        }
        for key, value in expected.items():
            np.testing.assert_allclose(
                np.ravel(stats[name][key]), value, rtol=1e-6, atol=1e-6, err_msg=f"{key} {name}"
            )
        assert stats[name]["count"] == [16]


def test_episodes_of_many_processes_give_the_same_bytes(tmp_path):
    one = write(tmp_path / "one", (4, 4, 4))
    for index in (2, 0, 1):
        with begin_episode(
            tmp_path / "many", "lerobot", config(), index, f"task {index % 2}", {"seed": index}
        ) as episode:
            for number in range(4):
                episode.add(frame(number, index), values(number, index))
    dataset = open_dataset(tmp_path / "many", "lerobot", config())
    assert dataset.finished() == {0, 1, 2} and dataset.episodes == 0
    with pytest.raises(MirageError, match="adopt 0 first"):
        dataset.adopt(1)
    for index in range(3):
        dataset.adopt(index)
    dataset.close()
    assert digest(one) == digest(tmp_path / "many")


def test_dataset_is_resumed_where_it_ended(tmp_path):
    root = write(tmp_path / "data", (5, 8))
    with open_recorder(root, "lerobot", config()) as recorder:
        assert recorder.episodes == 2
        record(recorder, 3, 2)
    expect_whole(root, (5, 8, 3))
    assert digest(root) == digest(write(tmp_path / "once", (5, 8, 3)))
    with pytest.raises(MirageError, match="differ in.*action"):
        open_dataset(root, "lerobot", RecordingConfig(float(RATE_HZ)))


def test_files_are_begun_anew_after_so_many_episodes(tmp_path, monkeypatch):
    monkeypatch.setattr(lerobot_dataset.schema, "EPISODES_PER_FILE", 2)
    root = write(tmp_path / "data", (2, 3, 4, 2, 2))
    rows, entries = read_rows(root), []
    for path in lerobot_schema.files_below(root, "meta/episodes/chunk-.parquet"):
        entries += pq.read_table(path).to_pylist()
    assert rows["index"].tolist() == list(range(13))
    assert [e["data/file_index"] for e in entries] == [0, 0, 1, 1, 2]
    assert [e[f"videos/{COLOR}/from_timestamp"] for e in entries] == [0, 0.2, 0, 0.4, 0]
    assert [
        len(list(read_stream(p, "rgb24"))) for p in sorted((root / "videos" / COLOR).rglob("*.mp4"))
    ] == [5, 6, 2]
    with open_recorder(root, "lerobot", config()) as recorder:
        record(recorder, 3, 5)
    assert read_rows(root)["index"].tolist() == list(range(16))


@pytest.mark.parametrize(
    "stumbles_at", ["write_tasks", "append_rows 1", "append_rows 2", "write_info", "join_streams"]
)
def test_an_adoption_that_is_cut_off_leaves_the_dataset_as_it_was(
    tmp_path, monkeypatch, stumbles_at
):
    root = write(tmp_path / "data", (5,))
    name, _, time = stumbles_at.partition(" ")
    module = lerobot_dataset if name == "join_streams" else lerobot_schema
    real, left = getattr(module, name), [int(time or 1)]

    def stumble(*arguments):
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(module, name, stumble)
        dataset = open_dataset(root, "lerobot", config())
        with dataset.episode(1, "task 1", {"seed": 1}) as episode:
            for number in range(8):
                episode.add(frame(number, 1), values(number, 1))
        with pytest.raises(KeyboardInterrupt):
            dataset.adopt(1)
        dataset._lock.release()
    expect_whole(root, (5,))
    assert "2 episodes (1 of them adopted now)" in recover(root)[0]
    expect_whole(root, (5, 8))
    assert digest(root) == digest(write(tmp_path / "once", (5, 8)))


def test_half_episodes_are_dropped(tmp_path):
    root = write(tmp_path / "data", (5,))
    code = (
        "import os, sys; sys.path.insert(0, sys.argv[2])\n"
        "from recorded_frames import *; from mirage_ros.recording.formats import *\n"
        "episode = begin_episode(sys.argv[1], 'lerobot', config(), 1)\n"
        "[episode.add(frame(n), values(n)) for n in range(3)]; os.kill(os.getpid(), 9)"
    )
    killed = subprocess.run([sys.executable, "-c", code, root, Path(__file__).parent], check=False)
    assert killed.returncode == -9 and any((root / ".parts").iterdir())
    assert recover(root) == [f"{root}: 1 episodes (0 of them adopted now), 1 half ones removed"]
    assert digest(root) == digest(write(tmp_path / "once", (5,)))


def test_what_does_not_fit_is_refused(tmp_path):
    with pytest.raises(MirageError, match="whole number"):
        open_dataset(tmp_path / "a", "lerobot", RecordingConfig(7.5))
    with pytest.raises(MirageError, match="is taken"):
        open_dataset(tmp_path / "a", "lerobot", RecordingConfig(5.0, {"index": FEATURES["action"]}))
    dataset = open_dataset(tmp_path / "b", "lerobot", config())
    with pytest.raises(MirageError, match="being recorded"):
        open_dataset(tmp_path / "b", "lerobot", config())
    with pytest.raises(MirageError, match="even sides"), dataset.episode(0) as episode:
        episode.add(frame(0, size=(63, 80)), values(0))
    with dataset.episode(0) as episode:
        episode.add(frame(0), values(0))
        with pytest.raises(MirageError, match="no gaps"):
            episode.add(frame(2), values(2))
        with pytest.raises(MirageError, match="one size"):
            episode.add(frame(1, size=(96, 80)), values(1))
        with pytest.raises(MirageError, match="give exactly those"):
            episode.add(frame(1), {"action": np.zeros(2)})
        with pytest.raises(MirageError, match=r"shape \(3,\)"):
            episode.add(frame(1), values(1) | {"action": np.zeros(3)})
    dataset.adopt(0)
    dataset.close()
    leftover = tmp_path / "b" / "data" / ".keep"
    leftover.write_text("of somebody else")
    with pytest.raises(MirageError, match="differ in next.done"):
        open_dataset(tmp_path / "b", "lerobot", config(features={"action": FEATURES["action"]}))
    assert leftover.exists()
    open_dataset(tmp_path / "b", "lerobot", config()).close()  # the refusal let go of the lock


def test_depth_codes_keep_invalid_and_beyond_apart():
    codes = DepthCodes(far_m=20.0)
    depth_m = np.array([[np.nan, 0.0, -1.0, np.inf, 20.5, 0.011, 19.99, 1.0]], np.float32)
    back = codes.decode(codes.encode(depth_m))[0]
    assert np.isnan(back[:3]).all() and np.isinf(back[3:5]).all() and np.isfinite(back[5:]).all()
    grid = np.linspace(0.02, 19.9, 9000, dtype=np.float32)[None]
    error = np.abs(codes.decode(codes.encode(grid)) - grid) / (grid + codes.shift_m)
    assert error.max() < 0.51 * codes._step
    every = np.arange(1, 4095, dtype=np.uint16)[None]
    assert np.array_equal(codes.encode(codes.decode(every)), every)


def test_counted_quantiles_are_numpy_s():
    rng = np.random.default_rng(3)
    for count in (1, 2, 7, 1000):
        pixels = rng.integers(0, 256, (count, 1, 2), np.uint8)
        stats = counted_statistics(count_levels(pixels, 256), np.arange(256) / 255)
        data = pixels.reshape(-1, 2) / 255
        for name, share in zip(NAMES, QUANTILES, strict=True):
            np.testing.assert_allclose(stats[name], np.quantile(data, share, axis=0), atol=1e-12)
        np.testing.assert_allclose(stats["std"], data.std(0), atol=1e-12)


@pytest.mark.parametrize("kind", sorted(ENCODERS))
def test_joined_videos_show_every_frame_at_its_time(tmp_path, kind):
    encoder = ENCODERS[kind]
    for name, count in (("a", 7), ("b", 4), ("c", 1)):
        writer = StreamWriter(tmp_path / f"{name}.mp4", encoder, 30, (64, 80))
        for number in range(count):
            level = 10 * number + ord(name)
            shape, dtype = ((64, 80), np.uint16) if kind == "depth" else ((64, 80, 3), np.uint8)
            writer.add(np.full(shape, level, dtype))
        writer.close()
    pieces = [(tmp_path / "a.mp4", 5), (tmp_path / "b.mp4", 4), (tmp_path / "c.mp4", 1)]
    join_streams(pieces, 30, tmp_path / "all.mp4")
    shown = list(read_stream(tmp_path / "all.mp4", encoder.source))
    assert [round(time_s * 30, 9) for time_s, _ in shown] == list(range(10))
    told = [
        10 * n + ord(name) for name, count in (("a", 5), ("b", 4), ("c", 1)) for n in range(count)
    ]
    assert np.abs(np.array([p.mean() for _, p in shown]) - told).max() <= (
        0 if kind == "depth" else 2
    )


def test_equal_pictures_give_equal_bytes_whatever_memory_held(tmp_path):
    # The encoder of the depth fills the heap with something else each time.
    told, size = [frame(number, 1, (32, 48)) for number in range(8)], (32, 48)
    paths = {"h264": tmp_path / "color.mp4", "depth": tmp_path / "depth.mp4"}
    found = set()
    for _ in range(150):
        writers = {kind: StreamWriter(paths[kind], ENCODERS[kind], 10, size) for kind in paths}
        for f in told:
            writers["h264"].add(np.ascontiguousarray(f.rgb))
            writers["depth"].add(DepthCodes().encode(f.depth_m))
        for writer in writers.values():
            writer.close()
        found.add(tuple(path.read_bytes() for path in paths.values()))
    assert len(found) == 1


@pytest.mark.skipif("LEROBOT_VENV" not in os.environ, reason="LEROBOT_VENV names no environment")
@pytest.mark.parametrize("codec", ["h264", "av1"])
def test_the_real_lerobot_agrees(tmp_path, codec):
    root = write(tmp_path / "data", video_codec=codec)
    done = subprocess.run([CHECK, root], capture_output=True, text=True, check=False)
    report = json.loads(done.stdout.splitlines()[-1])
    assert done.returncode == 0 and report["ok"] and report["frames"] == 16, done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="the encoder makes real-time threads for root alone")
def test_an_encoder_leaves_the_process_scheduled_as_it_was(tmp_path):
    policy, before = os.sched_getscheduler(0), set(os.listdir("/proc/self/task"))
    writers = [StreamWriter(tmp_path / f"{name}.mp4", encoder, 10, (64, 80)) for name, encoder in ENCODERS.items()]
    for writer in writers:
        for _ in range(3):
            writer.add(np.zeros((64, 80, 3), np.uint8) if "rgb" in writer._encoder.source else np.zeros((64, 80), np.uint16))
    began = {int(name) for name in os.listdir("/proc/self/task")} - {int(name) for name in before}
    threads = {os.sched_getscheduler(thread) for thread in began}
    for writer in writers:
        writer.close()
    assert threads == {policy} and os.sched_getscheduler(0) == policy
