"""Does memory put a real picture's pixels where real cameras later see them?

One frame of a posed RGB-D recording is the seed of a world, as anybody's is, and its memory is read
at the real cameras of other frames. The decoded readout is compared with the real picture where both
see the same surface, beside two bounds: the pixels themselves warped by the same depth (what
a lossless memory could reach) and the first picture left unmoved (what no geometry gives).

Here as well: recorded walks and RealEstate10K tracks as worlds whose truth is known, for closed loops.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, UInt8
from tqdm import tqdm

from mirage_ros.data import Walk, WalkConfig
from mirage_ros.data.building import USED, BuildConfig, Built, build, fitted
from mirage_ros.data.layouts import open_walk
from mirage_ros.data.seeds import PosedFrame, PosedRgbd
from mirage_ros.data.tracks import tracks_in
from mirage_ros.errors import MirageError
from mirage_ros.evaluation import compensated, psnr_where, zncc
from mirage_ros.evaluation.worlds import (
    BACK_SHARE,
    LEFT_SHARE,
    RECORDED_SHARE,
    TrueWorld,
    seed_lost,
    seed_remembered,
    shown_by_seed,
)
from mirage_ros.files import user_path
from mirage_ros.geometry.camera import Camera
from mirage_ros.geometry.depth import cell_depth, completed
from mirage_ros.geometry.images import fit_seed, upsample
from mirage_ros.protocol import Readout, SpatialMemory, WorldModel, imagines
from mirage_ros.recording.drawing import colour_observed, compose_row, save_picture
from mirage_ros.world.state import latent_size, readout_size
from mirage_ros.world.world import World

SMALLEST_SHARE = 0.02
SEARCH_PX = 3
SHEET_ROWS = 6
TRACK_FRAMES = 33
"""Of a RealEstate10K track that are walked, the seed counted, unless others are asked for; and as many back."""


def folder_world(
    folder: str | Path, seed_frame: int, frames: int | None, size: tuple[int, int], config: WalkConfig = WalkConfig()
) -> TrueWorld:
    """A recorded walk in any layout, from `seed_frame` on, brought to the model's size."""
    walk = open_walk(user_path(str(folder)), config)
    numbers = range(seed_frame, len(walk) if frames is None else seed_frame + frames)
    if len(numbers) < 2 or numbers[-1] >= len(walk):
        raise MirageError(
            f"Frames {seed_frame} to {numbers.stop - 1} of {folder} were asked for; it has frames "
            f"0 to {len(walk) - 1}, and two are needed at least."
        )
    return _walked(walk, numbers, size, f"{Path(folder).name} {seed_frame}")


def track_worlds(
    folder: str | Path, frames: int | None, size: tuple[int, int], config: WalkConfig, tick=lambda _: None
) -> list[TrueWorld]:
    """RealEstate10K tracks, each walked from its first row and the same way back: first and returned views.

    Raises MirageError where there is none, or one that cannot be begun.
    """
    paths = tracks_in(user_path(str(folder)))
    if not paths:
        raise MirageError(f"{folder} holds no RealEstate10K track with its pictures (NAME.txt, and NAME/MICROSECONDS.png); fetch them.")
    worlds = []
    for path in paths:
        walk = open_walk(path, config)
        count = min(frames or TRACK_FRAMES, len(walk))
        if count < 2:
            raise MirageError(f"{path} has {len(walk)} pictures and {frames or TRACK_FRAMES} were asked for; two are needed at least.")
        worlds.append(_walked(walk, [*range(count), *range(count - 2, -1, -1)], size, path.stem, returned_at=count))
        tick(1)
    return worlds


def _walked(walk: Walk, numbers: Sequence[int], size: tuple[int, int], name: str, returned_at: int | None = None) -> TrueWorld:
    """Frames of a walk as truth; from `returned_at` on they are seen again, in the other order."""
    read = {number: walk.read(number) for number in sorted(set(numbers))}
    if read[numbers[0]].depth_m is None:
        raise MirageError(f"The first frame of {walk.source} has no depth, and no corner of it was triangulated; give --depth-model.")
    fitted = {number: fit_seed(frame.rgb, frame.camera, frame.depth_m, size) for number, frame in read.items()}
    rgb, cameras = np.stack([fitted[n][0] for n in numbers]), Camera.stack([fitted[n][1] for n in numbers])
    unknown = np.full(size, np.nan)
    depth = np.stack([unknown if fitted[n][2] is None else fitted[n][2] for n in numbers]).astype(np.float32)
    still, count = np.zeros(depth.shape, bool), np.arange(len(numbers))
    grounded = shown_by_seed(cameras, depth, still, RECORDED_SHARE)
    if returned_at is None:
        first_shown, returns = np.full(len(rgb), -1), _back_at_the_seed(grounded)
    else:
        first_shown = np.where(count < returned_at, -1, 2 * returned_at - 2 - count)
        returns = first_shown >= 0
    return TrueWorld(name, cameras, rgb, depth, still, first_shown, returns, grounded)


