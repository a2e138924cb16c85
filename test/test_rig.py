"""Several cameras in one world, and real pictures that correct it."""

from __future__ import annotations

import numpy as np
import pytest
from fakes import PixelModel

from mirage_ros.data.seeds import level_camera_pose
from mirage_ros.errors import MirageError
from mirage_ros.geometry.camera import Camera
from mirage_ros.ros.cameras import mounted, read_rig
from mirage_ros.ros.tf import Buffer
from mirage_ros.ros.worker import Planned
from mirage_ros.world.world import Rig, World

SIZE, STRIDE = (64, 80), 8
RED = np.array([220, 20, 20], np.uint8)
SPOT_CELL = (3, 5)
WALL_M = 2.0
YAWS = (0.0, 0.15, -0.15)


def spotted(spot: np.ndarray = RED, back: int = 90) -> np.ndarray:
    """A grey picture with one cell of another colour."""
    rgb = np.full((*SIZE, 3), back, np.uint8)
    row, column = (index * STRIDE for index in SPOT_CELL)
    rgb[row : row + STRIDE, column : column + STRIDE] = spot
    return rgb


def turned(pose: np.ndarray, yaw: float, ahead_m: float = 0.0) -> np.ndarray:
    turn = np.eye(4)
    turn[:3, :3] = [[np.cos(yaw), 0, np.sin(yaw)], [0, 1, 0], [-np.sin(yaw), 0, np.cos(yaw)]]
    turn[2, 3] = ahead_m
    return pose @ turn


def started(**config) -> World:
    world = World(PixelModel(**config))
    camera = Camera.from_hfov(60.0, SIZE, level_camera_pose())
    world.reset(spotted(), camera, np.full(SIZE, WALL_M, np.float32), 0)
    return world


def spot_point(world: World) -> np.ndarray:
    """Where the spot is in the world."""
    middle = (np.array(SPOT_CELL[::-1]) + 0.5) * STRIDE - 0.5
    return world.camera.unproject(middle[None], np.array([WALL_M]))[0]


