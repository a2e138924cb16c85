"""Bodies in a world: what entities fall and rest on, what pushes them; and who asks for what is not there."""

from __future__ import annotations

import importlib.util
import os
import signal
from dataclasses import replace

import numpy as np
import pytest
from bodies import BOX, PERIOD, at, spawn
from fakes import PixelModel
from geometry_msgs.msg import PoseStamped
from physics_worlds import SIZE, WALLS, engine, seen, step, world_of
from sensor_msgs.msg import PointCloud2
from sim_client import LOCKSTEP, OK, entity_state, simulated, worker_pid
from simulation_interfaces import srv
from simulation_interfaces.msg import Resource

from mirage_ros.data.meshes import Spawnables, load, shape
from mirage_ros.errors import MirageError
from mirage_ros.geometry.camera import Camera
from mirage_ros.geometry.rigid import Track
from mirage_ros.physics import Mujoco
from mirage_ros.protocol import SECOND_NS, Move, Spawn
from mirage_ros.recording.topics import CONTACTS, OBSTACLES, SURFACE_POINT
from mirage_ros.ros import NodeConfig, parameters
from mirage_ros.ros.messages import pose_from_ros, pose_to_ros
from mirage_ros.ros.worker import ChangeEntities
from mirage_ros.world.entities import Motion, RobotBody
from mirage_ros.world.world import World


def wait(world: World, seconds: float, period_ns: int = PERIOD) -> list:
    """Frames of a camera that stands still for so long."""
    camera = seen()[1]
    count = round(seconds * SECOND_NS / period_ns)
    poses = Camera(camera.intrinsics, np.repeat(camera.world_from_camera[None], count, 0), SIZE)
    stamps = world.stamp_ns + period_ns * np.arange(1, count + 1)
    return [frame for chunk in world.rollout(poses, stamps) for frame in chunk.frames]


def pose_of(world: World, name: str = "box") -> np.ndarray:
    return world.entities.known(name).state.pose_at(world.stamp_ns)


def test_a_box_falls_rests_on_the_floor_and_stays():
    world = world_of()
    spawn(world, "box", at(0.5, 0.3, 1.2))
    frames = wait(world, 0.4)
    state = world.entities.known("box").state
    for index, frame in enumerate(frames, 1):
        fallen_m = 9.80665 * (0.1 * index) ** 2 / 2
        assert state.pose_at(frame.stamp_ns)[2, 3] == pytest.approx(1.2 - fallen_m, abs=0.02), "drawn where it fell"
        assert (frame.labels == 1).any()
    assert state.twist_at(world.stamp_ns)[0][2] == pytest.approx(-3.9, abs=0.1)
    wait(world, 2.0)
    rested = pose_of(world)
    assert rested[2, 3] - 0.2 == pytest.approx(0.0, abs=0.03) and rested[2, 2] > 0.999
    wait(world, 2.0)
    np.testing.assert_array_equal(pose_of(world), rested)
    assert world.entities.known("box").state.resting and not world.entities.known("box").state.twist_at(0)[0].any()


def test_bodies_rest_on_each_other_and_fall_when_the_lower_one_is_taken():
    world = world_of()
    for name, height in (("low", 0.22), ("high", 0.65)):
        spawn(world, name, at(0.5, 0.3, height))
    wait(world, 2.0)
    assert pose_of(world, "high")[2, 3] == pytest.approx(0.6, abs=0.03)
    world.change_entities(lambda there, stamp_ns: there.without("low"))
    wait(world, 1.2)
    assert pose_of(world, "high")[2, 3] == pytest.approx(0.2, abs=0.03)


def test_a_body_that_fell_when_it_was_saved_falls_on_or_stands_where_there_are_no_physics(tmp_path):
    world = world_of()
    spawn(world, "box", at(0.5, 0.3, 1.6))
    wait(world, 0.3)
    fell = pose_of(world)
    assert 1.0 < fell[2, 3] < 1.3
    world.save(tmp_path / "world")
    plain = World(PixelModel(SIZE))
    plain.load(tmp_path / "world")
    wait(plain, 2.0)
    np.testing.assert_allclose(pose_of(plain), fell, atol=1e-9)
    plain.save(tmp_path / "again")
    other = World(PixelModel(SIZE), physics=Mujoco())
    other.load(tmp_path / "world")
    wait(other, 3.0)
    assert pose_of(other)[2, 3] == pytest.approx(0.2, abs=0.03)
    driven = World(PixelModel(SIZE))
    driven.load(tmp_path / "again")
    driven.change_entities(lambda known, now_ns: known.moved("box", now_ns, motion=Motion(np.array([1.0, 0, 0]), np.zeros(3))))
    wait(driven, 1.0)
    assert pose_of(driven)[0, 3] == pytest.approx(1.5, abs=0.15), "who is told to move moves"


