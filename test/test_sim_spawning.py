"""Entities are spawned, shown, moved, described, listed and deleted through the standard services, over DDS."""

from __future__ import annotations

import math
import os
import signal

import numpy as np
import pytest
from geometry_msgs.msg import PoseStamped, Twist, TwistStamped, Vector3
from nav_msgs.msg import Path
from plans import sideways
from sensor_msgs.msg import Image, JointState
from sim_client import OK, PERIOD, START, entity_state, move, reset, worker_pid
from simulation_interfaces import srv
from simulation_interfaces.msg import (
    Bounds,
    EntityCategory,
    EntityFilters,
    EntityInfo,
    EntityState,
    Resource,
    Result,
    SpawnEntity,
    TagsFilter,
)
from test_robot_models import ARM

from mirage_ros.ros.messages import pose_from_ros, pose_to_ros, stamp_from_ros, stamp_to_ros

FAILED, NOT_FOUND = Result.RESULT_OPERATION_FAILED, Result.RESULT_NOT_FOUND
BOX = "shape://box?size=0.4,0.4,0.4&color=c8503c"
SCOPE = srv.ResetSimulation.Request


def wanted(name: str = "", uri: str = BOX, pose: np.ndarray | None = None, frame: str = "", **more) -> dict:
    """The fields of a request to spawn; `more` are others of them."""
    initial = PoseStamped(pose=pose_to_ros(np.eye(4) if pose is None else pose))
    initial.header.frame_id = frame
    return {"name": name, "entity_resource": Resource(uri=uri), "initial_pose": initial, **more}


def spawn(sim, *args, **fields):
    return sim.ask(srv.SpawnEntity, "spawn_entity", **wanted(*args, **fields))


def names(sim, **filters) -> list[str]:
    answer = sim.ask(srv.GetEntities, "get_entities", filters=EntityFilters(**filters))
    assert answer.result.result == OK
    return list(answer.entities)


def ahead(folder, metres: float) -> np.ndarray:
    """The seed's camera's pose, so far ahead of it."""
    pose = sideways(folder, 1)[0]
    pose[:3, 3] += metres * pose[:3, 2]
    return pose


@pytest.fixture
def look(sim):
    """Steps, and gives depth and labels of the last frame."""
    got: list[Image] = []
    subscription = sim.node.create_subscription(Image, "labels/image", got.append, 20)
    sim.spin(lambda: sim.node.count_publishers("labels/image") == 1)
    sim.spin_for(0.5)

    def stepped(steps: int = 1) -> tuple[np.ndarray, np.ndarray]:
        end = sim.stamps("depth/image_rect")[-1:] or [START]
        assert sim.step(steps).result == OK
        sim.spin(lambda: got and stamp_from_ros(got[-1].header.stamp) == end[0] + steps * PERIOD)
        sim.spin(lambda: sim.stamps("depth/image_rect")[-1:] == [end[0] + steps * PERIOD])
        depth, labels = sim.got["depth/image_rect"][-1], got[-1]
        assert labels.encoding == "32SC1"
        shape = labels.height, labels.width
        return np.frombuffer(depth.data, np.float32).reshape(shape), np.frombuffer(labels.data, np.int32).reshape(shape)

    yield stepped
    sim.node.destroy_subscription(subscription)


