"""An evaluation as a table, a plot over frames and a contact sheet of worlds in seed order."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from mirage_ros.evaluation import FEWEST_WINDOWS, likeness_known, no_lpips
from mirage_ros.evaluation.scoring import Evaluation
from mirage_ros.files import atomic_file
from mirage_ros.protocol import STAGES
from mirage_ros.recording.drawing import compose_row, save_picture

COLUMNS = (
    ("kB", "kilobytes", "{:.1f}"),
    ("lost", "lost", "{:.1%}"),
    ("new views", "psnr_new", "{:.2f}"),
    ("bare", "bare_new", "{:.2f}"),
    ("SSIM", "ssim_new", "{:.3f}"),
    ("ZNCC", "zncc_new", "{:.2f}"),
    ("LPIPS", "lpips_new", "{:.3f}"),
    ("whole", "whole_new", "{:.2f}"),
    ("return", "psnr_return", "{:.2f}"),
    ("as shown", "psnr_shown", "{:.2f}"),
    ("vacated", "psnr_vacated", "{:.2f}"),
    ("depth err", "depth_error", "{:.1%}"),
    ("drift", "scale_drift", "{:.1%}"),
    ("observed", "observed", "{:.0%}"),
    ("gradients", "gradient_ratio", "{:.2f}"),
    ("Frechet", "frechet_ratio", "{:.2f}"),
    ("frames/s", "frames_per_s", "{:.1f}"),
)
LEGEND = """kB: the memory after the last frame (rgb: points as densely stored as tokens; keyframesN: N
pictures as JPEG and 16-bit PNG); lost: share of the seed's cells of known depth that memory did not
take (bodies that move and sky left out); new views: PSNR in dB of views never taken before, where the
seed's surfaces are in view and the first variant's memory shows them (SSIM and ZNCC there too); bare:
the readout itself, decoded, or what a memory of pixels draws, before any network; whole: the whole
picture; return: views taken again, like new views; as shown: the same against what was shown first;
vacated: PSNR where the seed's moving bodies stood and none is any more; depth err: median relative
error; drift: of depth's scale, last tenth of the walk; gradients: energy of imagined regions over that
of the truth there; Frechet: distance of imagined to true patches over that of two halves of the true
ones, in the codec's latents."""
IMAGINED = (
    ("middle", "like_middle", "{:.3f}"),
    ("last", "like_last", "{:.3f}"),
    ("spread", "spread_middle", "{:.2f}"),
    ("spread", "spread_last", "{:.2f}"),
    ("apart", "apart", "{:.2f}"),
    ("floor", "floor", "{:.3f}"),
    ("95 %", "floor_95", "{:.3f}"),
)
IMAGINED_LEGEND = """middle, last: kernel distance of imagined windows to true ones, on a middle and the last layer of
EfficientNet-Lite0, as the share of the way from the truth (0) to the truth blurred (1); spread: of their features over
the truth's, by layer; apart: mean difference of pictures to the first variant's, over its own to the truth;
floor, 95 %: median and 95th percentile of the distance of imagined floors from the ground plane, metres."""
SEEN = (("", "psnr", "{:.2f}"), ("gain", "gain", "{:.2f}"), ("warp", "warp", "{:.2f}"), ("warp gain", "warp_gain", "{:.2f}"))
WHOLE = (("", "whole", "{:.2f}"), ("gain", "whole_gain", "{:.2f}"), ("SSIM", "whole_ssim", "{:.3f}"), ("LPIPS", "lpips", "{:.3f}"))
RECORDED_LEGEND = """first, return: PSNR in dB of views taken for the first time, and again; where the seed is seen: at the places of
"new views"; warp: the seed's own pixels, brought there by the recording's depth, at the same places: what its exposure,
light and poses leave to a memory that loses nothing; gain: after a gain and an offset for each colour of each picture;
whole pictures: imagined regions included, as papers on RealEstate10K tell PSNR, SSIM and LPIPS."""
TILE = 1.0


