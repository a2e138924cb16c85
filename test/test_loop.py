"""The closed loop: laws of the base and the body, the policy in true rooms, whole drives."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from fakes import PixelModel

from mirage_ros.apps import loop as figures
from mirage_ros.data.seeds import Seed, level_camera_pose
from mirage_ros.errors import MirageError
from mirage_ros.geometry.camera import Camera
from mirage_ros.loop import BasePose, Command, Footprint, base_under, distances_m
from mirage_ros.loop.drive import (
    DriveConfig,
    GeneratedWorld,
    MujocoWorld,
    Trace,
    clearances_m,
    compare,
    drive,
    trace_figures,
)
from mirage_ros.loop.wander import Wanderer
from mirage_ros.world.world import World

SIZE = (64, 80)
LENS = Camera.from_hfov(75.0, SIZE)


@pytest.mark.parametrize("turn", [0.0, 0.4, -1.3, 1e-9])
@pytest.mark.parametrize("speed", [0.0, 0.5, -0.2])
def test_an_arc_is_the_limit_of_many_small_steps(speed, turn):
    start, command = BasePose(1.0, -2.0, 0.7), Command(speed, turn)
    x, y, yaw, count = start.x_m, start.y_m, start.yaw_rad, 20000
    for _ in range(count):
        x += speed * math.cos(yaw) * 3 / count
        y += speed * math.sin(yaw) * 3 / count
        yaw += turn * 3 / count
    end = start.after(command, 3.0)
    assert (end.x_m, end.y_m) == pytest.approx((x, y), abs=2e-4)
    assert math.remainder(end.yaw_rad - yaw, 2 * math.pi) == pytest.approx(0, abs=1e-9)


def test_an_arc_in_parts_is_the_arc():
    start, command = BasePose(0.3, 0.1, 3.0), Command(0.6, 0.7)
    parts = list(start.along(command, 0.2, 4))
    pose = start
    for part in parts:
        pose = pose.after(command, 0.2)
        assert (pose.x_m, pose.y_m, pose.yaw_rad) == pytest.approx(
            (part.x_m, part.y_m, part.yaw_rad)
        )


def test_the_base_stands_under_its_camera():
    pose = level_camera_pose(1.1)
    turn = BasePose(2.0, 3.0, 0.9)
    base, mount = base_under(turn.world_from_base @ pose)
    assert (base.x_m, base.y_m, base.yaw_rad) == pytest.approx((2.0, 3.0, 0.9))
    np.testing.assert_allclose(base.world_from_base @ mount, turn.world_from_base @ pose)
    np.testing.assert_allclose(mount[:3, 3], (0, 0, 1.1), atol=1e-12)
    lying = np.eye(4)
    with pytest.raises(MirageError, match="upright"):
        base_under(lying)


def test_the_body_touches_what_is_in_its_cylinder():
    body = Footprint(0.2, 0.3, 1.2)
    xyz = np.array([[0.1, 0, 0.5], [1.0, 0, 0.29], [2.0, 0, 1.21], [3.0, 0.19, 1.0]])
    centres = np.array([[0.0, 0], [1.0, 0], [2.0, 0], [3.0, 0], [3.0, -0.02]])
    assert body.touches(xyz, centres).tolist() == [True, False, False, True, False]
    np.testing.assert_allclose(
        clearances_m(body, xyz, centres[[0, 3]]), [0.1 - 0.2, 0.19 - 0.2], atol=1e-9
    )
    assert distances_m(np.zeros((0, 3)), centres).tolist() == [np.inf] * 5


def wall(distance_m: float) -> np.ndarray:
    """Depth of a wall across the view."""
    return np.full(SIZE, distance_m, np.float32)


def policy() -> Wanderer:
    return Wanderer(np.linalg.inv(BasePose().world_from_base) @ level_camera_pose(0.9))


def test_the_policy_goes_ahead_in_the_open_and_turns_before_a_wall():
    free = policy()
    free.look(wall(np.inf), LENS, BasePose())
    assert free.decide() == Command(free.config.speed_mps, 0.0)
    blocked = policy()
    blocked.look(wall(0.5), LENS, BasePose())
    command = blocked.decide()
    assert command.speed_mps == 0 and abs(command.turn_rps) == blocked.config.turn_rps
    assert blocked.decide(command) == command, "it goes on turning the same way"


def test_the_policy_turns_to_the_open_side():
    for side in (-1, 1):
        robot, depth = policy(), wall(1.0)
        depth[:, (slice(0, 40) if side > 0 else slice(40, 80))] = 4.0
        robot.look(depth, LENS, BasePose())
        assert np.sign(robot.decide().turn_rps) == side


def test_the_policy_remembers_what_left_its_view_and_doubts_a_single_picture():
    robot = policy()
    robot.look(wall(0.5), LENS, BasePose())
    away = BasePose(yaw_rad=math.pi)
    robot.look(wall(np.inf), LENS, away)
    assert robot.decide().speed_mps > 0, "the open side"
    robot.look(np.full(SIZE, np.nan, np.float32), LENS, BasePose())
    assert robot.decide().speed_mps == 0, "the wall is still known"
    robot.look(wall(np.inf), LENS, BasePose())
    assert robot.decide().speed_mps == 0, "one picture does not take it away"
    for _ in range(robot.config.map.misses):
        robot.look(wall(np.inf), LENS, BasePose())
    assert robot.decide().speed_mps > 0, "many pictures saw past it"


def among_posts(*places: tuple[float, float]) -> Wanderer:
    """A policy that knows thin posts at the body's height."""
    robot, unknown = policy(), np.full(SIZE, np.nan, np.float32)
    view = Camera(LENS.intrinsics, level_camera_pose(0.9), SIZE)
    robot.map.look(np.array([(x, y, 0.6) for x, y in places]), unknown, view)
    return robot