def test_a_ball_rolls_hits_the_wall_and_comes_to_rest():
    world = world_of()
    spawn(world, "ball", at(0.5, 0.0, 0.16), "shape://sphere?radius=0.15", motion=Motion(np.array([1.5, 0, 0]), np.zeros(3)))
    wait(world, 1.0)
    rolling = world.entities.known("ball").state
    assert pose_of(world, "ball")[0, 3] > 1.3 and rolling.twist_at(world.stamp_ns)[1][1] > 2
    farthest = max(pose_of(world, "ball")[0, 3] for _ in range(10) if wait(world, 0.4))
    assert farthest < 3.0 - 0.15 + 0.05, "the wall is at x = 3"


def test_what_was_carved_holds_nothing_and_static_bodies_stay():
    """A table that a real picture no longer shows: what stood on it falls. The category says what never does."""
    table = [*WALLS, replace(WALLS[0], corner=(0.0, -0.6, 0.7), a=(1.2, 0, 0), b=(0, 1.2, 0)),
             replace(WALLS[0], corner=(0.0, -0.6, 0.0), a=(0, 1.2, 0), b=(0, 0, 0.7))]  # fmt: skip
    world = world_of(table)
    spawn(world, "box", at(0.5, 0.0, 0.95))
    spawn(world, "shelf", at(0.5, 1.5, 1.4), category=5)
    wait(world, 2.0)
    assert pose_of(world)[2, 3] == pytest.approx(0.9, abs=0.04)
    world.observe(*seen(), stamp_ns=world.stamp_ns)
    wait(world, 2.0)
    assert pose_of(world)[2, 3] == pytest.approx(0.2, abs=0.04)
    np.testing.assert_array_equal(pose_of(world, "shelf"), at(0.5, 1.5, 1.4))


def test_where_nobody_saw_a_floor_it_goes_on_as_told():
    for floor_m in (0.0, -0.5):
        world = world_of(floor_m=floor_m)
        for name, x in (("unseen", -2.6), ("seen", 1.0)):
            spawn(world, name, at(x, 0.0, 0.5))
        wait(world, 2.0)
        assert pose_of(world, "unseen")[2, 3] == pytest.approx(floor_m + 0.2, abs=0.02)
        assert pose_of(world, "seen")[2, 3] == pytest.approx(0.2, abs=0.03)


def driven(world: World, metres: float, steps: int = 20) -> None:
    """The robot's camera goes along x."""
    camera = seen()[1]
    poses = np.repeat(camera.world_from_camera[None], steps, 0)
    poses[:, 0, 3] += np.linspace(0, metres, steps + 1)[1:]
    stamps = world.stamp_ns + PERIOD * np.arange(1, steps + 1)
    for _ in world.rollout(Camera(camera.intrinsics, poses, SIZE), stamps):
        pass


def test_a_robot_pushes_a_box_and_one_without_a_body_does_not():
    for radius_m, moved_m in ((0.2, 0.6), (0.0, 0.0)):
        world = world_of(radius_m=radius_m)
        spawn(world, "box", at(0.2, 0.0, 0.21))
        wait(world, 0.8)
        driven(world, 2.4, steps=40)
        # Its front is at -2 + 2.4 + 0.2 then, where the box's back began at 0.
        assert pose_of(world)[0, 3] - 0.2 == pytest.approx(moved_m, abs=0.06)
        assert pose_of(world)[2, 3] == pytest.approx(0.2, abs=0.03)


def test_a_robot_pushes_a_box_that_stands_askew():
    """Its middle comes into the box's box along the world's axes, never into the box."""
    world = world_of()
    turned = at(0.2, 0.0, 0.21)
    turned[:2, :2] = np.array([[1, -1], [1, 1]]) / np.sqrt(2)
    world.change_entities(lambda there, stamp_ns: there.spawned("box", shape(BOX), turned, stamp_ns))
    camera, steps = seen()[1], 40
    poses = np.repeat(camera.world_from_camera[None], steps, 0)
    # Along a diagonal, at right angles to a side.
    poses[:, :2, 3] = np.array([0.2, 0.0]) - (1.2 - np.linspace(0, 1.2, steps))[:, None] / np.sqrt(2)
    for _ in world.rollout(Camera(camera.intrinsics, poses, SIZE), 10 * SECOND_NS + PERIOD * np.arange(1, steps + 1)):
        pass
    moved = pose_of(world)[:2, 3] - [0.2, 0.0]
    assert np.linalg.norm(moved) == pytest.approx(0.4, abs=0.06) and moved.min() > 0.2


