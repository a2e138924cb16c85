"""`mirage train` and `mirage convert`: models; `mirage generate`, `mirage data preview` and `data furniture`: what they and
policies are trained on."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mirage_ros.cli.arguments import add_command, add_json, add_model, seed_range, write_json
from mirage_ros.errors import MirageError
from mirage_ros.files import user_path
from mirage_ros.recording import FORMATS


def add_train(parsers) -> None:
    parser = add_command(
        parsers,
        "train",
        train,
        "train a model's parts",
        "example:\n  mirage train --config config/train/mini.yaml",
    )
    parser.add_argument("--config", type=user_path, required=True, metavar="YAML")


def add_data(parsers) -> None:
    parser = parsers.add_parser("data", help="look at the procedural training scenes")
    actions = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_preview(actions)
    _add_furniture(actions)


def _add_preview(actions) -> None:
    parser = add_command(
        actions,
        "preview",
        preview,
        "render procedural scenes onto one sheet (needs MuJoCo)",
        "example:\n  mirage data preview --seeds 0-5 --out out/scenes.png",
    )
    parser.add_argument("--seeds", default="0-5", metavar="A-B", help="(default: 0-5)")
    parser.add_argument("--out", type=user_path, default=Path("out/scenes.png"), metavar="PNG")
    parser.add_argument("--furniture", type=user_path, metavar="NPZ", help="draw homes too, from this cache")


def _add_furniture(actions) -> None:
    parser = add_command(
        actions,
        "furniture",
        furniture,
        "make a cache of real furniture for training worlds",
        "example, after `apt install sweethome3d-furniture` and `pip install trimesh fast-simplification`:\n"
        "  mirage data furniture /usr/share/sweethome3d/furniture --out data/furniture.npz\n\n"
        "also writes who made what, which the card of a model that was trained on it has to say.",
    )
    parser.add_argument("folder", type=user_path, help="with Sweet Home 3D's .sh3f files")
    parser.add_argument("--out", type=user_path, default=Path("data/furniture.npz"), metavar="NPZ")
    parser.add_argument("--coverings", type=user_path, metavar="WHL",
                        help="miniworld's wheel: floors, walls, portraits")  # fmt: skip


def add_convert(parsers) -> None:
    parser = add_command(
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


def train(arguments: argparse.Namespace) -> int:
    if not arguments.config.is_file():
        raise MirageError(f"There is no training config {arguments.config}; give a YAML file.")
    from mirage_ros.training.recipe import read_recipe, read_values, train

    values = read_values(arguments.config)
    if values.get("kind") == "wan":
        from mirage_ros.training.wan_recipe import read_wan_recipe, train_wan

        train_wan(read_wan_recipe(arguments.config))
        return 0
    recipe = read_recipe(arguments.config)
    if train(recipe) and recipe.evaluate_seeds:
        _evaluate(recipe)
    return 0


def _evaluate(recipe) -> None:
    """Judges what a recipe made, into its run folder."""
    from mirage_ros.evaluation.evaluate import EvaluationConfig, evaluate
    from mirage_ros.evaluation.report import report_on

    out = Path(recipe.run) / "evaluation"
    config = EvaluationConfig(
        model=recipe.output, seeds=recipe.evaluate_seeds, frames=recipe.evaluate_frames,
        store=out / "rollouts",
    )  # fmt: skip
    evaluation = evaluate(config)
    report_on(evaluation, out)
    write_json(evaluation.report, out / "report.json")


def preview(arguments: argparse.Namespace) -> int:
    seeds = seed_range(arguments.seeds)
    with _scenes_extra():
        from mirage_ros.scenes import write_preview
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    catalogue = None
    if arguments.furniture is not None:
        from mirage_ros.scenes.catalogue import Catalogue

        catalogue = Catalogue.load(arguments.furniture)
    write_preview(arguments.out, seeds, furniture=catalogue)
    print(f"wrote {arguments.out}")
    return 0


def furniture(arguments: argparse.Namespace) -> int:
    from mirage_ros.files import write_file

    with _scenes_extra():
        from mirage_ros.scenes.sweethome import make_catalogue
    catalogue = make_catalogue(arguments.folder, arguments.coverings, print)
    catalogue.save(arguments.out)
    credits = arguments.out.with_suffix(".credits.md")
    write_file(credits, catalogue.credits(), "\n")
    print(f"wrote {arguments.out} ({catalogue.summary()}) and {credits}")
    return 0


@contextmanager
def _scenes_extra() -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        raise MirageError(
            f"Scenes need MuJoCo ({error}); pip install 'mirage_ros[scenes]'."
        ) from error


def convert(arguments: argparse.Namespace) -> int:
    if arguments.branch is None and arguments.lora is None:
        raise MirageError("There is nothing to convert; give --branch, --lora or both.")
    import torch
    from diffusers import WanTransformer3DModel

    from mirage_ros.files import write_json
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
    write_json(arguments.out / SETTINGS_FILE, settings)
    print(f"wrote {arguments.out}")
    return 0


POLICIES = ("wander", "orbit", "tour", "expert")
SOURCES = ("shipped", "scenes", "boxes")
GENERATING = """examples:
  mirage generate --episodes 20 --out out/data
  mirage generate --episodes 200 --policy wander orbit --starts scenes --workers 4 --out out/data
  mirage generate --episodes 100 --policy expert --starts boxes --rate 2 --out out/drive
  mirage generate --episodes 5000 --ray auto --format mcap --out /nfs/walks --json out/report.json

