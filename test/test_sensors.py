"""Sensors that measure in memory: against analytic rooms, through the worker's engine, and over DDS."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from analytic import AHEAD, HERE, cameras, look, raycast, remember, room
from fakes import PixelModel
from nav_msgs.msg import OccupancyGrid
from rclpy.qos import DurabilityPolicy, QoSProfile
from sensor_msgs.msg import Imu as ImuMessage
from sensor_msgs.msg import LaserScan
from sim_client import OK, PERIOD, START
from test_worker import seed, step

from mirage_ros.errors import MirageError
from mirage_ros.geometry.camera import Camera
from mirage_ros.geometry.rigid import exp_rotation
from mirage_ros.memory import LatentMemory, MemoryConfig
from mirage_ros.memory.free_space import FreeSpaceViews
from mirage_ros.protocol import ImuSample
from mirage_ros.recording.topics import BY_NAME, LIDAR, RING_POINT, SCAN, FrameIds
from mirage_ros.ros import NodeConfig, parameters
from mirage_ros.ros.cameras import lidar_config
from mirage_ros.ros.messages import stamp_from_ros, transform_from_ros
from mirage_ros.ros.worker import Reset, WorkerConfig
from mirage_ros.ros.worker.engine import Engine
from mirage_ros.world.sensors import Imu, ImuConfig, LidarConfig, ScanConfig, lidar, scan, scan_pose


def remembered(targets) -> LatentMemory:
    """The analytic room as cameras saw it from one place, looking at the targets."""
    memory = LatentMemory(MemoryConfig(4))
    remember(memory, cameras([look(HERE, target) for target in targets], (48, 60), 100.0), room())
    return memory


def true_ranges(world_from_scan, angles) -> np.ndarray:
    """Of each beam in the analytic room."""
    poses = np.stack([world_from_scan @ _along(angle) for angle in angles])
    return raycast(Camera.from_hfov(90.0, (1, 1), poses), room())[0].reshape(-1)


def _along(angle: float) -> np.ndarray:
    return look((0, 0, 0), (np.cos(angle), np.sin(angle), 0))


@pytest.fixture(scope="module")
def around() -> LatentMemory:
    x, y, z = HERE
    return remembered([(x, y + 1, z), (x - 1, y, z), (x, y - 1, z), (x + 1, y, z)])


@pytest.mark.parametrize("height_m", [0.0, 0.4])
def test_ranges_are_those_of_the_surfaces(around, height_m):
    config = ScanConfig(resolution_deg=0.5, height_m=height_m)
    found = scan(around, FreeSpaceViews.none(), AHEAD, config)
    truth = true_ranges(found.world_from_scan, config.angles_rad)
    error = np.abs(found.ranges_m / truth - 1)
    assert found.world_from_scan[2, 3] == (height_m or HERE[2])
    assert len(found.ranges_m) == 720 and np.isfinite(found.ranges_m).mean() > 0.97
    assert np.nanmedian(error) < 0.005 and np.nanpercentile(error, 90) < 0.03


def test_a_lidar_measures_the_surfaces_ring_by_ring(around):
    config = LidarConfig((-30.0, -12.0, 0.0, 7.0), azimuth_step_deg=2.0, fov_deg=200.0)
    found = lidar(around, AHEAD, config)
    points = found.points_m
    assert points.shape == (4, 101, 3)
    pose = found.world_from_lidar
    ends = points.reshape(-1, 3) @ pose[:3, :3].T + pose[:3, 3]
    truth = raycast(Camera.from_hfov(90.0, (1, 1), np.stack([look(HERE, end) for end in ends])), room())[0]
    distance = np.linalg.norm(points, axis=-1).reshape(-1)
    error = np.abs(distance / truth.reshape(-1) - 1)
    assert np.isfinite(distance).mean() > 0.97
    assert np.nanmedian(error) < 0.005 and np.nanpercentile(error, 90) < 0.03
    elevation = np.degrees(np.arcsin(points[..., 2] / distance.reshape(4, -1)))
    np.testing.assert_allclose(elevation, np.array([-30, -12, 0, 7.0])[:, None] * np.ones(101), atol=1e-3)
    level = scan(around, FreeSpaceViews.none(), AHEAD, ScanConfig(fov_deg=200.0, resolution_deg=2.0))
    np.testing.assert_allclose(distance.reshape(4, -1)[2], level.ranges_m, rtol=1e-6)
    far = lidar(around, AHEAD, replace(config, range_max_m=3.0)).points_m
    assert np.nanmax(np.linalg.norm(far, axis=-1)) <= 3.0 and np.isnan(far).any()


def test_a_lidars_message_has_rings():
    (frame, *_), *_ = rolled(("lidar",), LidarConfig((-5.0, 0.0, 5.0), azimuth_step_deg=5.0))
    assert frame.scan is None
    fields = BY_NAME[LIDAR].fields(frame, FrameIds(lidar="spinner"))
    assert (fields["height"], fields["width"], fields["header"]["frame_id"]) == (3, 72, "spinner")
    names = [(one["name"], one["offset"], one["datatype"]) for one in fields["fields"]]
    assert names == [("x", 0, 7), ("y", 4, 7), ("z", 8, 7), ("ring", 12, 4), ("time", 14, 7)]
    points = fields["data"].view(RING_POINT).reshape(3, 72)
    assert (points["ring"] == np.arange(3)[:, None]).all() and np.isfinite(points["x"]).any()
    children = [one["child_frame_id"] for one in BY_NAME["/tf"].fields(frame, FrameIds(lidar="spinner"))["transforms"]]
    assert children == ["mirage_camera_optical_frame", "spinner"]


def test_lidar_patterns_are_read_or_refused(tmp_path):
    shipped = lidar_config(NodeConfig(lidar_height_m=0.4))
    assert len(shipped.elevations_deg) == 16 and shipped.height_m == 0.4
    for text, words in (
        ("elevations_deg: [1, 0]", "2 rings at"),
        ("elevations_deg: [80]", "within 60 degrees of level"),
        ("elevations_deg: []", "0 rings"),
        ("azimuth_step_deg: 1", "cannot be read"),
        ("elevations_deg: [0]\ncolour: 3", "cannot be read"),
        ("elevations_deg: [0]\nrange_max_m: .nan", "ranges from"),
        ("elevations_deg: [0]\nazimuth_step_deg: 0.01", "steps of 0.01"),
    ):
        (tmp_path / "lidar.yaml").write_text(text)
        with pytest.raises(MirageError, match=words):
            parameters.check(NodeConfig(lidar=str(tmp_path / "lidar.yaml")))
    with pytest.raises(MirageError, match="nowhere.yaml' does not come with"):
        parameters.check(NodeConfig(lidar="nowhere"))


def test_a_scanner_stands_level_where_the_camera_looks():
    for target in ((0.5, 2.0, 0.2), (0.5, 2.0, 3.0)):
        pose = scan_pose(look(HERE, target), 0.0)
        np.testing.assert_allclose(pose[:3, :3], [[0, -1, 0], [1, 0, 0], [0, 0, 1]], atol=1e-9)
    down, up = np.eye(4), np.eye(4)
    down[:3, :3], up[:3, :3] = np.diag([1, -1, -1]), np.eye(3)
    # The top of a picture that looks down points ahead, and its bottom where it looks up.
    np.testing.assert_allclose(scan_pose(down, 0.0)[:3, 0], [0, 1, 0], atol=1e-9)
    np.testing.assert_allclose(scan_pose(up, 0.0)[:3, 0], [0, 1, 0], atol=1e-9)


def test_beams_into_what_nobody_saw_say_so():
    memory = remembered([(0.5, 2.0, 1.0)])
    config = ScanConfig()
    found = scan(memory, FreeSpaceViews.none(), AHEAD, config)
    seen = np.isfinite(found.ranges_m)
    assert seen[np.abs(config.angles_rad) < np.radians(48)].all()
    assert np.isnan(found.ranges_m[np.abs(config.angles_rad) > np.radians(53)]).all()


def test_nearer_and_farther_surfaces_say_which(around):
    free_space = FreeSpaceViews.none()
    found = scan(around, free_space, AHEAD, ScanConfig(range_min_m=2.9))
    assert np.isneginf(found.ranges_m).any() and found.ranges_m[np.isfinite(found.ranges_m)].min() >= 2.9
    ahead = cameras([AHEAD], (60, 80))
    depth = raycast(ahead, room())[0][0].astype(np.float32)
    free_space = free_space.with_real(ahead[0], depth, 4)
    short = ScanConfig(range_max_m=1.0)
    found = scan(around, free_space, AHEAD, short)
    straight = np.abs(short.angles_rad) < np.radians(30)
    assert np.isposinf(found.ranges_m[straight]).all(), "seen to be free up to the largest range"
    assert np.isnan(found.ranges_m[np.abs(short.angles_rad) > 1]).all(), "no view saw that space"


def test_the_sky_is_free_and_unknown_depth_is_not():
    depth = np.full((60, 80), np.inf, np.float32)
    depth[:, :40] = np.nan
    free_space = FreeSpaceViews.none().with_real(cameras([AHEAD], (60, 80))[0], depth, 4)
    found = scan(LatentMemory(MemoryConfig(4)), free_space, AHEAD, ScanConfig(fov_deg=50.0))
    ranges = found.ranges_m
    assert np.isposinf(ranges[:23]).all() and np.isnan(ranges[28:]).all() and len(ranges) == 51


def test_measuring_changes_nothing(around):
    before = {name: around._store[name].copy() for name in around._store.arrays}
    tick = around._tick
    scan(around, FreeSpaceViews.none(), AHEAD, ScanConfig())
    assert around._tick == tick
    assert all(np.array_equal(around._store[name], values) for name, values in before.items())


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"map_floor_margin_m": 0.6}, "a floor margin of 0.6 m and a robot 0.5 m high"),
        ({"map_resolution_m": 0.01, "map_size_m": 100.0}, "cells of 0.01 m and a size of 100 m"),
        ({"scan_range_min_m": 12.0}, "ranges from 12 to 10 m"),
        ({"scan_fov_deg": 1.0, "scan_resolution_deg": 2.0}, "a resolution of 2"),
        ({"scan_frame": "world"}, "scan_frame is 'world'"),
        ({"scan_height_m": float("nan")}, "scan_height_m is nan"),
    ],
)
def test_parameters_that_do_not_go_together_are_refused(values, words):
    with pytest.raises(MirageError, match=words) as error:
        parameters.check(NodeConfig(**values))
    assert str(error.value).count(". ") == 0, "one sentence"


def rolled(sensors: tuple[str, ...], pattern: LidarConfig = LidarConfig((0.0,))):
    engine = Engine(PixelModel(), WorkerConfig(period_ns=PERIOD, lidar=pattern))
    engine.carry_out(Reset(seed(), 0, "test"))
    return [engine.carry_out(replace(step(chunk), sensors=sensors)).chunk.frames for chunk in range(3)]


def test_the_same_plan_gives_the_same_scans_and_scans_change_no_frame():
    plain, one, two = rolled(()), rolled(("scan",)), rolled(("scan",))
    for without, first, second in zip(sum(plain, ()), sum(one, ()), sum(two, ()), strict=True):
        assert without.scan is None
        np.testing.assert_array_equal(first.scan.ranges_m, second.scan.ranges_m)
        assert np.isfinite(first.scan.ranges_m).any() and np.isnan(first.scan.ranges_m).any()
        np.testing.assert_array_equal(without.rgb, first.rgb)
        np.testing.assert_array_equal(without.depth_m, first.depth_m)


def test_a_scans_message_says_its_angles():
    (frame, *_), *_ = rolled(("scan",))
    fields = BY_NAME[SCAN].fields(frame, FrameIds(scan="laser"))
    assert fields["header"]["frame_id"] == "laser"
    beams = len(fields["ranges"])
    assert fields["angle_max"] == pytest.approx(fields["angle_min"] + (beams - 1) * fields["angle_increment"])
    assert beams == 360 and fields["angle_min"] == pytest.approx(-np.pi)


def driven(seconds: np.ndarray) -> np.ndarray:
    """Poses of a level camera on a circle of 2 m around the origin, at 0.5 rad/s, that looks along its way."""
    poses = []
    for angle in 0.5 * seconds:
        at = np.array([2 * np.cos(angle), 2 * np.sin(angle), 1.0])
        poses.append(look(at, at + [-np.sin(angle), np.cos(angle), 0]))
    return np.stack(poses)


def samples(imu: Imu, seconds: np.ndarray, poses: np.ndarray) -> list[ImuSample]:
    found = []
    for second, pose in zip(seconds, poses, strict=True):
        imu.moved(round(second * 1e9), pose)
        found.append(imu.measure())
    return found


def test_an_imu_feels_gravity_turns_and_the_pull_to_the_middle():
    seconds = np.arange(1, 40) * 0.02
    found = samples(Imu(ImuConfig()), seconds, driven(seconds))
    np.testing.assert_allclose(found[0].acceleration, [0, -9.80665, 0], atol=1e-9)
    # Up is -y, and the middle of a left turn lies at -x.
    np.testing.assert_allclose(found[-1].angular_velocity, [0, -0.5, 0], atol=1e-6)
    np.testing.assert_allclose(found[-1].acceleration, [-0.5, -9.80665, 0], atol=1e-2)


def test_samples_add_up_to_the_poses():
    seconds = np.arange(1, 40) * 0.1
    poses, step = driven(seconds), 0.1
    found = samples(Imu(ImuConfig()), seconds, poses)
    rotation, at = poses[1][:3, :3], poses[1][:3, 3]
    velocity = (poses[1][:3, 3] - poses[0][:3, 3]) / step
    for sample, pose in zip(found[2:], poses[2:], strict=True):
        rotation = rotation @ exp_rotation(sample.angular_velocity * step)
        velocity = velocity + (rotation @ sample.acceleration - [0, 0, 9.80665]) * step
        at = at + velocity * step
        np.testing.assert_allclose(rotation, pose[:3, :3], atol=1e-9)
        np.testing.assert_allclose(at, pose[:3, 3], atol=1e-9)


def test_noise_has_its_density_and_follows_from_seed_and_stamp():
    seconds = np.arange(1, 2001) * 0.01
    still = np.repeat(AHEAD[None], len(seconds), 0)
    noisy = ImuConfig(gyro_noise=0.02, accel_noise=0.1, seed=3)
    first, again = (samples(Imu(noisy), seconds, still) for _ in range(2))
    other = samples(Imu(replace(noisy, seed=4)), seconds, still)
    turning = np.stack([sample.angular_velocity for sample in first])
    assert first[5].gyro_std == pytest.approx(0.2) and first[5].accel_std == pytest.approx(1.0)
    assert turning.std() == pytest.approx(0.2, rel=0.05) and abs(turning.mean()) < 0.01
    assert np.array_equal(turning, np.stack([sample.angular_velocity for sample in again]))
    assert not np.array_equal(turning[1], other[1].angular_velocity)


def test_motion_begins_anew_after_a_gap_and_back_in_time():
    poses = driven(np.arange(5.0))
    for stamps in ((1.0, 1.1, 1.2, 9.0), (5.0, 5.1, 5.2, 1.0)):
        last = samples(Imu(ImuConfig()), np.array(stamps), poses[:4])[-1]
        np.testing.assert_array_equal(last.angular_velocity, np.zeros(3))
        assert np.linalg.norm(last.acceleration) == pytest.approx(9.80665)


def heard_in_a_step(sim, kind: type, topic: str) -> list:
    """What comes of four frames, each with its picture's stamp, once somebody subscribes."""
    got: list = []
    subscription = sim.node.create_subscription(kind, topic, got.append, 20)
    sim.spin(lambda: sim.node.count_publishers(topic) == 1)
    sim.spin_for(0.5)
    assert sim.step(4).result == OK
    sim.spin(lambda: len(got) >= 4)
    assert [stamp_from_ros(message.header.stamp) for message in got] == [START + PERIOD * k for k in (1, 2, 3, 4)]
    sim.node.destroy_subscription(subscription)
    return got


