"""The whole recipe from one YAML: clips, codec, perceiver, denoiser, checkpoint folder."""

from __future__ import annotations

import dataclasses
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
import yaml
from accelerate import Accelerator
from diffusers import WanTransformer3DModel
from tqdm import tqdm

from mirage_ros.errors import MirageError
from mirage_ros.models import load_perception, save_model
from mirage_ros.models.mini import MiniConfig, MiniModel, MiniPerception
from mirage_ros.models.mini.codec import Aligner, MiniCodec
from mirage_ros.models.mini.denoiser import MemoryDenoiser, SamplerConfig, SideBranch
from mirage_ros.training import Loop, LoopConfig
from mirage_ros.training.chunks import ChunksConfig
from mirage_ros.training.clips import ShardConfig, StoredClip, load_shards, make_shards
from mirage_ros.training.codec import (
    CodecLoss,
    CodecLossConfig,
    MovedCodec,
    PerceptionLoss,
    PerceptionLossConfig,
    block_pictures,
)
from mirage_ros.training.denoiser import REGIMES, AlignerLossConfig, DenoiserLossConfig

#: One class, two sizes: this is the small one (the large one is Wan 2.2 TI2V 5B).
MINI_TRANSFORMER = {
    "num_attention_heads": 3,
    "attention_head_dim": 64,
    "text_dim": 32,
    "freq_dim": 128,
    "ffn_dim": 768,
    "num_layers": 6,
    "rope_max_seq_len": 128,
}


@dataclass(frozen=True)
class BranchConfig:
    """Sizes of the branch, as SideBranch calls them."""

    aligner_blocks: int = 4
    aligner_cells: int = 4
    finisher_blocks: int = 2


@dataclass(frozen=True)
class Recipe:
    """Attributes:
    data: folder of the rendered clips.
    run: folder of checkpoints and logs.
    output: checkpoint folder to write.
    regime: "single" trains backbone and branch together; "paper" the backbone without memory, then
        the branch alone, then the branch and LoRA adapters of rank `lora_rank`, which are merged.
    perception_from: a checkpoint's name or folder whose perceiver is trained on; empty for a new one.
    latent_channels, branch: sizes of codec and branch.
    textures, collages: procedural pictures beside the clips for the codec.
    clips: what is rendered; `validation_seeds` are rendered alike and never trained on.
    decoy_seeds: clips with bright things that stand still, drawn three times as often as others,
        for the perceiver alone; not among those of `clips`.
    chunk_seeds: clips that chunks are drawn from, for aligner and denoiser; (0, 0): of `clips`.
    chunk_workers: processes that draw chunks ahead of the training.
    evaluate_seeds: worlds in which the result is judged at the end, over `evaluate_frames`.
    """

    data: str = "data/mini"
    run: str = "runs/mini"
    output: str = "runs/mini/model"
    perception_from: str = ""
    regime: str = "single"
    lora_rank: int = 32
    latent_channels: int = 48
    branch: BranchConfig = field(default_factory=BranchConfig)
    textures: int = 1000
    collages: int = 0
    threads: int = 2
    clips: ShardConfig = field(default_factory=ShardConfig)
    decoy_seeds: tuple[int, int] = (0, 0)
    validation_seeds: tuple[int, int] = (1_000_000, 1_000_008)
    evaluate_seeds: tuple[int, ...] = ()
    evaluate_frames: int = 33
    codec: LoopConfig = field(default_factory=LoopConfig)
    codec_loss: CodecLossConfig = field(default_factory=CodecLossConfig)
    perception: LoopConfig = field(default_factory=LoopConfig)
    perception_loss: PerceptionLossConfig = field(default_factory=PerceptionLossConfig)
    base: LoopConfig = field(default_factory=LoopConfig)
    aligner: LoopConfig = field(default_factory=LoopConfig)
    aligner_loss: AlignerLossConfig = field(default_factory=AlignerLossConfig)
    chunks: ChunksConfig = field(default_factory=ChunksConfig)
    chunk_seeds: tuple[int, int] = (0, 0)
    chunk_workers: int = 0
    denoiser: LoopConfig = field(default_factory=LoopConfig)
    lora: LoopConfig = field(default_factory=LoopConfig)
    denoiser_loss: DenoiserLossConfig = field(default_factory=DenoiserLossConfig)
    sampler: SamplerConfig = field(default_factory=SamplerConfig)


def read_values(path: str | Path) -> dict:
    """What the YAML of a recipe holds; its `kind` says which recipe it is, none the mini model's."""
    try:
        values = yaml.safe_load(Path(path).read_text()) or {}
    except (OSError, yaml.YAMLError) as error:
        raise MirageError(f"Cannot read the recipe {path}: {error}.") from error
    if not isinstance(values, dict):
        raise MirageError(f"{path} holds no recipe; give a YAML file of names and values.")
    return values


def read_recipe(path: str | Path) -> Recipe:
    """A recipe from YAML; unknown keys are refused by name."""
    recipe = fill(Recipe, read_values(path), str(path))
    if recipe.regime not in REGIMES:
        raise MirageError(f"{path} has regime {recipe.regime!r}; choose {' or '.join(REGIMES)}.")
    return recipe


