"""The worker's engine and journal, in one process: what a world is before its first frame, and
what a successor is told when no snapshot could be taken."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from fakes import PixelModel
from make_seed import write_seed
from test_worker import PERIOD, seed, step

from mirage_ros.data.seeds import Seed, level_camera_pose, load_seed
from mirage_ros.geometry.camera import Camera
from mirage_ros.geometry.images import SeedWarning
from mirage_ros.ros import NodeConfig
from mirage_ros.ros.cameras import worker_config
from mirage_ros.ros.worker import (
    MOST_BYTES,
    MOST_COMMANDS,
    Journal,
    Cloud,
    Done,
    Erase,
    Fork,
    Load,
    Observe,
    Planned,
    Prompt,
    Redate,
    Reset,
    Restore,
    Save,
    SeedName,
    Step,
    Unload,
    View,
    WorkerConfig,
)
from mirage_ros.ros.worker.engine import MOST_UNDATED, Engine

EVERYTHING = Erase((-100.0,) * 3, (100.0,) * 3)
LATE = 1_000 * PERIOD


def away() -> Step:
    """One frame, with its back to the seed."""
    pose = level_camera_pose()
    pose[:3, 0] *= -1
    pose[:3, 2] *= -1
    return Step(Planned((LATE,), pose[None]), cloud_period_s=1e9)


def engine_with_a_seed() -> Engine:
    engine = Engine(PixelModel(chunk_frames=1), WorkerConfig(period_ns=PERIOD))
    engine.carry_out(Reset(seed(), None, "test"))
    return engine


def births(engine: Engine) -> np.ndarray:
    return engine.carry_out(Cloud()).points.written_ns


def test_the_nodes_rule_for_moving_things_is_the_worlds():
    config = NodeConfig(forget_moving="all", max_dynamic_share=0.5)
    world = Engine(PixelModel(), worker_config(config, (), View()))._world
    assert (world.config.forget_moving, world.config.max_dynamic_share) == ("all", 0.5)


def test_what_was_erased_before_the_first_frame_stays_erased():
    engine = engine_with_a_seed()
    assert engine.carry_out(EVERYTHING).values["erased"] > 0
    engine.carry_out(away())
    assert (births(engine) >= LATE).all(), "the seed's tokens are back"


def test_what_was_restored_before_the_first_frame_stays():
    engine = engine_with_a_seed()
    engine.carry_out(Fork("whole"))
    engine.carry_out(EVERYTHING)
    engine.carry_out(Fork("empty"))
    engine.carry_out(Restore("whole"))
    engine.carry_out(Restore("empty"))
    engine.carry_out(away())
    assert (births(engine) >= LATE).all(), "the seed's tokens are back"


@pytest.mark.parametrize("times", [1, MOST_UNDATED + 1])
def test_what_was_observed_before_the_first_frame_stays(times):
    engine, real = engine_with_a_seed(), seed(1)
    near = np.full(real.rgb.shape[:2], 1.0, np.float32)
    observe = Observe(Seed("real", real.rgb, real.camera, near), LATE - 1)
    for _ in range(times):
        assert engine.carry_out(observe).values["stored"] > 0
    engine.carry_out(away())
    assert (births(engine) == LATE - 1).any(), "the observation is gone"


def test_a_live_camera_is_believed_twice_and_takes_its_share_of_the_time(monkeypatch):
    monkeypatch.setattr("mirage_ros.world.world.LIVE_SHARE", 1.0)
    config = NodeConfig(observe_live=True)
    engine, real = Engine(PixelModel(), worker_config(config, (), View())), seed(1)
    engine.carry_out(Reset(real, PERIOD, "test"))
    near = Seed("real", real.rgb, real.camera, np.full(real.rgb.shape[:2], 1.0, np.float32))
    looks = [engine.carry_out(Observe(near, LATE + i * 10**9)).values["stored"] for i in range(3)]
    assert looks[0] == 0 < looks[1] and looks[2] == 0
    monkeypatch.setattr("mirage_ros.world.world.LIVE_SHARE", 1e-9)
    far = Seed("real", real.rgb, real.camera, np.full(real.rgb.shape[:2], 1.5, np.float32))
    looks = [engine.carry_out(Observe(far, LATE + i * 10**9)).values["stored"] for i in range(4, 8)]
    assert looks == [0] * 4, "the first took all of the time that there is for long"


def looking(yaw: float, value: int, depth_m: float = 3.0) -> Seed:
    """A picture of a wall, from the seed's place."""
    real, turn = seed(value), np.array([[np.cos(yaw), -np.sin(yaw), 0], [np.sin(yaw), np.cos(yaw), 0], [0, 0, 1]])
    pose = real.camera.world_from_camera.copy()
    pose[:3, :3] = turn @ pose[:3, :3]
    camera = Camera(real.camera.intrinsics, pose, real.camera.size)
    return Seed("real", real.rgb, camera, np.full(real.rgb.shape[:2], depth_m, np.float32))


