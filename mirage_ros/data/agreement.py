"""Do the frames of a walk agree? Exposure, blur and poses, from pictures that show the same surfaces.

Frames are compared in pairs: every pixel of one is looked up in the other, by its depth and both poses. From pairs
follow one gain and offset for each frame and colour, which frames are blurred beside others of the same place, and
whose poses or depth disagree with all that they are compared with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import cv2
import numpy as np
from jaxtyping import Float, Float32, Int, UInt8

from mirage_ros.data.seeds import PosedFrame
from mirage_ros.errors import MirageError
from mirage_ros.geometry import rigid
from mirage_ros.geometry.camera import Camera
from mirage_ros.geometry.images import fit_seed

STEPS = (1, 2, 5, 10)
"""Each frame is compared with those so many frames later."""
LOOPS = 2
"""And with so many earlier ones that were taken from nearby much before."""
LOOP_COSINE, LOOP_SHARE = 0.94, 0.35
"""Nearby: this cosine between their axes at least, this distance over the median depth at most."""
SAME_SURFACE = 0.1
"""Share by which depths of one surface may differ."""
LEAST_SHARED = 0.1
"""Pairs that share less of the picture are not compared."""
BLOCK = 8
"""Exposure is compared in blocks of so many pixels: single ones are askew."""
MEANS_COUNT = 0.25
"""How much blocks' mean counts beside their spread in a gain: flat walls say nothing of spread."""
SHARP = 0.6
"""A frame is blurred from this share on of the sharpness of others at the same surfaces."""
MOST_SHIFT, MOST_GAP, OUTLYING = 0.012, 0.08, 3.0
"""A frame disagrees when its pictures lie apart by this share of their width, or its depths by that share, and by so
many times more than is usual in its walk."""


@dataclass(frozen=True)
class Thumb:
    """A frame in small: what is compared.

    Attributes:
        edges: how much each pixel stands out from those around it, what blur takes away.
    """

    rgb: UInt8[np.ndarray, "h w 3"]
    depth_m: Float32[np.ndarray, "h w"]
    camera: Camera
    edges: Float32[np.ndarray, "h w"]


@dataclass(frozen=True)
class Agreement:
    """Of n frames.

    Attributes:
        gain, offset: a colour c of a frame is gain * c + offset in the walk's exposure, c from 0 to 255.
        sharpness: against others of the same surfaces, 1 as sharp.
        shift: by which share of their width pictures of the same surfaces lie apart, median over pairs.
        gap: by which share depths of the same surfaces differ, likewise. All NaN where nothing was comparable.
        pairs: how many were compared.
    """

    gain: Float[np.ndarray, "n 3"]
    offset: Float[np.ndarray, "n 3"]
    sharpness: Float[np.ndarray, "n"]
    shift: Float[np.ndarray, "n"]
    gap: Float[np.ndarray, "n"]
    pairs: int

    @property
    def residual(self) -> float:
        """Of the walk, 1 about where single frames are said to disagree."""
        return usual(self.shift) / MOST_SHIFT + usual(self.gap) / MOST_GAP

    @property
    def blurred(self) -> Int[np.ndarray, "k"]:
        return np.nonzero(self.sharpness < SHARP)[0]

    @property
    def disagreeing(self) -> Int[np.ndarray, "k"]:
        with np.errstate(invalid="ignore"):
            shifted = self.shift > max(MOST_SHIFT, OUTLYING * usual(self.shift))
            return np.nonzero(shifted | (self.gap > max(MOST_GAP, OUTLYING * usual(self.gap))))[0]


def usual(values: Float[np.ndarray, "n"]) -> float:
    """The median of what is known; 0 of nothing."""
    known = values[np.isfinite(values)]
    return float(np.median(known)) if len(known) else 0.0


