"""The inference worker's process: killed, stopped, out of memory, and what is left of the world."""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from fakes import Greedy, Mined, PixelModel, Plodding, Stuck, Wooden

from mirage_ros.data.seeds import Seed, level_camera_pose
from mirage_ros.errors import MirageError
from mirage_ros.geometry.camera import Camera
from mirage_ros.ros.worker import (
    Cloud,
    Died,
    Done,
    Erase,
    Failed,
    Fork,
    Load,
    ModelReady,
    Observe,
    Planned,
    Prompt,
    Reset,
    Restore,
    Revived,
    Save,
    SeedName,
    Step,
    Unload,
    WorkerConfig,
)
from mirage_ros.ros.worker.handle import MOST_TRIES, QUEUE_SIZE, Worker
from mirage_ros.ros.worker.shared import KEPT, LOCK, Scratch

PERIOD = 100_000_000
CHUNKS = 6
PATIENCE_S = 120.0


class Hired:
    """A worker whose results are collected."""

    def __init__(self, make_model=PixelModel, config=WorkerConfig(), **options) -> None:
        self.results, self.arrived, self._killed = [], threading.Event(), None
        self.worker = Worker(make_model, config, self._take, **options)
        self.worker.start()

    def _take(self, result) -> None:
        self.results.append(result)
        self.arrived.set()

    def wait(self, kind, count: int = 1) -> list:
        """The results of a kind, once there are so many."""
        deadline = time.monotonic() + PATIENCE_S
        while len(found := [r for r in self.results if isinstance(r, kind)]) < count:
            assert time.monotonic() < deadline, self.results
            self.arrived.wait(0.02)
            self.arrived.clear()
        return found

    def ask(self, command):
        """What came of a command."""
        self.worker.submit(command)
        deadline = time.monotonic() + PATIENCE_S
        while True:
            for result in list(self.results):
                if getattr(result, "command", None) is command:
                    return result
            assert time.monotonic() < deadline, self.results
            time.sleep(0.01)

    def kill(self, number: signal.Signals = signal.SIGKILL) -> int:
        """Once a process is there that is not the one killed last, whose end may not be told yet."""
        deadline = time.monotonic() + PATIENCE_S
        while (pid := self.worker.pid) in (None, self._killed):
            assert time.monotonic() < deadline
            time.sleep(0.005)
        os.kill(pid, number)
        self._killed = pid
        return pid


@pytest.fixture
def hire():
    hired = []

    def make(*args, **options) -> Hired:
        hired.append(Hired(*args, **options))
        return hired[-1]

    yield make
    for one in hired:
        folder = Path(one.worker.config.snapshots)
        assert one.worker.stop() and not folder.exists()


def seed(value: int = 0) -> Seed:
    rgb = np.random.default_rng(value).integers(0, 256, (64, 80, 3), np.uint8)
    return Seed("test", rgb, Camera.from_hfov(60.0, (64, 80), level_camera_pose()))


def step(chunk: int, size: int = 4) -> Step:
    """The chunk of a walk to the right."""
    stamps = tuple(PERIOD * (1 + chunk * size + index) for index in range(size))
    poses = np.stack([level_camera_pose() for _ in stamps])
    poses[:, 1, 3] = [-0.05 * stamp / PERIOD for stamp in stamps]
    return Step(Planned(stamps, poses), cloud_period_s=1e9)


def walk(one: Hired, chunks: int = CHUNKS, meanwhile=lambda chunk: None) -> list[bytes]:
    """Pictures and depth of a whole walk, as bytes."""
    one.worker.submit(Reset(seed(), 0, "test"))
    seen = []
    for chunk in range(chunks):
        command = step(chunk)
        one.worker.submit(command)
        meanwhile(chunk)
        done = next(r for r in iter_until(one, command))
        assert isinstance(done, Done), done
        seen += [frame.rgb.tobytes() + frame.depth_m.tobytes() for frame in done.chunk.frames]
    return seen


