"""The large model's training from one YAML: latent cache, stage one, stage two, a folder to run."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
import yaml

from mirage_ros.core.errors import MirageError
from mirage_ros.models.denoiser import MemoryDenoiser, SideBranch
from mirage_ros.models.parts import find_folder, pick_device
from mirage_ros.models.pretrained import load_model
from mirage_ros.models.wan import WanModel
from mirage_ros.models.wan_config import SETTINGS_FILE
from mirage_ros.models.wan_convert import write_branch, write_lora
from mirage_ros.models.wan_loading import load_denoiser, load_wan, published_folder
from mirage_ros.training.chunks import Chunks, ChunksConfig
from mirage_ros.training.latent_cache import build_cache, load_cache
from mirage_ros.training.posed_video import PosedVideo, read_re10k, read_shards
from mirage_ros.training.recipe import _fill
from mirage_ros.training.wan_stages import (
    STAGES,
    FlowConfig,
    FlowLoss,
    prepare_stage,
    split_trained,
)
from mirage_ros.training.wan_trainer import Trainer, TrainerConfig

KIND = "wan"


@dataclass(frozen=True)
class WanRecipe:
    """Attributes:
    model: folder or hub id of the published parts, with a branch to go on from where it has one.
    run: folder of the cache, checkpoints and logs.
    output: folder to write branch, adapters and settings to.
    size: (height, width) of the clips.
    length: frames of a clip, 1 + a multiple of 4; at least 37, a chunk and what precedes it.
    re10k: folders of RealEstate10K camera files and of their frames; empty for none.
    shards: folder of the project's rendered clips, of `seeds`; empty for none.
    depth, masks: who perceives what the clips lack (perceivers.py).
    prompt: what the clips show, in words.
    lora_rank: the paper has 64, its code 32.
    """

    kind: str = KIND
    model: str = ""
    run: str = "runs/wan"
    output: str = "runs/wan/model"
    device: str = "auto"
    size: tuple[int, int] = (704, 1280)
    length: int = 81
    re10k: tuple[str, ...] = ()
    shards: str = ""
    seeds: tuple[int, int] = (0, 0)
    depth: str = "depth-anything"
    masks: str = ""
    prompt: str = ""
    lora_rank: int = 64
    chunks: ChunksConfig = field(default_factory=lambda: ChunksConfig(chunk_frames=8))
    flow: FlowConfig = field(default_factory=FlowConfig)
    branch: TrainerConfig = field(default_factory=TrainerConfig)
    lora: TrainerConfig = field(default_factory=TrainerConfig)


def is_wan_recipe(path: Path) -> bool:
    """Whether a YAML says `kind: wan`."""
    try:
        values = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError):
        return False
    return isinstance(values, dict) and values.get("kind") == KIND


def read_wan_recipe(path: Path) -> WanRecipe:
    """A recipe from YAML; unknown keys are refused by name."""
    recipe = _fill(WanRecipe, yaml.safe_load(path.read_text()), str(path))
    if not recipe.model:
        raise MirageError(f"{path} names no model; give the folder of a Wan2.2 checkpoint.")
    least = 4 * recipe.chunks.chunk_frames + 5
    if recipe.length < least or recipe.length % 4 != 1:
        raise MirageError(
            f"{path}: length is {recipe.length}; give 1 + a multiple of 4, at least {least}."
        )
    if len(recipe.re10k) not in (0, 2):
        raise MirageError(f"{path}: re10k needs two folders, of camera files and of frames.")
    return recipe


def train_wan(recipe: WanRecipe) -> None:
    """Whatever of cache and stages is not done yet, then the output folder."""
    run = Path(recipe.run)
    text = _cache(recipe, run / "cache")
    chunks = Chunks(load_cache(run / "cache"), recipe.chunks)
    for stage in STAGES:
        network = prepare_stage(_start(recipe, stage), stage, recipe.lora_rank)
        trainer = Trainer(network, run / stage, getattr(recipe, stage))
        trainer.run(FlowLoss(chunks, text.to(trainer.accelerator.device), recipe.flow))
        trained = trainer.trained()
        if trainer.accelerator.is_main_process:
            _write(recipe, network.branch, trained)
        trainer.accelerator.wait_for_everyone()


def videos(recipe: WanRecipe) -> Iterator[PosedVideo]:
    """Every clip of the recipe's data sets."""
    sources = []
    if recipe.re10k:
        tracks, frames = map(Path, recipe.re10k)
        sources.append(read_re10k(tracks, frames, recipe.size, recipe.length))
    if recipe.shards:
        sources.append(read_shards(Path(recipe.shards), recipe.seeds, recipe.length))
    if not sources:
        raise MirageError("The recipe names no clips; give re10k folders, shards, or both.")
    return itertools.chain(*sources)


def _cache(recipe: WanRecipe, folder: Path) -> torch.Tensor:
    """The prompt's and the empty prompt's embeddings; clips are encoded where they are missing."""
    model = _model(recipe)
    build_cache(videos(recipe), model, folder)
    return model.read_prompts([recipe.prompt, ""]).float()


def _model(recipe: WanRecipe) -> WanModel:
    settings = {
        "size": recipe.size, "depth": recipe.depth, "masks": recipe.masks, "dtype": "float32",
        "compile": "off",
    }  # fmt: skip
    folder, device = find_folder(recipe.model), pick_device(recipe.device)
    return load_wan(folder, device, settings, lambda device: load_model("mini", device))


def _start(recipe: WanRecipe, stage: str) -> MemoryDenoiser:
    """The network that a stage begins with: stage two goes on from the branch of stage one."""
    folder = find_folder(recipe.model) if stage == STAGES[0] else Path(recipe.output)
    return MemoryDenoiser(*load_denoiser(folder, published_folder(folder), torch.float32))


def _write(recipe: WanRecipe, branch: SideBranch, trained: dict[str, torch.Tensor]) -> None:
    """What a stage has trained, as a folder that `load_model` runs."""
    output = Path(recipe.output)
    of_branch, of_lora = split_trained(trained)
    write_branch(branch, output, of_branch)
    if of_lora:
        write_lora(of_lora, recipe.lora_rank, output, alpha=None)
    base = str(published_folder(find_folder(recipe.model)).resolve())
    settings = {"base": base, "size": list(recipe.size), "depth": recipe.depth,
                "masks": recipe.masks, "prompt": recipe.prompt}  # fmt: skip
    (output / SETTINGS_FILE).write_text(json.dumps(settings, indent=2) + "\n")
