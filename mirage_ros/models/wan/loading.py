"""A folder in the published layout of Wan2.2-TI2V-5B, with what memory adds, as one model.

transformer/ vae/ text_encoder/ tokenizer/ scheduler/   as published
branch/        the side branch: config.json and one safetensors file
lora/          adapters in peft's layout, merged into the backbone while loading
mirage.json    settings (config.py); `base` names the folder or hub id of the published
               parts where they lie elsewhere

The text encoder reads the prompt once and is then unloaded. Attention, compilation and memory layout are set
to what is fast on the hardware.
"""

from __future__ import annotations

import html
import importlib.util
import logging
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanTransformer3DModel
from jaxtyping import Float
from safetensors import SafetensorError
from torch import Tensor

from mirage_ros.errors import MirageError
from mirage_ros.models.wan.denoiser import MemoryDenoiser, SideBranch
from mirage_ros.models.parts import find_folder, load_part, merge_lora, read_json
from mirage_ros.models.perceivers import load_perceiver, perceiver_bytes
from mirage_ros.models.wan import (
    Parts,
    Perceiver,
    WanModel,
    available_bytes,
    check_fits,
    plan_memory,
)
from mirage_ros.models.wan.config import (
    SETTINGS_FILE,
    WanCodec,
    WanConfig,
    check_index,
    read_config,
)
from mirage_ros.protocol import WorldModel

#: Tokens that Wan's backbone was trained to read; shorter prompts are filled up with zeros.
PROMPT_TOKENS = 512


@torch.no_grad()
def encode_prompts(
    folder: Path,
    prompts: Sequence[str],
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Float[Tensor, "prompts n d"]:
    """Embeddings of prompts, by the `tokenizer/` and `text_encoder/` of a checkpoint folder.

    The encoder (11 GB in bfloat16 at full size) is loaded for this call and freed after it.
    What pads a prompt becomes zero, as in training. Raises MirageError when a part is missing.
    """
    tokenizer, encoder = _load_text_encoder(folder, dtype)
    words = tokenizer(
        [" ".join(html.unescape(prompt).split()) for prompt in prompts],
        padding="max_length",
        max_length=PROMPT_TOKENS,
        truncation=True,
        return_tensors="pt",
    ).to(device)
    hidden = encoder.eval().to(device)(words.input_ids, words.attention_mask).last_hidden_state
    return hidden * words.attention_mask[..., None].to(hidden.dtype)


def _load_text_encoder(folder: Path, dtype: torch.dtype) -> tuple[Any, Any]:
    """Tokenizer and encoder; MirageError where anything of them is missing."""
    from transformers import AutoTokenizer, UMT5EncoderModel

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
        encoder, report = UMT5EncoderModel.from_pretrained(
            folder / "text_encoder", dtype=dtype, local_files_only=True, output_loading_info=True
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0][:200]
        raise MirageError(
            f"text_encoder/ or tokenizer/ of {folder} is missing or damaged ({reason}); fetch them "
            "again."
        ) from error
    # What is missing would be made up, embeddings as zeros, and every prompt would say nothing.
    missing = sorted(report["missing_keys"])
    if missing:
        raise MirageError(
            f"The text_encoder/ of {folder} lacks {len(missing)} tensors, the first is "
            f"{missing[0]}; fetch it again, or use a newer transformers where that ties it to "
            "another tensor."
        )
    return tokenizer, encoder


_log = logging.getLogger(__name__)
#: Each takes 4 MB at full size.
KNOWN_PROMPTS = 16


class PromptReader:
    """Reads prompts with the folder's text encoder; the last that it has read it remembers.

    The first prompts are read on the model's device, before the other networks are there;
    later ones on the CPU.
    """

    def __init__(self, folder: Path, device: str, dtype: torch.dtype):
        self.folder, self.dtype = folder, dtype
        self._device, self._known = device, {}

    def __call__(self, prompts: list[str]) -> Tensor:
        unread = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._known]
        if unread:
            read = encode_prompts(self.folder, unread, self._device, self.dtype)
            self._known |= dict(zip(unread, read.to("cpu"), strict=True))
            self._device = "cpu"
        for prompt in prompts:
            self._known[prompt] = self._known.pop(prompt)  # the last to be forgotten
        embeddings = torch.stack([self._known[prompt] for prompt in prompts])
        self._known = dict(list(self._known.items())[-KNOWN_PROMPTS:])
        return embeddings