def _back_at_the_seed(grounded: Bool[np.ndarray, "f h w"]) -> Bool[np.ndarray, "f"]:
    """Frames that see much of the seed's surfaces again after one that saw next to nothing."""
    share = grounded.mean((1, 2))
    left = np.maximum.accumulate(share < LEFT_SHARE)
    return left & (share > BACK_SHARE)


@dataclass(frozen=True)
class ReadBack:
    """One later frame against what memory shows at its camera.

    Attributes:
        frame: its number.
        share: part of the picture where memory and the frame's own depth see one surface.
        zncc_memory, zncc_generated, zncc_warp, zncc_unmoved: median windowed correlation with
            the real picture there: decoded readout (whose cells are up to half a cell off),
            what the model makes of it, warped pixels, the remembered picture unmoved.
        offset_px: (right, down) shift of the generated picture that correlates best, model pixels.
        real, memory, generated: the pictures.
        shared: where they are compared.
    """

    frame: int
    share: float
    zncc_memory: float
    zncc_generated: float
    zncc_warp: float
    zncc_unmoved: float
    offset_px: tuple[int, int]
    real: UInt8[np.ndarray, "h w 3"]
    memory: UInt8[np.ndarray, "h w 3"]
    generated: UInt8[np.ndarray, "h w 3"]
    shared: Bool[np.ndarray, "h w"]


@dataclass(frozen=True)
class WalkReadBack:
    """The frames that see the remembered one again, and what of that one was remembered.

    Attributes:
        left_out: frames that share less than 2 % of the picture with memory.
        lost, no_depth: shares of the seed's cells, see worlds.seed_lost.
    """

    frames: tuple[ReadBack, ...]
    left_out: tuple[int, ...]
    lost: float
    no_depth: float


def read_back(
    folder: str | Path, seed_frame: int, model: WorldModel, frames: Sequence[int] | None = None
) -> WalkReadBack:
    """Start a world from `seed_frame` and look at its memory from `frames` (default: all others).

    Raises:
        MirageError: a bad folder or frame number, or a seed frame of which nothing is remembered.
    """
    walk, world = PosedRgbd(folder), World(model)
    given = walk[seed_frame]
    first = world.reset(given.rgb, given.camera, given.depth_m).frames[0]
    if world.memory.tokens == 0:
        raise MirageError(
            f"Nothing of frame {seed_frame} is remembered: no cell has depth and stands still; take "
            "another frame."
        )
    lost, no_depth = seed_lost(seed_remembered(world), first.depth_m)
    seed = _fit(given, model)
    numbers = [n for n in range(len(walk)) if n != seed_frame] if frames is None else frames
    results = [
        _compare(number, _fit(walk[number], model), seed, world.memory, model) for number in numbers
    ]
    kept = tuple(result for result in results if result.share >= SMALLEST_SHARE)
    left_out = tuple(result.frame for result in results if result.share < SMALLEST_SHARE)
    return WalkReadBack(kept, left_out, lost, no_depth)


def describe(walk: WalkReadBack) -> str:
    """What was remembered, and a table of lines."""
    lines = [
        f"Of the seed's cells of known depth {walk.lost:.1%} were not remembered; {walk.no_depth:.1%} "
        "of its cells have no depth."
    ]
    if walk.left_out:
        lines.append(
            f"Left out, because they share less than {SMALLEST_SHARE:.0%} with what is remembered: "
            f"frames {', '.join(map(str, walk.left_out))}."
        )
    lines.append("frame  shared  readout  generated  pixel warp  unmoved  best offset")
    lines += [
        f"{result.frame:5d}  {result.share:5.0%}  {result.zncc_memory:7.3f}  "
        f"{result.zncc_generated:9.3f}  {result.zncc_warp:10.3f}  {result.zncc_unmoved:7.3f}  "
        f"{result.offset_px[0]:+d}, {result.offset_px[1]:+d} px"
        for result in walk.frames
    ]
    return "\n".join(lines)


