"""What pictures put into a world's latent memory, and what real ones that are observed take out of it.

A real picture with depth tells two things: where surfaces are, and that nothing stands before them. So when one is
observed, every token in view that lies at a measured surface or before it goes, real ones of an older picture too, and
the picture's own tokens come in. What lies behind, or where depth is invalid, stays.

A camera that looks all the time keeps a world up to date (`kept_up`): what it shows for the first time is written at once, where it shows
another surface than a real picture did before, two of its pictures some time apart have to agree; most pictures change nothing and cost little.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from numba import njit

from mirage_ros.errors import MirageError
from mirage_ros.geometry.camera import Camera
from mirage_ros.geometry.depth import cell_depth, completed
from mirage_ros.geometry.images import cell_colours, cell_share, fit_seed
from mirage_ros.memory import LatentMemory, MemoryConfig
from mirage_ros.memory.rows import FIRST_OBSERVED
from mirage_ros.protocol import Perception, WorldModel, imagines, readout_cells, readout_side
from mirage_ros.world.sightings import TOLERANCE, Sighting, agreed
from mirage_ros.world.sky import FAR_M, sky_config
from mirage_ros.world.state import (
    MAX_DEPTH_M,
    REWRITE_LOG_SCALE,
    Pictures,
    WorldConfig,
    WorldState,
    anchor_frames,
    any_in_group,
    check_latents,
    frames_per_latent,
    latent_size,
    moving_in_real,
    perceive_seed,
)

KEPT_OBSERVED = 64
"""So many latents of observed pictures are kept, for reference."""


@dataclass(frozen=True)
class Changed:
    """The cells of a picture that are to be written.

    Attributes:
        new: no real picture showed them, or only more coarsely.
        other: real pictures showed something else there, which goes.
    """

    new: Bool[np.ndarray, "h w"]
    other: Bool[np.ndarray, "h w"]


def observed(
    model: WorldModel,
    config: WorldConfig,
    state: WorldState,
    rgb: np.ndarray,
    camera: Camera,
    depth_m: np.ndarray | None,
    stamp_ns: int,
    adds: bool = False,
) -> tuple[WorldState, tuple[int, int]]:
    """A state with the picture in its memory, and how many tokens went and came; see World.observe."""
    return _written(model, config, state, *_fitted(model, state, rgb, camera, depth_m), stamp_ns, adds, None)


def _fitted(model: WorldModel, state: WorldState, rgb: np.ndarray, camera: Camera, depth_m: np.ndarray | None):
    """Picture, camera and depth at the model's size. Raises MirageError for what cannot be observed."""
    if depth_m is None:
        raise MirageError("An observation needs depth; send a depth picture with it.")
    if not isinstance(state.memory, LatentMemory):
        raise MirageError("This world's memory cannot be corrected; use the latent memory.")
    rgb, camera, depth_m = fit_seed(rgb, camera, depth_m, model.size)
    return rgb, camera, completed(depth_m)


def _written(
    model: WorldModel,
    config: WorldConfig,
    state: WorldState,
    rgb: UInt8[np.ndarray, "h w 3"],
    camera: Camera,
    depth_m: Float[np.ndarray, "h w"],
    stamp_ns: int,
    adds: bool,
    changed: Changed | None,
) -> tuple[WorldState, tuple[int, int]]:
    """As `observed`; where `changed` is given only its cells."""
    latents = check_latents(model.encode(rgb[None]), model, 1)
    number = max((i for i in state.latents if i >= FIRST_OBSERVED), default=FIRST_OBSERVED - 1) + 1
    fork, cameras = state.forked(), Camera.stack([camera])
    fine = np.where(depth_m > MAX_DEPTH_M, np.float32(np.inf), depth_m)[None]
    guess = lambda: perceive_seed(model, rgb[None], cameras, depth_m).dynamic  # noqa: E731
    moving = moving_in_real(model, rgb[None], config.forget_moving, guess)
    stamps, perception = np.array([stamp_ns], np.int64), Perception(fine, moving, np.isposinf(fine))
    pictures = Pictures(latents, number, cameras, perception, rgb[None], stamps, rgb[None], measured=True)
    counts = _replaced(fork.memory, model, config, pictures, adds, changed)
    if fork.sky is not None:
        write_sky(fork.sky, pictures, model.stride, adds or changed is not None)
    kept = {
        i: latent for i, latent in state.latents.items() if i < FIRST_OBSERVED or i > number - KEPT_OBSERVED
    }
    kept[number] = latents[0].to("cpu", torch.float16)
    free_space = state.free_space.with_real(camera, depth_m, readout_side(model))
    return replace(fork, latents=kept, free_space=free_space), counts


