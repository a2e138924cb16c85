"""Worlds whose truth is known (scenes by seed; recorded ones are in readback.py), and their rollouts, kept on disk.

A rollout's name is a hash of all that it depends on: weights, program, world, variant. So none is
made twice.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from zipfile import BadZipFile

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int, UInt8

from mirage_ros.errors import MirageError
from mirage_ros.files import atomic_file
from mirage_ros.geometry.camera import Camera
from mirage_ros.geometry.depth import cell_depth
from mirage_ros.geometry.images import cell_share
from mirage_ros.protocol import STAGES, Readout, WorldModel, readout_cells
from mirage_ros.world.state import latent_size, readout_size
from mirage_ros.world.world import World

PERIOD_S = 0.2
EXCURSION = 100
"""Frames of one excursion of a long walk: out for half of them, and back."""
FINER = 4
SAME_SURFACE_SHARE = 0.03
RECORDED_SHARE = 0.08
"""Relative gap of depths of one surface: rendered, and recorded with noise and drift."""
LEFT_SHARE, BACK_SHARE = 0.05, 0.15


@dataclass(frozen=True)
class TrueWorld:
    """f frames of a path through a known world; frame 0 is the seed.

    Attributes:
        depth_m: +inf in the sky, NaN where unknown.
        first_shown: an earlier frame of the same camera, or -1.
        returns: frames that look again at what was seen before.
        grounded: pixels whose surface the seed picture shows, by true geometry; what a world
            made from the seed can know.
    """

    name: str
    cameras: Camera
    rgb: UInt8[np.ndarray, "f h w 3"]
    depth_m: Float[np.ndarray, "f h w"]
    moving: Bool[np.ndarray, "f h w"]
    first_shown: Int[np.ndarray, "f"]
    returns: Bool[np.ndarray, "f"]
    grounded: Bool[np.ndarray, "f h w"]

    def __len__(self) -> int:
        return len(self.rgb)

    @property
    def vacated(self) -> Bool[np.ndarray, "f h w"]:
        """Where the seed's moving bodies stood, and no body is any more."""
        return vacated_by_bodies(self.cameras, self.depth_m, self.moving)

    @property
    def no_return(self) -> str:
        """Why no frame counts as a return, as a sentence; "" where some do."""
        share = self.grounded.mean((1, 2))
        if self.returns.any():
            return ""
        reason = f"{self.name} has no return to judge: "
        if (least := share.min()) >= LEFT_SHARE:
            return reason + (
                f"every view shows the seed's surfaces in {least:.0%} of the picture or more, and "
                f"a return counts after a view that shows them in less than {LEFT_SHARE:.0%}."
            )
        gone = int(np.argmax(share < LEFT_SHARE))
        return reason + (
            f"after frame {gone} had left the seed's surfaces, no view showed them in more than "
            f"{share[gone:].max():.0%} of the picture ({BACK_SHARE:.0%} is needed)."
        )

    @property
    def stamps_ns(self) -> Int[np.ndarray, "f"]:
        return np.arange(len(self), dtype=np.int64) * int(PERIOD_S * 1e9)


def scene_world(seed: int, frames: int, size: tuple[int, int], kind: str | None = None):
    """A scene walked there and back; long walks are many excursions that each end at the seed.

    Args:
        frames: odd numbers end at the seed's camera; above 100 each 100 frames do.
    """
    from mirage_ros.scenes import Renderer, camera_path, make_scene

    if frames < 3:
        raise MirageError(f"A walk of {frames} frames was asked for; give at least 3.")
    scene = make_scene(seed, kind)
    half = min(frames, EXCURSION) // 2
    length_s = half * PERIOD_S
    fine = FINER * half + 1
    way = camera_path(scene, seed, fine, size=size, period_s=length_s / (fine - 1))
    share, yaw_deg, first_shown = plan_excursions(frames, half)
    cameras = way[np.rint(share * (fine - 1)).astype(int)].turned(np.radians(yaw_deg))
    times = np.arange(frames) * PERIOD_S
    with Renderer(scene, size) as renderer:
        clip = renderer.render(cameras, times)
    grounded = shown_by_seed(cameras, clip.depth_m, clip.moving)
    returns = first_shown >= 0
    name = f"{seed} {scene.kind}"
    return TrueWorld(
        name, cameras, clip.rgb, clip.depth_m, clip.moving, first_shown, returns, grounded
    )