def load_wan(
    folder: Path,
    device: str,
    settings: Mapping[str, Any],
    load_mini,
    *,
    quiet: bool = False,
) -> WanModel:
    """The model of a folder. The memory plan goes to stderr before anything is loaded.

    Args:
        settings: fields of WanConfig that go before those of mirage.json.
        load_mini: device to the shipped model, for its perceiver.

    Raises:
        MirageError: a part is missing, damaged or unfit, or the device is too small.
    """
    config = read_config(folder, settings)
    base = published_folder(folder)
    dtype = pick_dtype(config, device)
    check_memory(base, config, device, dtype, quiet)
    read_prompts = PromptReader(base, device, dtype)
    guided = [config.negative_prompt] if config.guidance > 1 else []
    read_prompts([config.prompt, *guided])
    transformer, branch = load_denoiser(folder, base, dtype)
    vae = load_part(base / "vae", AutoencoderKLWan, dtype).to(device)
    scheduler = load_scheduler(base, config)
    model = WanModel(
        vae,
        transformer.to(device),
        branch.to(device),
        scheduler,
        _perceiver(config, vae.config.scale_factor_spatial, load_mini, device),
        read_prompts,
        config,
        name=folder.resolve().name,
    )
    speed_up(model.network, vae, config, device)
    return model


def load_denoiser(
    folder: Path, base: Path, dtype: torch.dtype, *, adapters: bool = True
) -> tuple[WanTransformer3DModel, SideBranch]:
    """Backbone with its adapters merged, and the branch; a fresh one where there is none.

    Args:
        adapters: False leaves the backbone as published, for a training that has its own.
    """
    transformer = load_part(base / "transformer", WanTransformer3DModel, dtype)
    if (folder / "branch").is_dir():
        branch = load_part(folder / "branch", SideBranch, dtype)
        _check_branch(branch, transformer, folder)
    else:
        _log.warning(
            "%s has no branch/: a fresh one is used, which leaves the backbone as it is; memory "
            "does not guide it until a branch is trained.",
            folder,
        )
        branch = SideBranch.from_transformer(transformer)
    if adapters and (folder / "lora").is_dir():
        transformer = merge_lora(transformer, folder / "lora")
    return transformer, branch


def load_encoder(
    folder: Path, config: WanConfig, device: str, load_mini
) -> tuple[WanCodec, Perceiver]:
    """(codec, perceiver) of a folder: what makes training clips of videos, and nothing else."""
    vae = load_part(published_folder(folder) / "vae", AutoencoderKLWan).to(device)
    codec = WanCodec(vae)
    return codec, _perceiver(config, codec.stride, load_mini, device)


def load_scheduler(base: Path, config: WanConfig) -> UniPCMultistepScheduler:
    """The folder's scheduler as UniPC with the config's shift."""
    stored = read_json(base / "scheduler" / "scheduler_config.json")
    return UniPCMultistepScheduler.from_config(
        stored, flow_shift=config.shift, use_flow_sigmas=True, prediction_type="flow_prediction"
    )


def published_folder(folder: Path) -> Path:
    """Where the published parts lie: `base` of mirage.json, or the folder itself."""
    path = folder / SETTINGS_FILE
    base = read_json(path).get("base") if path.is_file() else None
    if not isinstance(base, str | None):
        raise MirageError(f"base of {path} is {base!r}; give a folder or hub id as text.")
    found = folder if base is None else find_folder(_beside(folder, base))
    check_index(found / "model_index.json")
    return found


def check_memory(
    base: Path, config: WanConfig, device: str, dtype: torch.dtype, quiet: bool = False
) -> None:
    """Prints the memory plan and refuses a device that is too small."""
    parts = Parts(
        read_json(base / "transformer" / "config.json"),
        read_json(base / "vae" / "config.json"),
        text_parameters(base / "text_encoder"),
        perceiver=perceiver_bytes(config.depth, config.masks),
    )
    plan = plan_memory(parts, config, dtype)
    if not quiet:
        print(plan.describe(), file=sys.stderr, flush=True)
    check_fits(plan, parts, dtype, available_bytes(device))