def _replaced(
    memory: LatentMemory, model: WorldModel, config: WorldConfig, pictures: Pictures, adds: bool, changed: Changed | None
) -> tuple[int, int]:
    """Writes a picture's tokens in place of those that its depth contradicts; how many went and came."""
    cells, fine = pictures.cameras.resized(latent_size(model)), pictures.perception.depth_m
    depth = cell_depth(fine, model.stride)
    moving = cell_share(pictures.perception.dynamic, model.stride) > config.max_dynamic_share
    known = np.isfinite(depth) & ~moving
    if changed is None:
        gone = contradicted(memory, cells[0], depth[0], adds)
    else:
        known, gone = known & (changed.new | changed.other), _out_of_date(memory, cells[0], depth[0], changed)
    erased = memory.forget(gone) if gone.any() else 0
    if adds:
        known &= lacking(memory, cells)
    stored = memory.write_by_surfaces(
        pictures.latents, cells, fine if readout_cells(model) > 1 else depth, known, pictures.stamps_ns,
        cell_colours(pictures.rgb, model.stride), np.array([pictures.first_id]), real=True,
    )  # fmt: skip
    return erased, stored


def _out_of_date(
    memory: LatentMemory, cells: Camera, depth_m: Float[np.ndarray, "h w"], changed: Changed
) -> Bool[np.ndarray, "n"]:
    """The tokens that go where something has changed, and imagined ones where something is new."""
    other, new = (np.where(which, depth_m, np.float32(np.nan)) for which in (changed.other, changed.new))
    return contradicted(memory, cells, other) | (contradicted(memory, cells, new) & ~memory.from_real)


def lacking(memory: LatentMemory, cells: Camera) -> Bool[np.ndarray, "f h w"]:
    """The cells of cameras at latent size of which no real picture showed as much yet."""
    shown = memory.read(cells)
    return ~(memory.shows_real(shown) & (shown.log_scale <= REWRITE_LOG_SCALE))


def _around(cells: np.ndarray, outside: float | bool) -> np.ndarray:
    """Each cell (h, w) with those around it (h, w, 3, 3); beyond the picture's edge is `outside`."""
    return np.lib.stride_tricks.sliding_window_view(np.pad(cells, 1, constant_values=outside), (3, 3))


def contradicted(
    memory: LatentMemory, camera: Camera, depth_m: Float[np.ndarray, "h w"], clearly: bool = False
) -> Bool[np.ndarray, "n"]:
    """The tokens that lie at or before a depth measured at latent size, in view; or those `clearly` before it, and
    before what was measured in the cells around: poses are a little off, and edges would be nibbled at."""
    if clearly:
        depth_m = _around(np.where(np.isnan(depth_m), -np.inf, depth_m), -np.inf).min((-2, -1))
    k = camera.intrinsics
    pinhole = np.array([k[0, 0], k[1, 1], k[0, 2], k[1, 2]])
    points, widths = memory.positions_m, memory.footprints_m
    return _before(points, widths, camera.camera_from_world, pinhole, np.float32(depth_m), -1 if clearly else 1)