def test_a_driven_body_stops_at_what_stands_there():
    world = world_of()
    spawn(world, "car", at(0.0, 0.0, 0.21))
    spawn(world, "post", at(1.2, 0.0, 0.21), category=5)
    forward = Motion(np.array([0.5, 0, 0]), np.zeros(3), True, until_ns=world.stamp_ns + 4 * SECOND_NS)
    world.change_entities(lambda there, stamp_ns: there.moved("car", stamp_ns, motion=forward))
    wait(world, 1.2)
    assert pose_of(world, "car")[0, 3] == pytest.approx(0.6, abs=0.05)
    wait(world, 3.2)
    assert pose_of(world, "car")[0, 3] == pytest.approx(0.8, abs=0.05)
    wait(world, 0.8)
    assert world.entities.known("car").state.resting


def test_a_body_on_a_path_goes_where_it_says_pushes_and_falls_when_it_is_over():
    world = world_of()
    spawn(world, "cart", at(0.0, 0.0, 0.3))
    spawn(world, "box", at(0.7, 0.0, 0.21))
    wait(world, 1.0)
    assert world.entities.known("box").state.resting
    begins_ns, ahead = world.stamp_ns, np.stack([at(0.0, 0.0, 0.22), at(1.0, 0.0, 0.22)])
    world.change_entities(lambda there, now_ns: there.led("cart", now_ns, Track((now_ns, now_ns + 2 * SECOND_NS), ahead)))
    wait(world, 1.0)
    np.testing.assert_allclose(pose_of(world, "cart"), at(0.5, 0.0, 0.22), atol=1e-9)
    wait(world, 1.2)
    assert pose_of(world)[0, 3] == pytest.approx(1.4, abs=0.03), "it was pushed before it"
    assert pose_of(world, "cart")[0, 3] == pytest.approx(1.0, abs=0.01) and world.stamp_ns > begins_ns + 2 * SECOND_NS
    up = np.stack([at(1.0, 0.0, 0.2), at(1.0, 0.0, 1.0)])
    world.change_entities(lambda there, now_ns: there.led("cart", now_ns, Track((now_ns, now_ns + SECOND_NS), up)))
    wait(world, 0.8)
    np.testing.assert_allclose(pose_of(world, "cart"), at(1.0, 0.0, 0.84), atol=1e-9)
    wait(world, 2.0)
    assert pose_of(world, "cart")[2, 3] == pytest.approx(0.2, abs=0.03), "nothing holds it"


def test_shipped_models_and_flat_ones_stand():
    world = world_of()
    for index, name in enumerate(("chair", "mannequin", "robot")):
        mesh = load(f"package://mirage_ros/config/spawnables/{name}.glb", Spawnables())[1]
        pose = at(0.5, index - 1.0, 0.03)
        world.change_entities(lambda there, stamp_ns, n=name, m=mesh, p=pose: there.spawned(n, m, p, stamp_ns))
    spawn(world, "sheet", at(-0.4, 0.0, 0.1), "shape://plane?size=0.3,0.3")
    wait(world, 2.0)
    for state in world.entities.states:
        pose = state.pose_at(world.stamp_ns)
        assert pose[2, 2] > 0.99 and abs(pose[2, 3]) < 0.03, state.name


def test_a_gap_in_time_is_stepped_in_part_and_jumps_push_nothing():
    world = world_of()
    spawn(world, "box", at(0.2, 0.0, 0.6))
    wait(world, 3600.0, 3600 * SECOND_NS)
    assert pose_of(world)[2, 3] == pytest.approx(0.2, abs=0.03)
    rested = pose_of(world)
    driven(world, 2.4, steps=1)
    np.testing.assert_allclose(pose_of(world), rested, atol=1e-6)


def test_a_worker_that_repeats_what_was_done_has_the_bodies_where_they_were(tmp_path):
    """Killed while bodies fall: the journal's commands, and a snapshot in the middle of the fall with those after it."""
    first = ChangeEntities((Spawn("box", BOX, at(0.5, 0.3, 1.4)), Spawn("can", "shape://cylinder?radius=0.1&length=0.3", at(0.5, 0.9, 1.0))))
    push = ChangeEntities((Move("box", twist=(np.array([0.3, 0, 0]), np.array([0, 0, 1.0]))),))
    before, after = engine(physics="mujoco"), engine(physics="mujoco")
    for command in (first, step(0)):
        before.carry_out(command)
    before._world.save(tmp_path / "falling")
    assert np.linalg.norm(before._world.entities.known("box").state.twist_at(4 * PERIOD)[0]) > 2
    for found in (before, after):
        for command in ((first, step(0)) if found is after else ()):
            found.carry_out(command)
    restored = World(PixelModel(SIZE), physics=Mujoco())
    restored.load(tmp_path / "falling")
    for command in (push, *(step(k) for k in range(1, 5))):
        for found in (before, after):
            found.carry_out(command)
    for name in ("box", "can"):
        one, other = (e._world.entities.known(name).state for e in (before, after))
        np.testing.assert_array_equal(one.pose_at(20 * PERIOD), other.pose_at(20 * PERIOD))
    camera, at_rest = seen()[1], before._world.entities.known("can").state.pose_at(20 * PERIOD)
    for k in range(1, 5):
        poses = np.repeat(camera.world_from_camera[None], 4, 0)
        restored.step(Camera(camera.intrinsics, poses, SIZE), PERIOD * (4 * k + np.arange(1, 5)))
    np.testing.assert_allclose(pose_of(restored, "can"), at_rest, atol=1e-6)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"physics": "jelly"}, "physics is 'jelly'; set one of off, contact, mujoco"),
        ({"robot_radius_m": float("nan")}, "robot_radius_m is nan"),
    ],
)
def test_bad_parameters_are_refused_in_a_sentence(values, words):
    with pytest.raises(MirageError, match=words):
        parameters.check(replace(NodeConfig(), **values))
    with pytest.raises(MirageError, match="A robot got a radius of 9 m"):
        RobotBody(9.0)