def report_on(evaluation: Evaluation, out: Path) -> None:
    """Prints the table, and draws plot and sheet into the folder `out`."""
    print(describe(evaluation))
    draw_frames(evaluation, out / "frames.png")
    draw_sheet(evaluation, out / "sheet.png")
    print(f"\nplot: {out / 'frames.png'}, pictures: {out / 'sheet.png'}")


def describe(evaluation: Evaluation) -> str:
    """The table, what the model does alone, and the speed by stage."""
    report = evaluation.report
    machine, config = report["machine"], report["config"]
    truths = evaluation.truths
    kept = [name for _, name, _ in COLUMNS if _known(report, name)]
    columns = [column for column in COLUMNS if column[1] in kept]
    lines = [
        f"{config['model']} ({report['checkpoint']}), {len(truths)} worlds of {_lengths(truths)} "
        f"frames at {truths[0].rgb.shape[1]}x{truths[0].rgb.shape[2]}, seed depth "
        f"{'given' if config['seed_depth'] else 'perceived'}",
        f"{machine['processor']}, {machine['cores']} cores, {machine['device']}",
        "",
        f"{'':<18}" + "".join(f"{title:>10}" for title, _, _ in columns),
    ]
    for name, variant in report["variants"].items():
        mean = variant["mean"]
        lines.append(f"{name:<18}" + "".join(f"{_text(mean[k], f):>10}" for _, k, f in columns))
    if config["folder"] or config["re10k"]:
        lines += _recorded_lines(report)
    unjudged = [title for title, name, _ in COLUMNS if name not in kept]
    lines += ["", LEGEND, "", *report["no_return"]]
    if unjudged:
        lines.append(f"Columns left out, because nothing is there to judge: {', '.join(unjudged)}.")
    lines += [*_imagination_lines(report), *_model_lines(report), *_stage_lines(report)]
    return "\n".join([*lines, *_seed_lines(report)])


def _lengths(truths: list) -> str:
    lengths = sorted({len(truth) for truth in truths})
    return str(lengths[0]) if len(lengths) == 1 else f"{lengths[0]} to {lengths[-1]}"


def _recorded_lines(report: dict) -> list[str]:
    """First and returned views of recorded walks: where the seed is seen beside what warping leaves, and whole."""
    lines = []
    for title, columns in (("where the seed is seen", SEEN), ("whole pictures", WHOLE)):
        known = [(head or first, f"{name}_{when}", form) for when, first in (("new", "first"), ("return", "return"))
                 for head, name, form in columns if _known(report, f"{name}_{when}")]  # fmt: skip
        lines += ["", f"{title:<24}" + "".join(f"{head:>11}" for head, _, _ in known)]
        lines += [f"{name:<24}" + "".join(f"{_text(variant['mean'][key], form):>11}" for _, key, form in known)
                  for name, variant in report["variants"].items()]  # fmt: skip
    return [*lines, "", RECORDED_LEGEND, *([no_lpips()] if no_lpips() else [])]


def _imagination_lines(report: dict) -> list[str]:
    """A table of what the seed cannot know; a sentence where there is too little of it, or no package to judge it."""
    variants = report["variants"]
    count = int(next(iter(variants.values()))["mean"]["windows"])
    if not likeness_known():
        return ["What is imagined is not judged: pip install 'mirage_ros[evaluate]' for that.", ""]
    if count < FEWEST_WINDOWS:
        return [f"What is imagined is not judged: {count} windows of it are too few, {FEWEST_WINDOWS} are needed.", ""]
    title = f"imagined, {count} windows"
    lines = [f"{title:<24}" + "".join(f"{name:>9}" for name, _, _ in IMAGINED)]
    for name, variant in variants.items():
        lines.append(f"{name:<24}" + "".join(f"{_text(variant['mean'][k], f):>9}" for _, k, f in IMAGINED))
    return [*lines, "", IMAGINED_LEGEND, ""]


def _known(report: dict, name: str) -> bool:
    return any(math.isfinite(v["mean"][name]) for v in report["variants"].values())