def iter_until(one: Hired, command):
    deadline = time.monotonic() + PATIENCE_S
    while True:
        yield from (r for r in list(one.results) if getattr(r, "command", None) is command)
        assert time.monotonic() < deadline, one.results
        time.sleep(0.005)


def test_frames_come_through_shared_memory_and_are_read_only(hire):
    one = hire()
    (ready,) = one.wait(ModelReady)
    assert (ready.name, ready.size, ready.chunk_frames) == ("pixel-fake", (64, 80), 4)
    done = one.ask(Reset(seed(), 0, "test"))
    picture = done.chunk.frames[0].rgb
    assert picture.shape == (64, 80, 3) and not picture.flags.writeable
    with pytest.raises(ValueError):
        picture[0] = 0
    assert one.ask(Cloud()).points.xyz.shape[1] == 3


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_killed_at_random_moments_it_renders_what_it_would_have_rendered(hire, number):
    undisturbed = walk(hire())
    one, rng = hire(), np.random.default_rng(int(number))
    one.wait(ModelReady)

    def strike(chunk: int) -> None:
        time.sleep(float(rng.uniform(0, 0.02)))
        one.kill(number)

    assert walk(one, meanwhile=strike) == undisturbed
    # Who is killed while it is revived dies without having been.
    told = {result.message for result in one.wait(Died, CHUNKS)}
    assert one.wait(Revived)
    assert told == {f"The inference worker was ended by {number.name}"
                    f"{' (out of memory?)' if number == signal.SIGKILL else ''}."}  # fmt: skip
    assert not [result for result in one.results if isinstance(result, Failed)]
    left = [path for path in Path(one.worker.config.snapshots).iterdir() if path.name != LOCK]
    assert len(left) <= KEPT + 1, "what dead workers kept is kept for ever"


@pytest.mark.parametrize("live", [False, True])
def test_what_was_observed_and_erased_since_the_last_snapshot_is_there_after_a_death(hire, live):
    real, low = seed(1), (-100.0,) * 3
    near = Seed("real", real.rgb, real.camera, np.full(real.rgb.shape[:2], 1.0, np.float32))
    shown = []
    for deadly in (False, True):
        one = hire(config=WorkerConfig(observe_live=live))
        one.ask(Reset(seed(), 0, "test"))
        taken = Path(one.ask(step(0)).snapshot)
        # In the way of the next one, so that all of the following has to be repeated.
        taken.with_name(f"{taken.name[:-1]}1").touch()
        assert one.ask(Erase(low, (100.0, 0.0, 100.0))).values["erased"] > 0
        done = one.ask(Observe(near, PERIOD))
        assert done.values["stored"] > 0 and done.snapshot is None, "nothing is left to repeat"
        while live and not one.ask(Observe(near, 9 * PERIOD)).values["stored"]:
            time.sleep(0.1)  # its share of the time; the two agree on the rest
        if deadly:
            one.kill()
        chunk = one.ask(step(1)).chunk
        shown.append([frame.rgb.tobytes() + frame.depth_m.tobytes() for frame in chunk.frames])
        assert len(one.wait(Revived, int(deadly))) == deadly
    assert shown[0] == shown[1]


def test_a_worker_that_stands_still_is_replaced(hire):
    one = hire(silence_s=5.0)
    one.wait(ModelReady)
    one.ask(Reset(seed(), 0, "test"))
    one.kill(signal.SIGSTOP)
    assert isinstance(one.ask(step(0)), Done)
    assert "silent for" in one.wait(Died)[0].message


def test_a_step_that_waits_for_ever_is_tried_twice_and_inference_goes_on(hire, tmp_path):
    os.mkfifo(pipe := tmp_path / "pipe")
    one = hire(functools.partial(Stuck, pipe), silence_s=2.0)
    one.ask(Reset(seed(), 0, "test"))
    start_s = time.monotonic()
    failed = one.ask(step(0))
    assert isinstance(failed, Failed) and "down 2 times; it is left out" in failed.message
    assert [died.message for died in one.wait(Died)] == [
        "The inference worker has been silent for 2 s."
    ] * 2
    assert time.monotonic() - start_s > 4.0
    pipe.unlink()
    assert isinstance(one.ask(step(0)), Done)