def train(recipe: Recipe) -> bool:
    """Runs every stage that is not finished yet and writes the checkpoint folder.

    Returns whether this process is the first of those that train together.
    """
    torch.set_num_threads(recipe.threads)
    clips = _clips(recipe, recipe.clips.seeds)
    held_out = _clips(recipe, recipe.validation_seeds)
    codec, denoiser, perception = start(recipe)
    train_codec(recipe, codec, denoiser.branch.align, clips, held_out)
    train_perception(recipe, perception, clips + 3 * _decoys(recipe), held_out)
    if recipe.chunk_seeds[0] < recipe.chunk_seeds[1]:
        clips = _clips(recipe, recipe.chunk_seeds)
    denoiser = REGIMES[recipe.regime](recipe, codec, denoiser, clips, held_out)
    config = MiniConfig(recipe.clips.size, recipe.chunks.chunk_frames, recipe.sampler)
    parts = (codec, denoiser.transformer, denoiser.branch, perception)
    is_first = Accelerator().is_main_process
    if is_first:
        save_model(MiniModel(*(part.cpu() for part in parts), config), Path(recipe.output))
    return is_first


def _clips(recipe: Recipe, seeds: tuple[int, int]) -> list[StoredClip]:
    """The clips of a seed range; one process renders those that are missing."""
    with Accelerator().main_process_first():
        make_shards(Path(recipe.data), dataclasses.replace(recipe.clips, seeds=seeds))
    return load_shards(Path(recipe.data), seeds)


def _decoys(recipe: Recipe) -> list[StoredClip]:
    if recipe.decoy_seeds[0] >= recipe.decoy_seeds[1]:
        return []
    config = dataclasses.replace(recipe.clips, with_decoys=True)
    return _clips(dataclasses.replace(recipe, clips=config), recipe.decoy_seeds)


def start(recipe: Recipe) -> tuple[MiniCodec, MemoryDenoiser, MiniPerception]:
    """New networks, but for the perceiver of `perception_from`."""
    torch.manual_seed(recipe.denoiser.seed)
    channels = {"in_channels": recipe.latent_channels, "out_channels": recipe.latent_channels}
    transformer = WanTransformer3DModel(**MINI_TRANSFORMER, **channels)
    torch.nn.init.zeros_(transformer.proj_out.weight)
    torch.nn.init.zeros_(transformer.proj_out.bias)
    branch = SideBranch.from_transformer(transformer, shortcut=True, **asdict(recipe.branch))
    layout = {"memory_format": torch.channels_last}
    denoiser = MemoryDenoiser(transformer, branch)
    codec = MiniCodec(latent_channels=recipe.latent_channels)
    perception = MiniPerception()
    if recipe.perception_from:
        perception = load_perception(recipe.perception_from)
    perception = perception.train().requires_grad_(True)
    return codec.to(**layout), denoiser, perception.to(**layout)


def train_codec(recipe, codec: MiniCodec, align: Aligner, clips, held_out) -> None:
    """Codec and aligner together; leaves them with their averaged weights."""
    loop = Loop(MovedCodec(codec, align), Path(recipe.run) / "codec", recipe.codec)
    if not loop.is_finished:
        textures, config = _textures(recipe), recipe.codec_loss
        if loop.step == 0:
            pictures = block_pictures([*(clip.rgb for clip in clips), *textures[:, None]])
            codec.fit_blocks(pictures)
            align.fit(codec.encode(pictures).detach(), pictures)
            loop.start_averages()
        loop.run(CodecLoss(clips, textures, config), CodecLoss(held_out, textures[:8], config))
    loop.averaged().eval()


def train_perception(recipe, network: MiniPerception, clips, held_out) -> None:
    """Leaves the perceiver with its averaged weights."""
    loop = Loop(network, Path(recipe.run) / "perception", recipe.perception)
    if not loop.is_finished:
        config = recipe.perception_loss
        loop.run(PerceptionLoss(clips, config), PerceptionLoss(held_out, config))
    loop.averaged().eval()


def _textures(recipe: Recipe) -> np.ndarray:
    from mirage_ros.scenes.textures import collage, make_texture

    rng = np.random.default_rng(recipe.codec.seed)
    pictures = [make_texture(rng) for _ in range(recipe.textures)]
    return np.stack(pictures + [collage(rng) for _ in tqdm(range(recipe.collages), "collages")])


def fill(kind: type, values: dict, where: str):
    """A config of a kind from nested values; unknown keys are refused by name."""
    fields = {f.name: f for f in dataclasses.fields(kind)}
    unknown = set(values) - set(fields)
    if unknown:
        raise MirageError(f"{where} has unknown keys {sorted(unknown)}; known: {sorted(fields)}.")
    filled = {}
    for key, value in values.items():
        default = _default(fields[key])
        if dataclasses.is_dataclass(default):
            filled[key] = fill(type(default), value, f"{where}: {key}")
        else:
            filled[key] = tuple(value) if isinstance(default, tuple) else type(default)(value)
    return kind(**filled)


def _default(entry: dataclasses.Field):
    made = entry.default_factory is not dataclasses.MISSING
    return entry.default_factory() if made else entry.default
