"""Measuring: how good is what a model shows, in worlds whose truth is known and in real walks (`mirage evaluate`);
speed, memory and errors on this machine (`mirage bench memory`, `generate`, `record`, `sensors`, `physics`).
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

from mirage_ros.cli.arguments import (
    add_command,
    add_json,
    add_model,
    add_walk,
    parse_size,
    seed_range,
    walk_config,
    write_json,
)
from mirage_ros.errors import MirageError
from mirage_ros.files import user_path
from mirage_ros.recording import FORMATS


def add_bench(parsers) -> None:
    parser = parsers.add_parser("bench", help="measure speed and memory on this machine")
    actions = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_memory(actions)
    _add_generate(actions)
    _add_record(actions)
    _add_sensors(actions)
    _add_physics(actions)


def _add_memory(actions) -> None:
    parser = add_command(
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
    add_json(parser)


def _add_generate(actions) -> None:
    parser = add_command(
        actions,
        "generate",
        bench_generate,
        "time the large model by stage, beside conditioning by an RGB cache",
        "examples:\n  mirage bench generate --tiny --random-weights\n"
        "  mirage bench generate --random-weights --device cuda --steps 20 4 --json out/5b.json\n"
        "  mirage bench generate --model /models/Wan2.2-TI2V-5B-Diffusers --size 480x832\n"
        "  mirage bench generate --random-weights --plan       what it would need, nothing more\n"
        "  mirage bench generate --tiny --random-weights --write tiny/    a checkpoint to try\n\n"
        "time and peak memory of each stage of the cycle per chunk of 32 frames, and what a\n"
        "chunk's conditioning costs from latents and from coloured points (drawn and encoded by\n"
        "the same VAE). The walk is a rendered room (MuJoCo).",
    )
    parser.add_argument("--model", help="a Wan2.2 folder or hub id")
    parser.add_argument("--random-weights", action="store_true",
                        help="the full architecture with random weights instead")  # fmt: skip
    parser.add_argument("--tiny", action="store_true",
                        help="with --random-weights: a small one of the same shape")  # fmt: skip
    parser.add_argument("--size", metavar="HxW", help="(default: 704x1280, tiny 128x224)")
    parser.add_argument("--steps", type=int, nargs="+", default=[20, 4], help="(default: 20 4)")
    parser.add_argument("--chunks", type=int, default=5, help="(default: 5)")
    parser.add_argument("--overlap", action="store_true",
                        help="time each cycle with overlap_decode as well")  # fmt: skip
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (default: auto)")
    parser.add_argument("--seed", type=int, default=2_000_017, help="of the room")
    parser.add_argument("--plan", action="store_true", help="print the memory plan and end")
    parser.add_argument("--write", type=user_path, metavar="FOLDER",
                        help="write the tiny random checkpoint as a folder and end")  # fmt: skip
    add_json(parser)


def _add_record(actions) -> None:
    parser = add_command(
        actions,
        "record",
        bench_record,
        "time the cycle with and without recording, format by format",
        "examples:\n  mirage bench record\n  mirage bench record --formats lerobot --rounds 8\n\n"
        "plain and recorded rollouts of one walk take turns; recording runs in a thread beside\n"
        "the next chunk. What a format needs after the last chunk is its episode's end. The CPU\n"
        "columns are the time of recording all by itself, ffmpeg included, over the cycle's,\n"
        "without and with the episode's end: where cores are scarce, the cycle gets that much\n"
        "slower. At most 10 % without the end is what a format is meant to keep to.",
    )
    parser.add_argument("--formats", nargs="+", metavar="FORMAT",
                        help=f"{', '.join(FORMATS)} (default: all)")  # fmt: skip
    parser.add_argument("--rounds", type=int, default=4, help="(default: 4)")
    parser.add_argument("--frames", type=int, default=48, help="of a rollout (default: 48)")
    parser.add_argument("--seed", default="room", help="(default: room)")
    add_model(parser)
    add_json(parser)


def _add_sensors(actions) -> None:
    parser = add_command(
        actions,
        "sensors",
        bench_sensors,
        "judge what sensors measure in memory against rooms whose truth is known",
        "examples:\n  mirage bench sensors\n  mirage bench sensors --seeds 2000100-2000104 --picture docs/sensors.png\n\n"
        "each world begins with one true picture and its depth; sensors measure from its camera's\n"
        "place, and rays cast in the room (MuJoCo) say what is right.",
    )
    parser.add_argument("--seeds", default="2000100-2000104", metavar="A-B", help="rooms (default: %(default)s)")
    parser.add_argument("--kind", default="room", help="of the scenes (default: room)")
    parser.add_argument("--picture", type=user_path, metavar="PNG", help="draw the rooms from above")
    add_model(parser)
    add_json(parser)


def bench_sensors(arguments: argparse.Namespace) -> int:
    from mirage_ros.evaluation.bench_sensors import describe, run_bench
    from mirage_ros.models import load_model

    seeds = seed_range(arguments.seeds)
    report = run_bench(load_model(arguments.model), seeds, arguments.kind, arguments.picture)
    print(describe(report))
    write_json(report, arguments.json)
    return 0


def _add_physics(actions) -> None:
    parser = add_command(
        actions,
        "physics",
        bench_physics,
        "judge what stops a base, and what falls and is pushed, against rooms whose truth is known",
        "examples:\n  mirage bench physics\n  mirage bench physics --seeds 2000100-2000102 --json out/physics.json\n\n"
        "each world begins with one true picture and its depth; a base drives at a wall, a box falls\n"
        "from a metre, a base pushes a box, and rays cast in the room (MuJoCo) say how right that is.",
    )
    parser.add_argument("--seeds", default="2000100-2000109", metavar="A-B", help="rooms (default: %(default)s)")
    parser.add_argument("--kind", default="room", help="of the scenes (default: room)")
    add_model(parser)
    add_json(parser)


def bench_physics(arguments: argparse.Namespace) -> int:
    from mirage_ros.apps.bench_physics import describe, run_bench
    from mirage_ros.models import load_model

    report = run_bench(load_model(arguments.model), seed_range(arguments.seeds), arguments.kind)
    print(describe(report))
    write_json(report, arguments.json)
    return 0


def bench_memory(arguments: argparse.Namespace) -> int:
    from dataclasses import replace

    from mirage_ros.evaluation.bench_memory import QUICK, BenchConfig, describe, draw, run_bench
    from mirage_ros.models import load_model

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


def bench_generate(arguments: argparse.Namespace) -> int:
    if bool(arguments.model) == arguments.random_weights:
        raise MirageError("Give either --model FOLDER or --random-weights.")
    if arguments.write is not None:
        return _write(arguments)
    default = "128x224" if arguments.tiny else "704x1280"
    settings = {"size": parse_size(arguments.size or default)}
    if arguments.plan:
        return _plan(arguments, settings)
    from mirage_ros.evaluation.bench_generate import BenchConfig, describe, run_bench

    config = BenchConfig(
        arguments.chunks, tuple(arguments.steps), arguments.seed, arguments.overlap
    )
    if config.chunks < 1 or min(config.steps) < 1:
        raise MirageError("A bench needs at least 1 chunk and 1 step; give more.")
    report = run_bench(_model(arguments, settings), config)
    print(describe(report))
    write_json(report, arguments.json)
    return 0


def _model(arguments: argparse.Namespace, settings: dict):
    from mirage_ros.models import load_model
    from mirage_ros.models.parts import pick_device
    from mirage_ros.models.wan import WanModel

    if arguments.random_weights:
        from mirage_ros.models.wan.weights import random_wan

        return random_wan(arguments.tiny, pick_device(arguments.device), settings)
    model = load_model(arguments.model, arguments.device, settings)
    if not isinstance(model, WanModel):
        raise MirageError(f"{arguments.model} is {model.name}; give a Wan2.2 folder.")
    return model


def _plan(arguments: argparse.Namespace, settings: dict) -> int:
    """Shapes alone: runs without a GPU, and says of one what it would have to hold."""
    from mirage_ros.models.parts import find_folder, pick_device, read_json
    from mirage_ros.models.wan import Parts, count_parameters, plan_memory
    from mirage_ros.models.wan.config import (
        TINY_TRANSFORMER,
        TINY_VAE,
        TRANSFORMER,
        VAE,
        read_config,
    )
    from mirage_ros.models.wan.loading import pick_dtype, published_folder, text_parameters

    if arguments.random_weights:
        folder = Path("random weights")
        parts = Parts(*((TINY_TRANSFORMER, TINY_VAE) if arguments.tiny else (TRANSFORMER, VAE)))
    else:
        folder = find_folder(arguments.model)
        base = published_folder(folder)
        configs = [read_json(base / part / "config.json") for part in ("transformer", "vae")]
        parts = Parts(*configs, text_parameters(base / "text_encoder"))
    config = read_config(folder, settings)
    device = "cuda" if arguments.device == "auto" else pick_device(arguments.device)
    for name, count in count_parameters(parts).items():
        if count:
            print(f"{name:<12} {count / 1e9:8.4f} B parameters")
    print(plan_memory(parts, config, pick_dtype(config, device)).describe())
    return 0


def _write(arguments: argparse.Namespace) -> int:
    if not (arguments.tiny and arguments.random_weights):
        raise MirageError("Only the tiny random checkpoint is written; add --tiny.")
    from mirage_ros.models.wan.config import write_tiny_checkpoint

    print(f"wrote {write_tiny_checkpoint(arguments.write, arguments.seed)}")
    return 0


def bench_record(arguments: argparse.Namespace) -> int:
    from mirage_ros.data.seeds import load_seed
    from mirage_ros.evaluation.bench_record import RecordBenchConfig, describe, run_bench
    from mirage_ros.models import load_model
    from mirage_ros.recording.formats import check_format

    formats = arguments.formats or FORMATS
    for format in formats:
        check_format(format)
    if min(arguments.rounds, arguments.frames) < 1:
        raise MirageError("A bench needs at least 1 round and 1 frame; give more.")
    config = RecordBenchConfig(formats, arguments.rounds, arguments.frames)
    report = run_bench(load_model(arguments.model), load_seed(arguments.seed), config)
    print(describe(report))
    write_json(report, arguments.json)
    return 0


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
        "  mirage evaluate --folder walk/ --seed-frame 8          any recording that `mirage build` reads\n"
        "  mirage evaluate --folder walk/ --hold-out 2            built from each second frame, judged by the others\n"
        "  mirage evaluate --re10k re10k/ --memories latent,rgb   RealEstate10K: NAME.txt, NAME/MICROSECONDS.png\n"
        "  mirage evaluate --worldscore WorldScore-Dataset/       the frames that the suite judges\n\n"
        "each world starts from one true picture (and its depth); all later depth is the model's\n"
        "own. Writes a plot over frames and a contact sheet into --out. Rollouts are kept in\n"
        "--out/rollouts and made again only when weights, program, world or variant changed.\n"
        "Seeds of 2000000 and above were never trained on.",
    )
    _add_truth(parser)
    add_model(parser)
    parser.add_argument("--memories", default="latent,rgb,keyframes1,keyframes4,none",
                        metavar="A,B", help="of latent, rgb, keyframesN, none "
                        "(default: %(default)s)")  # fmt: skip
    parser.add_argument("--ablate", default="", metavar="A,B",
                        help="of sub_cell, dynamic_filter, references, network (of models that imagine, as mini), "
                        "visibility (of the others); other_seed is another world seed")  # fmt: skip
    parser.add_argument("--compare", nargs="+", default=[], metavar="NAME=FOLDER",
                        help="more checkpoints, with latent memory")  # fmt: skip
    parser.add_argument("--own-depth", action="store_true", help="do not give the seed's depth")
    parser.add_argument("--noise-seed", type=int, default=0, help="(default: 0)")
    parser.add_argument("--forget-moving", default="", choices=("imagined", "all", "none"),
                        help="pictures whose moving things, by the perceiver's guess, are not "
                        "remembered (default: all of scenes, imagined of a folder)")  # fmt: skip
    parser.add_argument("--out", type=user_path, default=Path("out/evaluate"), metavar="FOLDER")
    add_walk(parser)
    add_json(parser)


def _add_truth(parser) -> None:
    """Which worlds are evaluated on."""
    parser.add_argument("--seeds", metavar="A-B", help="scenes (needs MuJoCo)")
    parser.add_argument("--folder", default="", help="a recording instead of scenes: a posed folder, a bag, ...")
    parser.add_argument("--re10k", default="", metavar="FOLDER", help="RealEstate10K tracks with their pictures instead "
                        "of scenes; each is walked there and back")  # fmt: skip
    parser.add_argument("--worldscore", default="", metavar="FOLDER", help="write what the WorldScore suite judges of its "
                        "data set; --frames is then how many of its scenes (default: all)")  # fmt: skip
    parser.add_argument("--hold-out", type=int, default=0, metavar="N", help="build a world from the folder without each "
                        "N-th frame, and judge it by these")  # fmt: skip
    parser.add_argument("--seed-frame", type=int, default=0, help="of the folder (default: 0)")
    parser.add_argument("--frames", type=int, help="frames of the walk (default: 33, or the "
                        "whole folder; of tracks those there); of scenes above 100 it comes back each 100")  # fmt: skip
    parser.add_argument("--kind", help="kind of scene (default: as each seed draws it)")


def evaluate(arguments: argparse.Namespace) -> int:
    from mirage_ros.evaluation.evaluate import EvaluationConfig
    from mirage_ros.evaluation.evaluate import evaluate as evaluate_models
    from mirage_ros.evaluation.report import report_on

    out, seeds = arguments.out, _seeds(arguments)
    if arguments.hold_out or arguments.worldscore:
        return _hold_out(arguments) if arguments.hold_out else _worldscore(arguments)
    config = EvaluationConfig(
        model=arguments.model,
        seeds=seeds,
        folder=arguments.folder,
        re10k=arguments.re10k,
        walk=walk_config(arguments),
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


def _seeds(arguments: argparse.Namespace) -> tuple[int, ...]:
    if sum(map(bool, (arguments.seeds, arguments.folder, arguments.re10k, arguments.worldscore))) != 1:
        raise MirageError("Give one of --seeds A-B, --folder, --re10k and --worldscore to evaluate on.")
    if arguments.hold_out and not arguments.folder:
        raise MirageError("--hold-out builds a world from a --folder; give one.")
    return tuple(seed_range(arguments.seeds)) if arguments.seeds else ()


def _worldscore(arguments: argparse.Namespace) -> int:
    from mirage_ros.evaluation.worldscore import describe, write_scenes
    from mirage_ros.models import load_model

    report = write_scenes(user_path(arguments.worldscore), load_model(arguments.model), arguments.out, arguments.frames)
    print(describe(report))
    write_json(report, arguments.json)
    return 0


def _hold_out(arguments: argparse.Namespace) -> int:
    from mirage_ros.evaluation.readback import describe_held_out, draw_held_out, hold_out
    from mirage_ros.models import load_model

    held = hold_out(arguments.folder, walk_config(arguments), arguments.hold_out, load_model(arguments.model))
    print(describe_held_out(held))
    draw_held_out(held, arguments.out / "held_out.png")
    print(f"pictures: {arguments.out / 'held_out.png'}")
    write_json(held.figures, arguments.json)
    return 0
