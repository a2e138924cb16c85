"""The large model's training from one YAML: latent cache, stage one, stage two, a folder to run."""

from __future__ import annotations

import gc
import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file

from mirage_ros.errors import MirageError
from mirage_ros.files import atomic_path, write_json
from mirage_ros.models.mini.denoiser import MemoryDenoiser, SideBranch
from mirage_ros.models.parts import find_folder, pick_device, read_json
from mirage_ros.models.pretrained import load_model
from mirage_ros.models.wan.config import SETTINGS_FILE, WanConfig, read_config
from mirage_ros.models.wan.loading import (
    encode_prompts,
    load_denoiser,
    load_encoder,
    published_folder,
)
from mirage_ros.models.wan.weights import write_branch, write_lora
from mirage_ros.training.chunks import Chunks, ChunksConfig
from mirage_ros.training.clips import LazyVideo, read_re10k, read_shards
from mirage_ros.training.latents import LatentCache, build_cache
from mirage_ros.training.recipe import fill, read_values
from mirage_ros.training.wan_trainer import (
    STAGES,
    FlowConfig,
    FlowLoss,
    Trainer,
    TrainerConfig,
    make_accelerator,
    prepare_stage,
    split_trained,
)


@dataclass(frozen=True)
class WanChunksConfig(ChunksConfig):
    """Chunks as the large model generates them by itself: with references."""

    chunk_frames: int = WanConfig.chunk_latents
    references: int = WanConfig.reference_frames


@dataclass(frozen=True)
class WanRecipe:
    """Attributes:
    model: folder or hub id of the published parts, with a branch to go on from where it has one,
        and without adapters.
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

    kind: str = "wan"
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
    chunks: WanChunksConfig = field(default_factory=WanChunksConfig)
    flow: FlowConfig = field(default_factory=FlowConfig)
    branch: TrainerConfig = field(default_factory=TrainerConfig)
    lora: TrainerConfig = field(default_factory=TrainerConfig)


def read_wan_recipe(path: Path) -> WanRecipe:
    """A recipe from YAML; unknown keys are refused by name."""
    recipe = fill(WanRecipe, read_values(path), str(path))
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
    # Before any network is loaded: it gives each process a device of its own.
    accelerator = make_accelerator()
    _cache(recipe, run / "cache", accelerator)
    text = _text(recipe, run / "prompt.safetensors", accelerator)
    chunks = Chunks(LatentCache(run / "cache"), recipe.chunks)
    for stage in STAGES:
        _train_stage(recipe, stage, FlowLoss(chunks, text, recipe.flow))
        # Networks and optimisers hold each other, and the next stage needs their room.
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _train_stage(recipe: WanRecipe, stage: str, loss: FlowLoss) -> None:
    config: TrainerConfig = getattr(recipe, stage)
    # Fresh layers are the same in every process, and in a run that is begun anew.
    torch.manual_seed(config.seed)
    network = prepare_stage(_start(recipe, stage), stage, recipe.lora_rank)
    trainer = Trainer(network, Path(recipe.run) / stage, config)
    trainer.run(loss)
    trained = trainer.trained()
    if trainer.accelerator.is_main_process:
        _write(recipe, network.branch, trained)
    trainer.accelerator.wait_for_everyone()


def videos(recipe: WanRecipe) -> Iterator[LazyVideo]:
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


def _cache(recipe: WanRecipe, folder: Path, accelerator: Accelerator) -> None:
    """Clips are encoded where they are missing; processes share them."""
    settings = {"size": recipe.size, "depth": recipe.depth, "masks": recipe.masks}
    source, device = find_folder(recipe.model), pick_device(recipe.device)
    config = read_config(source, settings)
    if accelerator.is_main_process:
        _check_same(settings | {"model": recipe.model, "length": recipe.length}, folder)

    def load_networks():
        return load_encoder(source, config, device, lambda device: load_model("mini", device))

    share = (accelerator.process_index, accelerator.num_processes)
    build_cache(videos(recipe), load_networks, folder, share)
    accelerator.wait_for_everyone()


def _check_same(made_from: dict, folder: Path) -> None:
    """Notes what a cache is made from; MirageError where it holds clips of something else."""
    made_from = json.loads(json.dumps(made_from))
    path = folder / "made_from.json"
    if not path.exists():
        write_json(path, made_from)
        return
    before = read_json(path)
    different = [name for name, value in made_from.items() if before.get(name) != value]
    if different:
        changes = ", ".join(f"{n} {before.get(n)!r}, not {made_from[n]!r}" for n in different)
        raise MirageError(
            f"The clips in {folder} were made with {changes}; give the same, another run, or remove "
            "the folder."
        )


def _text(recipe: WanRecipe, path: Path, accelerator: Accelerator) -> torch.Tensor:
    """The prompt's and the empty prompt's embeddings, read by the first process for all."""
    if accelerator.is_main_process:
        base = published_folder(find_folder(recipe.model))
        read = encode_prompts(base, [recipe.prompt, ""], pick_device(recipe.device))
        with atomic_path(path) as new:
            save_file({"text": read.cpu().contiguous()}, new)
    accelerator.wait_for_everyone()
    return load_file(path)["text"].to(accelerator.device)


def _start(recipe: WanRecipe, stage: str) -> MemoryDenoiser:
    """The network that a stage begins with: stage two goes on from the branch of stage one.

    Never with adapters merged: stage two brings its own, and what an earlier run of it has
    written to the output is in its checkpoint.
    """
    folder = find_folder(recipe.model)
    if (folder / "lora").is_dir():
        raise MirageError(
            f"The model to train, {folder}, has adapters in lora/, and training begins without; "
            "give the folder that they were trained on."
        )
    folder = folder if stage == STAGES[0] else Path(recipe.output)
    base = published_folder(folder)
    return MemoryDenoiser(*load_denoiser(folder, base, torch.float32, adapters=False))


def _write(recipe: WanRecipe, branch: SideBranch, trained: dict[str, torch.Tensor]) -> None:
    """What a stage has trained, as a folder that `load_model` runs."""
    output = Path(recipe.output)
    of_branch, of_lora = split_trained(trained)
    write_branch(branch, output, of_branch)
    if of_lora:
        write_lora(of_lora, recipe.lora_rank, output, alpha=None)
    base = str(published_folder(find_folder(recipe.model)).resolve())
    settings = {"base": base, "size": list(recipe.size), "depth": recipe.depth,
                "masks": recipe.masks, "prompt": recipe.prompt,
                "reference_frames": recipe.chunks.references}  # fmt: skip
    write_json(output / SETTINGS_FILE, settings)
