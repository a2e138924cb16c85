"""Seeds from folders, recordings and photographs, and tours that start from them."""

import os
from pathlib import Path

import cv2
import numpy as np
import pytest
from fakes import PixelModel
from make_seed import write_seed
from PIL import Image

from mirage_ros.data.seeds import (
    central_depth_m,
    level_camera_pose,
    load_seed,
    plan_tour,
    shipped_seeds,
)
from mirage_ros.errors import MirageError
from mirage_ros.geometry.camera import Camera
from mirage_ros.geometry.images import seed_warnings
from mirage_ros.world.world import World

REAL = Path(__file__).resolve().parents[2] / "shared" / "realdata"
needs_real = pytest.mark.skipif(not REAL.is_dir(), reason="no shared/realdata next to the checkout")


def test_folder_gives_picture_camera_and_metric_depth(tmp_path):
    seed = load_seed(str(write_seed(tmp_path / "room")))
    assert seed.name == "room" and seed.rgb.shape == (96, 120, 3)
    assert seed.camera.size == (96, 120) and seed.depth_m.shape == (96, 120)
    assert 1 < np.nanmedian(seed.depth_m) < 8
    # The floor in the picture's middle column lies at height 0.
    assert abs(seed.camera.lift(seed.depth_m)[-1, 60, 2]) < 0.01


def test_depth_marks_invalid_and_sky(tmp_path):
    folder = write_seed(tmp_path / "room")
    depth = cv2.imread(str(folder / "depth.png"), cv2.IMREAD_UNCHANGED)
    depth[0, 0], depth[0, 1] = 0, 65535
    cv2.imwrite(str(folder / "depth.png"), depth)
    seed = load_seed(folder)
    assert np.isnan(seed.depth_m[0, 0]) and np.isposinf(seed.depth_m[0, 1])


def test_folder_without_depth_has_none(tmp_path):
    assert load_seed(write_seed(tmp_path / "room", depth=False)).depth_m is None


def test_a_picture_that_breaks_off_between_its_chunks_is_refused(tmp_path):
    path = tmp_path / "photo.png"
    noise = np.random.default_rng(0).integers(0, 255, (200, 300, 3), np.uint8)
    data = bytearray(cv2.imencode(".png", noise)[1].tobytes())
    second = data.find(b"IDAT", data.find(b"IDAT") + 4)
    assert second > 0
    data[second + 1] = 1
    path.write_bytes(data)
    with pytest.raises(MirageError, match="photo.png cannot be read"):
        load_seed(path)


@pytest.mark.parametrize("put", [os.mkfifo, lambda path: path.symlink_to("/dev/zero")])
@pytest.mark.parametrize("name", ["color.png", "depth.png", "camera.yaml"])
def test_a_pipe_or_device_in_a_seed_is_refused_and_not_waited_for(tmp_path, name, put):
    folder = write_seed(tmp_path / "room")
    (folder / name).unlink()
    put(folder / name)
    with pytest.raises(MirageError, match="no regular file"):
        load_seed(folder)


@pytest.mark.parametrize("name", ["color/0.png", "depth/0.png", "K.txt", "world_from_camera.txt"])
def test_a_pipe_in_a_walk_is_refused_and_not_waited_for(tmp_path, name):
    for folder in ("color", "depth"):
        (tmp_path / folder).mkdir()
        cv2.imwrite(str(tmp_path / folder / "0.png"), np.full((20, 30), 1000, np.uint16))
    np.savetxt(tmp_path / "K.txt", np.diag([20.0, 20.0, 1.0]))
    np.savetxt(tmp_path / "world_from_camera.txt", np.eye(4).reshape(1, 16))
    (tmp_path / name).unlink()
    os.mkfifo(tmp_path / name)
    with pytest.raises(MirageError, match="no regular file"):
        load_seed(tmp_path)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "CMYK", "1", "I;16"])
def test_any_picture_becomes_rgb(tmp_path, mode):
    path = tmp_path / ("a.tif" if mode in ("CMYK", "I;16") else "a.png")
    if mode == "I;16":
        Image.fromarray(np.full((30, 40), 65535, np.uint16)).save(path)
    else:
        Image.new("RGB", (40, 30), (255, 255, 255)).convert(mode).save(path)
    seed = load_seed(path)
    assert seed.rgb.shape == (30, 40, 3) and seed.rgb.dtype == np.uint8
    assert seed.rgb.min() == 255 and seed.depth_m is None


def test_photograph_gets_a_level_camera_of_its_field_of_view(tmp_path):
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
    camera = load_seed(tmp_path / "a.png", 90.0).camera
    assert camera.hfov_deg == pytest.approx(90)
    assert load_seed(tmp_path / "a.png").camera.hfov_deg == pytest.approx(60)
    assert np.allclose(camera.world_from_camera[:3, 2], [1, 0, 0])  # looks along world +x
    assert np.allclose(camera.world_from_camera[:3, 1], [0, 0, -1])  # its down is world down