@njit(cache=True, nogil=True, error_model="numpy")
def _before(points, widths, m, pinhole, depth_m, sign):
    """Which points lie at or before the depth measured in their cell; NaN there says nothing."""
    found = np.zeros(len(points), np.bool_)
    height, width = depth_m.shape
    fx, fy, cx, cy = pinhole
    for i in range(len(points)):
        x, y, z = float(points[i, 0]), float(points[i, 1]), float(points[i, 2])
        depth = m[2, 0] * x + m[2, 1] * y + m[2, 2] * z + m[2, 3]
        if not depth > 0:
            continue
        column = np.rint((m[0, 0] * x + m[0, 1] * y + m[0, 2] * z + m[0, 3]) / depth * fx + cx)
        row = np.rint((m[1, 0] * x + m[1, 1] * y + m[1, 2] * z + m[1, 3]) / depth * fy + cy)
        if 0 <= row < height and 0 <= column < width:
            measured = float(depth_m[int(row), int(column)])
            found[i] = depth <= measured * (1 + sign * TOLERANCE) + sign * float(widths[i])
    return found


LEAST_NEW = 0.05
"""A picture of a camera that looks all the time is written when so much of its known cells is new, or something has changed."""
MOST_SIGHTINGS, BETWEEN_NS = 8, 100_000_000
"""So many pictures that showed something else are kept, the newest, and none sooner after the last than that."""


def kept_up(
    model: WorldModel,
    config: WorldConfig,
    state: WorldState,
    rgb: np.ndarray,
    camera: Camera,
    depth_m: np.ndarray | None,
    stamp_ns: int,
    sightings: tuple[Sighting, ...],
) -> tuple[WorldState, tuple[tuple[int, int], tuple[Sighting, ...]]]:
    """A state that has what is new and what has changed, counts as of `observed`, and what to remember until the next picture."""
    rgb, camera, depth_m = _fitted(model, state, rgb, camera, depth_m)
    cells = camera.resized(latent_size(model))
    depth = cell_depth(np.where(depth_m > MAX_DEPTH_M, np.float32(np.inf), depth_m)[None], model.stride)[0]
    new, other = _compared(state.memory.fork(), cells, depth)
    sightings = tuple(one for one in sightings if one.stamp_ns <= stamp_ns)  # else time went back since
    settled = agreed(cells, np.where(other, depth, np.float32(np.nan)), stamp_ns, sightings)
    if other.any() and (not sightings or stamp_ns - sightings[-1].stamp_ns >= BETWEEN_NS):
        sighting = Sighting(stamp_ns, cells, np.where(other, depth, np.float32(np.nan)))
        sightings = (*sightings, sighting)[-MOST_SIGHTINGS:]
    news, known = new.sum() + _new_sky(state, cells, depth).sum(), max(int((~np.isnan(depth)).sum()), 1)
    if not settled.any() and news <= LEAST_NEW * known:
        return state, ((0, 0), sightings)
    # The cells around what has changed lie half on it.
    around = _around(settled, False).any((-2, -1)) & np.isfinite(depth)
    changed = Changed(new & ~around, around)
    state, counts = _written(model, config, state, rgb, camera, depth_m, stamp_ns, False, changed)
    return state, (counts, sightings)