def test_long_work_that_goes_on_is_let_finish_up_to_the_deadline(hire):
    one = hire(Plodding, silence_s=2.0)
    one.ask(Reset(seed(), 0, "test"))
    assert isinstance(one.ask(step(0)), Done) and not one.wait(Died, 0)
    late = hire(Plodding, deadline_s=2.0)
    late.ask(Reset(seed(), 0, "test"))
    assert "it is left out" in late.ask(step(0)).message
    assert "worked on one command for 2 s" in late.wait(Died)[0].message


@pytest.mark.parametrize("name", ["memory.safetensors", "latents.safetensors", "world.json"])
def test_a_pipe_in_a_saved_world_is_refused_and_keeps_nobody_waiting(hire, tmp_path, name):
    one = hire()
    one.ask(Reset(seed(), 0, "test"))
    one.ask(Save(str(tmp_path / "world")))
    (tmp_path / "world" / name).unlink()
    os.mkfifo(tmp_path / "world" / name)
    refused = one.ask(Load(str(tmp_path / "world")))
    assert isinstance(refused, Failed) and "no regular file" in refused.message
    assert isinstance(one.ask(step(0)), Done) and not one.wait(Died, 0)


def test_a_step_that_takes_all_memory_is_left_out_and_the_world_stays(hire):
    one = hire(Greedy)
    one.ask(Reset(seed(), 0, "test"))
    tokens = one.ask(step(0)).chunk.tokens
    failed = one.ask(step(1))
    assert isinstance(failed, Failed) and "down 5 times; it is left out" in failed.message
    assert all("ran out of memory" in died.message for died in one.wait(Died, 2))
    after = one.ask(step(2))
    assert isinstance(after, Done) and after.chunk.tokens >= tokens


def test_a_command_that_kills_when_it_is_repeated_is_left_out_and_told(hire, tmp_path):
    mine = tmp_path / "mine"
    one = hire(functools.partial(Mined, mine))
    one.ask(Prompt("rain"))
    one.ask(Reset(seed(), 0, "test"))
    tokens = one.ask(step(0)).chunk.tokens
    mine.write_text("prompt")
    one.kill()
    (revived,) = one.wait(Revived)
    assert len(one.wait(Died)) == 1 + MOST_TRIES
    assert "Prompt, repeated, took the inference worker down 5 times" in revived.message
    one.kill()
    assert one.wait(Revived, 2)[1].message == "", "left out once and for all"
    after = one.ask(step(1))
    assert isinstance(after, Done) and after.chunk.tokens >= tokens


@pytest.mark.parametrize("part", ["picture", "world"])
def test_a_world_that_kills_whoever_takes_it_over_ends_inference_and_says_so(hire, tmp_path, part):
    """Repeated from its seed, and loaded from a snapshot."""
    mine = tmp_path / "mine"
    one = hire(functools.partial(Mined, mine))
    one.ask(Reset(seed(), 0, "test"))
    if part == "world":
        assert one.ask(step(0)).snapshot
    mine.write_text(part)
    one.kill()
    (failed,) = one.wait(Failed)
    assert failed.command is None
    assert failed.message.endswith("It died 5 times when it took over the world.")
    assert len(one.wait(Died)) == 1 + MOST_TRIES and not one.wait(Revived, 0)


def test_a_command_that_waits_is_not_blamed_for_deaths_before_it_was_begun(hire, tmp_path):
    mine = tmp_path / "mine"
    one = hire(functools.partial(Mined, mine))
    one.ask(Prompt("rain"))
    one.ask(Reset(seed(), 0, "test"))
    mine.write_text("prompt")
    one.kill(signal.SIGSTOP)
    waiting = step(0)
    one.worker.submit(waiting)
    os.kill(one.worker.pid, signal.SIGKILL)
    one.wait(Revived)
    assert isinstance(next(iter_until(one, waiting)), Done)
    assert not one.wait(Failed, 0)


