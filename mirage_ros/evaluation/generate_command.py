"""What `mirage bench generate` and `mirage convert` do. Heavy imports wait until they run."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from mirage_ros.errors import MirageError
from mirage_ros.resources import user_path


def add_bench_generate(actions, command) -> None:
    """Registers `mirage bench generate`; `command` makes its parser (see cli.py)."""
    parser = command(
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
    parser.add_argument("--json", type=user_path, metavar="PATH", help="write the figures as well")


def bench_generate(arguments: argparse.Namespace) -> int:
    if bool(arguments.model) == arguments.random_weights:
        raise MirageError("Give either --model FOLDER or --random-weights.")
    if arguments.write is not None:
        return _write(arguments)
    settings = {"size": _size(arguments)}
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
    if arguments.json is not None:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")
    return 0


def _model(arguments: argparse.Namespace, settings: dict):
    from mirage_ros.models.parts import pick_device
    from mirage_ros.models.pretrained import load_model
    from mirage_ros.models.wan.model import WanModel

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
    from mirage_ros.models.wan.config import (
        TINY_TRANSFORMER,
        TINY_VAE,
        TRANSFORMER,
        VAE,
        read_config,
    )
    from mirage_ros.models.wan.loading import pick_dtype, published_folder, text_parameters
    from mirage_ros.models.wan.model import Parts, count_parameters, plan_memory

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


def _size(arguments: argparse.Namespace) -> tuple[int, int]:
    text = arguments.size or ("128x224" if arguments.tiny else "704x1280")
    sides = text.lower().split("x")
    if len(sides) != 2 or not all(side.isdigit() for side in sides):
        raise MirageError(f"The size is {text!r}; give HEIGHTxWIDTH such as 704x1280.")
    return int(sides[0]), int(sides[1])


def add_convert(parsers, command) -> None:
    """Registers `mirage convert`."""
    parser = command(
        parsers,
        "convert",
        convert,
        "make a checkpoint of the reference implementation ours",
        "example:\n  mirage convert --base /models/Wan2.2-TI2V-5B-Diffusers \\\n"
        "      --branch vace.safetensors --lora lora.safetensors --out models/mirage-5b\n\n"
        "writes branch/, lora/ and mirage.json, for `mirage node --model models/mirage-5b`.\n"
        "Refuses checkpoints that do not fit with a list of every tensor that differs.",
    )
    parser.add_argument("--base", required=True, help="the published folder or hub id")
    parser.add_argument("--branch", type=user_path, help="safetensors with vace_blocks.* tensors")
    parser.add_argument("--lora", type=user_path, help="safetensors with *.lora_A/B.weight tensors")
    parser.add_argument("--lora-alpha", type=int, help="(default: the rank)")
    parser.add_argument("--out", type=user_path, required=True, help="folder to write")


def convert(arguments: argparse.Namespace) -> int:
    if arguments.branch is None and arguments.lora is None:
        raise MirageError("There is nothing to convert; give --branch, --lora or both.")
    import torch
    from diffusers import WanTransformer3DModel

    from mirage_ros.models.parts import find_folder, load_part
    from mirage_ros.models.wan import weights as wan_convert
    from mirage_ros.models.wan.config import SETTINGS_FILE
    from mirage_ros.models.wan.loading import published_folder

    base = published_folder(find_folder(arguments.base))
    transformer = load_part(base / "transformer", WanTransformer3DModel, torch.bfloat16)
    branch = found = rank = None
    if arguments.branch is not None:
        tensors = wan_convert.read_tensors(arguments.branch)
        branch = wan_convert.convert_branch(tensors, transformer)
    if arguments.lora is not None:
        tensors = wan_convert.read_tensors(arguments.lora)
        found, rank = wan_convert.convert_lora(tensors, transformer)
    arguments.out.mkdir(parents=True, exist_ok=True)
    if branch is not None:
        wan_convert.write_branch(branch, arguments.out)
    if found is not None:
        wan_convert.write_lora(found, rank, arguments.out, arguments.lora_alpha)
    settings = {"base": str(base.resolve())}
    (arguments.out / SETTINGS_FILE).write_text(json.dumps(settings, indent=2) + "\n")
    print(f"wrote {arguments.out}")
    return 0