An episode follows from the options and its index alone: the number of workers changes no byte.
Run the same command again to go on with a dataset that was cut off, or with a larger
--episodes to add to it. A worker that dies is replaced and its episode is generated again.
"""


def add_generate(parsers) -> None:
    parser = add_command(
        parsers,
        "generate",
        generate,
        "generate many rollouts into one dataset for training policies",
        GENERATING,
    )
    add = parser.add_argument
    # fmt: off
    add("--episodes", type=int, required=True, metavar="N", help="in the dataset at the end")
    add("--out", type=user_path, required=True, metavar="DIR", help="the dataset's folder")
    add("--format", default="lerobot", metavar="FORMAT",
        help=f"{', '.join(FORMATS)} (default: lerobot)")
    add_json(parser)
    add("--policy", nargs="+", default=["wander"], metavar="NAME",
        help=f"each episode draws one of {', '.join(POLICIES)} (default: wander)")
    add("--starts", nargs="+", default=["shipped"], metavar="SEED",
        help="shipped (default), scenes or boxes (procedural, need MuJoCo), or seeds' names and "
        "paths; the expert needs boxes")
    add("--frames", type=int, default=48, help="of an episode, at most (default: 48)")
    add("--rate", type=float, default=5.0, metavar="HZ", help="frames per second (default: 5)")
    add("--seed", type=int, default=0, help="of all episodes (default: 0)")
    add_model(parser)
    add("--workers", type=int, metavar="K",
        help="processes, or actors with --ray (default: 1; with --ray all GPUs or cores)")
    add("--threads", type=int, default=1,
        help="of each worker; part of the dataset, because sums depend on it (default: 1)")
    add("--batch", type=int, default=1, metavar="B",
        help="episodes that a worker draws together, for GPUs; part of the dataset as well "
        "(default: 1)")
    add("--ray", nargs="?", const="local", metavar="ADDRESS",
        help="run on a Ray cluster: its address, auto, or nothing to start one here")
    add("--codec", default="h264", choices=("h264", "av1"), help="of videos (default: h264)")
    add("--no-memory", action="store_true", help="switch the latent memory off")


def generate(arguments: argparse.Namespace) -> int:
    from mirage_ros.apps.generate import generate as run_job
    from mirage_ros.apps.generate_episode import Job

    # A path that cannot be written is reported before hours of work, not after.
    write_json({"complete": False}, arguments.json)
    starts = arguments.starts
    job = Job(
        seed=arguments.seed,
        frames=arguments.frames,
        rate_hz=arguments.rate,
        policies=tuple(arguments.policy),
        starts=starts[0] if len(starts) == 1 and starts[0] in SOURCES else tuple(starts),
        model=arguments.model,
        format=arguments.format,
        video_codec=arguments.codec,
        threads=arguments.threads,
        batch=arguments.batch,
        use_memory=not arguments.no_memory,
    )
    report = run_job(job, arguments.episodes, arguments.out, arguments.workers, arguments.ray)
    write_json({"complete": True} | report.as_dict(), arguments.json)
    if not report.generated:
        print(f"All {report.episodes} episodes were in {report.out} already.")
        return 0
    print(
        f"{report.episodes} episodes in {report.out}; {report.generated} of them and "
        f"{report.frames} frames in this run, {report.frames_per_s:.2f} frames/s "
        f"({report.steady_frames_per_s:.2f} after the first {report.startup_s:.0f} s), "
        f"{report.retries} retries"
    )
    return 0