def test_an_imu_comes_with_the_pictures_for_who_subscribes(sim):
    got = heard_in_a_step(sim, ImuMessage, "imu")
    assert got[0].header.frame_id == "mirage_camera_optical_frame"
    force = got[-1].linear_acceleration
    assert np.linalg.norm([force.x, force.y, force.z]) == pytest.approx(9.80665)


def test_a_map_comes_to_who_subscribes_before_anything_moves_and_again_when_something_changed(sim):
    latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
    got: list[OccupancyGrid] = []
    subscription = sim.node.create_subscription(OccupancyGrid, "map", got.append, latched)
    sim.spin(lambda: got)
    info, cells = got[0].info, np.array(got[0].data)
    assert got[0].header.frame_id == "world" and len(cells) == info.width * info.height
    assert set(np.unique(cells)) <= {-1, 0, 100} and (cells == 100).any()
    assert info.resolution == pytest.approx(0.05) and info.origin.orientation.w == 1.0
    before = len(got)
    sim.spin_for(1.5)
    assert len(got) == before, "nothing has changed"
    assert sim.step(4).result == OK
    sim.spin(lambda: len(got) > before and stamp_from_ros(got[-1].header.stamp) == START + 4 * PERIOD)
    late: list[OccupancyGrid] = []
    other = sim.node.create_subscription(OccupancyGrid, "map", late.append, latched)
    sim.spin(lambda: late)
    for each in (subscription, other):
        sim.node.destroy_subscription(each)


def test_scans_come_with_the_pictures_for_who_subscribes(sim):
    got = heard_in_a_step(sim, LaserScan, "scan")
    assert got[0].header.frame_id == "mirage_scan_frame" and len(got[0].ranges) == 360
    assert np.isfinite(got[0].ranges).any()
    scanners = [t for m in sim.got["/tf"] for t in m.transforms if t.child_frame_id == "mirage_scan_frame"]
    assert [stamp_from_ros(t.header.stamp) for t in scanners] == [START + PERIOD * k for k in (1, 2, 3, 4)]
    assert transform_from_ros(scanners[0])[2, 2] == pytest.approx(1)