def test_a_box_is_spawned_shown_moved_and_deleted(sim, folder, look):
    assert spawn(sim, "box", pose=ahead(folder, 1.4)).result.result == OK
    assert names(sim) == ["camera", "box"]
    depth, labels = look()
    assert set(np.unique(labels)) == {0, 1} and (labels > 0).mean() > 0.02
    assert depth[labels > 0].min() == pytest.approx(1.2, abs=0.02)
    assert move(sim, ahead(folder, 1.7), "box").result == OK
    depth, nearer = look()
    assert depth[nearer > 0].min() == pytest.approx(1.5, abs=0.02)
    moving = EntityState()
    moving.twist.linear.z = 0.5
    set_twist = {"set_pose": False, "set_twist": True}
    assert move(sim, np.eye(4), "box", state=moving, **set_twist).result == OK
    look(4)
    state = entity_state(sim, "box").state
    assert stamp_from_ros(state.header.stamp) == START + 6 * PERIOD and state.twist.linear.z == 0.5
    np.testing.assert_allclose(pose_from_ros(state.pose)[:3, 3], ahead(folder, 1.7)[:3, 3] + [0, 0, 0.2], atol=1e-6)
    moving.acceleration.linear.x = 1.0
    refused = move(sim, np.eye(4), "box", state=moving, set_acceleration=True)
    assert refused.result == FAILED and "acceleration" in refused.error_message
    assert move(sim, np.eye(4), "box", frame="nowhere").result == NOT_FOUND
    assert sim.ask(srv.DeleteEntity, "delete_entity", entity="box").result.result == OK
    assert not look()[1].any() and names(sim) == ["camera"]
    for name, code in (("box", NOT_FOUND), ("camera", FAILED)):
        refused = sim.ask(srv.DeleteEntity, "delete_entity", entity=name).result
        assert refused.result == code and name in refused.error_message
    assert spawn(sim, "box").result.result == OK
    assert set(np.unique(look()[1])) <= {0, 2}, "a number is given once"


def test_many_are_spawned_at_once_each_with_its_result(sim, folder):
    two = np.eye(4)
    two[2, 3] = 0.4
    asked = [
        SpawnEntity(**wanted("one", pose=ahead(folder, 2.0))),
        SpawnEntity(**wanted("one", allow_renaming=True, pose=two, frame="one")),
        SpawnEntity(**wanted("one")),
        SpawnEntity(**wanted("three", frame="nowhere")),
        SpawnEntity(**wanted(allow_renaming=True, entity_namespace="robots")),
        SpawnEntity(**wanted("camera", allow_renaming=True)),
    ]
    answer = sim.ask(srv.SpawnEntities, "spawn_entities", spawn_requests=asked)
    assert answer.result.result == srv.SpawnEntities.Response.ENTITIES_SPAWN_FAILED
    codes = [result.result.result for result in answer.results]
    assert codes == [OK, OK, srv.SpawnEntity.Response.NAME_NOT_UNIQUE, NOT_FOUND, OK, OK]
    there = ["one", "one_1", "robots/box", "camera_1"]
    assert [result.entity_name for result in answer.results if result.entity_name] == there
    assert names(sim) == ["camera", *there]
    beside = pose_from_ros(entity_state(sim, "one_1").state.pose)
    np.testing.assert_allclose(beside, ahead(folder, 2.0) @ two, atol=1e-6)
    whole = sim.ask(srv.SpawnEntities, "spawn_entities", spawn_requests=[SpawnEntity(**wanted("four"))])
    assert whole.result.result == OK


KIND = srv.SpawnEntity.Response


@pytest.mark.parametrize(
    ("fields", "code", "words"),
    [
        ({"name": "camera"}, KIND.NAME_NOT_UNIQUE, "camera"),
        ({"name": "a b"}, KIND.NAME_INVALID, "letters"),
        ({"name": "a", "entity_namespace": "1/x"}, KIND.NAMESPACE_INVALID, "namespace"),
        ({"name": "a", "uri": ""}, KIND.NO_RESOURCE, "give a uri"),
        ({"name": "a", "entity_resource": Resource(resource_string="<sdf/>")}, KIND.UNSUPPORTED_FORMAT, "neither URDF"),
        ({"name": "a", "uri": "shape://cone"}, KIND.RESOURCE_PARSE_ERROR, "there are"),
        ({"name": "a", "uri": "package://mirage_ros/config/spawnables/none.glb"}, KIND.MISSING_ASSETS, "cannot be"),
        ({"name": "a", "uri": "package://mirage_ros/config/spawnables/LICENSE"}, KIND.UNSUPPORTED_FORMAT, "give one of"),
        ({"name": "a", "uri": "file:///etc/passwd"}, FAILED, "spawnables_folder"),
        ({"name": "a", "frame": "nowhere"}, NOT_FOUND, "nowhere"),
    ],
)
def test_what_cannot_be_spawned_is_refused_in_a_sentence(sim, fields, code, words):
    refused = sim.ask(srv.SpawnEntity, "spawn_entity", **{**wanted(), **wanted(**fields)})
    assert refused.result.result == code and words in refused.result.error_message, refused
    assert names(sim) == ["camera"] and not refused.entity_name
    pose = PoseStamped()
    pose.pose.orientation.w = math.nan
    refused = spawn(sim, "a", initial_pose=pose).result
    assert refused.result == KIND.INVALID_POSE and "a" in refused.error_message


