"""What each `mirage` command does. Heavy imports wait until a command runs."""

from __future__ import annotations

import argparse
import json
import signal
from contextlib import closing
from pathlib import Path

from tqdm import tqdm

from mirage_ros.errors import MirageError


def demo(arguments: argparse.Namespace) -> int:
    from mirage_ros.apps.demo import DemoConfig, describe, run_demo

    config = DemoConfig(
        seed=arguments.seed,
        hfov_deg=arguments.hfov,
        out=arguments.out,
        frames=arguments.frames,
        rate_hz=arguments.rate,
        model=arguments.model,
        use_memory=not arguments.no_memory,
        compare=not arguments.no_compare,
        world_seed=arguments.world_seed,
    )
    for request in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(request, signal.default_int_handler)
    report = run_demo(config)
    print(describe(report, config.out))
    return 0 if report["complete"] else 1


def node(arguments: argparse.Namespace) -> int:
    from mirage_ros.ros.node import main

    return main(node_ros_arguments(arguments)) or 0


def node_ros_arguments(arguments: argparse.Namespace) -> list[str]:
    """The node's command line in ROS's own words; the file first, so that options override it."""
    words = ["--ros-args"]
    if arguments.params is not None:
        if not arguments.params.is_file():
            raise MirageError(
                f"There is no parameter file {arguments.params}; give one such as mirage.yaml."
            )
        words += ["--params-file", str(arguments.params)]
    if arguments.namespace:
        words += ["-r", f"__ns:=/{arguments.namespace.strip('/')}"]
    given = {
        "seed": arguments.seed and json.dumps(arguments.seed, ensure_ascii=False),
        "model": arguments.model and json.dumps(arguments.model, ensure_ascii=False),
        "seed_hfov_deg": None if arguments.hfov is None else float(arguments.hfov),
        "world_seed": arguments.world_seed,
        "use_memory": "false" if arguments.no_memory else None,
    }
    for name, value in given.items():
        if value is not None:
            words += ["-p", f"{name}:={value}"]
    return [*words, *arguments.ros_args]


def plan(arguments: argparse.Namespace) -> int:
    from mirage_ros.ros.planner import PlannerConfig, run_planner

    run_planner(
        PlannerConfig(
            seed=arguments.seed,
            hfov_deg=arguments.hfov,
            frames=arguments.frames,
            rate_hz=arguments.rate,
            scene_depth_m=arguments.scene_depth,
            world_frame=arguments.world_frame,
            camera_frame=arguments.camera_frame,
            namespace=arguments.namespace,
            ahead_s=arguments.ahead,
            listeners=arguments.listeners,
            wait_s=arguments.wait,
            log=arguments.log,
        )
    )
    print(f"The whole plan of {arguments.frames} poses was rendered.")
    return 0


class _RecordProgress:
    """What `mirage record` tells while it runs: a bar for people, lines of JSON for programs."""

    words = {
        "listening": "Waiting for the node's topics; Ctrl-C ends the recording.",
        "ready": "Connected to the node; recording.",
    }

    def __init__(self, frames: int | None, as_json: bool) -> None:
        self.frames, self.as_json, self.bar = frames, as_json, None

    def tell(self, event: str, count: int) -> None:
        if self.as_json:
            print(json.dumps({"event": event, "count": count}), flush=True)
        elif event == "frames":
            self.bar.update(count - self.bar.n)
        elif self.bar is None:
            print(self.words[event], flush=True)
            # Only now: before it listens, a recording ends with one line where it cannot begin.
            self.bar = tqdm(total=self.frames, unit="frame", desc="record")
        else:
            with self.bar.external_write_mode():
                print(self.words[event], flush=True)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()


def record(arguments: argparse.Namespace) -> int:
    from mirage_ros.recording.formats import guess_format
    from mirage_ros.ros.recorder import RecorderConfig, run_recorder

    config = RecorderConfig(
        path=arguments.path,
        namespace=arguments.namespace,
        ros_arguments=tuple(arguments.ros_args),
        frames=arguments.frames,
        idle_s=arguments.idle,
        format=arguments.format or guess_format(arguments.path),
        rate_hz=arguments.rate,
        video_codec=arguments.codec,
    )
    with closing(_RecordProgress(arguments.frames, arguments.json)) as progress:
        told = run_recorder(config, progress.tell)
    if not arguments.json:
        print(told)
    return 0


