"""What `mirage bench memory` and `mirage evaluate` do. Heavy imports wait until they run."""

from __future__ import annotations

import argparse
import json
import math
from functools import partial
from pathlib import Path

from mirage_ros.errors import MirageError
from mirage_ros.resources import user_path


def add_bench_memory(actions, command) -> None:
    """Registers the command; `command` makes its parser (see cli.py)."""
    parser = command(
        actions,
        "memory",
        bench_memory,
        "time the latent memory, beside a cloud of coloured points on the same walk",
        "examples:\n  mirage bench memory\n  mirage bench memory --parts stored view\n"
        "  mirage bench memory --quick\n\n"
        "readout time against tokens stored and tokens in view; time and bytes beside a cloud of\n"
        "points that is drawn and encoded (the same frames and cameras, true depth); growth over\n"
        "ten rounds. Every figure is measured in the run that prints it; needs MuJoCo for the\n"
        "walk, 4 GB of memory for ten million tokens, and an otherwise idle machine.",
    )
    parser.add_argument("--parts", nargs="+", choices=("stored", "view", "files", "walk", "loops"),
                        help="measure only these (default: all)")  # fmt: skip
    parser.add_argument("--model", default="mini", help="whose codec (default: mini)")
    parser.add_argument("--repeats", type=int, default=7, help="runs per median (default: 7)")
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that it works")
    parser.add_argument("--plot", type=user_path, default=Path("out/bench_memory.png"), metavar="PNG")
    parser.add_argument("--json", type=user_path, metavar="PATH", help="write the figures as well")


def bench_memory(arguments: argparse.Namespace) -> int:
    from dataclasses import replace

    from mirage_ros.evaluation.bench_memory import QUICK, BenchConfig, describe, draw, run_bench
    from mirage_ros.models.pretrained import load_model

    if arguments.repeats < 1:
        raise MirageError(f"A median of {arguments.repeats} runs was asked for; give at least 1.")
    config = QUICK if arguments.quick else BenchConfig(repeats=arguments.repeats)
    if arguments.parts:
        config = replace(config, parts=tuple(arguments.parts))
    keep = partial(write_json, path=arguments.json)
    report = run_bench(load_model(arguments.model), config, keep)
    print(describe(report))
    draw(report, arguments.plot)
    print(f"\nplot: {arguments.plot}")
    return 0


def add_evaluate(parsers, command) -> None:
    """Registers `mirage evaluate`."""
    parser = command(
        parsers,
        "evaluate",
        evaluate,
        "judge a model in closed loops against worlds whose truth is known",
        "examples:\n  mirage evaluate --seeds 2000100-2000103\n"
        "  mirage evaluate --seeds 2000100-2000109 --model runs/mini/model --json out/a.json\n"
        "  mirage evaluate --seeds 2000100-2000101 --memories latent --frames 1001\n"
        "  mirage evaluate --seeds 2000100-2000103 --ablate sub_cell,references\n"
        "  mirage evaluate --seeds 2000100-2000103 --compare single_stage=runs/single/model\n"
        "  mirage evaluate --folder walk/ --seed-frame 8\n\n"
        "each world starts from one true picture (and its depth); all later depth is the model's\n"
        "own. Writes a plot over frames and a contact sheet into --out. Rollouts are kept in\n"
        "--out/rollouts and made again only when weights, program, world or variant changed.\n"
        "Seeds of 2000000 and above were never trained on.",
    )
    parser.add_argument("--seeds", metavar="A-B", help="scenes (needs MuJoCo)")
    parser.add_argument("--folder", default="", help="posed RGB-D folder instead of scenes")
    parser.add_argument("--seed-frame", type=int, default=0, help="of the folder (default: 0)")
    parser.add_argument("--frames", type=int, help="frames of the walk (default: 33, or the "
                        "whole folder); above 100 it wanders and comes back each 100")  # fmt: skip
    parser.add_argument("--kind", help="kind of scene (default: as each seed draws it)")
    parser.add_argument("--model", default="mini", help="checkpoint (default: mini)")
    parser.add_argument("--memories", default="latent,rgb,keyframes1,keyframes4,none",
                        metavar="A,B", help="of latent, rgb, keyframesN, none "
                        "(default: %(default)s)")  # fmt: skip
    parser.add_argument("--ablate", default="", metavar="A,B",
                        help="of sub_cell, visibility, dynamic_filter, references")  # fmt: skip
    parser.add_argument("--compare", nargs="+", default=[], metavar="NAME=FOLDER",
                        help="more checkpoints, with latent memory")  # fmt: skip
    parser.add_argument("--own-depth", action="store_true", help="do not give the seed's depth")
    parser.add_argument("--noise-seed", type=int, default=0, help="(default: 0)")
    parser.add_argument("--forget-moving", default="", choices=("imagined", "all", "none"),
                        help="pictures whose moving things, by the perceiver's guess, are not "
                        "remembered (default: all of scenes, imagined of a folder)")  # fmt: skip
    parser.add_argument("--out", type=user_path, default=Path("out/evaluate"), metavar="FOLDER")
    parser.add_argument("--json", type=user_path, metavar="PATH", help="write the figures as well")


def evaluate(arguments: argparse.Namespace) -> int:
    from mirage_ros.evaluation.evaluate import EvaluationConfig

    out = arguments.out
    config = EvaluationConfig(
        model=arguments.model,
        seeds=_seeds(arguments.seeds, arguments.folder),
        folder=arguments.folder,
        seed_frame=arguments.seed_frame,
        frames=arguments.frames,
        kind=arguments.kind,
        memories=_words(arguments.memories),
        ablations=_words(arguments.ablate),
        checkpoints=tuple(arguments.compare),
        seed_depth=not arguments.own_depth,
        noise_seed=arguments.noise_seed,
        forget_moving=arguments.forget_moving,
        store=out / "rollouts",
    )
    run_evaluation(config, out, arguments.json)
    return 0


def run_evaluation(config, out: Path, json_path: Path | None) -> None:
    """Evaluates, prints the table, writes plot and sheet into `out` and the figures as JSON."""
    from mirage_ros.evaluation.evaluate import evaluate
    from mirage_ros.evaluation.report import describe, draw_frames, draw_sheet

    evaluation = evaluate(config)
    print(describe(evaluation))
    draw_frames(evaluation, out / "frames.png")
    draw_sheet(evaluation, out / "sheet.png")
    print(f"\nplot: {out / 'frames.png'}, pictures: {out / 'sheet.png'}")
    write_json(evaluation.report, json_path)


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


def _seeds(text: str | None, folder: str) -> tuple[int, ...]:
    if bool(text) == bool(folder):
        raise MirageError("Give either --seeds A-B or --folder to evaluate on.")
    if not text:
        return ()
    first, _, last = text.partition("-")
    if not first.isdigit() or (last and not last.isdigit()):
        raise MirageError(f"The seeds are {text!r}; give a range such as 2000100-2000103.")
    seeds = tuple(range(int(first), int(last or first) + 1))
    if not seeds:
        raise MirageError(f"The seeds {text} are an empty range; give the smaller number first.")
    return seeds


def write_json(report: dict, path: Path | None) -> None:
    """The figures under a temporary name, renamed; nothing without a path."""
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".tmp")
    unfinished.write_text(json.dumps(_sayable(report), indent=1, allow_nan=False) + "\n")
    unfinished.replace(path)


def _sayable(value):
    """JSON knows neither NaN nor infinity: null, then."""
    if isinstance(value, dict):
        return {key: _sayable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_sayable(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
