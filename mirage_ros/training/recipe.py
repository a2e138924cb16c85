"""The whole recipe from one YAML: clips, codec, perceiver, aligner, dreamer, checkpoint folder."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import yaml
from accelerate import Accelerator
from tqdm import tqdm

from mirage_ros.errors import MirageError
from mirage_ros.models import load_model, load_perception, save_model
from mirage_ros.models.mini import MiniConfig, MiniModel, MiniPerception
from mirage_ros.models.mini.codec import Aligner, MiniCodec
from mirage_ros.models.mini.imagining import DreamConfig
from mirage_ros.training import Loop, LoopConfig
from mirage_ros.training.aligner import AlignerLossConfig, train_aligner
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
from mirage_ros.training.dreamer import DreamerLossConfig, ViewsConfig, train_dreamer

Parts = tuple[MiniCodec, Aligner, MiniPerception]


@dataclass(frozen=True)
class Recipe:
    """Attributes:
    data: folder of the rendered clips.
    run: folder of checkpoints and logs.
    output: checkpoint folder to write.
    base: a checkpoint's name or folder whose codec, aligner and perceiver are taken as they are; empty to train them.
    perception_from: a checkpoint's name or folder whose perceiver is trained on; empty for a new one.
    latent_channels: of the codec.
    aligner_cells, aligner_blocks: as Aligner calls them.
    textures, collages: procedural pictures beside the clips for the codec.
    clips: what is rendered; `validation_seeds` are rendered alike and never trained on.
    decoy_seeds: clips with bright things that stand still, drawn three times as often as others,
        for the perceiver alone; not among those of `clips`.
    chunk_seeds: clips that chunks are drawn from, for the aligner; (0, 0): of `clips`.
    chunk_workers: processes that draw chunks ahead of the training.
    evaluate_seeds: worlds in which the result is judged at the end, over `evaluate_frames`.
    """

    data: str = "data/mini"
    run: str = "runs/mini"
    output: str = "runs/mini/model"
    base: str = ""
    perception_from: str = ""
    latent_channels: int = 48
    aligner_cells: int = 4
    aligner_blocks: int = 4
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
    aligner: LoopConfig = field(default_factory=LoopConfig)
    aligner_loss: AlignerLossConfig = field(default_factory=AlignerLossConfig)
    chunks: ChunksConfig = field(default_factory=ChunksConfig)
    chunk_seeds: tuple[int, int] = (0, 0)
    chunk_workers: int = 0
    views: ViewsConfig = field(default_factory=ViewsConfig)
    dreamer: LoopConfig = field(default_factory=LoopConfig)
    dreamer_loss: DreamerLossConfig = field(default_factory=DreamerLossConfig)
    dream: DreamConfig = field(default_factory=DreamConfig)


def read_values(path: str | Path) -> dict:
    """What the YAML of a recipe holds; its `kind` says which recipe it is, none the small model's."""
    try:
        values = yaml.safe_load(Path(path).read_text()) or {}
    except (OSError, yaml.YAMLError) as error:
        raise MirageError(f"Cannot read the recipe {path}: {error}.") from error
    if not isinstance(values, dict):
        raise MirageError(f"{path} holds no recipe; give a YAML file of names and values.")
    return values


def read_recipe(path: str | Path) -> Recipe:
    """A recipe from YAML; unknown keys are refused by name."""
    return fill(Recipe, read_values(path), str(path))


def train(recipe: Recipe) -> bool:
    """Runs every stage that is not finished yet and writes the checkpoint folder.

    Returns whether this process is the first of those that train together.
    """
    torch.set_num_threads(recipe.threads)
    if (furniture := recipe.views.clips.furniture) and not Path(furniture).is_file():
        raise MirageError(f"There is no {furniture}; make it with `mirage data furniture`, or leave it out of the recipe's views.")
    parts = _base_parts(recipe) if recipe.base else _trained_parts(recipe)
    dreamer, blocks = train_dreamer(recipe)
    config = MiniConfig(recipe.clips.size, dream=recipe.dream)
    is_first = Accelerator().is_main_process
    if is_first:
        save_model(MiniModel(*(part.cpu() for part in (*parts, dreamer)), blocks, config), Path(recipe.output))
    return is_first


def _base_parts(recipe: Recipe) -> Parts:
    base = load_model(recipe.base, "cpu")
    if not isinstance(base, MiniModel) or base.size != recipe.clips.size:
        raise MirageError(f"The base {recipe.base} is no small model of {recipe.clips.size}; give one, or leave base out.")
    return base.codec, base.aligner, base.perception


def _trained_parts(recipe: Recipe) -> Parts:
    clips = _clips(recipe, recipe.clips.seeds)
    held_out = _clips(recipe, recipe.validation_seeds)
    codec, aligner, perception = start(recipe)
    train_codec(recipe, codec, aligner, clips, held_out)
    train_perception(recipe, perception, clips + 3 * _decoys(recipe), held_out)
    if recipe.chunk_seeds[0] < recipe.chunk_seeds[1]:
        clips = _clips(recipe, recipe.chunk_seeds)
    train_aligner(recipe, codec, aligner, clips, held_out)
    return codec, aligner, perception


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


def start(recipe: Recipe) -> Parts:
    """New networks, but for the perceiver of `perception_from`."""
    torch.manual_seed(recipe.codec.seed)
    codec = MiniCodec(latent_channels=recipe.latent_channels)
    aligner = Aligner(latent_channels=recipe.latent_channels, blocks=recipe.aligner_blocks, cells=recipe.aligner_cells)
    perception = MiniPerception()
    if recipe.perception_from:
        perception = load_perception(recipe.perception_from)
    perception = perception.train().requires_grad_(True)
    return tuple(part.to(memory_format=torch.channels_last) for part in (codec, aligner, perception))


def train_codec(recipe: Recipe, codec: MiniCodec, align: Aligner, clips, held_out) -> None:
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