def _text(value: float, form: str) -> str:
    return form.format(value) if math.isfinite(value) else "-"


def _model_lines(report: dict) -> list[str]:
    checks = report["model"].values()
    psnr = np.mean([check["codec_psnr"] for check in checks])
    lines = [f"Codec alone: {psnr:.2f} dB."]
    dropped = [check["lost"] for check in checks if math.isfinite(check["lost"])]
    if dropped:
        lines.append(
            f"Perception, of these true pictures: it takes {np.mean(dropped):.1%} of the still cells "
            "for moving or for sky."
        )
    cells = sum(check["body_cells"] for check in checks)
    if cells:
        ghosts = sum(c["ghosts"] * c["body_cells"] for c in checks if c["body_cells"]) / cells
        lines.append(f"Of the {cells:.0f} cells of moving bodies it takes {ghosts:.1%} for still.")
    return lines


def _stage_lines(report: dict) -> list[str]:
    lines = []
    for name, variant in report["variants"].items():
        mean = variant["mean"]
        total = sum(mean[f"{stage}_ms"] for stage in STAGES)
        shares = ", ".join(
            f"{stage} {mean[f'{stage}_ms']:.1f} ({mean[f'{stage}_ms'] / total:.0%})"
            for stage in STAGES
        )
        lines.append(f"{name}, ms a frame: {shares}")
    return lines


def _seed_lines(report: dict) -> list[str]:
    """Long walks come back to the seed's camera many times: how that looks each time."""
    lines = []
    for name, variant in report["variants"].items():
        at = [row for row in variant["at_seed"] if math.isfinite(row["psnr"])]
        if len(at) > 1:
            values = ", ".join(f"{row['frame']}: {row['psnr']:.2f}" for row in at)
            lines.append(f"{name}, dB back at the seed's camera in frame {values}")
    return lines


def draw_frames(evaluation: Evaluation, path: Path) -> None:
    """Means over worlds, frame by frame."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels = (
        ("psnr_seen", "PSNR where the seed's surfaces are seen, dB"),
        ("psnr_shown", "PSNR against what was shown first, dB"),
        ("observed", "share of the picture that memory shows"),
        ("depth_scale", "scale of depth against truth"),
    )
    figure, axes = pyplot.subplots(2, 2, figsize=(12, 8), constrained_layout=True)
    for axis, (key, title) in zip(axes.ravel(), panels, strict=True):
        for name, scored in evaluation.scored.items():
            longest = max(len(one.frames[key]) for one in scored)
            values = np.array([np.pad(one.frames[key], (0, longest - len(one.frames[key])), constant_values=np.nan) for one in scored])
            known = np.isfinite(values).any(0)
            mean = np.nansum(values, 0)[known] / np.isfinite(values).sum(0)[known]
            axis.plot(np.nonzero(known)[0], mean, label=name)
        axis.set(title=title, xlabel="frame")
        axis.grid(alpha=0.3)
    axes[0, 0].legend(fontsize=8)
    with atomic_file(path) as file:
        figure.savefig(file, format="png", dpi=110)
    pyplot.close(figure)


def draw_sheet(evaluation: Evaluation, path: Path) -> None:
    """A row per world, in the order given: the seed, the farthest view, and the last one."""
    rows = []
    for number, truth in enumerate(evaluation.truths):
        away = np.nonzero(~truth.returns)[0]
        far = int(away[np.argmin(truth.grounded[away].mean((1, 2)))])
        pictures, captions = [truth.rgb[0]], [truth.name[:22]]
        for moment, title in ((far, "farthest"), (len(truth) - 1, "last")):
            pictures.append(truth.rgb[moment])
            captions.append(f"{title}, true"[:22])
            for name, rolled in evaluation.rolled.items():
                pictures.append(rolled[number].rgb[moment])
                captions.append(name[:22])
        rows.append(compose_row(pictures, captions, TILE))
    path.parent.mkdir(parents=True, exist_ok=True)
    save_picture(path, np.concatenate(rows))