def draw(walk: WalkReadBack, path: Path) -> None:
    """Real picture, readout and compared area, one row per frame, into a PNG."""
    if not walk.frames:
        raise MirageError("No frame sees what was remembered, so there is nothing to draw.")
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [
        compose_row(
            [
                result.real,
                result.memory,
                result.generated,
                colour_observed(result.real, result.shared),
            ],
            [
                f"frame {result.frame}, real",
                f"readout: ZNCC {result.zncc_memory:.2f}",
                f"generated: ZNCC {result.zncc_generated:.2f}",
                "shared (teal)",
            ],
            2.0,
        )
        for result in walk.frames
    ]
    save_picture(path, np.concatenate(rows))


def warp_pixels(
    seed: PosedFrame, camera: Camera
) -> tuple[UInt8[np.ndarray, "h w 3"], Bool[np.ndarray, "h w"]]:
    """The seed's pixels at another camera by its own depth, nearest first; and where they fell."""
    valid = np.isfinite(seed.depth_m)
    points = seed.camera.lift(seed.depth_m)[valid]
    pixels, depth = camera.project(points)
    height, width = camera.size
    in_front = (depth > 0) & np.isfinite(pixels).all(-1) & (np.abs(pixels) < 1e6).all(-1)
    column, row = np.round(pixels[in_front]).astype(np.int64).T
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    # Far to near, so that the nearest pixel is written last.
    order = np.argsort(-depth[in_front][inside], kind="stable")
    warped, covered = np.zeros((height, width, 3), np.uint8), np.zeros((height, width), bool)
    target = row[inside][order], column[inside][order]
    warped[target] = seed.rgb[valid][in_front][inside][order]
    covered[target] = True
    return warped, covered


@dataclass(frozen=True)
class HeldOut:
    """How well a built world shows frames that it was not built from.

    Attributes:
        figures: means in dB, plain and gain-compensated (_gain): where the frames' depth is known, of the world
            ("built") and of one frame of it as a seed ("seed"); where the seed is seen, besides, of its pixels warped
            ("warp", what a lossless memory of it could reach) and of the seed's world there ("seed_seen").
        rows: (name, real, seed alone, built) pictures of a few frames.
    """

    figures: dict[str, float | int]
    rows: tuple[tuple[str, np.ndarray, np.ndarray, np.ndarray], ...]


def hold_out(folder: str | Path, config: WalkConfig, each: int, model: WorldModel) -> HeldOut:
    """A world built from a recording without each so many-th frame, judged by these."""
    walk, rest = open_walk(user_path(str(folder)), config).split(each)
    with tempfile.TemporaryDirectory() as room, tqdm(total=2 * len(walk), unit="frame", desc="build") as bar:

        def tick(stage: str, frames: int) -> None:
            bar.update(max(0, frames + len(walk) * (stage == "build") - bar.n))

        return judge_held_out(build(walk, model, Path(room) / "world", BuildConfig(), tick), walk, rest)