def test_what_can_be_spawned_is_listed_and_spawned(sim):
    answer = sim.ask(srv.GetSpawnables, "get_spawnables", sources=["/etc"])
    assert answer.result.result == OK and "/etc" in answer.result.error_message
    uris = [spawnable.entity_resource.uri for spawnable in answer.spawnables]
    assert len(uris) == 10 and "shape://capsule" in uris
    for uri in uris:
        assert spawn(sim, "x", uri, allow_renaming=True).result.result == OK, uri
    assert len(names(sim)) == 11
    (folder,) = {uri.rpartition("/")[0] for uri in uris if uri.startswith("package://")}
    more = sim.ask(srv.GetSpawnables, "get_spawnables", sources=[folder])
    assert more.result.result == OK and not more.result.error_message


def test_entities_have_bounds_a_category_a_description_and_tags(sim):
    assert spawn(sim, "door", "shape://box?size=1,2,3").result.result == OK
    bounds = sim.ask(srv.GetEntityBounds, "get_entity_bounds", entity="door").bounds
    assert bounds.type == Bounds.TYPE_BOX
    corners = [[point.x, point.y, point.z] for point in bounds.points]
    np.testing.assert_allclose(corners, [[0.5, 1, 1.5], [-0.5, -1, -1.5]])
    assert sim.ask(srv.GetEntityBounds, "get_entity_bounds", entity="camera").bounds.type == Bounds.TYPE_EMPTY
    static = EntityCategory(category=EntityCategory.CATEGORY_STATIC_OBJECT)
    info = EntityInfo(category=static, description="A door.", tags=["red", "wood"])
    assert sim.ask(srv.SetEntityInfo, "set_entity_info", entity="door", info=info).result.result == OK
    said = sim.ask(srv.GetEntityInfo, "get_entity_info", entity="door").info
    assert (said.category, said.description, said.tags[:-1]) == (info.category, info.description, info.tags)
    label = said.tags[-1]
    assert label.startswith("label=") and int(label[6:]) > 0
    assert sim.ask(srv.SetEntityInfo, "set_entity_info", entity="door", info=said).result.result == OK
    assert sim.ask(srv.GetEntityInfo, "get_entity_info", entity="door").info == said, "it is there once"
    assert names(sim, tags=TagsFilter(tags=[label])) == ["door"]
    assert "camera" in sim.ask(srv.GetEntityInfo, "get_entity_info", entity="camera").info.tags
    assert names(sim, categories=[static]) == names(sim, tags=TagsFilter(tags=["red"])) == ["door"]
    every = TagsFilter(tags=["red", "camera"], filter_mode=TagsFilter.FILTER_MODE_ALL)
    assert names(sim, tags=every) == []
    assert names(sim, tags=TagsFilter(tags=["red", "camera"])) == ["camera", "door"]
    info.category.category = 9
    for entity, code in (("camera", FAILED), ("door", FAILED), ("nobody", NOT_FOUND)):
        refused = sim.ask(srv.SetEntityInfo, "set_entity_info", entity=entity, info=info).result
        assert refused.result == code and refused.error_message
    for kind, name in ((srv.GetEntityInfo, "get_entity_info"), (srv.GetEntityBounds, "get_entity_bounds")):
        assert sim.ask(kind, name, entity="nobody").result.result == NOT_FOUND


def test_a_reset_puts_bodies_back_or_takes_away_what_was_spawned(sim, folder):
    assert spawn(sim, "box", pose=ahead(folder, 2.0)).result.result == OK
    for scope in (SCOPE.SCOPE_STATE, SCOPE.SCOPE_STATE | SCOPE.SCOPE_TIME):
        assert move(sim, ahead(folder, 3.0), "box").result == OK
        assert sim.step().result == OK
        assert reset(sim, scope).result == OK
        np.testing.assert_allclose(pose_from_ros(entity_state(sim, "box").state.pose), ahead(folder, 2.0), atol=1e-6)
    assert reset(sim, SCOPE.SCOPE_TIME).result == OK and names(sim) == ["camera", "box"]
    for scope in (SCOPE.SCOPE_SPAWNED, SCOPE.SCOPE_SPAWNED | SCOPE.SCOPE_TIME, SCOPE.SCOPE_DEFAULT, SCOPE.SCOPE_ALL):
        assert reset(sim, scope).result == OK and names(sim) == ["camera"]
        assert spawn(sim, "box").result.result == OK
    refused = reset(sim, 8)
    assert refused.result == Result.RESULT_FEATURE_UNSUPPORTED and "4 (what was spawned)" in refused.error_message
    sim.ask(srv.UnloadWorld, "unload_world")
    assert spawn(sim, "box").result.result == Result.RESULT_INCORRECT_STATE


