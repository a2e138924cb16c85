"""From a rollout and its truth to figures: per frame, per world, per variant. Pictures are uint8 (h, w, 3) RGB."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8

from mirage_ros.evaluation import (
    FEWEST_WINDOWS,
    SMALLEST_SHARE,
    compensated,
    floor_heights_m,
    grey,
    likeness,
    likeness_known,
    lpips_of,
    psnr_where,
    ssim_where,
    windows,
    zncc,
)
from mirage_ros.evaluation.worlds import Rolled, TrueWorld, seed_lost, warped_seed
from mirage_ros.geometry.depth import cell_depth
from mirage_ros.geometry.images import cell_share
from mirage_ros.protocol import STAGES, WorldModel

PATCH_CELLS = 2


def gradient_energy(
    picture: UInt8[np.ndarray, "h w 3"], where: Bool[np.ndarray, "h w"]
) -> tuple[float, int]:
    """Sum of squared grey differences to the right and down inside the mask, and their number."""
    values = grey(picture)
    total, count = 0.0, 0
    for axis in (0, 1):
        pairs = np.take(where, range(1, where.shape[axis]), axis) & np.take(
            where, range(where.shape[axis] - 1), axis
        )
        total += float((np.diff(values, axis=axis)[pairs] ** 2).sum())
        count += int(pairs.sum())
    return total, count


def latent_patches(
    latents: Float[torch.Tensor, "f c h w"], cells: Bool[np.ndarray, "f h w"], most: int, seed: int
) -> Float[np.ndarray, "n d"]:
    """Blocks of 2 x 2 cells that the mask holds as a whole, as vectors; at most so many a frame."""
    rng, kept = np.random.default_rng(seed), []
    height, width = (s - s % PATCH_CELLS for s in cells.shape[1:])
    for latent, mask in zip(latents.numpy(), cells, strict=True):
        blocks = latent[:, :height, :width].reshape(
            len(latent), height // PATCH_CELLS, PATCH_CELLS, width // PATCH_CELLS, PATCH_CELLS
        )
        whole = mask[:height, :width].reshape(
            height // PATCH_CELLS, PATCH_CELLS, width // PATCH_CELLS, PATCH_CELLS
        )
        vectors = blocks.transpose(1, 3, 0, 2, 4)[whole.all((1, 3))]
        vectors = vectors.reshape(len(vectors), len(latent) * PATCH_CELLS**2)
        chosen = rng.permutation(len(vectors))[:most]
        kept.append(vectors[np.sort(chosen)])
    return np.concatenate(kept).astype(np.float64)


def frechet_distance(first: Float[np.ndarray, "n d"], second: Float[np.ndarray, "m d"]) -> float:
    """Between the Gaussians fitted to two sets of vectors; NaN for sets of fewer than 2 d."""
    if min(len(first), len(second)) < 2 * first.shape[1]:
        return float("nan")
    gap = first.mean(0) - second.mean(0)
    a, b = np.cov(first.T), np.cov(second.T)
    values, vectors = np.linalg.eigh(a)
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    crossed = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ b @ root), 0)).sum()
    return float(gap @ gap + np.trace(a) + np.trace(b) - 2 * crossed)


def shrunk(mask: Bool[np.ndarray, "f h w"], pixels: int) -> Bool[np.ndarray, "f h w"]:
    """Masks without their outermost pixels; the picture's own edge does not count as one."""
    kernel = np.ones((2 * pixels + 1, 2 * pixels + 1), np.uint8)
    return np.stack([cv2.erode(m.astype(np.uint8), kernel, borderValue=1) > 0 for m in mask])


#: Figures that recorded walks are judged by as well, of first and of returned views, and of which columns they are means.
RECORDED = (
    ("gain", "psnr_seen_gain"), ("warp", "psnr_warp"), ("warp_gain", "psnr_warp_gain"), ("whole", "psnr_whole"),
    ("whole_gain", "psnr_whole_gain"), ("whole_ssim", "ssim_whole"), ("lpips", "lpips"),
)  # fmt: skip
PATCHES_A_FRAME = 24
#: True floors lie at most this far from z = 0 where z = 0 is the ground.
GROUND_M = 0.02
CHECKED_FRAMES = 32
MAX_DYNAMIC_SHARE = 0.25


@dataclass(frozen=True)
class Scored:
    """One variant in one world.

    Attributes:
        frames: name to (f,) figures, NaN where a frame has none.
        gradients: squared gradients of imagined regions: made, their number, true.
        imagined, true: (n, d) latent patches of imagined regions, as made and in truth.
        seconds: (chunks, 5) by stage.
        made: frames made, the seed not counted.
        lost, no_depth: shares of the seed's cells, see worlds.seed_lost.
        windows: (n, s, s, 3) of new views, made and true, of what the seed cannot know.
        floor_m: heights above the ground of the floors that were imagined there.
        apart: mean differences in grey levels there: to the first variant, and of that to the truth.
    """

    frames: dict[str, np.ndarray]
    gradients: tuple[float, int, float]
    imagined: np.ndarray
    true: np.ndarray
    seconds: np.ndarray
    made: int
    lost: float
    no_depth: float
    windows: tuple[np.ndarray, np.ndarray]
    floor_m: np.ndarray
    apart: tuple[float, float]


