"""What stops a robot and what it touches: obstacles, contacts, and with whom."""

from __future__ import annotations

import numpy as np
import pytest
from analytic import look
from bodies import BOX, PERIOD, at
from physics_worlds import EYE, SIZE, engine, seen, step, world_of

from mirage_ros.geometry.camera import Camera
from mirage_ros.loop import BasePose, Command, Footprint, LiveBase, LiveBaseConfig, Obstacles
from mirage_ros.protocol import SECOND_NS, Delete, Spawn
from mirage_ros.recording.topics import BY_NAME, CONTACTS, OBSTACLES, SURFACE_POINT, FrameIds
from mirage_ros.ros.worker import ChangeEntities
from mirage_ros.world.collision import obstacles, touched, unyielding
from mirage_ros.world.entities import RobotBody


def test_a_base_stops_at_a_wall_turns_there_and_goes_back():
    world, body = world_of(physics=False), RobotBody()
    state = world.state
    found = obstacles(state.memory, state.free_space, state.entities, 0, EYE + [3, 0, 0], body)
    assert len(found.points_m) > 100 and not found.labels.any()
    for kind, speed in (("diff", 0.5), ("omni", 2.0)):
        base = LiveBase(at(1.0, 0, 0), LiveBaseConfig(kind, max_speed_mps=2.0, timeout_s=60.0))
        base.obstacles = Obstacles(found.points_m, Footprint(0.2, 0.1, 1.15))
        base.advance(SECOND_NS)
        base.command(np.array([speed, 0, 0, 0, 0, 0]), SECOND_NS)
        base.advance(9 * SECOND_NS)
        assert 3.0 - 0.2 - base.odom_from_base[0, 3] == pytest.approx(0.0, abs=0.05), "the wall is at x = 3"
        assert np.linalg.norm(base.twist[:3]) < 0.03
        stopped = base.odom_from_base[0, 3]
        base.command(np.array([speed, 0, 0, 0, 0, 1.0]), 9 * SECOND_NS)
        base.advance(9 * SECOND_NS + SECOND_NS // 2)
        assert base.odom_from_base[1, 0] > 0.2, "turns"
        base.command(np.array([-speed, 0, 0, 0, 0, 0]), 10 * SECOND_NS)
        base.advance(11 * SECOND_NS)
        assert base.odom_from_base[0, 3] < stopped - 0.2
    walls = Obstacles(found.points_m, Footprint(0.2, 0.1, 1.15))
    poses = list(BasePose(1.0).stopped(Command(0.8), 1.0, 4, walls))
    assert 3.0 - 0.2 - poses[-1].x_m == pytest.approx(0.0, abs=0.05) and poses[0].x_m == pytest.approx(1.8)


def test_what_was_imagined_stops_a_base_once_it_was_shown():
    world, behind = world_of(physics=False), look(EYE, (-3, 0, 1.1))
    place = EYE + [-0.2, 0, 0]

    def found() -> np.ndarray:
        state = world.state
        points = obstacles(state.memory, state.free_space, state.entities, 0, place, RobotBody()).points_m
        return points[points[:, 0] < -4.5]

    assert not len(found())
    world.step(Camera(seen()[1].intrinsics, behind[None], SIZE), np.array([PERIOD]))
    assert len(found()) > 20 and np.median(found()[:, 0]) == pytest.approx(-5.0, abs=0.1), "imagined 3 m away"


def test_contacts_and_obstacles_are_told_with_whom():
    found = engine(physics="contact")
    found.carry_out(ChangeEntities((Spawn("box", BOX, at(1.0, 0.0, 0.2)), Spawn("far", BOX, at(0.6, 3.5, 0.2)))))
    done = found.carry_out(step(0, (CONTACTS, OBSTACLES), 2.6))
    last = done.chunk.frames[-1]
    assert all(frame.contacts is not None for frame in done.chunk.frames)
    assert [frame.obstacles is None for frame in done.chunk.frames] == [True] * 3 + [False]
    assert set(last.contacts.labels) == {1} and set(last.obstacles.labels) == {0, 1} and not last.contacts.bodies.any()
    assert np.abs(last.contacts.points_m[:, 0] - 0.8).max() < 0.02 and (last.contacts.normals[:, 0] < -0.9).any()
    for name in (CONTACTS, OBSTACLES):
        fields = BY_NAME[name].fields(last, FrameIds())
        assert fields["header"]["frame_id"] == "world"
        assert [(f["name"], f["offset"], f["datatype"]) for f in fields["fields"]][-2:] == [("body", 24, 5), ("label", 28, 5)]
        points = np.frombuffer(fields["data"], SURFACE_POINT)
        assert np.array_equal(points["label"], getattr(last, name).labels) and np.array_equal(points["z"], getattr(last, name).points_m[:, 2])
    assert found.carry_out(step(1)).chunk.frames[-1].contacts is None, "nobody asks"
    off = engine()
    assert off.carry_out(step(0, (CONTACTS, OBSTACLES))).chunk.frames[-1].obstacles is None


@pytest.mark.parametrize(("ball", "touches"), [((0.91, 0.0, 0.2), True), ((0.93, 0.0, 0.2), False), ((0.9, 0.0, 1.0), False)])
def test_contacts_name_the_two_entities_that_touch(ball, touches):
    """A box up to x = 0.7 whose top is at 0.4, one that lies on it, and a ball of 0.2 m beside it or apart."""
    found = engine(physics="contact")
    low, upper = Spawn("low", BOX, at(0.5, 0.0, 0.2)), Spawn("upper", BOX, at(0.4, 0.1, 0.6))
    found.carry_out(ChangeEntities((low, upper, Spawn("ball", "shape://sphere?radius=0.2", at(*ball)))))
    contacts = found.carry_out(step(0, (CONTACTS,), 0.0)).chunk.frames[-1].contacts
    pairs = {pair: contacts.of((contacts.bodies == pair[0]) & (contacts.labels == pair[1])) for pair in {*zip(contacts.bodies.tolist(), contacts.labels.tolist(), strict=True)}}
    assert pairs.keys() == {(2, 1)} | ({(3, 1)} if touches else set())
    lying = pairs[2, 1]
    np.testing.assert_allclose(lying.points_m[:, 2], 0.4, atol=0.021)
    assert (np.abs(lying.normals) > 0.99).any(1).all() and (lying.normals[:, 2] > 0.99).sum() >= 9, "from the lower to the upper one"
    assert lying.points_m[:, :2].min(0) == pytest.approx([0.3, -0.1], abs=0.021)
    assert lying.points_m[:, :2].max(0) == pytest.approx([0.6, 0.2], abs=0.021)
    if touches:
        beside = pairs[3, 1]
        np.testing.assert_allclose(beside.points_m, [[0.7, 0.0, 0.2]] * len(beside.points_m), atol=0.09)
        assert (beside.normals[:, 0] > 0.8).all()


def test_entities_that_lie_on_each_other_touch_as_long_as_they_do():
    found = engine(physics="mujoco")
    found.carry_out(ChangeEntities((Spawn("low", BOX, at(0.6, 0.0, 0.21)), Spawn("upper", BOX, at(0.6, 0.0, 0.8)))))
    pairs = []
    for index in range(4):
        for frame in found.carry_out(step(index, (CONTACTS,), 0.0)).chunk.frames:
            pairs.append({*zip(frame.contacts.bodies.tolist(), frame.contacts.labels.tolist(), strict=True)})
    assert pairs[0] == set() and pairs[-1] == {(2, 1)}, "0.19 m to fall take 0.2 s"
    found.carry_out(ChangeEntities((Delete("low"),)))
    assert not len(found.carry_out(step(4, (CONTACTS,), 0.0)).chunk.frames[-1].contacts.bodies)


def test_a_pushed_body_does_not_stop_the_robot_and_a_wedged_one_does():
    found, place = engine(physics="mujoco"), EYE + [2.6, 0, 0]
    found.carry_out(ChangeEntities((Spawn("box", BOX, at(1.02, 0.0, 0.21)),)))
    last = found.carry_out(step(0, (OBSTACLES, CONTACTS), 2.6)).chunk.frames[-1]
    assert set(last.obstacles.labels) == {0}
    world = found._world
    for x, stops in ((1.0, False), (0.9, True)):
        there = world.entities.moved("box", world.stamp_ns, at(x, 0.0, 0.21))
        near = obstacles(world.memory, world.state.free_space, there, world.stamp_ns, place, RobotBody())
        assert 1 in touched(near, place, RobotBody()).labels
        assert (1 in unyielding(near, there, place, RobotBody()).labels) == stops