def test_without_mujoco_it_says_what_to_install(monkeypatch):
    there = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "mujoco" else there(name))
    for ask in (Mujoco, lambda: parameters.check(replace(NodeConfig(), physics="mujoco"))):
        with pytest.raises(MirageError, match=r"pip install 'mirage_ros\[physics\]'"):
            ask()
    parameters.check(replace(NodeConfig(), physics="contact"))


def test_bodies_stand_where_they_should_in_a_rendered_room():
    """One room of the bench, with a model that needs no weights; `mirage bench physics` judges the shipped one in ten."""
    from mirage_ros.apps.bench_physics import BODY, Timed, begin, judge_drop, judge_stop

    physics, model = Timed(Mujoco(BODY)), PixelModel(SIZE)
    place = begin(model, 2_000_100, "room")
    stop = judge_stop(World(model), place, 0)
    assert -0.05 < stop.gap_m < 0.1 and not stop.passed and stop.driven_m > 0.5
    drop = judge_drop(World(model, physics=physics), physics, place, 0)
    assert abs(drop.off_m) < 0.03 and drop.moved_m < 0.005 and drop.tilt_deg < 2


@pytest.fixture(scope="module")
def falling(tmp_path_factory, folder):
    """A client of a node in lockstep whose bodies fall."""
    arguments = ("-p", f"seed:={folder}", "-p", "physics:=mujoco")
    yield from simulated(tmp_path_factory.mktemp("log"), *LOCKSTEP, *arguments)


def test_a_killed_worker_has_the_falling_bodies_where_they_were(falling):
    """Over DDS: a box falls, the services say where it is, the robot's contacts are told; once more, with a kill in mid-air."""
    sim, clouds = falling, {CONTACTS: [], OBSTACLES: []}
    info = sim.ask(srv.GetSimulatorFeatures, "get_simulator_features").features.custom_info
    assert "physics mujoco" in info
    for name, got in clouds.items():
        sim.node.create_subscription(PointCloud2, name, got.append, 20)
        sim.spin(lambda topic=name: sim.node.count_publishers(topic) == 1)
    sim.spin_for(0.5)
    ahead = np.array([2.5, 5.5]) / np.hypot(2.5, 5.5)
    for name, metres, height in (("box", 3.0, 1.2), ("near", 0.452, 0.21)):
        initial = PoseStamped(pose=pose_to_ros(at(*(np.array([-1.5, -2.5]) + metres * ahead), height)))
        assert sim.ask(srv.SpawnEntity, "spawn_entity", name=name, entity_resource=Resource(uri=BOX), initial_pose=initial).result.result == OK
    ends = []
    for kill in (False, True):
        assert sim.step(3).result == OK
        state = entity_state(sim, "box").state
        assert state.pose.position.z == pytest.approx(1.2 - 9.80665 * 0.3**2 / 2, abs=0.02)
        assert state.twist.linear.z == pytest.approx(-2.9, abs=0.1)
        if kill:
            os.kill(worker_pid(sim), signal.SIGKILL)
            sim.process.wait_for("is back after")
            assert entity_state(sim, "box").state == state
        assert sim.step(20).result == OK
        ends.append([pose_from_ros(entity_state(sim, name).state.pose) for name in ("box", "near")])
        assert ends[-1][0][2, 3] == pytest.approx(0.2, abs=0.04)
        if not kill:
            assert sim.ask(srv.ResetSimulation, "reset_simulation", scope=srv.ResetSimulation.Request.SCOPE_STATE | 1).result.result == OK
    np.testing.assert_array_equal(*ends)
    sim.spin(lambda: all(clouds.values()))
    touching = [np.frombuffer(cloud.data, SURFACE_POINT) for cloud in clouds[CONTACTS]]
    assert {int(label) for points in touching for label in points["label"]} == {2}
    assert clouds[OBSTACLES][-1].header.frame_id == "world"