def text_parameters(folder: Path) -> int:
    """Parameters of the text encoder, counted without making them."""
    from transformers import UMT5Config, UMT5EncoderModel

    with torch.device("meta"):
        encoder = UMT5EncoderModel(UMT5Config(**read_json(folder / "config.json")))
    return sum(parameter.numel() for parameter in encoder.parameters())


def pick_dtype(config: WanConfig, device: str) -> torch.dtype:
    """bfloat16 on CUDA and float32 on the CPU, unless the config says."""
    name = config.dtype
    if name == "auto":
        name = "bfloat16" if device == "cuda" else "float32"
    return getattr(torch, name)


def _perceiver(config: WanConfig, stride: int, load_mini, device: str):
    def mini(device: str) -> WorldModel:
        return load_mini(device)

    return load_perceiver(config.depth, config.masks, config.dynamic_prompts, mini, stride, device)


def _check_branch(branch: SideBranch, transformer: WanTransformer3DModel, folder: Path) -> None:
    ours, theirs = branch.config.transformer_config, transformer.config
    names = ("num_layers", "num_attention_heads", "attention_head_dim", "in_channels", "ffn_dim")
    unlike = [name for name in names if ours[name] != theirs[name]]
    if unlike:
        raise MirageError(
            f"{folder / 'branch'} was made for another backbone: {', '.join(unlike)} differ; give "
            "the branch that was trained on this one."
        )


def _beside(folder: Path, base: str) -> str:
    """A relative `base` is meant from the folder, a hub id is not."""
    return str(folder / base) if base.startswith(".") else base


def speed_up(
    denoiser: MemoryDenoiser, vae: AutoencoderKLWan, config: WanConfig, device: str
) -> None:
    """Sets attention backend, compilation and channels-last convolutions as configured.

    Raises MirageError when the attention backend is unknown or not installed.
    """
    if config.attention != "native":
        set_attention(denoiser, config.attention)
    if config.compile == "on" or (config.compile == "auto" and device == "cuda" and _can_compile()):
        compile_blocks(denoiser)
    if device == "cuda":
        channels_last(vae)


def set_attention(denoiser: MemoryDenoiser, backend: str) -> None:
    """The attention kernel of backbone and branch: diffusers' names, native is PyTorch's SDPA."""
    for network in (denoiser.transformer, denoiser.branch):
        try:
            network.set_attention_backend(backend)
        except (ValueError, RuntimeError, ImportError) as error:
            reason = str(error).strip().splitlines()[0][:200]
            raise MirageError(
                f"The attention backend is '{backend}' ({reason}); set native, or install what it "
                "needs."
            ) from error


def compile_blocks(denoiser: MemoryDenoiser, backend: str = "inductor") -> None:
    """Compiles the transformer block once and uses it for all: blocks differ in weights only."""
    for block in (*denoiser.transformer.blocks, *denoiser.branch.blocks):
        block.compile(dynamic=None, backend=backend)


def _can_compile() -> bool:
    """Whether what torch's compiler needs on CUDA is there; a warning says what is not."""
    missing = [] if importlib.util.find_spec("triton") else ["the package triton"]
    compilers = (os.environ.get("CC", "cc"), "gcc", "clang")
    if not any(map(shutil.which, compilers)):
        missing.append("a C compiler")
    if missing:
        _log.warning(
            "The blocks are not compiled, which is slower: %s is missing.", " and ".join(missing)
        )
    return not missing


def channels_last(vae: AutoencoderKLWan) -> None:
    """Convolutions over time and picture in the layout that tensor cores read."""
    for part in vae.modules():
        if isinstance(part, torch.nn.Conv3d):
            part.to(memory_format=torch.channels_last_3d)
        elif isinstance(part, torch.nn.Conv2d):
            part.to(memory_format=torch.channels_last)