def thumb_of(frame: PosedFrame, size: tuple[int, int]) -> Thumb:
    """A frame with depth in small. Raises MirageError for one that is no picture with depth."""
    rgb, camera, depth = fit_seed(frame.rgb, frame.camera, frame.depth_m, size)
    grey = cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY).astype(np.float32)
    edges = cv2.blur(np.abs(cv2.Laplacian(grey, cv2.CV_32F)), (5, 5))
    return Thumb(rgb, depth.astype(np.float32), camera, edges)


def at_poses(thumbs: Iterable[Thumb], poses: Iterable[Float[np.ndarray, "4 4"]]) -> list[Thumb]:
    return [replace(one, camera=replace(one.camera, world_from_camera=pose)) for one, pose in zip(thumbs, poses, strict=True)]


def agreement_of(thumbs: list[Thumb], tick: Callable[[int], object] = lambda _: None) -> Agreement:
    """Compares the frames of a walk; `tick` is called with how many frames are through."""
    count, pairs, ends = len(thumbs), [], pairs_of(thumbs)
    for i, (a, b) in enumerate(ends):
        if (found := compared(thumbs[a], thumbs[b])) is not None:
            pairs.append((a, b, *found))
        tick(count * (i + 1) // len(ends))
    if not pairs:
        nothing = np.full(count, np.nan)
        return Agreement(np.ones((count, 3)), np.zeros((count, 3)), nothing, nothing, nothing, 0)
    ends, blocks = np.array([pair[:2] for pair in pairs]), [pair[2] for pair in pairs]
    gain, offset = exposures(count, ends, blocks)
    apart, ratio, gaps = (np.array([pair[i] for pair in pairs]) for i in (3, 4, 5))
    sharpness = _medians(count, np.concatenate([ends[:, 1], ends[:, 0]]), np.concatenate([ratio, 1 / ratio]))
    shift, gap = (_medians(count, ends.T.reshape(-1), np.tile(values, 2)) for values in (apart, gaps))
    return Agreement(gain, offset, sharpness, shift, gap, len(pairs))


def pairs_of(thumbs: list[Thumb]) -> list[tuple[int, int]]:
    """Frames shortly after each other, and those of nearby cameras when somebody came back."""
    count = len(thumbs)
    poses = np.stack([thumb.camera.world_from_camera for thumb in thumbs])
    median = np.array([usual(thumb.depth_m[np.isfinite(thumb.depth_m)]) for thumb in thumbs])
    found = []
    for i in range(count):
        found += [(i, i + step) for step in STEPS if i + step < count]
        early = slice(0, max(0, i - 2 * STEPS[-1]))
        cosine = poses[early, :3, 2] @ poses[i, :3, 2]
        apart = np.linalg.norm(poses[early, :3, 3] - poses[i, :3, 3], axis=1)
        near = np.nonzero((cosine > LOOP_COSINE) & (apart < LOOP_SHARE * median[i]))[0]
        found += [(int(j), i) for j in near[np.argsort(apart[near], kind="stable")[:LOOPS]]]
    return found


def compared(a: Thumb, b: Thumb):
    """What two frames show of the same surfaces; None where that is too little.

    Returns:
        (2, k, 3) mean colours of blocks in `a` and `b`; by which share of their width the pictures lie apart; how sharp
        `b` is against `a` at the same surfaces; by which share their depths differ there, median.
    """
    known = np.isfinite(b.depth_m)
    pixels, z = a.camera.project(b.camera.lift(np.where(known, b.depth_m, 1.0)).reshape(-1, 3))
    height, width = b.depth_m.shape
    maps = np.where((z > 0)[:, None], pixels, -9).clip(-9, 1e4).astype(np.float32).reshape(height, width, 2)
    there = cv2.remap(a.depth_m, maps, None, cv2.INTER_NEAREST, borderValue=np.nan)
    with np.errstate(invalid="ignore", divide="ignore"):
        off = np.abs(there / z.reshape(height, width).astype(np.float32) - 1)
        shared, near = known & (off < SAME_SURFACE), known & (off < 3 * SAME_SURFACE)
    if shared.mean() < LEAST_SHARED:
        return None
    warped = cv2.remap(a.rgb, maps, None, cv2.INTER_LINEAR)
    sound = shared & (np.minimum(warped, b.rgb).min(-1) > 4) & (np.maximum(warped, b.rgb).max(-1) < 250)
    weight = cv2.resize(sound.astype(np.float32), (width // BLOCK, height // BLOCK), interpolation=cv2.INTER_AREA)
    means = [
        cv2.resize(picture * sound[..., None].astype(np.float32), weight.shape[::-1], interpolation=cv2.INTER_AREA)
        for picture in (warped, b.rgb)
    ]
    full = weight > 0.5
    blocks = np.stack([mean[full] / weight[full][:, None] for mean in means])
    edges = cv2.remap(a.edges, maps, None, cv2.INTER_LINEAR)
    sharper = float(b.edges[shared].sum() / max(float(edges[shared].sum()), 1e-3))
    return blocks, displaced(warped, b.rgb, shared), max(sharper, 1e-3), float(np.median(off[near]))


def exposures(count: int, ends: Int[np.ndarray, "p 2"], blocks: list[np.ndarray]):
    """Gains and offsets (n, 3) with which all pairs agree best, of mean log 0 and mean 0 over the walk."""
    slopes, weights = np.zeros((len(ends), 3)), np.zeros(len(ends))
    for i, (a, b) in enumerate(blocks):
        if len(a) < 4:
            continue
        ratio = b / np.maximum(a, 1)
        usual_ratio = np.median(ratio, 0)
        kept = (np.abs(ratio / usual_ratio - 1) < 0.25).all(-1)
        if kept.sum() < 4:
            continue
        a, b = a[kept], b[kept]
        spread = [x.var(0) + MEANS_COUNT * x.mean(0) ** 2 for x in (a, b)]
        slopes[i], weights[i] = 0.5 * np.log(spread[1] / spread[0]), np.sqrt(len(a))
    # What is brighter by `slope` takes the smaller gain.
    gain = np.exp(-_levels(count, ends, slopes, weights))
    steps = np.zeros((len(ends), 3))
    for i, (a, b) in enumerate(blocks):
        if weights[i]:
            steps[i] = np.median(b * gain[ends[i, 1]] - a * gain[ends[i, 0]], 0)
    return gain, -_levels(count, ends, steps, weights)


def _levels(count: int, ends, steps: Float[np.ndarray, "p 3"], weights) -> Float[np.ndarray, "n 3"]:
    """Levels of frames whose differences over pairs (second less first) are nearest to `steps`; mean 0.

    Least squares, weighted anew so that single bad pairs do not count.
    """
    levels, robust = np.zeros((count, 3)), np.ones(len(ends))
    for _ in range(3):
        w = (weights * robust)[:, None]
        right = np.zeros((count, 3))
        np.add.at(right, ends[:, 1], w * steps)
        np.add.at(right, ends[:, 0], -w * steps)
        levels = _solved(count, ends, w, right)
        off = np.abs(levels[ends[:, 1]] - levels[ends[:, 0]] - steps).max(1)
        robust = 1 / np.maximum(1, off / max(1.5 * float(np.median(off)), 1e-6))
    return levels - levels.mean(0)


def _solved(count: int, ends, w, right) -> Float[np.ndarray, "n 3"]:
    """Conjugate gradients on the graph's Laplacian, held lightly at 0."""
    hold = 1e-4 * float(w.sum()) / count

    def product(x: np.ndarray) -> np.ndarray:
        across, out = w * (x[ends[:, 1]] - x[ends[:, 0]]), hold * x
        np.add.at(out, ends[:, 1], across)
        np.add.at(out, ends[:, 0], -across)
        return out

    x, rest = np.zeros_like(right), right.copy()
    way, size = rest.copy(), (rest**2).sum(0)
    for _ in range(4 * count):
        if (size < 1e-18).all():
            break
        there = product(way)
        step = size / np.maximum((way * there).sum(0), 1e-300)
        x, rest = x + step * way, rest - step * there
        size, before = (rest**2).sum(0), size
        way = rest + size / np.maximum(before, 1e-300) * way
    return x


def displaced(warped: np.ndarray, real: np.ndarray, shared: np.ndarray) -> float:
    """By which share of its width a picture lies apart from the other, brought to it, as one shift of all."""
    first, second = (picture.mean(-1, dtype=np.float32) for picture in (warped, real))
    # Two exposures of one surface: the same mean and spread.
    first = (first - first[shared].mean()) / max(float(first[shared].std()), 1) * second[shared].std()
    second = second - second[shared].mean()
    first, second = (cv2.GaussianBlur(picture, (0, 0), 1.5) for picture in (first, second))
    inner = cv2.erode(shared.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
    gradient = np.stack([cv2.Sobel(second, cv2.CV_32F, *axis, ksize=3) / 8 for axis in ((1, 0), (0, 1))], -1)[inner]
    rest = (first - second)[inner]
    if len(rest) < 50:
        return float("nan")
    bound = 1.5 * float(np.median(np.abs(rest))) + 1
    weight = np.minimum(1, bound / np.maximum(np.abs(rest), 1e-6))[:, None]
    square = (gradient * weight).T @ gradient + 1e-3 * len(rest) * np.eye(2)
    return float(np.linalg.norm(np.linalg.solve(square, (gradient * weight).T @ rest))) / real.shape[1]


def _medians(count: int, frames: Int[np.ndarray, "p"], values) -> Float[np.ndarray, "n"]:
    """Of each frame the median of its pairs' values; NaN without one."""
    values, out = np.asarray(values, float), np.full(count, np.nan)
    order = np.argsort(frames, kind="stable")
    starts = np.searchsorted(frames[order], np.arange(count + 1))
    for i in range(count):
        own = values[order[starts[i] : starts[i + 1]]]
        own = own[np.isfinite(own)]
        if len(own):
            out[i] = np.median(own)
    return out


SCALES = (0.1, 0.2, 0.25, 0.4, 0.5, 2.0, 2.5, 4.0, 5.0, 10.0)
"""By which depth may be off when its unit was taken for another one."""
PROBED, FITS_BETTER, WORST = 24, 0.4, 3.0
"""Pairs compared for other units and axes; another reading is right where its misfit is this share of the given one's at
most; a pair's misfit counts up to WORST times what is usual in noisy recordings."""


def other_readings(thumbs: list[Thumb]) -> dict[str, list[Thumb]]:
    """What else poses and depth could mean, in words that follow on "as if"."""
    flip, found, poses = np.diag([1.0, -1.0, -1.0, 1.0]), {}, [thumb.camera.world_from_camera for thumb in thumbs]
    for scale in SCALES:
        words = f"depth were {scale:g} times as large (--depth-units)"
        found[words] = [replace(one, depth_m=one.depth_m * np.float32(scale)) for one in thumbs]
    found["the camera axes were those of OpenGL (y up, z back)"] = at_poses(thumbs, [pose @ flip for pose in poses])
    found["the poses were camera_from_world"] = at_poses(thumbs, [rigid.inverse(pose) for pose in poses])
    return found


def better_reading(thumbs: list[Thumb]) -> str:
    """The other reading that fits a walk much better than the given one, in words; "" where none does."""
    ends = [(i, i + step) for step in STEPS[:2] for i in range(len(thumbs) - step)]
    ends = [ends[i] for i in np.unique(np.linspace(0, len(ends) - 1, PROBED).astype(int))] if ends else []
    used = sorted({i for pair in ends for i in pair})  # each reading copies what it is given
    thumbs, ends = [thumbs[i] for i in used], [(used.index(a), used.index(b)) for a, b in ends]
    given, best, words = misfits(thumbs, ends), FITS_BETTER, ""
    for what, reading in other_readings(thumbs).items():
        other = misfits(reading, ends)
        shared = np.minimum(given, other) < WORST
        if 2 * shared.sum() >= len(ends) > 0 and (share := other[shared].mean() / given[shared].mean()) < best:
            best, words = share, what
    return words


def misfits(thumbs: list[Thumb], ends: list[tuple[int, int]]) -> Float[np.ndarray, "p"]:
    """How badly pairs fit, 1 as in a noisy recording, WORST of those that share nothing."""
    found = [compared(thumbs[a], thumbs[b]) for a, b in ends]
    parts = [WORST if one is None else np.nan_to_num(one[1], nan=WORST) / MOST_SHIFT + one[3] / MOST_GAP for one in found]
    return np.minimum(np.array(parts, float), WORST)


ROUNDS = ((2.5, 2), (2.5, 2), (1.5, 2), (1.5, 2), (1.0, 2), (1.0, 2), (1.0, 4), (1.0, 4))
"""Of refinement: how many pixels pictures are blurred, first so that what lies far apart finds each other, and how steeply
pixels lose weight that do not fit, at last so that edges and things that move hardly count."""
TRUSTED = 0.02
"""How far recorded poses are trusted (m, rad), beside pairs that count as so many independent pixels:"""
PIXELS_COUNT = 100
STEEPEST = 0.1
"""Inverse depth that changes by a larger share from pixel to pixel is an edge's."""


def refined(thumbs: list[Thumb], found: Agreement, tick: Callable[[int], object] = lambda _: None) -> Float[np.ndarray, "n 4 4"]:
    """world_from_camera of all frames with which their pictures and depths fit each other best; needs scipy.

    Gauss-Newton over all poses at once, on differences of brightness and of inverse depth, which is linear over planes (as
    Kerl, Sturm and Cremers, Dense visual SLAM for RGB-D cameras, IROS 2013, take brightness and depth of two frames).
    """
    given = np.stack([thumb.camera.world_from_camera for thumb in thumbs])
    poses, centre, pairs = given.copy(), np.eye(4), pairs_of(thumbs)
    centre[:3, 3] = given[:, :3, 3].mean(0)
    frames = [(np.clip(thumb.rgb * gain + offset, 0, 255).mean(-1).astype(np.float32), _sloped(1 / thumb.depth_m))
              for thumb, gain, offset in zip(thumbs, found.gain, found.offset, strict=True)]  # fmt: skip
    for done, (blur, steep) in enumerate(ROUNDS, 1):
        cameras = [thumb.camera for thumb in at_poses(thumbs, poses)]
        layers = [(_sloped(cv2.GaussianBlur(grey, (0, 0), blur)), inverse_depth, camera.lift(thumb.depth_m))
                  for (grey, inverse_depth), thumb, camera in zip(frames, thumbs, cameras, strict=True)]
        terms = {(a, b): _pull(layers[a], layers[b], cameras[a], centre[:3, 3], steep) for a, b in pairs}
        for i, step in enumerate(_steps(given, poses, centre[:3, 3], terms)):
            poses[i] = centre @ rigid.exp(step) @ rigid.inverse(centre) @ poses[i]
        tick(len(thumbs) * done // len(ROUNDS))
    return poses


def _sloped(values: Float32[np.ndarray, "h w"]) -> Float32[np.ndarray, "h w 3"]:
    """Values, and how they change from pixel to pixel to the right and down."""
    return np.stack([values, *(cv2.Sobel(values, cv2.CV_32F, *axis, ksize=1) / 2 for axis in ((1, 0), (0, 1)))], -1)


def _pull(first, second, a: Camera, centre: Float[np.ndarray, "3"], steep: int):
    """Of two frames the normal equations (6, 6) and (6,) of the twist about `centre` that brings the second to the first."""
    inverse_depth = second[1][1::2, 1::2, 0].reshape(-1)
    points = second[2][1::2, 1::2].reshape(-1, 3)
    pixels, z = a.project(points)
    maps = np.where(np.isfinite(pixels) & (z > 0)[:, None], pixels, -9).clip(-9, 1e4).astype(np.float32)[:, None]
    there = [cv2.remap(one, maps, None, cv2.INTER_LINEAR, borderValue=(np.nan,) * 3)[:, 0].astype(float) for one in first[:2]]
    with np.errstate(invalid="ignore", divide="ignore"):
        seen = np.isfinite(there[0]).all(1) & (np.abs(there[1][:, 0] * z - 1) < SAME_SURFACE) & (inverse_depth > 0)
        seen &= np.abs(there[1][:, 1:]).max(1) * z < STEEPEST
    if seen.mean() < LEAST_SHARED:
        return None
    points, z, grey, inverse = points[seen], z[seen], there[0][seen], there[1][seen]
    x, y, _ = a.camera_from_world[:3, :3] @ (points - a.position_world).T
    zero, (fx, fy) = np.zeros_like(z), np.diag(a.intrinsics)[:2]
    right, down = np.stack([fx / z, zero, -fx * x / z**2], 1), np.stack([zero, fy / z, -fy * y / z**2], 1)
    brightness = grey[:, 0] - second[0][1::2, 1::2, 0].reshape(-1)[seen]
    square, slope = np.zeros((6, 6)), np.zeros(6)
    for rest, change, least, nearer in ((brightness - np.median(brightness), grey, 1.0, zero),
                                        (inverse[:, 0] - 1 / z, inverse, 5e-4, 1 / z**2)):  # fmt: skip
        rows = change[:, 1:2] * right + change[:, 2:] * down + np.stack([zero, zero, nearer], 1)
        rows = rows @ a.camera_from_world[:3, :3]
        rows = np.concatenate([rows, np.cross(points - centre, rows)], 1)
        spread = 1.5 * float(np.median(np.abs(rest))) + least
        weight = PIXELS_COUNT / (len(z) * spread**2 * np.maximum(1, np.abs(rest) / spread) ** steep)
        square += (rows * weight[:, None]).T @ rows
        slope += (rows * weight[:, None]).T @ rest
    return square, slope


def _steps(given, poses, centre: Float[np.ndarray, "3"], terms: dict) -> Float[np.ndarray, "n 6"]:
    """Twists of all frames about `centre` that suit their pairs and the recorded poses best."""
    try:
        from scipy.sparse import bsr_array
        from scipy.sparse.linalg import spsolve
    except ImportError as error:
        raise MirageError(f"Refining poses needs the package scipy ({error}); pip install 'mirage_ros[build]'.") from error
    blocks, right = [], np.zeros((len(given), 6))
    for i, (old, new) in enumerate(zip(given, poses, strict=True)):
        lever = np.eye(6)
        lever[:3, 3:] = -np.cross(np.eye(3), new[:3, 3] - centre)
        off = np.concatenate([new[:3, 3] - old[:3, 3], rigid.log_rotation(new[:3, :3] @ old[:3, :3].T)])
        blocks.append((i, i, lever.T / TRUSTED**2 @ lever))
        right[i] -= lever.T / TRUSTED**2 @ off
    for (a, b), term in terms.items():
        if term is not None:
            blocks += [(a, a, term[0]), (b, b, term[0]), (a, b, -term[0]), (b, a, -term[0])]
            right[a] += term[1]
            right[b] -= term[1]
    rows, columns, values = zip(*blocks, strict=True)
    order = np.argsort(rows, kind="stable")
    starts = np.searchsorted(np.array(rows)[order], np.arange(len(given) + 1))
    matrix = bsr_array((np.stack(values)[order], np.array(columns)[order], starts), shape=(right.size, right.size))
    return spsolve(matrix.tocsc(), right.reshape(-1)).reshape(-1, 6)