def test_what_a_live_camera_showed_is_repeated_whole(monkeypatch):
    """At the first frame, and by a successor: whatever time it takes, and though two pictures had to agree on some of it."""
    monkeypatch.setattr("mirage_ros.world.world.LIVE_SHARE", 1.0)
    config = WorkerConfig(period_ns=PERIOD, observe_live=True)
    engine, other = (Engine(PixelModel(chunk_frames=1), config) for _ in range(2))
    journal, changed = Journal(), 1
    journal.note(begin := Reset(looking(0.0, 0)), engine.carry_out(begin))
    turned, nearer = [looking(i * np.pi / 3, i) for i in range(1, 6)], [looking(0.0, 9, 1.0)] * 8
    for i, picture in enumerate([*turned, *nearer]):
        command, before = Observe(picture, LATE + i * PERIOD), engine._world.state
        journal.note(command, engine.carry_out(command))
        changed += engine._world.state is not before
    repeated, known = list(journal.replay()), engine.carry_out(Cloud()).points
    assert len(repeated) == changed == 1 + 5 + 1, "what changed nothing is not repeated"
    monkeypatch.setattr("mirage_ros.world.world.LIVE_SHARE", 1e-9)
    for command in repeated:
        other.carry_out(command)
    again = other.carry_out(Cloud()).points
    assert np.array_equal(again.xyz, known.xyz) and np.array_equal(again.rgb, known.rgb)
    for one in (engine, other):
        one.carry_out(Step(Planned((LATE,), begin.seed.camera.world_from_camera[None]), cloud_period_s=1e9))
        assert np.array_equal(one.carry_out(Cloud()).points.xyz, known.xyz)


@pytest.mark.parametrize("how", ["reset", "load", "unload"])
def test_what_a_live_camera_saw_of_another_world_is_not_believed(how, tmp_path, monkeypatch):
    monkeypatch.setattr("mirage_ros.world.world.LIVE_SHARE", 1.0)
    engine, begin = Engine(PixelModel(), WorkerConfig(observe_live=True)), Reset(looking(0.0, 0), 0)
    looks = [Observe(looking(0.0, 1, 1.0), LATE + i * 10**9) for i in range(3)]
    engine.carry_out(begin)
    engine.carry_out(Save(str(tmp_path / "world")))
    assert engine.carry_out(looks[0]).values["stored"] == 0
    for command in {"reset": [begin], "load": [Load(str(tmp_path / "world"))], "unload": [Unload(), begin]}[how]:
        engine.carry_out(command)
    assert engine.carry_out(looks[1]).values["stored"] == 0, "one picture of this world, and one of the last"
    assert engine.carry_out(looks[2]).values["stored"] > 0


def test_an_untouched_seed_dates_from_just_before_the_first_frame():
    engine = engine_with_a_seed()
    engine.carry_out(away())
    assert births(engine).min() == LATE - PERIOD


def elsewhere() -> np.ndarray:
    """A level camera that looks along the world's y."""
    pose = level_camera_pose()
    turn = np.array([[0, -1, 0], [1, 0, 0], [0, 0, 1]], np.float64)
    pose[:3, :3] = turn @ pose[:3, :3]
    pose[:3, 3] = 40.0, -7.0, 2.0
    return pose


@pytest.mark.parametrize("given_ns", [None, PERIOD])
@pytest.mark.parametrize("redated", [False, True])
def test_an_anchored_world_stands_where_the_first_frame_does(tmp_path, given_ns, redated):
    name, pose = SeedName(str(write_seed(tmp_path))), elsewhere()
    plain, engine = (
        Engine(PixelModel(chunk_frames=1), WorkerConfig(period_ns=PERIOD, anchored=how))
        for how in (False, True)
    )
    for each in (plain, engine):
        each.carry_out(Reset(name, given_ns, "test"))
        if redated:
            each.carry_out(Redate())
    seeds = load_seed(name.name).camera.world_from_camera
    expected = plain.carry_out(Step(Planned((LATE,), seeds[None]), cloud_period_s=0.0))
    done = engine.carry_out(Step(Planned((LATE,), pose[None]), cloud_period_s=1e9))
    np.testing.assert_array_equal(done.values["start"], pose)
    assert "start" not in expected.values
    assert np.array_equal(done.chunk.frames[0].rgb, expected.chunk.frames[0].rgb)
    assert done.chunk.observed_fraction > 0.9
    world_from_seed = pose @ np.linalg.inv(seeds)
    moved = expected.points.xyz @ world_from_seed[:3, :3].T + world_from_seed[:3, 3]
    order, other = (np.lexsort(points.round(2).T) for points in (done.points.xyz, moved))
    np.testing.assert_allclose(done.points.xyz[order], moved[other], atol=1e-2)
    again = engine.carry_out(Step(Planned((LATE + PERIOD,), seeds[None]), cloud_period_s=1e9))
    assert "start" not in again.values, "a world is put somewhere once"