def plan_excursions(frames: int, half: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Position along the way (0..1), extra yaw in degrees and the earlier frame of the same camera.

    The first excursion follows the way and turns no further than it. Later ones go less far and
    turn ever more, to either side, so that the world grows.
    """
    number, step = np.divmod(np.arange(frames), 2 * half)
    out = 1 - np.abs(step / half - 1)
    eased = np.where(number == 0, out, 0.5 - 0.5 * np.cos(np.pi * out))
    reach = np.where(number % 3 == 0, 1.0, np.where(number % 3 == 1, 0.5, 0.75))
    widest = np.minimum(40.0 * ((number + 1) // 2), 180.0) * np.where(number % 2, 1, -1)
    mirrored = number * 2 * half + 2 * half - step
    first = np.where(step > half, mirrored, -1)
    first[(step == 0) & (number > 0)] = 0
    # The seed's camera was first seen in frame 0, not at the start of this excursion.
    first[(first >= 0) & (first % (2 * half) == 0)] = 0
    return eased * reach, eased * widest, first


def shown_by_seed(
    cameras: Camera,
    depth_m: Float[np.ndarray, "f h w"],
    moving: Bool[np.ndarray, "f h w"],
    tolerance: float = SAME_SURFACE_SHARE,
) -> Bool[np.ndarray, "f h w"]:
    """Where each frame's surface lies in frame 0's picture and nothing hides it there; see `seed_pixels`."""
    return np.stack([shown for _, shown in seed_pixels(cameras, depth_m, moving, tolerance)])


def warped_seed(truth: TrueWorld) -> UInt8[np.ndarray, "f h w 3"]:
    """The seed's own pixels at each frame's surfaces, by true depth: what no memory of the seed can be better than, save
    by luck. It means something where `grounded`, whatever the tolerance."""
    places = seed_pixels(truth.cameras, truth.depth_m, truth.moving, SAME_SURFACE_SHARE)
    return np.stack([cv2.remap(truth.rgb[0], pixels, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
                     for pixels, _ in places])  # fmt: skip


def seed_pixels(
    cameras: Camera, depth_m: Float[np.ndarray, "f h w"], moving: Bool[np.ndarray, "f h w"], tolerance: float
) -> Iterator[tuple[Float32[np.ndarray, "h w 2"], Bool[np.ndarray, "h w"]]]:
    """Of each frame in which pixels of frame 0 its surfaces lie, and where these show them.

    Depths of one surface may differ by the share `tolerance`. The seed's are interpolated as
    inverse depth, which is linear on planes however slanted, between pixels of known depth alone.
    """
    seed, (height, width) = cameras[0], cameras.size
    known = np.isfinite(depth_m[0]) & (depth_m[0] > 0) & ~moving[0]
    inverse = np.where(known, 1 / np.where(known, depth_m[0], 1), 0).astype(np.float32)
    # Between a surface and a hole any depth would be found.
    certain = known.astype(np.float32)
    for i in range(len(depth_m)):
        known = np.isfinite(depth_m[i]) & ~moving[i]
        points = cameras[i].lift(np.where(known, depth_m[i], 1.0))
        pixels, z = seed.project(points.reshape(-1, 3))
        with np.errstate(invalid="ignore"):
            inside = (z > 0) & (np.abs(pixels) < 1e6).all(-1)
        pixels = np.where(inside[:, None], pixels, -9).astype(np.float32)
        inside &= ((pixels > -0.5) & (pixels < (width - 0.5, height - 0.5))).all(-1)
        pixels = pixels.reshape(height, width, 2)
        there = cv2.remap(inverse, pixels, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        sure = cv2.remap(certain, pixels, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        same = np.abs(there * np.where(inside, z, 0).reshape(height, width) - 1) <= tolerance
        same &= sure > 0.999
        yield pixels, inside.reshape(height, width) & same & known


def vacated_by_bodies(
    cameras: Camera,
    depth_m: Float[np.ndarray, "f h w"],
    moving: Bool[np.ndarray, "f h w"],
) -> Bool[np.ndarray, "f h w"]:
    """Where frame 0's bodies would show, had they stayed, though no body is there now."""
    height, width = cameras.size
    bodies = moving[0] & np.isfinite(depth_m[0])
    points = cameras[0].lift(np.where(bodies, depth_m[0], 1.0))[bodies]
    vacated = np.zeros(moving.shape, bool)
    for i in range(len(moving)):
        pixels, z = cameras[i].project(points)
        with np.errstate(invalid="ignore"):
            inside = (z > 0) & (np.abs(pixels) < 1e6).all(-1)
        column, row = np.rint(np.where(inside[:, None], pixels, -9)).astype(int).T
        inside &= (column >= 0) & (column < width) & (row >= 0) & (row < height)
        column, row, z = column[inside], row[inside], z[inside]
        bare = z < depth_m[i][row, column] * (1 + SAME_SURFACE_SHARE)
        mask = np.zeros((height, width), np.uint8)
        mask[row[bare], column[bare]] = 1
        closed = cv2.morphologyEx(mask, cv2.MORPH_CLOSE, np.ones((3, 3), np.uint8))
        vacated[i] = closed.astype(bool) & ~moving[i]
    return vacated


PACKAGE = Path(__file__).parent.parent
PROGRAM = (
    *(f"{folder}/**/*.py" for folder in ("geometry", "memory", "world", "models")), "protocol.py",
    *(f"evaluation/{name}.py" for name in ("rgb_cache", "point_cloud", "evaluate", "worlds")),
)  # fmt: skip
"""Sources that a rollout depends on."""
TRUTH = ("geometry/**/*.py", "scenes/**/*.py", "evaluation/worlds.py")
"""Sources that a world's truth depends on."""


@dataclass(frozen=True)
class Rolled:
    """f frames of one world as a variant showed them; frame 0 is the seed as the model decodes it.

    Attributes:
        rgb: (f, h, w, 3) uint8.
        depth_m: (f, h, w), perceived.
        observed: (f, h, w) bool, what memory showed before the frame was made.
        bare: (f, h, w, 3) uint8, the readout itself decoded, or of a memory of pixels what it draws;
            f is 0 where it was not made.
        seconds: (chunks, 5) by stage.
        tokens, nbytes: (f,) memory after the frame's chunk.
        remembered: (lh, lw) share of each of the seed's latent cells that memory shows to the
            seed's own camera at once.
    """

    rgb: np.ndarray
    depth_m: np.ndarray
    observed: np.ndarray
    bare: np.ndarray
    seconds: np.ndarray
    tokens: np.ndarray
    nbytes: np.ndarray
    remembered: np.ndarray


def roll(
    world: World, truth: TrueWorld, *, seed_depth: bool, bare: bool, tick: Callable[[int], object]
) -> Rolled:
    """Runs the cycle from the seed picture along the whole path.

    Args:
        seed_depth: give the seed's true depth; else perception guesses it and with it the scale.
        bare: decode the readouts as well, or draw them.
        tick: called with the number of frames just made.
    """
    depth = truth.depth_m[0] if seed_depth else None
    chunks, shown = [world.reset(truth.rgb[0], truth.cameras[0], depth)], []
    remembered = seed_remembered(world)
    tick(1)
    stamps, length = truth.stamps_ns, world.model.chunk_frames
    for start in range(1, len(truth), length):
        part = slice(start, start + length)
        if bare:
            shown.append(_decode_readout(world, truth, part))
        chunks.append(world.step(truth.cameras[part], stamps[part]))
        tick(len(chunks[-1].frames))
    frames = [frame for chunk in chunks for frame in chunk.frames]
    counts = [len(chunk.frames) for chunk in chunks]
    rgb = np.stack([frame.rgb for frame in frames])
    return Rolled(
        rgb=rgb,
        depth_m=np.stack([frame.depth_m for frame in frames]).astype(np.float32),
        observed=np.stack([frame.observed for frame in frames]),
        bare=np.concatenate([rgb[:1], *shown]) if bare else rgb[:0],
        seconds=np.array([[chunk.seconds[stage] for stage in STAGES] for chunk in chunks[1:]]),
        tokens=np.repeat([chunk.tokens for chunk in chunks], counts),
        nbytes=np.repeat([chunk.memory_bytes for chunk in chunks], counts),
        remembered=remembered,
    )


def seed_remembered(world: World) -> Float[np.ndarray, "lh lw"]:
    """Of a world that was just reset, the share of each of the seed's latent cells that memory
    shows to the seed's own camera."""
    camera = Camera.stack([world.camera.resized(readout_size(world.model))])
    seen = world.memory.fork().read(camera)
    return cell_share(seen.visible, readout_cells(world.model))[0].astype(np.float32)


def seed_lost(
    remembered: Float[np.ndarray, "lh lw"],
    depth_m: Float[np.ndarray, "h w"],
    moving: Bool[np.ndarray, "h w"] | None = None,
) -> tuple[float, float]:
    """What of a seed was not remembered, as shares of its latent cells, the sky left out.

    Args:
        remembered: see `seed_remembered`.
        depth_m: the seed's, as the world took it.
        moving: bodies that are not to be remembered; cells that show any are left out.

    Returns:
        Of the cells of known depth the share that memory does not show (by half, at least); and of
        all cells the share without depth, which no memory can hold.
    """
    stride = len(depth_m) // len(remembered)
    depth = cell_depth(depth_m[None], stride)[0]
    rest = ~np.isposinf(depth)
    if moving is not None:
        rest &= cell_share(moving[None], stride)[0] == 0
    known = rest & np.isfinite(depth)
    lost = float((remembered[known] < 0.5).mean()) if known.any() else float("nan")
    return lost, float(np.isnan(depth[rest]).mean()) if rest.any() else float("nan")


def cached(path: Path, kind: type, make: Callable[[], object]):
    """A dataclass of arrays from a file, or made and written."""
    if path.is_file():
        try:
            with np.load(path, allow_pickle=False) as stored:
                return kind(**{field.name: _plain(stored[field.name]) for field in fields(kind)})
        except (OSError, ValueError, KeyError, EOFError, BadZipFile):
            path.unlink()  # of a run that was cut off, or of another release
    made = make()
    with atomic_file(path) as file:
        np.savez(file, **{field.name: getattr(made, field.name) for field in fields(kind)})
    return made


def name_of(*parts: object) -> str:
    """Twenty hex digits that stand for all parts."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:20]


def hash_of_sources(patterns: tuple[str, ...]) -> str:
    """Twenty hex digits that stand for the package's files of these patterns."""
    found = {pattern: list(PACKAGE.glob(pattern)) for pattern in patterns}
    if missing := [pattern for pattern, paths in found.items() if not paths]:
        raise MirageError(f"No source matches {', '.join(missing)}; name the files as they are.")
    paths = sorted(path for paths in found.values() for path in paths)
    total = hashlib.sha256()
    for path in paths:
        total.update(str(path.relative_to(PACKAGE)).encode())
        total.update(hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()[:20]


def _plain(array: np.ndarray):
    return str(array) if array.ndim == 0 and array.dtype.kind == "U" else array


def _decode_readout(world: World, truth: TrueWorld, part: slice) -> np.ndarray:
    model: WorldModel = world.model
    if hasattr(world.memory, "pictures"):  # a memory of pixels draws its own (rgb_cache.py)
        return world.memory.pictures(truth.cameras[part])
    cells = truth.cameras[part].resized(latent_size(model))
    readout: Readout = world.memory.read(cells)
    with torch.inference_mode():
        return model.decode(readout.latents)