def score(truth: TrueWorld, rolled: Rolled, first: Rolled, model: WorldModel) -> Scored:
    """Judges one rollout.

    Args:
        first: the main variant's: all are judged where its memory saw something.
    """
    seen = first.observed
    where = truth.grounded & seen
    vacated, warped = truth.vacated, warped_seed(truth)
    still = ~(truth.moving | truth.moving[np.maximum(truth.first_shown, 0)])
    count = len(truth)
    columns = {name: np.full(count, np.nan) for name in (
        "psnr_seen", "ssim_seen", "zncc_seen", "psnr_bare", "psnr_whole", "lpips", "psnr_shown",
        "ssim_shown", "psnr_vacated", "depth_error", "depth_scale", "psnr_seen_gain", "psnr_warp", "psnr_warp_gain",
        "psnr_whole_gain", "ssim_whole")}  # fmt: skip
    for i in range(1, count):
        made, true = rolled.rgb[i], truth.rgb[i]
        columns["psnr_seen"][i] = psnr_where(made, true, where[i])
        columns["ssim_seen"][i] = ssim_where(made, true, where[i])
        columns["psnr_whole"][i] = psnr_where(made, true, ~truth.moving[i])
        for name, value in _as_recorded(made, warped[i], true, where[i], ~truth.moving[i]).items():
            columns[name][i] = value
        columns["psnr_vacated"][i] = psnr_where(made, true, vacated[i])
        columns["lpips"][i] = lpips_of(made, true)
        if where[i].mean() >= SMALLEST_SHARE:
            columns["zncc_seen"][i] = zncc(made, true, where[i])
        if len(rolled.bare):
            columns["psnr_bare"][i] = psnr_where(rolled.bare[i], true, where[i])
        if (when := truth.first_shown[i]) >= 0:
            columns["psnr_shown"][i] = psnr_where(made, rolled.rgb[when], still[i])
            columns["ssim_shown"][i] = ssim_where(made, rolled.rgb[when], still[i])
        columns["depth_error"][i], columns["depth_scale"][i] = _judge_depth(
            rolled.depth_m[i], truth.depth_m[i], truth.grounded[i]
        )
    columns["observed"] = rolled.observed.mean((1, 2))
    columns["tokens"], columns["bytes"] = rolled.tokens.astype(float), rolled.nbytes.astype(float)
    lost = seed_lost(rolled.remembered, rolled.depth_m[0], truth.moving[0])
    imagination = _unknowable(truth, rolled, first, model.chunk_frames)
    return Scored(columns, *_imagined(truth, rolled, model), rolled.seconds, count - 1, *lost, *imagination)


def _as_recorded(made, warped, true, where, still) -> dict[str, float]:
    """Of one frame: whole, after gain and offset, and what the warped seed is worth at the same places."""
    found = {"ssim_whole": ssim_where(made, true, still), "psnr_warp": psnr_where(warped, true, where)}
    for name, picture, there in (("seen", made, where), ("warp", warped, where), ("whole", made, still)):
        found[f"psnr_{name}_gain"] = psnr_where(compensated(picture, true, there), true, there)
    return found


def summarise(truths: Sequence[TrueWorld], scored: Sequence[Scored]) -> dict[str, float]:
    """Means over worlds of one variant's figures (NaN: nothing to judge).

    psnr_new, ssim_new, zncc_new, bare_new: views never taken before, where the seed's surfaces
    are seen and memory shows them; psnr_return: views taken again, the same against truth;
    psnr_shown: views taken again against what was shown first; psnr_vacated: where the seed's
    moving bodies stood and none is any more; depth_error: median relative error; scale_drift: how
    far depth's scale has moved by the last tenth of the frames; lost: share of the seed's cells of
    known depth (moving bodies and sky left out) that memory did not take; no_depth: share of its
    cells without depth. warp: the seed's own pixels warped, at the same places; whole: of whole pictures, imagined
    regions included; gain: after a gain and an offset for each colour of each picture.
    """
    rows = [_means(truth, one) for truth, one in zip(truths, scored, strict=True)]
    means = {name: _mean([row[name] for row in rows]) for name in rows[0]}
    return means | _judge_imagined(scored) | _judge_unknowable(scored) | _speed(scored)


