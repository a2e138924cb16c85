"""The whole recipe from one YAML: clips, codec, perceiver, denoiser, checkpoint folder."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import yaml
from diffusers import WanTransformer3DModel

from mirage_ros.core.errors import MirageError
from mirage_ros.models.codec import MiniCodec
from mirage_ros.models.denoiser import MemoryDenoiser, SideBranch
from mirage_ros.models.mini import MiniConfig, MiniModel
from mirage_ros.models.perception import MiniPerception
from mirage_ros.models.pretrained import save_model
from mirage_ros.models.sampler import SamplerConfig
from mirage_ros.training.codec import CodecLoss, CodecLossConfig, measure_statistics
from mirage_ros.training.denoiser import (
    AlignerLoss,
    Chunks,
    DenoiserLoss,
    DenoiserLossConfig,
    encode_clips,
    pixel_weights,
)
from mirage_ros.training.loop import Loop, LoopConfig
from mirage_ros.training.perception import PerceptionLoss, PerceptionLossConfig
from mirage_ros.training.shards import ShardConfig, StoredClip, load_shards, make_shards

#: One class, two sizes: this is the small one (the large one is Wan 2.2 TI2V 5B).
MINI_TRANSFORMER = {
    "num_attention_heads": 3,
    "attention_head_dim": 64,
    "in_channels": 16,
    "out_channels": 16,
    "text_dim": 32,
    "freq_dim": 128,
    "ffn_dim": 768,
    "num_layers": 6,
    "rope_max_seq_len": 128,
}


@dataclass(frozen=True)
class Recipe:
    """Attributes:
    data: folder of the rendered clips.
    run: folder of checkpoints and logs.
    output: checkpoint folder to write.
    textures: procedural pictures beside the clips for the codec.
    """

    data: str = "data/mini"
    run: str = "runs/mini"
    output: str = "runs/mini/model"
    textures: int = 1000
    threads: int = 2
    clips: ShardConfig = field(default_factory=ShardConfig)
    codec: LoopConfig = field(default_factory=LoopConfig)
    codec_loss: CodecLossConfig = field(default_factory=CodecLossConfig)
    perception: LoopConfig = field(default_factory=LoopConfig)
    perception_loss: PerceptionLossConfig = field(default_factory=PerceptionLossConfig)
    aligner: LoopConfig = field(default_factory=LoopConfig)
    aligner_batch: int = 8
    denoiser: LoopConfig = field(default_factory=LoopConfig)
    denoiser_loss: DenoiserLossConfig = field(default_factory=DenoiserLossConfig)
    sampler: SamplerConfig = field(default_factory=SamplerConfig)


def read_recipe(path: str | Path) -> Recipe:
    """A recipe from YAML; unknown keys are refused by name."""
    try:
        values = yaml.safe_load(Path(path).read_text()) or {}
    except (OSError, yaml.YAMLError) as error:
        raise MirageError(f"Cannot read the recipe {path}: {error}.") from error
    return _fill(Recipe, values, str(path))


def train(recipe: Recipe) -> None:
    """Runs every stage that is not finished yet and writes the checkpoint folder."""
    torch.set_num_threads(recipe.threads)
    make_shards(Path(recipe.data), recipe.clips)
    clips = load_shards(Path(recipe.data), recipe.clips.seeds)
    run = Path(recipe.run)
    codec = train_codec(recipe, clips, run / "codec")
    perception = train_perception(recipe, clips, run / "perception")
    denoiser = train_denoiser(recipe, codec, clips, run)
    size, chunk = recipe.clips.size, recipe.denoiser_loss.chunk_frames
    config = MiniConfig(size, chunk, recipe.sampler)
    parts = (codec, denoiser.transformer, denoiser.branch, perception)
    save_model(MiniModel(*parts, config), Path(recipe.output))


def train_codec(recipe: Recipe, clips: list[StoredClip], folder: Path) -> MiniCodec:
    """The codec with its averaged weights and measured latent statistics."""
    torch.manual_seed(recipe.codec.seed)
    codec = MiniCodec().to(memory_format=torch.channels_last)
    loop = Loop(codec, folder, recipe.codec)
    if loop.step < recipe.codec.steps:
        loop.run(CodecLoss(clips, _textures(recipe), recipe.codec_loss))
    codec = loop.averaged().eval()
    measure_statistics(codec, clips)
    return codec


def train_perception(recipe: Recipe, clips: list[StoredClip], folder: Path) -> MiniPerception:
    """The perceiver with its averaged weights."""
    torch.manual_seed(recipe.perception.seed)
    network = MiniPerception().to(memory_format=torch.channels_last)
    loop = Loop(network, folder, recipe.perception)
    if loop.step < recipe.perception.steps:
        loop.run(PerceptionLoss(clips, recipe.perception_loss))
    return loop.averaged().eval()


def train_denoiser(recipe, codec: MiniCodec, clips, run: Path) -> MemoryDenoiser:
    """The aligner alone, then backbone and branch together, with their averaged weights."""
    torch.manual_seed(recipe.denoiser.seed)
    transformer = WanTransformer3DModel(**MINI_TRANSFORMER)
    torch.nn.init.zeros_(transformer.proj_out.weight)
    torch.nn.init.zeros_(transformer.proj_out.bias)
    branch = SideBranch.from_transformer(transformer, shortcut=True)
    network = MemoryDenoiser(transformer, branch)
    begun = (run / "denoiser" / "checkpoint.safetensors").exists()
    encoded = encode_clips(codec, clips)
    chunks, weights = Chunks(encoded, recipe.denoiser_loss), pixel_weights(codec, encoded)
    if not begun:
        aligner = Loop(branch.align, run / "aligner", recipe.aligner)
        aligner.run(AlignerLoss(chunks, weights, recipe.aligner_batch))
        aligner.averaged()
    loop = Loop(network, run / "denoiser", recipe.denoiser)
    loop.run(DenoiserLoss(chunks, weights, recipe.denoiser_loss))
    return loop.averaged().eval()


def _textures(recipe: Recipe) -> np.ndarray:
    from mirage_ros.scenes.textures import make_texture

    rng = np.random.default_rng(recipe.codec.seed)
    return np.stack([make_texture(rng) for _ in range(recipe.textures)])


def _fill(kind: type, values: dict, where: str):
    fields = {f.name: f for f in dataclasses.fields(kind)}
    unknown = set(values) - set(fields)
    if unknown:
        raise MirageError(f"{where} has unknown keys {sorted(unknown)}; known: {sorted(fields)}.")
    filled = {}
    for key, value in values.items():
        default = _default(fields[key])
        if dataclasses.is_dataclass(default):
            filled[key] = _fill(type(default), value, f"{where}: {key}")
        else:
            filled[key] = tuple(value) if isinstance(default, tuple) else type(default)(value)
    return kind(**filled)


def _default(entry: dataclasses.Field):
    made = entry.default_factory is not dataclasses.MISSING
    return entry.default_factory() if made else entry.default