def test_bodies_are_driven_by_their_cmd_vel_until_it_ends(sim, folder):
    for name in ("one", "fleet/two", "still"):
        assert spawn(sim, name, pose=ahead(folder, 2.0)).result.result == OK
    place = lambda name: pose_from_ros(entity_state(sim, name).state.pose)  # noqa: E731
    begun = place("one")
    plain = sim.node.create_publisher(Twist, "entities/one/cmd_vel", 10)
    stamped = sim.node.create_publisher(TwistStamped, "entities/fleet/two/cmd_vel", 10)
    sim.spin(lambda: plain.get_subscription_count() and stamped.get_subscription_count())
    assert not any("still" in topic for topic, _ in sim.node.get_topic_names_and_types())
    ahead_along_x, turning = Twist(linear=Vector3(x=1.0)), Twist(angular=Vector3(z=1.0))
    moving = lambda name: entity_state(sim, name).state.twist  # noqa: E731
    plain.publish(Twist(linear=Vector3(x=math.nan)))
    plain.publish(ahead_along_x)
    stamped.publish(TwistStamped(twist=turning))
    sim.spin(lambda: moving("one").linear != Vector3() and moving("fleet/two").angular != Vector3())
    assert sim.step(8).result == OK  # 0.8 s, of which 0.5 s are driven
    np.testing.assert_allclose(place("one")[:3, 3], begun[:3, 3] + 0.5 * begun[:3, 0], atol=1e-6)
    turned = begun[:3, :3].T @ place("fleet/two")[:3, :3]
    assert math.atan2(turned[1, 0], turned[0, 0]) == pytest.approx(0.5, abs=1e-6)
    np.testing.assert_allclose(place("still"), begun, atol=1e-6)
    assert moving("one").linear == Vector3(), "it stands still when nobody drives it any more"
    other = sim.node.create_publisher(TwistStamped, "entities/still/cmd_vel", 10)
    sim.spin(other.get_subscription_count)
    sim.node.destroy_publisher(other)
    other = sim.node.create_publisher(Twist, "entities/still/cmd_vel", 10)
    sim.spin(other.get_subscription_count)  # at once, in the other type
    assert sim.ask(srv.DeleteEntity, "delete_entity", entity="one").result.result == OK
    sim.spin(lambda: plain.get_subscription_count() == 0)


def test_a_body_follows_its_path_until_an_empty_one_stops_it(sim, folder):
    assert spawn(sim, "walker", pose=ahead(folder, 2.0)).result.result == OK
    paths = sim.node.create_publisher(Path, "entities/walker/path", 10)
    sim.spin(paths.get_subscription_count)
    place = lambda: pose_from_ros(entity_state(sim, "walker").state.pose)  # noqa: E731
    speed = lambda: float(np.linalg.norm([getattr(entity_state(sim, "walker").state.twist.linear, axis) for axis in "xyz"]))  # noqa: E731
    begun, poses = place(), np.stack([ahead(folder, metres) for metres in (2.0, 3.0, 3.0)])
    poses[2, :3, 3] += poses[2, :3, 0]
    for bad, words in (({"frame": "map"}, "is in frame 'map'; send it in 'world'"), ({"stamps": [3, 2, 4]}, "jumps back in time"),
                       ({"poses": poses * math.nan}, "Pose 0 of the path of 'walker'"), ({"stamps": [-9, -8, -7]}, "send times to come")):  # fmt: skip
        paths.publish(path_of(**{"poses": poses, "stamps": [0, 10, 20], **bad}))
        sim.process.wait_for(words)
    np.testing.assert_array_equal(place(), begun)
    assert not speed()
    paths.publish(path_of(poses, [0, 10, 20]))
    sim.spin(lambda: speed() > 0)
    assert sim.step(5).result == OK
    np.testing.assert_allclose(place(), ahead(folder, 2.5), atol=1e-6)
    assert sim.step(10).result == OK
    assert speed() == pytest.approx(1.0, abs=1e-6)
    np.testing.assert_allclose(place()[:3, 3], poses[1, :3, 3] + 0.5 * poses[1, :3, 0], atol=1e-6)
    paths.publish(Path())
    sim.spin(lambda: not speed())
    stopped = place()
    assert sim.step(2).result == OK
    np.testing.assert_allclose(place(), stopped, atol=1e-9)
    paths.publish(path_of(poses[:1], [None]))  # no stamps: back, at half a metre a second
    sim.spin(lambda: speed() > 0)
    assert speed() == pytest.approx(0.5, abs=1e-6)
    sim.node.destroy_publisher(paths)