def recover(arguments: argparse.Namespace) -> int:
    from mirage_ros.recording.recovery import recover

    for sentence in recover(arguments.path):
        print(sentence)
    return 0


def readback(arguments: argparse.Namespace) -> int:
    from mirage_ros.evaluation.readback import describe, draw, read_back
    from mirage_ros.models.pretrained import load_model

    model = load_model(arguments.model)
    walk = read_back(arguments.folder, arguments.seed_frame, model, arguments.frames)
    print(describe(walk))
    if arguments.out is not None:
        draw(walk, arguments.out)
    return 0


def train(arguments: argparse.Namespace) -> int:
    if not arguments.config.is_file():
        raise MirageError(f"There is no training config {arguments.config}; give a YAML file.")
    from mirage_ros.training.recipe import fill, read_recipe, read_values, train

    values = read_values(arguments.config)
    if values.get("kind") == "wan":
        from mirage_ros.training.wan_recipe import read_wan_recipe, train_wan

        train_wan(read_wan_recipe(arguments.config))
        return 0
    if values.get("kind") == "dreamer":
        from mirage_ros.training.dreamer import DreamerRecipe, train_dreamer

        train_dreamer(fill(DreamerRecipe, values, str(arguments.config)))
        return 0
    recipe = read_recipe(arguments.config)
    if train(recipe) and recipe.evaluate_seeds:
        _evaluate(recipe)
    return 0


def _evaluate(recipe) -> None:
    """Judges what a recipe made, into its run folder."""
    from mirage_ros.evaluation.commands import run_evaluation
    from mirage_ros.evaluation.evaluate import EvaluationConfig

    out = Path(recipe.run) / "evaluation"
    config = EvaluationConfig(
        model=recipe.output, seeds=recipe.evaluate_seeds, frames=recipe.evaluate_frames,
        store=out / "rollouts",
    )  # fmt: skip
    run_evaluation(config, out, out / "report.json")


def preview(arguments: argparse.Namespace) -> int:
    seeds = _seed_range(arguments.seeds)
    try:
        from mirage_ros.scenes import write_preview
    except ImportError as error:
        raise MirageError(
            f"Scenes need MuJoCo ({error}); pip install 'mirage_ros[scenes]'."
        ) from error
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    catalogue = None
    if arguments.furniture is not None:
        from mirage_ros.scenes.catalogue import Catalogue

        catalogue = Catalogue.load(arguments.furniture)
    write_preview(arguments.out, seeds, furniture=catalogue)
    print(f"wrote {arguments.out}")
    return 0


def furniture(arguments: argparse.Namespace) -> int:
    try:
        from mirage_ros.scenes.sweethome import make_catalogue
    except ImportError as error:
        raise MirageError(
            f"Scenes need MuJoCo ({error}); pip install 'mirage_ros[scenes]'."
        ) from error
    catalogue = make_catalogue(arguments.folder, arguments.coverings, print)
    catalogue.save(arguments.out)
    credits = arguments.out.with_suffix(".credits.md")
    credits.write_text(catalogue.credits() + "\n")
    print(f"wrote {arguments.out} ({catalogue.summary()}) and {credits}")
    return 0


def _seed_range(text: str) -> range:
    first, _, last = text.partition("-")
    if not first.isdigit() or (last and not last.isdigit()):
        raise MirageError(f"The seeds are {text!r}; give a range such as 0-11.")
    seeds = range(int(first), int(last or first) + 1)
    if not seeds:
        raise MirageError(f"The seeds {text} are an empty range; give the smaller number first.")
    return seeds


def doctor(arguments: argparse.Namespace) -> int:
    from mirage_ros.doctor import describe, exit_code
    from mirage_ros.ros.doctor import DoctorConfig, examine

    findings = examine(
        DoctorConfig(
            arguments.listen,
            arguments.world_frame,
            arguments.frames,
            arguments.need_shm,
            arguments.need_gpu,
        )
    )
    if arguments.json:
        print(json.dumps([finding.as_dict() for finding in findings], indent=2))
    else:
        print(describe(findings))
    return exit_code(findings)


def info(arguments: argparse.Namespace) -> int:
    from mirage_ros.info import describe

    print(describe(arguments.model))
    return 0