def _means(truth: TrueWorld, one: Scored) -> dict[str, float]:
    """The figures of one world, see summarise."""
    new = ~truth.returns & (np.arange(len(truth)) > 0)
    late = np.arange(len(truth)) >= len(truth) - max(1, len(truth) // 10)
    f = one.frames
    return {
        "psnr_new": _mean(f["psnr_seen"][new]),
        "ssim_new": _mean(f["ssim_seen"][new]),
        "zncc_new": _mean(f["zncc_seen"][new]),
        "bare_new": _mean(f["psnr_bare"][new]),
        "psnr_return": _mean(f["psnr_seen"][truth.returns]),
        "ssim_return": _mean(f["ssim_seen"][truth.returns]),
        **{f"{name}_{when}": _mean(f[key][there]) for name, key in RECORDED for when, there in (("new", new), ("return", truth.returns))},
        "psnr_shown": _mean(f["psnr_shown"]),
        "ssim_shown": _mean(f["ssim_shown"]),
        "psnr_vacated": _mean(f["psnr_vacated"]),
        "depth_error": _mean(f["depth_error"]),
        "scale_drift": abs(_mean(f["depth_scale"][late]) - 1),
        "observed": _mean(f["observed"][1:]),
        "tokens": f["tokens"][-1],
        "bytes": f["bytes"][-1],
        "kilobytes": f["bytes"][-1] / 1e3,
        "lost": one.lost,
        "no_depth": one.no_depth,
    }


def at_the_seed(truths: Sequence[TrueWorld], scored: Sequence[Scored]) -> list[dict]:
    """Each return to the seed's very camera: frame, PSNR against truth, scale of depth."""
    frames = sorted({int(i) for truth in truths for i in np.nonzero(truth.first_shown == 0)[0]})
    names = {"psnr": "psnr_seen", "depth_scale": "depth_scale"}
    there = {i: [s for truth, s in zip(truths, scored, strict=True) if i < len(truth) and truth.first_shown[i] == 0] for i in frames}
    return [
        {"frame": i} | {name: _mean([s.frames[key][i] for s in ones]) for name, key in names.items()}
        for i, ones in there.items()
    ]


def check_model(model: WorldModel, truth: TrueWorld) -> dict[str, float]:
    """What the networks do with true pictures: the codec alone, and what stays of moving bodies.

    ghosts: share of the cells that bodies fill (by half or more) that would be remembered; lost:
    share of the other cells, sky left out, that would not be.
    """
    step = max(1, len(truth) // CHECKED_FRAMES)
    rgb, cameras = truth.rgb[::step], truth.cameras[::step]
    moving, depth = truth.moving[::step], truth.depth_m[::step]
    size = model.chunk_frames
    psnr, kept = [], []
    for start in range(0, len(rgb), size):
        part = slice(start, start + size)
        decoded = model.decode(model.encode(rgb[part]))
        psnr += [psnr_where(a, b, np.ones(a.shape[:2], bool))
                 for a, b in zip(decoded, rgb[part], strict=True)]  # fmt: skip
        seen = model.perceive(rgb[part], cameras[part], None)
        still = cell_share(seen.dynamic, model.stride) <= MAX_DYNAMIC_SHARE
        kept.append(still & np.isfinite(cell_depth(seen.depth_m, model.stride)))
    remembered = np.concatenate(kept)
    share = cell_share(moving, model.stride)
    body, rest = share >= 0.5, (share == 0) & np.isfinite(cell_depth(depth, model.stride))
    return {
        "codec_psnr": _mean(psnr),
        "body_cells": float(body.sum()),
        "ghosts": float(remembered[body].mean()) if body.any() else float("nan"),
        "lost": float(1 - remembered[rest].mean()) if rest.any() else float("nan"),
    }


def _judge_depth(made, true, where) -> tuple[float, float]:
    """Median relative error and median ratio of depth where both are known."""
    with np.errstate(invalid="ignore"):
        both = where & np.isfinite(made) & (made > 0)
    if both.mean() < SMALLEST_SHARE:
        return float("nan"), float("nan")
    ratio = made[both] / true[both]
    return float(np.median(np.abs(ratio - 1))), float(np.median(ratio))


def _imagined(truth: TrueWorld, rolled: Rolled, model: WorldModel):
    """Regions of new views that neither the seed nor memory showed: as made and as they are."""
    mask = ~rolled.observed & ~truth.grounded & ~truth.returns[:, None, None]
    mask[0] = False
    inner = shrunk(mask, 2)
    made = [gradient_energy(rolled.rgb[i], inner[i]) for i in range(len(truth))]
    true = [gradient_energy(truth.rgb[i], inner[i]) for i in range(len(truth))]
    energy = sum(e for e, _ in made), sum(n for _, n in made), sum(e for e, _ in true)
    chosen = np.nonzero(mask.any((1, 2)))[0]
    cells = cell_share(mask, model.stride) == 1
    patches = [
        latent_patches(_encode(model, pictures[chosen]), cells[chosen], PATCHES_A_FRAME, 0)
        if len(chosen)
        else np.empty((0, 1))
        for pictures in (rolled.rgb, truth.rgb)
    ]
    return energy, *patches


def _unknowable(truth: TrueWorld, rolled: Rolled, first: Rolled, step: int):
    """What the seed cannot know, in one new view of each chunk: windows, floors, and how far worlds are apart."""
    new = np.nonzero(~truth.returns & (np.arange(len(truth)) > 0))[0][step - 1 :: step]
    open_ = ~truth.grounded[new] & ~truth.moving[new]
    pairs = windows(rolled.rgb[new], open_), windows(truth.rgb[new], open_)
    made_floor, true_floor = (floor_heights_m(one.depth_m[new], truth.cameras[new], open_) for one in (rolled, truth))
    # A recorded walk's ground need not be at z = 0.
    floor = made_floor if len(true_floor) and abs(np.median(true_floor)) < GROUND_M else made_floor[:0]
    made, main, true = (one.rgb[new][open_].astype(np.float32) for one in (rolled, first, truth))
    apart = [float(np.abs(a - b).mean()) if open_.any() else float("nan") for a, b in ((made, main), (main, true))]
    return pairs, floor, tuple(apart)


def _judge_unknowable(scored: Sequence[Scored]) -> dict[str, float]:
    """Kernel distance and spread of features by layer, floors in metres; NaN where there is too little to judge.

    like_middle, like_last: see metrics.Likeness. floor, floor_95: median and 95th percentile of the distance between
    imagined floors and the ground plane. apart: how far the worlds are from the first variant's, over its own distance
    from the truth.
    """
    names = ("like_middle", "like_last", "spread_middle", "spread_last")
    made, true = (np.concatenate([one.windows[i] for one in scored]) for i in (0, 1))
    found = dict.fromkeys(names, float("nan"))
    if likeness_known() and len(true) >= FEWEST_WINDOWS:
        like = likeness(made, true)
        found = dict(zip(names, (*like.share, *like.spread), strict=True))
    floor = np.abs(np.concatenate([one.floor_m for one in scored]))
    at = (np.percentile(floor, (50, 95)) if len(floor) else np.full(2, np.nan)).tolist()
    ours, true_apart = (_mean([one.apart[i] for one in scored]) for i in (0, 1))
    apart = ours / true_apart if true_apart else float("nan")
    return found | {"windows": float(len(true)), "floor": at[0], "floor_95": at[1], "apart": apart}


def _encode(model: WorldModel, rgb: np.ndarray) -> torch.Tensor:
    size = model.chunk_frames
    return torch.cat([model.encode(rgb[i : i + size]) for i in range(0, len(rgb), size)])


def _judge_imagined(scored: Sequence[Scored]) -> dict[str, float]:
    """Gradient energy against truth, and Frechet distance against that of two halves of truth."""
    made, true = (sum(s.gradients[i] for s in scored) for i in (0, 2))
    some = [s for s in scored if len(s.true)]
    if not some:
        return {"gradient_ratio": float("nan"), "frechet": float("nan"),
                "frechet_true": float("nan"), "frechet_ratio": float("nan")}  # fmt: skip
    imagined = np.concatenate([s.imagined for s in some])
    truth = np.concatenate([s.true for s in some])
    # Halves of worlds, not of frames: neighbouring frames would make truth too alike to itself.
    halves = [[s.true for s in some[i::2]] or [truth[:0]] for i in (0, 1)]
    distance = frechet_distance(imagined, truth)
    other = frechet_distance(*(np.concatenate(half) for half in halves))
    return {
        "gradient_ratio": made / true if true else float("nan"),
        "frechet": distance,
        "frechet_true": other,
        "frechet_ratio": distance / other,
    }


def _speed(scored: Sequence[Scored]) -> dict[str, float]:
    seconds = np.concatenate([s.seconds for s in scored])
    made = sum(s.made for s in scored)
    per_frame = seconds.sum(0) / made
    figures = {f"{stage}_ms": 1e3 * float(t) for stage, t in zip(STAGES, per_frame, strict=True)}
    return figures | {"frames_per_s": float(1 / per_frame.sum())}


def _mean(values) -> float:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # the mean of nothing is NaN
        return float(np.nanmean(np.asarray(values, float))) if len(values) else float("nan")


@dataclass(frozen=True)
class Evaluation:
    """Truth, rollouts and scores of every variant (by name) in every world, and the report."""

    truths: list[TrueWorld]
    rolled: dict[str, list[Rolled]]
    scored: dict[str, list[Scored]]
    report: dict