def judge_held_out(built: Built, walk: Walk, rest: Walk, seed: int | None = None) -> HeldOut:
    """Judges the world of `walk` on the frames of `rest`, beside that of one frame alone (default: the first used)."""
    model, plan = built.world.model, built.plan
    seed = built.verdicts.index(USED) if seed is None else seed
    first = fitted(walk.read(seed), model.size, plan, seed)
    alone = World(model)
    alone.reset(first.rgb, first.camera, first.depth_m)
    lossless = PosedFrame(first.rgb, completed(first.depth_m), first.camera)
    scores: dict[str, list[float]] = {}
    rows, frames, every = [], 0, max(1, len(rest) // SHEET_ROWS)
    for i in range(len(rest)):
        try:
            real = fitted(rest.read(i), model.size, plan)
        except MirageError:
            continue
        shown = {"seed": view_of(alone, real.camera), "built": view_of(built.world, real.camera)}
        warped, covered = warp_pixels(lossless, real.camera)
        known = np.isfinite(real.depth_m)
        both = covered & shown_by_seed(Camera.stack([first.camera, real.camera]),
                                       np.stack([lossless.depth_m, real.depth_m]), np.zeros((2, *model.size), bool),
                                       RECORDED_SHARE)[1]  # fmt: skip
        for name, picture, where in (("seed", shown["seed"], known), ("built", shown["built"], known),
                                     ("warp", warped, both), ("seed_seen", shown["seed"], both)):  # fmt: skip
            if where.mean() >= SMALLEST_SHARE:
                scores.setdefault(name, []).append(psnr_where(picture, real.rgb, where))
                even = compensated(picture, real.rgb, where)
                scores.setdefault(f"{name}_gain", []).append(psnr_where(even, real.rgb, where))
        if frames % every == 0 and len(rows) < SHEET_ROWS:
            rows.append((rest.names[i], real.rgb, shown["seed"], shown["built"]))
        frames += 1
    figures = {name: float(np.nanmean(values)) for name, values in scores.items()}
    return HeldOut({"frames": frames, **figures}, tuple(rows))


def describe_held_out(held: HeldOut) -> str:
    """A table of decibels, plain and with gains evened out."""
    rows = (("where depth is known", ("built", "the built world"), ("seed", "the world of one frame")),
            ("where that frame is seen", ("seed_seen", "its world"), ("warp", "its pixels, warped")))  # fmt: skip
    lines = [f"{held.figures['frames']} frames were held out, PSNR in dB:", f"{'':<32}{'as exposed':>12}{'gains evened out':>18}"]
    for where, *ones in rows:
        lines.append(where)
        for name, words in ones:
            plain, even = (held.figures.get(key, float("nan")) for key in (name, f"{name}_gain"))
            lines.append(f"  {words:<30}{plain:>12.2f}{even:>18.2f}")
    return "\n".join(lines)


def view_of(world: World, camera: Camera) -> UInt8[np.ndarray, "h w 3"]:
    """What a world shows to a camera next; the world stays as it is."""
    stamps = np.array([world.stamp_ns + 1], np.int64)
    return world.cycle.pictures(world.state, Camera.stack([camera]), stamps)[0]


def draw_held_out(held: HeldOut, path: Path) -> None:
    """Real pictures beside the seed's world and the built one, a frame a row, into a PNG."""
    if held.rows:
        rows = [compose_row([real, alone, built], [f"{Path(name).name}, real", "one frame alone", "built"], 2.0)
                for name, real, alone, built in held.rows]  # fmt: skip
        save_picture(path, np.concatenate(rows))


def _fit(frame: PosedFrame, model: WorldModel) -> PosedFrame:
    rgb, camera, depth_m = fit_seed(frame.rgb, frame.camera, frame.depth_m, model.size)
    return PosedFrame(rgb, depth_m, camera)


def _latent(camera: Camera, model: WorldModel) -> Camera:
    return Camera.stack([camera.resized(latent_size(model))])


def _compare(
    number: int, real: PosedFrame, seed: PosedFrame, memory: SpatialMemory, model: WorldModel
) -> ReadBack:
    cells = _latent(real.camera, model)
    readout = memory.read(cells)
    own_depth_m = cell_depth(real.depth_m[None], model.stride)
    with np.errstate(invalid="ignore"):
        same = np.abs(readout.depth_m - own_depth_m) < RECORDED_SHARE * own_depth_m
    shared = upsample(readout.visible & same, model.stride)[0]
    shown = model.decode(readout.latents)[0]
    shown_to_it = Camera.stack([real.camera.resized(readout_size(model))])
    generated = model.decode(_remembered(model, memory.read(shown_to_it), shown_to_it, seed))[0]
    warped, covered = warp_pixels(seed, real.camera)
    return ReadBack(
        number,
        float(shared.mean()),
        zncc(shown, real.rgb, shared),
        zncc(generated, real.rgb, shared),
        zncc(warped, real.rgb, shared & covered),
        zncc(seed.rgb, real.rgb, shared),
        _best_offset(generated, real.rgb, shared),
        real.rgb,
        shown,
        generated,
        shared,
    )


def _remembered(model: WorldModel, readout: Readout, cameras: Camera, seed: PosedFrame) -> torch.Tensor:
    """Latents in which the model shows what memory does."""
    if imagines(model):
        return model.aligned(readout)
    context = model.encode(seed.rgb[None])
    return model.generate(readout, cameras, context, context, seed=0)


def _best_offset(shown: np.ndarray, real: np.ndarray, shared: np.ndarray) -> tuple[int, int]:
    """The shift within 3 px that correlates best; (0, 0) when nothing can be compared."""
    reach = range(-SEARCH_PX, SEARCH_PX + 1)
    scores = {
        (right, down): zncc(
            np.roll(shown, (down, right), (0, 1)),
            real,
            shared & np.roll(shared, (down, right), (0, 1)),
        )
        for down in reach
        for right in reach
    }
    known = {shift: score for shift, score in scores.items() if np.isfinite(score)}
    return max(known, key=known.get) if known else (0, 0)