def _new_sky(state: WorldState, cells: Camera, depth_m: Float[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    """Where a picture is infinitely far and no real one showed the sky yet."""
    far = np.isposinf(depth_m)
    if state.sky is None or not far.any():
        return np.zeros_like(far)
    sky = state.sky.fork()
    return far & ~sky.shows_real(sky.read(Camera.stack([cells])))[0]


def _compared(
    memory: LatentMemory, cells: Camera, depth_m: Float[np.ndarray, "h w"]
) -> tuple[Bool[np.ndarray, "h w"], Bool[np.ndarray, "h w"]]:
    """Which cells no real picture showed as finely yet, and where real ones showed another surface, clearly before or behind all
    that is measured in the cells around."""
    shown = memory.read(Camera.stack([cells]))
    real, known = memory.shows_real(shown)[0], np.isfinite(depth_m)
    slack = TOLERANCE * depth_m + depth_m / cells.intrinsics[0, 0]
    nearest, farthest = (_around(np.where(known, depth_m, fill), fill) for fill in (np.inf, -np.inf))
    with np.errstate(invalid="ignore"):
        nearer = shown.depth_m[0] < nearest.min((-2, -1)) - slack
        farther = shown.depth_m[0] > farthest.max((-2, -1)) + slack
        other = known & real & (nearer | farther)
        finer = np.abs(shown.depth_m[0] - depth_m) <= slack
    fine = real & ((shown.log_scale[0] <= REWRITE_LOG_SCALE) | ~finer)
    return known & ~fine & ~other, other


def only_seen(state: WorldState) -> tuple[WorldState, int]:
    """A state that knows what real pictures showed and nothing that was imagined, and how many tokens went.

    The seed's latent precedes the next frame, as at the beginning.
    """
    fork = state.forked()
    forgotten = fork.memory.forget(~fork.memory.from_real)
    if fork.sky is not None:
        fork.sky.forget(~fork.sky.from_real)
    kept = {i: latent for i, latent in state.latents.items() if i == 0 or i >= FIRST_OBSERVED}
    last, cameras = state.latents_seen - 1, {i: camera for i, camera in state.cameras.items() if i in kept}
    kept[last], cameras[last] = state.latents[0], state.cameras[0]
    return replace(fork, latents=kept, cameras=cameras, free_space=state.free_space.of(state.free_space.real)), forgotten


class LatentBackend:
    """Remembers by the latents of what was shown."""

    def __init__(self, model: WorldModel, config: WorldConfig) -> None:
        self.model, self.config = model, config

    def new(self) -> LatentMemory:
        return LatentMemory(memory_config(self.model, self.config))

    def sky(self) -> LatentMemory | None:
        if not self.config.use_memory or not imagines(self.model):
            return None
        return LatentMemory(sky_config(memory_config(self.model, self.config)))

    def write(self, memory: LatentMemory, pictures: Pictures, sky: LatentMemory | None = None) -> None:
        self._write_surfaces(memory, pictures)
        if sky is not None:
            write_sky(sky, pictures, self.model.stride, adds=True)

    def _write_surfaces(self, memory: LatentMemory, pictures: Pictures) -> None:
        model, perception = self.model, pictures.perception
        group = frames_per_latent(model)
        at = anchor_frames(len(pictures.rgb), group)
        # A guess of where one surface ends is too vague to split cells by. And a model that is shown
        # one token a cell can tell no part from a whole.
        by_parts = pictures.measured and readout_cells(model) > 1
        depth = perception.depth_m[at]
        dynamic = any_in_group(perception.dynamic, group)
        memory.write_new(
            pictures.latents,
            pictures.cameras[at].resized(latent_size(model)),
            depth if by_parts else cell_depth(depth, model.stride),
            cell_share(dynamic, model.stride) <= self.config.max_dynamic_share,
            pictures.stamps_ns[at],
            cell_colours(pictures.rgb[at], model.stride),
            np.arange(pictures.first_id, pictures.first_id + len(at)),
            REWRITE_LOG_SCALE,
            real=pictures.given is not None,
        )


def write_sky(sky: LatentMemory, pictures: Pictures, stride: int, adds: bool) -> None:
    """Remembers what lies infinitely far in pictures. A real one takes the place of what was there; where it only `adds`, of what
    was imagined."""
    perception, real = pictures.perception, pictures.given is not None
    far = np.isposinf(cell_depth(perception.depth_m, stride)) & (cell_share(perception.dynamic, stride) == 0)
    cells, colours = pictures.cameras.resized(far.shape[1:]), cell_colours(pictures.rgb, stride)
    if real and sky.tokens:
        shown, gone = sky.read(cells), np.zeros(sky.tokens, bool)
        gone[shown.index[far & shown.visible]] = True
        sky.forget(gone & ~sky.from_real if adds else gone)
    # What came first lies nearest, so nothing later hides it.
    depth = ((FAR_M + sky.tokens) / np.linalg.norm(cells.rays(), axis=-1)).astype(np.float32)
    ids = np.arange(pictures.first_id, pictures.first_id + len(far))
    sky.write_new(pictures.latents, cells, depth, far, pictures.stamps_ns, colours, ids, REWRITE_LOG_SCALE, real)


def memory_config(model: WorldModel, config: WorldConfig) -> MemoryConfig:
    """The latent memory of a model's world. It is read where the model runs, a model without `device`
    on the CPU."""
    device = torch.device(getattr(model, "device", "cpu"))
    where = None if device.type == "cpu" else str(device)
    return MemoryConfig(model.channels, config.max_memory_bytes, device=where)