def path_of(poses, stamps, frame: str = "world") -> Path:
    """Stamps are in periods after the start, None without one."""
    path = Path()
    path.header.frame_id = frame
    for pose, stamp in zip(poses, stamps, strict=True):
        path.poses.append(PoseStamped(pose=pose_to_ros(np.eye(4))))
        path.poses[-1].pose.position.x, path.poses[-1].pose.position.y, path.poses[-1].pose.position.z = map(float, pose[:3, 3])
        if np.isfinite(pose).all():
            path.poses[-1].pose = pose_to_ros(pose)
        if stamp is not None:
            path.poses[-1].header.stamp = stamp_to_ros(START + stamp * PERIOD)
    return path


def test_bodies_and_their_motion_outlive_the_worker(sim, folder, look):
    assert spawn(sim, "box", pose=ahead(folder, 1.4)).result.result == OK
    assert spawn(sim, "gone", pose=ahead(folder, 1.4)).result.result == OK
    moving = EntityState()
    moving.twist.linear.z = 0.5
    assert move(sim, np.eye(4), "box", state=moving, set_pose=False, set_twist=True).result == OK
    assert sim.ask(srv.DeleteEntity, "delete_entity", entity="gone").result.result == OK
    _, before = look(2)
    os.kill(worker_pid(sim), signal.SIGKILL)
    _, after = look(2)
    number = before.max()
    assert number and set(np.unique(before)) == set(np.unique(after)) == {0, number}
    assert names(sim) == ["camera", "box"]
    place = pose_from_ros(entity_state(sim, "box").state.pose)[:3, 3]
    np.testing.assert_allclose(place, ahead(folder, 1.4)[:3, 3] + [0, 0, 0.5 * 4 * PERIOD / 1e9], atol=1e-6)
    assert spawn(sim, "next").result.result == OK
    assert set(np.unique(look()[1])) <= {0, number, number + 2}, "numbers go on where they were"


def test_joints_move_what_was_spawned_of_urdf(sim, folder):
    pytest.importorskip("yourdfpy", reason="pip install 'mirage_ros[entities]'")
    text = ARM.replace('<visual><geometry><mesh filename="MESH" scale="2 2 2"/></geometry></visual>', "")
    assert spawn(sim, "arm", uri="", entity_resource=Resource(resource_string=text)).result.result == OK

    def reach_m() -> float:
        return sim.ask(srv.GetEntityBounds, "get_entity_bounds", entity="arm").bounds.points[0].x

    assert reach_m() == pytest.approx(1.1, abs=0.01)
    joints = sim.node.create_publisher(JointState, "entities/arm/joint_states", 5)
    sim.spin(joints.get_subscription_count)
    joints.publish(JointState(name=["slide"], position=[0.5]))
    sim.spin(lambda: reach_m() == pytest.approx(1.6, abs=0.01), 20.0)
    joints.publish(JointState(name=["turn"], position=[math.pi]))
    sim.spin(lambda: reach_m() == pytest.approx(0.2, abs=0.01), 20.0)
    joints.publish(JointState(name=["elbow"], position=[0.5]))
    sim.process.wait_for("no joint elbow that moves")
    assert reach_m() == pytest.approx(0.2, abs=0.01)
    sim.node.destroy_publisher(joints)