def test_a_model_that_never_loads_is_told_once(hire):
    one = hire(Wooden)
    (failed,) = one.wait(Failed)
    assert failed.command is None and "started 3 times" in failed.message


def test_a_world_is_saved_loaded_erased_forked_and_restored(hire, tmp_path):
    one = hire()
    one.ask(Reset(seed(), 0, "test"))
    first = one.ask(step(0)).chunk
    saved = one.ask(Save(str(tmp_path / "world"))).values
    assert saved["tokens"] == first.tokens and (tmp_path / "world/world.json").is_file()
    assert one.ask(Fork("before")).values["names"] == ["before"]
    erased = one.ask(Erase((-100.0,) * 3, (100.0,) * 3)).values
    assert erased == {"erased": first.tokens, "tokens": 0}
    one.kill()
    assert one.ask(Restore("before")).values["tokens"] == first.tokens
    assert "known: before" in one.ask(Restore("after")).message
    assert "letters" in one.ask(Fork("../before")).message
    assert isinstance(one.ask(Unload()), Done)
    assert "no seed yet" in one.ask(step(1)).message
    assert one.ask(Load(str(tmp_path / "world"))).values["tokens"] == first.tokens
    again = one.ask(step(1))
    assert again.chunk.observed_fraction > 0.5


def test_the_queue_is_bounded_and_what_waits_can_be_taken_back(hire):
    one = hire()
    one.wait(ModelReady)
    one.kill(signal.SIGSTOP)
    one.worker.submit(Reset(seed(), 0, "test"))
    steps = [step(chunk) for chunk in range(QUEUE_SIZE)]
    for command in steps:
        one.worker.submit(command)
    with pytest.raises(MirageError, match="send fewer"):
        one.worker.submit(step(99))
    assert one.worker.cancel(steps[-1]) and not one.worker.cancel(steps[-1])
    os.kill(one.worker.pid, signal.SIGCONT)
    one.wait(Done, QUEUE_SIZE)
    assert not one.worker.cancel(steps[0])
    assert steps[-1] not in [getattr(result, "command", None) for result in one.results]


def test_a_seed_is_loaded_by_the_worker_and_a_missing_one_is_told(hire):
    one = hire()
    assert isinstance(one.ask(Reset(SeedName("room"), None, "room")), Done)
    assert "no seed 'nowhere'" in one.ask(Reset(SeedName("nowhere"), None, "nowhere")).message


def test_a_process_that_cannot_be_started_is_told(hire):
    one = hire(lambda: PixelModel())
    (failed,) = one.wait(Failed)
    assert failed.command is None and "can be started" in failed.message


def test_the_node_s_own_process_does_without_torch():
    code = (
        "import sys, mirage_ros.ros.mirage_node, mirage_ros.ros.services.state\n"
        "print([name for name in ('torch', 'numba', 'diffusers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_a_node_that_is_killed_leaves_nothing_behind(tmp_path):
    code = (
        "import sys, time; sys.path.insert(0, sys.argv[1])\n"
        "from test_worker import Hired, Reset, seed, step\n"
        "one = Hired(); one.ask(Reset(seed(), 0, 'test')); one.ask(step(0))\n"
        "print(one.worker.pid, one.worker.config.snapshots, flush=True); time.sleep(600)"
    )
    command = [sys.executable, "-c", code, str(Path(__file__).parent)]
    started = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    pid, folder = started.stdout.readline().split()
    assert any(Path(folder).iterdir())
    started.kill()
    started.wait()
    deadline = time.monotonic() + PATIENCE_S
    while Path(f"/proc/{pid}").exists() or Path(folder).exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_what_a_dead_node_and_its_dead_worker_left_is_removed_by_the_next():
    left = Scratch()
    os.close(left._lock)
    kept = Scratch()
    assert not left.path.exists() and kept.path.exists()
    other = Scratch()
    assert kept.path.exists()
    kept.remove()
    other.remove()
    assert not kept.path.exists() and not other.path.exists()