def test_exif_orientation_is_respected(tmp_path):
    pixels = np.zeros((20, 40, 3), np.uint8)
    pixels[:, :20] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise: the left half goes to the top
    Image.fromarray(pixels).save(tmp_path / "a.jpg", exif=exif, quality=95)
    rgb = load_seed(tmp_path / "a.jpg").rgb
    assert rgb.shape == (40, 20, 3) and rgb[:15].mean() > 240 and rgb[-15:].mean() < 15


def spoil(folder: Path, fault: str) -> None:
    depth = cv2.imread(str(folder / "depth.png"), cv2.IMREAD_UNCHANGED)
    if fault == "picture":
        (folder / "color.png").write_bytes(b"not a picture")
    elif fault == "empty":
        (folder / "color.png").write_bytes(b"")
    elif fault == "depth size":
        cv2.imwrite(str(folder / "depth.png"), depth[:-1])
    elif fault == "depth nan":
        cv2.imwrite(str(folder / "depth.png"), depth * 0)
    elif fault == "depth 8 bit":
        cv2.imwrite(str(folder / "depth.png"), depth.astype(np.uint8))
    elif fault == "focal":
        text = (folder / "camera.yaml").read_text()
        (folder / "camera.yaml").write_text(text.replace("fx: ", "fx: 0 # "))
    elif fault == "yaml":
        (folder / "camera.yaml").write_text("width: [1")
    elif fault == "camera size":
        text = (folder / "camera.yaml").read_text()
        (folder / "camera.yaml").write_text(text.replace("width: 120", "width: 121"))


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("picture", "cannot be read"),
        ("empty", "cannot be read"),
        ("depth size", "register depth"),
        ("depth nan", "no valid pixel"),
        ("depth 8 bit", "16-bit"),
        ("focal", "focal"),
        ("yaml", "camera file"),
        ("camera size", "one size"),
    ],
)
def test_bad_folders_get_one_clear_sentence(tmp_path, fault, words):
    folder = write_seed(tmp_path / "room")
    spoil(folder, fault)
    with pytest.raises(MirageError, match=words):
        load_seed(folder)


def test_missing_seed_names_what_there_is(tmp_path):
    with pytest.raises(MirageError, match="no seed 'nowhere'"):
        load_seed("nowhere")
    with pytest.raises(MirageError, match="no camera.yaml|has no color"):
        load_seed(tmp_path)


@pytest.mark.parametrize("size", [(4, 300), (300, 7), (1, 1)])
@pytest.mark.parametrize("number", [np.uint8, np.uint16])
def test_tiny_picture_is_refused(tmp_path, size, number):
    Image.fromarray(np.ones(size, number)).save(tmp_path / "a.png")
    with pytest.raises(MirageError, match="at least 8 pixels"):
        load_seed(tmp_path / "a.png")


RAMP = np.linspace(0, 1, 40)[None].repeat(30, 0)
"""Brightness from black to white."""


def write_deep(path: Path, values: np.ndarray, channels: int) -> Path:
    """Numbers of more than 8 bits, by another library than the one that reads them mostly."""
    values = values if channels == 1 else np.stack([values] * 2 + [np.zeros_like(values)], -1)
    assert cv2.imwrite(str(path), values)
    return path


