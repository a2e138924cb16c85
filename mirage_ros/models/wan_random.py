"""The whole large model with random weights, made where it runs: for timing, never for looking."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import UniPCMultistepScheduler
from torch import nn

from mirage_ros.models.denoiser import SideBranch
from mirage_ros.models.pretrained import load_model
from mirage_ros.models.wan import WanModel
from mirage_ros.models.wan_config import read_config
from mirage_ros.models.wan_layout import (
    SCHEDULER,
    TINY_TRANSFORMER,
    TINY_VAE,
    TRANSFORMER,
    VAE,
    random_transformer,
    random_vae,
)
from mirage_ros.models.wan_loading import pick_dtype
from mirage_ros.models.wan_memory import Parts, available_bytes, check_fits, plan_memory
from mirage_ros.models.wan_speed import speed_up
from mirage_ros.models.wan_text import PROMPT_TOKENS

SPREAD = 0.02


def random_wan(tiny: bool, device: str, settings: Mapping[str, Any], seed: int = 0) -> WanModel:
    """The published architecture, or a small one of the same shape.

    The memory plan goes to stderr before anything is made. Raises MirageError when the device is
    too small for it.
    """
    config = read_config(Path("random weights"), settings)
    dtype = pick_dtype(config, device)
    parts = Parts(*((TINY_TRANSFORMER, TINY_VAE) if tiny else (TRANSFORMER, VAE)))
    plan = plan_memory(parts, config, dtype)
    print(plan.describe(), file=sys.stderr, flush=True)
    check_fits(plan, parts, dtype, available_bytes(device))
    with torch.device("meta"):
        transformer, vae = random_transformer(tiny), random_vae(tiny)
        branch = SideBranch(transformer_config=parts.transformer)
    networks = [_made(net, device, dtype, seed) for net in (transformer, vae, branch)]
    text = torch.randn(1, PROMPT_TOKENS, parts.transformer["text_dim"])
    model = WanModel(
        networks[1],
        networks[0],
        networks[2],
        UniPCMultistepScheduler(**SCHEDULER | {"flow_shift": config.shift}),
        _mini_perceiver(device, networks[1].config.scale_factor_spatial),
        lambda prompts: text.expand(len(prompts), -1, -1),
        config,
        name="wan-tiny-random" if tiny else "wan2.2-ti2v-5b-random",
    )
    speed_up(model.denoiser, networks[1], config, device)
    return model


@torch.no_grad()
def _made(network: nn.Module, device: str, dtype: torch.dtype, seed: int) -> nn.Module:
    """A network of the meta device with normal weights; norms and rotary tables as they should.

    Its parts have the types that `from_pretrained` would give them, from the start: made in
    float32 first, the full size would need twice the memory that it is refused for.
    """
    kept = set(getattr(network, "_keep_in_fp32_modules", None) or ())
    for name, parameter in network.named_parameters():
        if kept.isdisjoint(name.split(".")):
            parameter.data = parameter.data.to(dtype)
    generator = torch.Generator(device).manual_seed(seed)
    made = network.to_empty(device=device)
    for name, parameter in made.named_parameters():
        if name.endswith(("gamma", "norm_q.weight", "norm_k.weight", "norm2.weight")):
            parameter.fill_(1.0)
        else:
            parameter.normal_(0, SPREAD, generator=generator)
    for part in made.modules():
        if type(part).__name__ == "WanRotaryPosEmbed":
            _refill(part, device)
    return made.eval()


def _refill(rope: nn.Module, device: str) -> None:
    """Rotary tables are buffers that the meta device left empty."""
    width, length = rope.attention_head_dim, rope.max_seq_len
    whole = type(rope)(width, tuple(rope.patch_size), length)
    for name, value in whole.named_buffers():
        getattr(rope, name).copy_(value.to(device))


def _mini_perceiver(device: str, stride: int):
    from mirage_ros.models.perceivers import MiniPerceiver

    return MiniPerceiver(load_model("mini", device), stride)
