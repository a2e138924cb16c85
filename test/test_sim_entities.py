"""The cameras as entities: where they are, where they shall be, and what is refused."""

from __future__ import annotations

import math

import numpy as np
import pytest
from geometry_msgs.msg import Twist, Vector3
from plans import sideways
from sim_client import OK, PERIOD, START, entity_state, move
from simulation_interfaces import srv
from simulation_interfaces.msg import (
    Bounds,
    EntityFilters,
    EntityState,
    Result,
    TagsFilter,
)
from transforms3d.euler import euler2mat

from mirage_ros.ros.messages import pose_from_ros, stamp_from_ros, transform_from_ros

FAILED, UNSUPPORTED = Result.RESULT_OPERATION_FAILED, Result.RESULT_FEATURE_UNSUPPORTED


def test_the_camera_is_the_entity_and_stands_where_it_is_put(sim, folder):
    entities = sim.ask(srv.GetEntities, "get_entities")
    assert entities.result.result == OK and list(entities.entities) == ["camera"]
    start = sideways(folder, 1)[0]
    poses = sim.ask(srv.GetNamedPoses, "get_named_poses")
    assert poses.result.result == OK and [pose.name for pose in poses.poses] == ["start"]
    np.testing.assert_allclose(pose_from_ros(poses.poses[0].pose), start, atol=1e-6)
    for tag, count in (("start", 1), ("parking", 0)):
        tagged = sim.ask(srv.GetNamedPoses, "get_named_poses", tags=TagsFilter(tags=[tag]))
        assert tagged.result.result == OK and len(tagged.poses) == count
    there = start.copy()
    there[:3, 3] += [0.3, 0.0, 0.1]
    assert move(sim, there).result == OK
    assert sim.step(3).result == OK
    sim.spin(lambda: len(sim.rendered_poses()) >= 3)
    for transform in sim.rendered_poses():
        np.testing.assert_allclose(transform_from_ros(transform), there, atol=1e-6)
    state = entity_state(sim)
    assert state.result.result == OK and state.state.header.frame_id == "world"
    np.testing.assert_allclose(pose_from_ros(state.state.pose), there, atol=1e-6)


def asked(sim, filters):
    """The answer to a filter; the states' service says the same."""
    answer = sim.ask(srv.GetEntities, "get_entities", filters=filters)
    states = sim.ask(srv.GetEntitiesStates, "get_entities_states", filters=filters)
    assert states.result == answer.result and list(states.entities) == list(answer.entities)
    assert len(states.states) == len(states.entities)
    return answer


def bounds(kind: int, *points) -> EntityFilters:
    vectors = [Vector3(x=float(x), y=float(y), z=float(z)) for x, y, z in points]
    return EntityFilters(bounds=Bounds(type=kind, points=vectors))


@pytest.mark.parametrize(
    ("expression", "found"),
    [
        ("c.*ra", True),
        ("^cam(era|el)$", True),
        ("^[[:alpha:]]{6}$", True),
        ("^[^[:digit:][:space:]]+$", True),
        ("[[:upper:]]", False),
        ("robot", False),
    ],
)
def test_entities_are_filtered_by_their_names(sim, expression, found):
    answer = asked(sim, EntityFilters(filter=expression))
    assert answer.result.result == OK and list(answer.entities) == ["camera"] * found


def test_entities_are_filtered_by_where_they_are(sim, folder):
    start = sideways(folder, 1)[0]
    start[:3, 3] = [1.0, -2.0, 3.0]
    assert move(sim, start).result == OK
    sphere, box = Bounds.TYPE_SPHERE, Bounds.TYPE_BOX
    cases = [
        (bounds(sphere, (1, -2, 3.4), (0.5, 0, 0)), True),
        (bounds(sphere, (1, -2, 3.4), (0.3, 9, 9)), False),
        (bounds(box, (0.5, -2.5, 2.5), (1.5, -1.5, 3.5)), True),
        (bounds(box, (1.5, -1.5, 3.5), (0.5, -2.5, 2.5)), True),
        (bounds(box, (1.1, -2.5, 2.5), (1.5, -1.5, 3.5)), False),
        (bounds(Bounds.TYPE_EMPTY), True),
    ]
    for filters, found in cases:
        answer = asked(sim, filters)
        assert answer.result.result == OK, answer.result.error_message
        assert list(answer.entities) == ["camera"] * found, filters
    nobody = asked(sim, EntityFilters(filter="robot", bounds=cases[0][0].bounds))
    assert nobody.result.result == OK and not nobody.entities


