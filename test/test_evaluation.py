"""Metrics obey their laws; read-back puts pixels where cameras see them."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from fakes import PixelModel
from make_seed import write_seed

from mirage_ros.data.seeds import PosedFrame, PosedRgbd, load_seed
from mirage_ros.errors import MirageError
from mirage_ros.evaluation import psnr_db, ssim, zncc
from mirage_ros.evaluation.readback import describe, draw, read_back, warp_pixels

REAL = Path(__file__).resolve().parents[2] / "shared" / "realdata" / "office_loop"
needs_real = pytest.mark.skipif(not REAL.is_dir(), reason="no shared/realdata next to the checkout")


def noise(seed=0, size=(60, 80, 3)):
    picture = np.random.default_rng(seed).integers(0, 256, size).astype(np.uint8)
    return cv2.GaussianBlur(picture, (0, 0), 2)


def test_psnr_of_a_known_error():
    a = np.full((8, 8, 3), 100, np.uint8)
    assert psnr_db(a, a + np.uint8(10)) == pytest.approx(20 * np.log10(25.5))
    assert psnr_db(a, a) == float("inf")


def test_ssim_is_one_for_equal_and_falls_with_noise():
    a = noise()
    worse = np.clip(a + np.random.default_rng(1).normal(0, 12, a.shape), 0, 255).astype(np.uint8)
    assert ssim(a, a) == pytest.approx(1) and 0.1 < ssim(a, worse) < 0.95
    assert ssim(a, noise(5)) < ssim(a, worse)


def test_ssim_is_the_formula_over_windows_within_the_picture():
    a = noise()
    b = np.clip(a + np.random.default_rng(2).normal(0, 20, a.shape), 0, 255).astype(np.uint8)
    x, y = (picture @ np.array([0.299, 0.587, 0.114]) for picture in (a, b))

    def mean(values):
        return cv2.GaussianBlur(values, (11, 11), 1.5)[5:-5, 5:-5]

    both = mean(x * y) - mean(x) * mean(y)
    each = mean(x * x) - mean(x) ** 2 + mean(y * y) - mean(y) ** 2
    c1, c2 = 2.55**2, 7.65**2
    light = (2 * mean(x) * mean(y) + c1) / (mean(x) ** 2 + mean(y) ** 2 + c1)
    assert ssim(a, b) == pytest.approx((light * (2 * both + c2) / (each + c2)).mean(), abs=1e-6)


def test_zncc_ignores_brightness_but_not_place():
    a = noise()
    brighter = np.clip(a * 0.6 + 60, 0, 255).astype(np.uint8)
    assert zncc(brighter, a) > 0.99
    assert zncc(np.roll(a, 8, 1), a) < 0.5 and zncc(255 - a, a) < -0.99


def test_zncc_looks_only_where_it_may():
    a = noise()
    b = a.copy()
    b[:, 40:] = noise(7)[:, 40:]
    valid = np.zeros(a.shape[:2], bool)
    valid[:, :40] = True
    assert zncc(b, a, valid) > 0.99 > zncc(b, a)
    assert np.isnan(zncc(b, a, np.zeros_like(valid)))


def test_metrics_refuse_other_sizes():
    with pytest.raises(MirageError, match="resize one"):
        psnr_db(noise(), noise(size=(60, 81, 3)))


def test_warp_to_the_own_camera_is_the_picture(tmp_path):
    seed = load_seed(write_seed(tmp_path / "room"))
    frame = PosedFrame(seed.rgb, seed.depth_m, seed.camera)
    warped, covered = warp_pixels(frame, seed.camera)
    assert covered.mean() > 0.99 and (warped[covered] == seed.rgb[covered]).all()


def test_folder_without_poses_is_refused(tmp_path):
    (tmp_path / "color").mkdir()
    with pytest.raises(MirageError, match=r"no K\.txt"):
        PosedRgbd(tmp_path)


@needs_real
def test_real_pictures_read_back_at_the_right_place(tmp_path):
    """Lossless latents: what is left is geometry, in cells of 8 pixels."""
    walk = read_back(REAL, 8, PixelModel((128, 192)), [9, 10, 14, 20, 32])
    by_frame = {result.frame: result for result in walk.frames}
    assert by_frame[9].zncc_warp > 0.9 and by_frame[10].zncc_warp > 0.9
    assert by_frame[32].zncc_warp > 0.6  # after the loop; recorded poses drift by some pixels
    for result in walk.frames:
        assert result.zncc_memory > result.zncc_unmoved + 0.3
        assert result.share > 0.1
    assert "pixel warp" in describe(walk) and "were not remembered" in describe(walk)
    assert walk.left_out == (20,) and "frames 20" in describe(walk)
    draw(walk, tmp_path / "a.png")
    assert cv2.imread(str(tmp_path / "a.png")) is not None
