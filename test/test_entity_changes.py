"""Entities are changed: they move, follow paths, and the worker says what became of each change."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from bodies import BOX, PERIOD, at, changed, engine
from test_worker import seed, step

from mirage_ros.data.meshes import shape
from mirage_ros.data.seeds import level_camera_pose
from mirage_ros.geometry.rigid import Track
from mirage_ros.protocol import SECOND_NS, Delete, Move, Spawn
from mirage_ros.ros.worker import ChangeEntities, Fork, Load, Redate, Reset, Restore, Save, View
from mirage_ros.world.entities import Entities, EntityError, Motion


def test_motion_goes_on_between_changes_along_the_world_or_the_body():
    there = Entities().spawned("car", shape(BOX), at(1.0), 0)
    forward = np.array([1.0, 0, 0]), np.array([0, 0, np.pi / 2])
    body = there.moved("car", 0, motion=Motion(*forward, in_body=True)).known("car").state
    quarter = 2 / np.pi
    np.testing.assert_allclose(body.pose_at(SECOND_NS), at(1 + quarter, quarter, turn=np.pi / 2), atol=1e-9)
    np.testing.assert_allclose(body.twist_at(SECOND_NS)[0], [0, 1, 0], atol=1e-9)
    world = there.moved("car", 0, motion=Motion(*forward)).known("car").state
    np.testing.assert_allclose(world.pose_at(2 * SECOND_NS), at(3.0, turn=np.pi), atol=1e-9)
    np.testing.assert_array_equal(world.pose_at(-SECOND_NS), at(1.0))
    ending = there.moved("car", 0, motion=Motion(*forward, until_ns=SECOND_NS))
    later = ending.redated(SECOND_NS // 2, 100 * SECOND_NS).known("car").state
    np.testing.assert_allclose(later.pose_at(200 * SECOND_NS), at(2.0, turn=np.pi / 2), atol=1e-9)
    assert not np.any(later.twist_at(200 * SECOND_NS))
    np.testing.assert_array_equal(ending.at_start(0).known("car").state.pose_at(9 * SECOND_NS), at(1.0))


def on_path(stamps_s, xs, **more) -> Move:
    return Move("car", route=Track(tuple(round(s * SECOND_NS) for s in stamps_s), np.stack([at(x, **more) for x in xs])))


def test_a_body_goes_along_a_path_at_its_stamps_or_at_a_speed():
    found = engine()
    changed(found, Spawn("car", BOX, at(1.0)))
    now_ns = found._world.stamp_ns
    where = lambda after_s: found._world.entities.known("car").state.pose_at(now_ns + round(after_s * SECOND_NS))  # noqa: E731
    moving = lambda after_s: found._world.entities.known("car").state.twist_at(now_ns + round(after_s * SECOND_NS))  # noqa: E731
    then = [now_ns / SECOND_NS + after_s for after_s in (1, 2, 4)]
    assert changed(found, on_path(then, (2.0, 3.0, 3.0), y=1.0)) == ["car"]
    for after_s, pose in ((-1, at(1.0)), (0.5, at(1.5, 0.5)), (1, at(2.0, 1.0)), (1.75, at(2.75, 1.0)), (3, at(3.0, 1.0)), (9, at(3.0, 1.0))):
        np.testing.assert_allclose(where(after_s), pose, atol=1e-9)
    np.testing.assert_allclose([moving(after_s)[0] for after_s in (0.5, 1, 3, 9)], [[1, 1, 0], [1, 0, 0], [0, 0, 0], [0, 0, 0]], atol=1e-9)
    # One that has begun is where it says, at once; one without stamps begins where the body is.
    assert changed(found, on_path([then[0] - 2, then[1]], (0.0, 3.0))) == ["car"]
    np.testing.assert_allclose(where(0.5), at(1.5), atol=1e-9)
    changed(found, Move("car", at(0.0)))
    np.testing.assert_array_equal(where(5.0), at(0.0))
    slow = replace(on_path((0, 0, 0), (0.0, 1.0, 1.0)), speed_mps=0.5)
    slow.route.poses[2] = at(1.0, turn=np.pi / 2)
    assert changed(found, slow) == ["car"]
    for after_s, pose in ((1, at(0.5)), (2, at(1.0)), (2.25, at(1.0, turn=np.pi / 4)), (3, at(1.0, turn=np.pi / 2))):
        np.testing.assert_allclose(where(after_s), pose, atol=1e-8)


def test_a_path_that_cannot_be_followed_changes_nothing():
    found = engine()
    changed(found, Spawn("car", BOX, at(1.0)))
    before, now_s = found._world.entities, found._world.stamp_ns / SECOND_NS
    past, fast, nobody = changed(found, on_path((now_s - 2, now_s - 1), (1, 2)), on_path((now_s + 1e-4,), (9.0,)),
                                 replace(on_path((now_s + 1,), (1.0,)), name="nobody"))  # fmt: skip
    assert "send times to come" in str(past) and "at most 1000" in str(fast) and nobody.kind == "not_found"
    assert found._world.entities is before


def test_the_worker_says_what_became_of_each_change(tmp_path):
    found = engine()
    asked = Spawn("a", BOX, at(2)), Spawn("a", BOX, at(2)), Spawn("a", BOX, at(2), rename=True), Spawn("b", "", at(2))
    outcomes = changed(found, *asked, Spawn("", BOX, at(1), rename=True, namespace="/ns/", beside="a"), Delete("nobody"))
    assert outcomes[0] == "a" and outcomes[2] == "a_1" and outcomes[4] == "ns/box"
    assert [outcomes[i].kind for i in (1, 3, 5)] == ["name_not_unique", "no_resource", "not_found"]
    done = found.carry_out(ChangeEntities((Move("a", twist=(np.array([1.0, 0, 0]), np.zeros(3)), lasts_ns=PERIOD),)))
    assert [state.name for state in done.entities] == ["a", "a_1", "ns/box"]
    np.testing.assert_allclose(done.entities[2].pose, at(3.0, z=2.0))
    assert found.carry_out(step(1)).entities is not None  # the first frame dates the world, and its motions
    assert found.carry_out(step(2)).entities is None
    for command in (Fork("f"), ChangeEntities((Delete("a"),)), Restore("f"), Save(str(tmp_path / "w"))):
        found.carry_out(command)
    assert "a" in found._world.entities.bodies
    found.carry_out(Reset(seed(), None, "test", keep_entities=True))
    np.testing.assert_array_equal(found._world.entities.known("a").state.pose_at(10**12), at(2))
    found.carry_out(Redate())
    found.carry_out(Reset(seed(), None, "test"))
    assert not len(found._world.entities)
    found.carry_out(Load(str(tmp_path / "w")))
    assert len(found._world.entities) == 3


def test_entities_are_drawn_at_the_size_of_the_pictures():
    found = engine(views=(View((256, 320)),))
    pose = level_camera_pose()
    changed(found, Spawn("ball", "shape://sphere?radius=0.2", at(2.0, z=pose[2, 3])))
    frame = found.carry_out(step(1)).chunk.frames[0]
    assert frame.labels.shape == (256, 320)
    # Half the angle under which a ball of 0.2 m is seen whose middle is 2 m away. A picture of the model's size, four
    # times as coarse, would change in steps of 4 pixels.
    radius = frame.camera.intrinsics[0, 0] * np.tan(np.arcsin(0.2 / 2.0))
    rows = (frame.labels > 0).sum(1)
    assert abs(rows.sum() / (np.pi * radius**2) - 1) < 0.03 and (rows[rows > 0] % 4 != 0).any()


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ({"name": "a b"}, "name_invalid"),
        ({"name": "ü"}, "name_invalid"),
        ({"name": "x" * 300}, "name_invalid"),
        ({"name": ""}, "name_invalid"),
        ({"name": "taken"}, "name_not_unique"),
        ({"pose": at(np.nan)}, "pose"),
        ({"pose": at(1e8)}, "pose"),
        ({"pose": 2 * np.eye(4)}, "pose"),
        ({"beside": "nobody"}, "not_found"),
    ],
)
def test_bad_names_and_poses_are_refused(fields, kind):
    there = engine()
    changed(there, Spawn("taken", BOX, at(2)))
    uri = "shape://box" if fields.get("name") else BOX
    before = there._world.entities
    if fields == {"name": ""}:
        with pytest.raises(EntityError) as refused:
            before.spawned("", shape(uri), at(2), 0)
        outcome = refused.value
    else:
        (outcome,) = changed(there, Spawn(**{"name": "new", "uri": uri, "pose": at(2), **fields}))
    assert outcome.kind == kind and list(there._world.entities.bodies) == ["taken"]
