"""What makes the large model faster where it holds: attention, compilation, memory layout."""

from __future__ import annotations

import importlib.util
import logging
import os
import shutil

import torch
from diffusers import AutoencoderKLWan

from mirage_ros.core.errors import MirageError
from mirage_ros.models.denoiser import MemoryDenoiser
from mirage_ros.models.wan_config import WanConfig

_log = logging.getLogger(__name__)


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
