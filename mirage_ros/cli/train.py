"""`mirage train`: a model's parts from a recipe."""

from __future__ import annotations

import argparse
from pathlib import Path

from mirage_ros.cli.arguments import add_command
from mirage_ros.errors import MirageError
from mirage_ros.resources import user_path


def add_train(parsers) -> None:
    parser = add_command(
        parsers,
        "train",
        train,
        "train a model's parts",
        "example:\n  mirage train --config config/train/mini.yaml",
    )
    parser.add_argument("--config", type=user_path, required=True, metavar="YAML")


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
    from mirage_ros.cli.evaluate import run_evaluation
    from mirage_ros.evaluation.evaluate import EvaluationConfig

    out = Path(recipe.run) / "evaluation"
    config = EvaluationConfig(
        model=recipe.output, seeds=recipe.evaluate_seeds, frames=recipe.evaluate_frames,
        store=out / "rollouts",
    )  # fmt: skip
    run_evaluation(config, out, out / "report.json")