def red_cell(rgb: np.ndarray) -> np.ndarray:
    """Middle (u, v) of the reddest cell."""
    cells = rgb.astype(float).reshape(SIZE[0] // STRIDE, STRIDE, SIZE[1] // STRIDE, STRIDE, 3)
    colour = cells.mean((1, 3))
    redness = colour[..., 0] - colour[..., 1]
    row, column = np.unravel_index(redness.argmax(), redness.shape)
    assert redness.max() > 60, redness.max()
    return (np.array([column, row]) + 0.5) * STRIDE - 0.5


def plan(start: np.ndarray, frames: int) -> list[Camera]:
    intrinsics = Camera.from_hfov(60.0, SIZE).intrinsics
    return [
        Camera(intrinsics, np.stack([turned(start, yaw, 0.02 * i) for i in range(frames)]), SIZE)
        for yaw in YAWS
    ]


def test_what_one_camera_sees_the_others_see_at_the_right_pixel():
    world = started()
    point, start = spot_point(world), world.camera.world_from_camera
    rig = Rig(world, 3)
    for chunk in range(3):
        stamps = np.arange(1, 5) + 4 * chunk
        chunks = rig.step(plan(start, 4), stamps)
        for seen in chunks:
            assert [frame.stamp_ns for frame in seen.frames] == stamps.tolist()
            for frame in seen.frames:
                (expected,), _ = frame.camera.project(point[None])
                assert np.abs(red_cell(frame.rgb) - expected).max() <= STRIDE


def test_every_camera_is_preceded_by_its_own_frames():
    class Watching(PixelModel):
        seen: list = []

        def generate(self, readout, cameras, preceding, references, seed):
            self.seen.append(preceding.mean().item())
            return super().generate(readout, cameras, preceding, references, seed)

        def decode(self, latents):
            return super().decode(latents)

    world = World(Watching())
    camera = Camera.from_hfov(60.0, SIZE, level_camera_pose())
    world.reset(spotted(), camera, np.full(SIZE, WALL_M, np.float32), 0)
    rig, start = Rig(world, 2), world.camera.world_from_camera
    away = [plan(start, 2)[0], plan(turned(start, np.pi), 2)[0]]
    for chunk in range(3):
        rig.step(away, np.array([1, 2]) + 2 * chunk)
    front, back = Watching.seen[0::2], Watching.seen[1::2]
    assert back[0] == front[0], "at first the seed precedes"
    assert len(set(front)) < 3 and front[2] != back[2] and back[1] == back[2]


def test_a_rig_goes_on_after_the_world_was_saved_and_loaded(tmp_path):
    world = started()
    start, rig = world.camera.world_from_camera, Rig(world, 3)
    rig.step(plan(start, 4), np.arange(1, 5))
    world.save(tmp_path / "world")
    wanted = rig.step(plan(start, 4), np.arange(5, 9))
    other = World(PixelModel())
    other.load(tmp_path / "world")
    found = Rig(other, 3).step(plan(start, 4), np.arange(5, 9))
    for one, two in zip(wanted, found, strict=True):
        for before, after in zip(one.frames, two.frames, strict=True):
            np.testing.assert_array_equal(before.rgb, after.rgb)


def test_a_bad_plan_of_one_camera_leaves_the_world_where_it_was():
    world = started()
    rig, start = Rig(world, 2), world.camera.world_from_camera
    good = plan(start, 4)[:2]
    with pytest.raises(MirageError):
        rig.step([good[0], good[1][:2]], np.arange(1, 5))
    assert world.frames_seen == 1 and world.stamp_ns == 0
    with pytest.raises(MirageError, match="has 2 cameras and got 1"):
        rig.step(good[:1], np.arange(1, 5))
    assert len(rig.step(good, np.arange(1, 5))) == 2
    with pytest.raises(MirageError, match="give 1 to"):
        Rig(world, 0)


def test_real_pictures_beat_what_was_imagined_and_what_was_remembered():
    world = started()
    camera, green = world.camera, np.array([20, 220, 20], np.uint8)
    nearer = np.full(SIZE, 1.0, np.float32)
    tokens = world.memory.tokens
    erased, stored = world.observe(spotted(green, 40), camera, nearer, 1)
    assert (erased, stored) == (0, tokens), "behind the new surface nothing is known to be wrong"
    cameras = Camera(camera.intrinsics, camera.world_from_camera[None], SIZE)
    frame = world.step(cameras, np.array([2])).frames[0]
    assert np.abs(frame.rgb.astype(int) - spotted(green, 40)).max() < 8
    assert np.nanmedian(frame.depth_m) == pytest.approx(1.0, abs=0.02)
    farther = np.full(SIZE, 3.0, np.float32)
    erased, stored = world.observe(spotted(RED, 200), camera, farther, 3)
    assert erased >= 2 * tokens * 0.9 and stored == tokens
    frame = world.step(cameras, np.array([4])).frames[0]
    assert np.abs(frame.rgb.astype(int) - spotted(RED, 200)).max() < 8
    assert world.stamp_ns == 4


def test_a_picture_that_only_adds_leaves_what_was_seen_as_finely():
    world = started()
    camera, tokens = world.camera, world.memory.tokens
    same = np.full(SIZE, WALL_M * 1.01, np.float32)
    assert world.observe(spotted(back=40), camera, same, 1, adds=True) == (0, 0)
    finer = Camera(camera.intrinsics * np.array([[2], [2], [1]]), camera.world_from_camera, SIZE)
    erased, stored = world.observe(spotted(back=40), finer, same, 2, adds=True)
    assert erased == 0 and stored == tokens, "the same wall, twice as fine"
    # What was measured clearly behind a token and all around contradicts it, even where it only adds.
    inner = (SIZE[0] // STRIDE - 2) * (SIZE[1] // STRIDE - 2)
    erased, stored = world.observe(spotted(), camera, same + 1, 3, adds=True)
    assert erased > inner == stored


def test_a_camera_that_looks_all_the_time_replaces_what_two_pictures_agree_on():
    world = started()
    camera, tokens, second = world.camera, world.memory.tokens, 10**9
    wall, box = np.full(SIZE, WALL_M, np.float32), np.full(SIZE, WALL_M, np.float32)
    box[16:48, 24:56] = 1.0
    counts, sightings = world.keep_up(spotted(), camera, wall, 1)
    assert counts == (0, 0) and not sightings, "nothing is new"
    before = world.memory
    counts, sightings = world.keep_up(spotted(RED, 200), camera, box, second, sightings)
    assert counts == (0, 0) and world.memory is before, "one picture is not believed"
    counts, sightings = world.keep_up(spotted(RED, 200), camera, box, second + 10**8, sightings)
    assert counts == (0, 0), "nor two at once: it may move"
    counts, sightings = world.keep_up(spotted(RED, 200), camera, box * 0.7, 2 * second, sightings)
    assert counts == (0, 0), "it was elsewhere before"
    counts, sightings = world.keep_up(spotted(RED, 200), camera, box, 2 * second, sightings)
    assert counts[1] > 0 and world.memory.tokens > tokens
    depth = world.memory.measure(Camera.stack([camera]))[0][0]
    assert np.median(depth[24:40, 32:48]) == pytest.approx(1.0, abs=0.02)
    for i in range(8):
        counts, sightings = world.keep_up(spotted(RED, 200), camera, box, 3 * second + i * 10**8, sightings)
    assert counts == (0, 0), "it is known now"
    for i in range(8):
        _, sightings = world.keep_up(spotted(), camera, wall, 5 * second + i * 10**8, sightings)
    depth = world.memory.measure(Camera.stack([camera]))[0][0]
    assert np.median(depth[24:40, 32:48]) == pytest.approx(WALL_M, rel=0.02), "and gone when it went"
    with pytest.raises(MirageError, match="needs depth"):
        world.keep_up(spotted(), camera, None, 9 * second, sightings)


def test_a_change_is_noticed_after_time_went_back():
    world, second = started(), 10**9
    camera, wall, box = world.camera, np.full(SIZE, WALL_M, np.float32), np.full(SIZE, WALL_M, np.float32)
    box[16:48, 24:56] = 1.0
    counts, sightings = world.keep_up(spotted(), camera, box, 100 * second)
    counts, sightings = world.keep_up(spotted(), camera, box, 101 * second, sightings)
    assert counts[1] > 0 and sightings, "it stands there"
    counts, sightings = world.keep_up(spotted(), camera, wall, second, sightings)
    assert counts == (0, 0) and [one.stamp_ns for one in sightings] == [second]
    counts, sightings = world.keep_up(spotted(), camera, wall, 2 * second, sightings)
    assert counts[1] > 0, "it went"


def test_unknown_depth_changes_nothing_and_bad_observations_are_refused():
    world = started()
    camera, tokens = world.camera, world.memory.tokens
    half = np.full(SIZE, 1.0, np.float32)
    half[:, : SIZE[1] // 2] = np.nan
    erased, stored = world.observe(spotted(), camera, half, 1)
    assert erased == 0 and stored == tokens // 2
    for depth_m, words in ((None, "needs depth"), (np.full(SIZE, np.nan), "no valid pixel")):
        with pytest.raises(MirageError, match=words):
            world.observe(spotted(), camera, depth_m, 2)
    with pytest.raises(MirageError, match="no seed"):
        World(PixelModel()).observe(spotted(), camera, half, 1)
    assert world.memory.tokens == tokens + tokens // 2
    world.redate(50)
    assert world.stamp_ns == 50


RIG = """
cameras:
  - {name: front, frame: camera, width: 80, height: 64, hfov_deg: 60}
  - {name: left, frame: left_eye, width: 80, height: 64, fx: 70, fy: 70, cx: 39.5, cy: 31.5}
  - {name: right, width: 40, height: 32, hfov_deg: 90, xyz: [0.1, 0, 0], wxyz: [1, 0, 0, 0]}
"""


def test_a_rig_file_names_views_and_mounts(tmp_path):
    path = tmp_path / "rig.yaml"
    path.write_text(RIG)
    cameras = read_rig(str(path))
    assert [camera.output.prefix for camera in cameras] == ["front/", "left/", "right/"]
    assert cameras[1].view.intrinsics[0, 0] == 70 and cameras[2].view.size == (32, 40)
    buffer, start = Buffer(), level_camera_pose()
    planned = Planned((5, 6), np.stack([start, turned(start, 0.3)]))
    with pytest.raises(MirageError, match="left_eye"):
        mounted(cameras, buffer, "camera", planned)
    from mirage_ros.ros.messages import transform_to_ros

    mount = turned(np.eye(4), 0.5)
    buffer.set_transform_static(transform_to_ros(mount, "camera", "left_eye", 0))
    front, left, right = mounted(cameras, buffer, "camera", planned)
    np.testing.assert_allclose(front, planned.world_from_camera)
    np.testing.assert_allclose(left[1], planned.world_from_camera[1] @ mount, atol=1e-6)
    shifted = right[0][:3, 3] - start[:3, 3]
    np.testing.assert_allclose(shifted, 0.1 * start[:3, 0], atol=1e-9)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("cameras: []", "its own name"),
        ("views: 3", "a list 'cameras'"),
        ("cameras: [{name: a, width: 80}]", "height"),
        ("cameras: [{name: a b, width: 80, height: 64}]", "letters"),
        ("cameras: [{name: a, width: 80, height: 4}]", "80 x 4"),
        ("cameras: [{name: a, width: 80, height: 64, lens: 3}]", "lens"),
        ("cameras: [{name: a, width: 80, height: 64, wxyz: [2, 0, 0, 0]}]", "unit quaternion"),
        ("cameras: [{name: a, width: 8, height: 8}, {name: a, width: 8, height: 8}]", "own name"),
    ],
)
def test_a_rig_file_that_is_wrong_is_one_sentence(tmp_path, text, words):
    path = tmp_path / "rig.yaml"
    path.write_text(text)
    with pytest.raises(MirageError, match=words):
        read_rig(str(path))