def test_a_live_seed_stays_where_its_camera_was():
    engine = Engine(PixelModel(chunk_frames=1), WorkerConfig(period_ns=PERIOD, anchored=True))
    engine.carry_out(Reset(seed(), None, "test"))
    done = engine.carry_out(Step(Planned((LATE,), elsewhere()[None]), cloud_period_s=1e9))
    assert "start" not in done.values and done.chunk.observed_fraction < 0.1


def test_a_seed_that_loses_much_to_cropping_is_told_of_once(recwarn):
    engine = Engine(PixelModel(), WorkerConfig(period_ns=PERIOD))
    assert engine.carry_out(Reset(seed(0), None)).values["warnings"] == ()
    camera = Camera.from_hfov(60.0, (640, 480), level_camera_pose())
    portrait = Seed("portrait", np.zeros((640, 480, 3), np.uint8), camera)
    (told,) = engine.carry_out(Reset(portrait, None)).values["warnings"]
    assert "40% of the seed picture is cropped away" in told
    engine.carry_out(away())  # dates the seed anew
    assert not [one for one in recwarn if issubclass(one.category, SeedWarning)]


def noted(journal: Journal, *commands) -> None:
    for command in commands:
        journal.note(command, Done(command, None, 0.0, None, 0))


def test_without_snapshots_the_journal_keeps_what_the_world_began_with():
    journal, begin = Journal(), Reset(seed(), 0, "test")
    prompt = Prompt("rain")
    steps = [step(chunk) for chunk in range(2 * MOST_COMMANDS)]
    noted(journal, begin, prompt, *steps)
    told = list(journal.replay())
    assert told[0] is prompt and told[1] is begin
    assert len(told) == MOST_COMMANDS + 1 and told[-1] is steps[-1]
    taken = Done(steps[0], None, 0.0, None, 0, snapshot="/somewhere")
    journal.note(steps[0], taken)
    noted(journal, *steps)
    told = list(journal.replay())
    assert told[:2] == [prompt, Load("/somewhere")] and len(told) == MOST_COMMANDS + 2


def test_a_snapshot_that_fails_is_told_until_one_succeeds(tmp_path):
    folder = tmp_path / "scratch"
    folder.touch()
    engine = Engine(PixelModel(), WorkerConfig(snapshots=str(folder)))
    engine.carry_out(Reset(seed(), 0, "test"))
    done = engine.carry_out(step(0))
    assert done.snapshot is None and "cannot be written" in done.unsaved
    folder.unlink()
    done = engine.carry_out(Fork("one"))
    assert done.snapshot is not None and done.unsaved == ""


def test_observing_at_camera_rate_leaves_snapshots_their_twentieth_of_the_time(tmp_path):
    engine = Engine(PixelModel(), WorkerConfig(snapshots=str(tmp_path), period_ns=PERIOD))
    engine.carry_out(Reset(seed(), 0, "test"))
    engine.carry_out(step(0))
    remember_much(engine, 300_000)
    saved, save = [], engine._world.save

    def timed(path) -> None:
        start_s = time.monotonic()
        save(path)
        saved.append(time.monotonic() - start_s)

    engine._world.save = timed
    real = Seed("real", seed(1).rgb, seed(1).camera, np.full((64, 80), 2.0, np.float32))
    start_s = time.monotonic()
    while (elapsed_s := time.monotonic() - start_s) < 4.0:
        done = engine.carry_out(Observe(real, LATE + len(saved)))
        assert done.values["tokens"] > 250_000 and not done.unsaved
    assert saved and sum(saved) - max(saved) <= 0.05 * elapsed_s, (saved, elapsed_s)


def remember_much(engine: Engine, tokens: int) -> None:
    """A wall of so many tokens behind the camera."""
    away_from = away().planned.world_from_camera
    side, memory = round(tokens**0.5), engine._world.memory
    cells = Camera.from_hfov(90.0, (side, side), away_from)
    shape = (1, side, side)
    latents = torch.rand(1, memory.config.channels, side, side)
    depth, static = np.full(shape, 5.0, np.float32), np.ones(shape, bool)
    rgb, ids = np.zeros((*shape, 3), np.uint8), np.array([7])
    assert memory.write(latents, cells, depth, static, np.array([1]), rgb, ids) == side * side


def test_observations_are_repeated_as_long_as_their_pictures_are_not_too_much():
    journal, picture = Journal(), np.zeros((1000, 1000, 3), np.uint8)
    depth = np.ones((1000, 1000), np.float32)
    real = Seed("real", picture, Camera.from_hfov(60.0, (1000, 1000)), depth)
    begin, some = Reset(seed(), 0, "test"), step(0)
    observed = [Observe(real, stamp_ns) for stamp_ns in range(30)]
    noted(journal, begin, some, *observed)
    kept = list(journal.replay())
    count = MOST_BYTES // 7_000_000
    assert kept[:2] == [begin, some] and kept[2:] == observed[-count:]
    assert journal.dropped == 30 - count
    journal.note(some, Done(some, None, 0.0, None, 0, snapshot="/somewhere"))
    assert journal.dropped == 0 and list(journal.replay()) == [Load("/somewhere")]