@pytest.mark.parametrize("ending", ["png", "tif"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_deep_pictures_keep_their_brightness(tmp_path, ending, channels, bits):
    values = np.rint(RAMP * (2**bits - 1)).astype(np.uint16)
    path = write_deep(tmp_path / f"a.{ending}", values, channels)
    with seed_warnings() as messages:
        rgb = load_seed(path).rgb
    green = rgb[..., 1].astype(float)
    assert np.abs(green - 255 * RAMP).max() <= 1.5
    assert (rgb[..., 0] == (0 if channels == 3 else rgb[..., 2])).all()  # written as b g r
    assert len(messages) == (bits < 16) and all(f"{bits} bits" in one for one in messages)


@pytest.mark.parametrize("channels", [1, 3])
def test_float_pictures_run_from_black_to_white(tmp_path, channels):
    path = write_deep(tmp_path / "a.tif", RAMP.astype(np.float32), channels)
    assert np.abs(load_seed(path).rgb[..., 1] - 255 * RAMP).max() <= 0.51
    for values in (RAMP * 300, RAMP - 0.5, np.where(RAMP > 0.5, np.nan, RAMP)):
        write_deep(path, values.astype(np.float32), channels)
        with pytest.raises(MirageError, match="give 0 .black. to 1 .white."):
            load_seed(path)


def test_numbers_of_32_bits_are_refused(tmp_path):
    Image.fromarray(np.full((30, 40), 70_000, np.int32)).save(tmp_path / "a.tif")
    with pytest.raises(MirageError, match="8 or 16 bits"):
        load_seed(tmp_path / "a.tif")


def begin(width: int, height: int) -> list[str]:
    """Warnings of a world that starts from a picture of this size; the model's is 80x64."""
    camera = Camera.from_hfov(60.0, (height, width), level_camera_pose())
    with seed_warnings() as messages:
        World(PixelModel()).reset(np.full((height, width, 3), 99, np.uint8), camera)
    return messages


def test_what_cropping_takes_away_is_told():
    assert begin(80, 64) == begin(640, 480) == begin(540, 360) == []
    (portrait,) = begin(480, 640)
    assert "40% of the seed picture" in portrait and "top and bottom" in portrait
    assert "480x640" in portrait and "480x384" in portrait
    (wide,) = begin(1280, 720)
    assert "30% of the seed picture" in wide and "at the sides" in wide
    for width, height in ((4000, 20), (20, 4000), (700, 100)):
        with pytest.raises(MirageError, match="would be left; cut a part"):
            begin(width, height)
    with pytest.raises(MirageError, match="4x64 pixels; give one with at least 8"):
        begin(4, 64)


def test_shipped_seeds_load():
    names = shipped_seeds()
    if not names:
        pytest.skip("no seeds are shipped yet")
    for name in names:
        seed = load_seed(name)
        assert seed.depth_m is not None and seed.rgb.std() > 5


@needs_real
def test_real_walk_frame_has_pose_and_depth():
    seed = load_seed(f"{REAL}/office_loop:8")
    assert seed.rgb.shape == (360, 540, 3) and 0.3 < np.isnan(seed.depth_m).mean() < 0.45
    other = load_seed(f"{REAL}/office_loop:14")
    assert not np.allclose(seed.camera.world_from_camera, other.camera.world_from_camera)
    with pytest.raises(MirageError, match="frames 0 to 34"):
        load_seed(f"{REAL}/office_loop:99")


def turned_deg(camera) -> np.ndarray:
    ahead = camera.world_from_camera[:, :3, 2]
    return np.degrees(np.arccos(np.clip(ahead @ ahead[0], -1, 1)))


def test_tour_leaves_the_view_and_comes_back_exactly(tmp_path):
    seed = load_seed(write_seed(tmp_path / "room"))
    tour = plan_tour(seed.camera, 72, seed.depth_m)
    assert len(tour) == 72
    assert (tour[0].world_from_camera == seed.camera.world_from_camera).all()
    assert (tour[71].world_from_camera == seed.camera.world_from_camera).all()
    assert turned_deg(tour).max() > 60  # wider than the view: it sees only what was never seen
    steps_m = np.linalg.norm(np.diff(tour.position_world, axis=0), axis=1)
    assert steps_m.max() < 0.1 * central_depth_m(seed.depth_m)
    assert np.abs(np.diff(turned_deg(tour))).max() < 6
    assert np.allclose(tour.position_world[:, 2], seed.camera.position_world[2])


def test_tour_stays_in_the_free_space_that_depth_shows(tmp_path):
    seed = load_seed(write_seed(tmp_path / "room"))
    tour = plan_tour(seed.camera, 40, seed.depth_m)
    ahead = (tour.position_world - tour.position_world[0]) @ seed.camera.world_from_camera[:3, 2]
    assert ahead.max() <= 0.4 * central_depth_m(seed.depth_m)


def test_tour_turns_to_the_side_with_more_room():
    from mirage_ros.data.seeds import level_camera_pose
    from mirage_ros.geometry.camera import Camera

    camera = Camera.from_hfov(60.0, (30, 40), level_camera_pose())
    depth = np.full((30, 40), 2.0, np.float32)
    depth[:, 25:] = 6.0
    right = plan_tour(camera, 30, depth).world_from_camera[15, :3, 2]
    left = plan_tour(camera, 30, depth[:, ::-1]).world_from_camera[15, :3, 2]
    assert right[1] < -0.5 and left[1] > 0.5  # world +y is on the left of a camera along +x


def test_photograph_tour_is_gentle_and_has_parallax(tmp_path):
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
    camera = load_seed(tmp_path / "a.png").camera
    tour = plan_tour(camera, 48, None, scene_depth_m=4.0)
    assert turned_deg(tour).max() < 21
    assert 0.4 < np.abs(tour.position_world[:, 1]).max() < 0.7
    assert (tour[47].world_from_camera == tour[0].world_from_camera).all()


def test_tour_needs_three_frames(tmp_path):
    seed = load_seed(write_seed(tmp_path / "room"))
    with pytest.raises(MirageError, match="at least 3"):
        plan_tour(seed.camera, 2, seed.depth_m)