def clearance(robot: Wanderer, command: Command) -> np.ndarray:
    """To the map's points, along what a command does until the next decision."""
    ways = BasePose().along(command, robot.config.commit_s / 8, 8)
    centres = np.array([(pose.x_m, pose.y_m) for pose in ways])
    return clearances_m(robot.config.footprint, robot.map.points, centres)


@pytest.mark.parametrize("gap_m", [2.0, 0.85, 0.7])
def test_the_policy_slows_down_where_it_is_narrow(gap_m):
    robot = among_posts(*((x / 10, side * gap_m / 2) for x in range(40) for side in (-1, 1)))
    command = robot.decide()
    share = command.speed_mps / robot.config.speed_mps
    assert share == {2.0: 1.0, 0.85: 0.5, 0.7: 0.0}[gap_m]
    margins = {gait.share: gait.margin_m for gait in robot.config.gaits}
    assert clearance(robot, command).min() >= (margins[share] if share else 0.1)


def test_the_body_leaves_what_it_is_too_near_to():
    robot = among_posts((-0.22, 0.0))
    command = robot.decide()
    assert command.speed_mps > 0 and clearance(robot, command).min() > 0.02
    ahead = among_posts((0.22, 0.0), (0.2, 0.15), (0.2, -0.15))
    assert ahead.decide().speed_mps == 0


def test_after_a_whole_turn_any_way_will_do():
    robot = among_posts(*((x / 20, side * 0.33) for x in range(40) for side in (-1, 1)))
    command = Command()
    for index in range(30):
        robot.look(np.full(SIZE, np.nan, np.float32), LENS, BasePose(yaw_rad=0.3 * index))
        command = robot.decide(command)
        if command.speed_mps:
            break
    assert command.speed_mps == robot.config.gaits[-1].share * robot.config.speed_mps
    assert index * 0.3 >= 2 * math.pi


def make_seed() -> Seed:
    rng = np.random.default_rng(5)
    rgb = np.kron(rng.integers(0, 256, (8, 10, 3), np.uint8), np.ones((8, 8, 1), np.uint8))
    camera = Camera.from_hfov(75.0, SIZE, level_camera_pose(0.9))
    return Seed("box", rgb, camera, wall(3.0))


def test_a_drive_in_a_generated_world_keeps_clear_of_its_memory():
    config, seen = DriveConfig(length_m=3.0, decisions=20), []
    world = GeneratedWorld(World(PixelModel(SIZE)), make_seed())
    trace = drive(world, config, lambda trace: seen.append(trace.length_m))
    assert trace.length_m >= 3.0 and seen == sorted(seen)
    assert len(trace.snaps) == 4 * len(trace.commands) == len(trace.clear_m)
    assert min(trace.clear_m) > 0
    stamps = np.diff([snap.stamp_ns for snap in trace.snaps])
    assert (stamps == round(config.period_s * 1e9)).all()
    again = drive(GeneratedWorld(World(PixelModel(SIZE)), make_seed()), config)
    np.testing.assert_array_equal(again.positions_xy, trace.positions_xy)


