"""`mirage evaluate` and `mirage readback`: how good is what a model shows, in worlds whose truth is known and in real walks."""

from __future__ import annotations

import argparse
from pathlib import Path

from mirage_ros.cli.arguments import add_command, add_json, add_model, seed_range, write_json
from mirage_ros.errors import MirageError
from mirage_ros.files import user_path


def add_evaluate(parsers) -> None:
    parser = add_command(
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
    add_model(parser)
    parser.add_argument("--memories", default="latent,rgb,keyframes1,keyframes4,none",
                        metavar="A,B", help="of latent, rgb, keyframesN, none "
                        "(default: %(default)s)")  # fmt: skip
    parser.add_argument("--ablate", default="", metavar="A,B",
                        help="of sub_cell, visibility, dynamic_filter, references, network; "
                        "other_seed is another world seed")  # fmt: skip
    parser.add_argument("--compare", nargs="+", default=[], metavar="NAME=FOLDER",
                        help="more checkpoints, with latent memory")  # fmt: skip
    parser.add_argument("--own-depth", action="store_true", help="do not give the seed's depth")
    parser.add_argument("--noise-seed", type=int, default=0, help="(default: 0)")
    parser.add_argument("--forget-moving", default="", choices=("imagined", "all", "none"),
                        help="pictures whose moving things, by the perceiver's guess, are not "
                        "remembered (default: all of scenes, imagined of a folder)")  # fmt: skip
    parser.add_argument("--out", type=user_path, default=Path("out/evaluate"), metavar="FOLDER")
    add_json(parser)


def add_readback(parsers) -> None:
    parser = add_command(
        parsers,
        "readback",
        readback,
        "measure how well memory shows one real frame again from other real cameras",
        "example:\n  mirage readback walk/ --seed-frame 8\n\nthe folder holds color/, depth/, K.txt"
        " and world_from_camera.txt",
    )
    parser.add_argument("folder", type=user_path, help="posed RGB-D folder")
    parser.add_argument("--seed-frame", type=int, default=0, help="frame to remember (default: 0)")
    parser.add_argument("--frames", type=int, nargs="+", help="frames to look from (default: all)")
    add_model(parser)
    parser.add_argument("--out", type=user_path, metavar="PNG", help="write the pictures as well")


def evaluate(arguments: argparse.Namespace) -> int:
    from mirage_ros.evaluation.evaluate import EvaluationConfig
    from mirage_ros.evaluation.evaluate import evaluate as evaluate_models
    from mirage_ros.evaluation.report import report_on

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
    evaluation = evaluate_models(config)
    report_on(evaluation, out)
    write_json(evaluation.report, arguments.json)
    return 0


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


def _seeds(text: str | None, folder: str) -> tuple[int, ...]:
    if bool(text) == bool(folder):
        raise MirageError("Give either --seeds A-B or --folder to evaluate on.")
    if not text:
        return ()
    return tuple(seed_range(text))


def readback(arguments: argparse.Namespace) -> int:
    from mirage_ros.evaluation.readback import describe, draw, read_back
    from mirage_ros.models.pretrained import load_model

    model = load_model(arguments.model)
    walk = read_back(arguments.folder, arguments.seed_frame, model, arguments.frames)
    print(describe(walk))
    if arguments.out is not None:
        draw(walk, arguments.out)
    return 0