@pytest.mark.parametrize(
    ("filters", "code", "words"),
    [
        (bounds(Bounds.TYPE_CONVEX_HULL, *np.eye(3)), UNSUPPORTED, "a sphere or a box"),
        (bounds(9, *np.eye(3)), UNSUPPORTED, "a sphere or a box"),
        (bounds(Bounds.TYPE_SPHERE, (0, 0, 0)), FAILED, "1 points"),
        (bounds(Bounds.TYPE_SPHERE, (0, 0, 0), (-1, 0, 0)), FAILED, "radius"),
        (bounds(Bounds.TYPE_BOX, (0, 0, 0), (math.nan, 1, 1)), FAILED, "finite"),
        (EntityFilters(filter="nobody", bounds=Bounds(type=Bounds.TYPE_BOX)), FAILED, "0 points"),
        (EntityFilters(filter="("), FAILED, "regular expression"),
        (EntityFilters(filter="[[:colour:]]"), FAILED, "regular expression"),
    ],
)
def test_filters_that_are_not_offered_or_make_no_sense_are_refused(sim, filters, code, words):
    refused = asked(sim, filters).result
    assert refused.result == code and words in refused.error_message


def test_a_state_tells_how_the_camera_moves_and_a_camera_that_was_put_stands(sim, folder):
    poses = sideways(folder, 4)
    turn = np.eye(4)
    turn[:3, :3] = euler2mat(0.0, 0.0, 0.05)
    for index, pose in enumerate(poses):
        pose[:3, :3] = np.linalg.matrix_power(turn, index)[:3, :3] @ pose[:3, :3]
    sim.send_tf([START + PERIOD * (1 + index) for index in range(4)], poses)
    sim.spin(lambda: move(sim, poses[0]).result != OK, patience_s=10)
    assert sim.step(4).result == OK
    state = entity_state(sim).state
    assert stamp_from_ros(state.header.stamp) == START + 4 * PERIOD
    np.testing.assert_allclose(pose_from_ros(state.pose), poses[-1], atol=1e-6)
    linear, angular = ([v.x, v.y, v.z] for v in (state.twist.linear, state.twist.angular))
    np.testing.assert_allclose(linear, (poses[3] - poses[2])[:3, 3] / 0.1, atol=1e-5)
    np.testing.assert_allclose(angular, [0, 0, 0.5], atol=1e-5)
    assert move(sim, poses[0], set_twist=True, set_acceleration=True).result == OK
    assert entity_state(sim).state.twist == Twist()
    assert sim.step().result == OK and entity_state(sim).state.twist == Twist()


def test_wrong_questions_about_entities_are_refused(sim, folder):
    start = sideways(folder, 1)[0]
    assert entity_state(sim, "robot").result.result == Result.RESULT_NOT_FOUND
    assert move(sim, start, "robot").result == Result.RESULT_NOT_FOUND
    spun = EntityState()
    spun.twist.angular.z = spun.acceleration.linear.x = 0.1
    for flag in ("set_twist", "set_acceleration"):
        refused = move(sim, sideways(folder, 9)[-1], state=spun, **{flag: True})
        assert refused.result == FAILED and "plan poses" in refused.error_message
    np.testing.assert_allclose(pose_from_ros(entity_state(sim).state.pose), start, atol=1e-6)
    assert move(sim, start, frame="nowhere").result == Result.RESULT_NOT_FOUND
    request = srv.SetEntityState.Request(entity="camera", set_pose=True)
    request.state.pose.orientation.w = math.nan
    fields = {"entity": "camera", "set_pose": True, "state": request.state}
    refused = sim.ask(srv.SetEntityState, "set_entity_state", **fields).result
    assert refused.result == srv.SetEntityState.Response.INVALID_POSE and refused.error_message
    sim.ask(srv.UnloadWorld, "unload_world")
    assert entity_state(sim).result.result == Result.RESULT_INCORRECT_STATE
    assert move(sim, start).result == Result.RESULT_INCORRECT_STATE
    assert asked(sim, EntityFilters()).result.result == Result.RESULT_INCORRECT_STATE
    poses = sim.ask(srv.GetNamedPoses, "get_named_poses")
    assert poses.result.result == Result.RESULT_INCORRECT_STATE


def test_the_camera_cannot_be_moved_against_its_plan(sim, folder):
    poses = sideways(folder, 4)
    sim.send_tf([START + PERIOD * (1 + index) for index in range(4)], poses)
    sim.spin(lambda: move(sim, poses[0]).result == Result.RESULT_OPERATION_FAILED, patience_s=10)
    assert "plan" in move(sim, poses[0]).error_message
    assert sim.step(4).result == OK