def true_room(seed: int):
    pytest.importorskip("mujoco", exc_type=ImportError)
    from mirage_ros.scenes import make_scene
    from mirage_ros.scenes.paths import best_view

    try:
        scene = make_scene(seed, "room", moving=False, texture_px=64)
        camera = best_view(scene, seed, hfov_deg=75.0, size=SIZE)[0]
        return scene, MujocoWorld(scene, camera, 4)
    except MirageError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("seed", [2000001])
def test_in_a_true_room_the_policy_touches_no_solid(seed):
    scene, world = true_room(seed)
    trace = drive(world, DriveConfig(length_m=6.0, decisions=40))
    world.close()
    body = np.c_[trace.positions_xy, np.full(len(trace.positions_xy), 0.6)]
    assert trace.length_m >= 6.0
    assert scene.solids.distance(body).min() > Footprint().radius_m


def test_solid_points_lie_on_solids():
    from mirage_ros.loop.drive import solid_points

    scene, world = true_room(2000007)
    world.close()
    points = solid_points(scene).xyz.astype(float)
    assert len(points) > 1000
    assert scene.solids.distance(points).max() < 1e-4


def straight(length_m: float, sideways_m: float = 0.0) -> Trace:
    """A drive along x at half a metre a frame."""
    frame = GeneratedWorld(World(PixelModel(SIZE)), make_seed()).start()
    from mirage_ros.loop.drive import Snap

    trace = Trace(BasePose())
    for index in range(1, int(length_m / 0.5) + 1):
        pose = BasePose(0.5 * index, sideways_m * index)
        snap = Snap(index, pose, frame.camera, frame.rgb, frame.depth_m, frame.observed)
        trace.snaps.append(snap)
        trace.clear_m.append(0.4)
    trace.commands = [Command(0.6, 0.1)] * (len(trace.snaps) // 4)
    return trace


def test_the_figures_of_a_drive():
    trace = straight(4.0)
    trace.points = np.array([[2.0, 0.1, 0.6], [2.0, 0.1, 2.0]], np.float32)
    values = trace_figures(trace, Footprint())
    assert values["length_m"] == pytest.approx(4.0) and values["decisions"] == 2
    assert values["frames_inside_a_held_surface"] == 0
    assert values["frames_inside_the_final_memory"] == 1
    assert values["least_clearance_to_final_memory_m"] == pytest.approx(-0.1, abs=1e-6)


def test_two_drives_are_compared_frame_by_frame():
    values = compare(straight(4.0), straight(4.0, sideways_m=0.15))
    assert values["frames_until_half_a_metre_apart"] == 4
    assert values["greatest_distance_m"] == pytest.approx(8 * 0.15)
    assert values["equal_commands_at_first"] == 2 and values["equal_commands_share"] == 1.0


def test_the_report_says_what_passed():
    body = Footprint()
    runs = {"a": figures.run_figures(straight(4.0), straight(4.0, 0.1), body)}
    good = figures.summary(runs, 4.0)
    assert good["passed"] and not figures.summary(runs, 4.1)["passed"]
    touching = straight(4.0)
    touching.clear_m[3] = -0.01
    runs["b"] = figures.run_figures(touching, None, body)
    bad = figures.summary(runs, 4.0)
    assert not bad["passed"] and bad["runs_without_contact"] == 1 and bad["runs_long_enough"] == 2
    text = figures.describe({"runs": runs, "summary": bad, "out": "out"})
    assert "NOT passed" in text and "ground truth 4." in text


def test_pictures_video_and_path_are_written(tmp_path):
    trace, truth = straight(4.0), straight(3.0, 0.2)
    trace.points = np.random.default_rng(0).uniform(-2, 4, (200, 3)).astype(np.float32)
    trace.colours = np.full((200, 3), 200, np.uint8)
    figures.write_above(tmp_path / "above.png", trace, truth, Footprint())
    figures.write_video(tmp_path / "drive.mp4", trace, truth, 5.0)
    figures.write_path(tmp_path / "path.json", trace)
    path = json.loads((tmp_path / "path.json").read_text())
    assert len(path["poses_x_y_yaw"]) == 9 and len(path["stamps_ns"]) == 8
    assert (tmp_path / "above.png").stat().st_size > 5000
    import imageio_ffmpeg

    frames, _ = imageio_ffmpeg.count_frames_and_secs(str(tmp_path / "drive.mp4"))
    assert frames == 8
