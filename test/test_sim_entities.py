"""The cameras as entities: where they are, where they shall be, and what is refused."""

from __future__ import annotations

import math

import numpy as np
from plans import sideways
from sim_client import OK, PERIOD, START, entity_state, move
from simulation_interfaces import srv
from simulation_interfaces.msg import Bounds, EntityCategory, Result

from mirage_ros.ros.conversions import pose_from_ros, transform_from_ros


def test_the_camera_is_the_entity_and_stands_where_it_is_put(sim, folder):
    entities = sim.ask(srv.GetEntities, "get_entities")
    assert entities.result.result == OK and list(entities.entities) == ["camera"]
    for expression, found in (("c.*ra", ["camera"]), ("robot", [])):
        filters = srv.GetEntities.Request().filters
        filters.filter = expression
        entities = sim.ask(srv.GetEntities, "get_entities", filters=filters)
        assert entities.result.result == OK and list(entities.entities) == found
    start = sideways(folder, 1)[0]
    poses = sim.ask(srv.GetNamedPoses, "get_named_poses")
    assert poses.result.result == OK and [pose.name for pose in poses.poses] == ["start"]
    np.testing.assert_allclose(pose_from_ros(poses.poses[0].pose), start, atol=1e-6)
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


def test_wrong_questions_about_entities_are_refused(sim, folder):
    start = sideways(folder, 1)[0]
    assert entity_state(sim, "robot").result.result == Result.RESULT_NOT_FOUND
    assert move(sim, start, "robot").result == Result.RESULT_NOT_FOUND
    refused = move(sim, start, set_twist=True)
    assert refused.result == Result.RESULT_FEATURE_UNSUPPORTED
    assert move(sim, start, frame="nowhere").result == Result.RESULT_NOT_FOUND
    request = srv.SetEntityState.Request(entity="camera", set_pose=True)
    request.state.pose.orientation.w = math.nan
    fields = {"entity": "camera", "set_pose": True, "state": request.state}
    refused = sim.ask(srv.SetEntityState, "set_entity_state", **fields).result
    assert refused.result == srv.SetEntityState.Response.INVALID_POSE and refused.error_message
    filters = srv.GetEntities.Request().filters
    filters.categories = [EntityCategory()]
    refused = sim.ask(srv.GetEntities, "get_entities", filters=filters).result
    assert (
        refused.result == Result.RESULT_FEATURE_UNSUPPORTED
        and "categories" in refused.error_message
    )
    filters = srv.GetEntities.Request().filters
    filters.bounds.type = Bounds.TYPE_BOX
    refused = sim.ask(srv.GetEntities, "get_entities", filters=filters).result
    assert refused.result == Result.RESULT_FEATURE_UNSUPPORTED
    filters = srv.GetEntities.Request().filters
    filters.filter = "("
    refused = sim.ask(srv.GetEntities, "get_entities", filters=filters).result
    assert refused.result == Result.RESULT_OPERATION_FAILED
    sim.ask(srv.UnloadWorld, "unload_world")
    assert entity_state(sim).result.result == Result.RESULT_INCORRECT_STATE
    poses = sim.ask(srv.GetNamedPoses, "get_named_poses")
    assert poses.result.result == Result.RESULT_INCORRECT_STATE


def test_the_camera_cannot_be_moved_against_its_plan(sim, folder):
    poses = sideways(folder, 4)
    sim.send_tf([START + PERIOD * (1 + index) for index in range(4)], poses)
    sim.spin(lambda: move(sim, poses[0]).result == Result.RESULT_OPERATION_FAILED, patience_s=10)
    assert "plan" in move(sim, poses[0]).error_message
    assert sim.step(4).result == OK
