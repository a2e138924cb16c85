"""Side branches and LoRA adapters of the reference implementation in our layout, and random weights for timing.

Its names are those of Wan's own code with VACE blocks (github.com/ali-vilab/VACE):
`vace_patch_embedding`, `vace_blocks.N.self_attn.q`, ..., `before_proj` of the first block and
`after_proj` of each; adapters are `blocks.N.self_attn.q.lora_A.weight` and `lora_B`. Whatever a
trainer wrapped the network in stands before these names and is cut off.

`before_proj` follows `vace_patch_embedding` directly, and both are linear, so here they become
one layer. Ours takes geometry besides the latents; its weights for that start at zero.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import UniPCMultistepScheduler, WanTransformer3DModel
from diffusers.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mirage_ros.errors import MirageError, MisfitError
from mirage_ros.files import atomic_path
from mirage_ros.models import load_model
from mirage_ros.models.wan.denoiser import SideBranch
from mirage_ros.models.parts import FILE, lora_config
from mirage_ros.models.wan import (
    Parts,
    WanModel,
    available_bytes,
    check_fits,
    plan_memory,
)
from mirage_ros.models.wan.config import (
    SCHEDULER,
    TINY_TRANSFORMER,
    TINY_VAE,
    TRANSFORMER,
    VAE,
    random_transformer,
    random_vae,
    read_config,
)
from mirage_ros.models.wan.loading import PROMPT_TOKENS, pick_dtype, speed_up

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
    speed_up(model.network, networks[1], config, device)
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


#: Names in Wan's own code and in diffusers'.
BLOCK_NAMES = {
    "self_attn.q": "attn1.to_q",
    "self_attn.k": "attn1.to_k",
    "self_attn.v": "attn1.to_v",
    "self_attn.o": "attn1.to_out.0",
    "self_attn.norm_q": "attn1.norm_q",
    "self_attn.norm_k": "attn1.norm_k",
    "cross_attn.q": "attn2.to_q",
    "cross_attn.k": "attn2.to_k",
    "cross_attn.v": "attn2.to_v",
    "cross_attn.o": "attn2.to_out.0",
    "cross_attn.norm_q": "attn2.norm_q",
    "cross_attn.norm_k": "attn2.norm_k",
    "norm3": "norm2",
    "ffn.0": "ffn.net.0.proj",
    "ffn.2": "ffn.net.2",
}
_BLOCK = re.compile(r"vace_blocks\.(\d+)\.(.+)$")
_EMBEDDING = "vace_patch_embedding."
_LORA = re.compile(r"(?:^|\.)blocks\.(\d+)\.(.+?)\.lora_(A|B|up|down)(?:\.default)?(?:\.weight)?$")


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file; anything else is refused with MirageError."""
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise MirageError(
            f"{path} is no safetensors file ({error}); pickled checkpoints are not read, because "
            "they can run code: save theirs with safetensors first."
        ) from error


def convert_branch(tensors: Mapping[str, Tensor], transformer: WanTransformer3DModel) -> SideBranch:
    """Our side branch with the weights of a reference checkpoint; it may hold LoRA tensors too.

    Args:
        transformer: the backbone that it was trained on.

    Raises:
        MisfitError: names every tensor that is unknown, missing or of another shape.
    """
    branch = SideBranch.from_transformer(transformer)
    wanted = {name: tuple(tensor.shape) for name, tensor in branch.state_dict().items()}
    found, unknown = _renamed_branch(tensors)
    _fold_first_projection(found)
    _widen_embedding(found, wanted["patch_embedding.weight"])
    _refuse_unfit("side branch", found, wanted, unknown)
    branch.load_state_dict(found)
    return branch


def convert_lora(
    tensors: Mapping[str, Tensor], transformer: WanTransformer3DModel
) -> tuple[dict[str, Tensor], int]:
    """Adapters of a reference checkpoint in peft's names, and their rank.

    The file may hold a side branch too.

    Raises:
        MisfitError: names every tensor that is unknown, lacks its other half or does not fit the
            backbone.
    """
    linear = {n: m for n, m in transformer.named_modules() if isinstance(m, torch.nn.Linear)}
    halves: dict[str, dict[str, Tensor]] = {}
    unknown = []
    for name, tensor in tensors.items():
        match = _LORA.search(name)
        if match is None:
            # Others would change what the adapters do: their alpha, differences of biases.
            if "lora" in name or not _is_of_branch(name):
                unknown.append(f"{name} {tuple(tensor.shape)}")
            continue
        block, inner, half = match.groups()
        module = f"blocks.{block}.{BLOCK_NAMES.get(inner, inner)}"
        halves.setdefault(module, {})[{"down": "A", "up": "B"}.get(half, half)] = tensor
    ranks = {pair["A"].shape[0] for pair in halves.values() if "A" in pair}
    rank = max(ranks, default=0)
    found, wanted = {}, {}
    for module, pair in halves.items():
        layer = linear.get(module)
        for half, tensor in pair.items():
            found[_lora_name(module, half)] = tensor
        if layer is not None:
            wanted[_lora_name(module, "A")] = (rank, layer.in_features)
            wanted[_lora_name(module, "B")] = (layer.out_features, rank)
    if not found:
        raise MirageError(
            "The checkpoint holds no LoRA tensors (lora_A, lora_B); give one that has."
        )
    _refuse_unfit("LoRA", found, wanted, unknown)
    return found, rank


def write_branch(
    branch: SideBranch, folder: Path, tensors: Mapping[str, Tensor] | None = None
) -> None:
    """`branch/` of a checkpoint folder: a config and one safetensors file.

    `tensors` are written in place of the branch's own, where a trainer has them elsewhere.
    """
    target = folder / "branch"
    branch.save_config(target)
    whole = branch.state_dict() if tensors is None else tensors
    whole = {name: value.detach().cpu().contiguous() for name, value in whole.items()}
    with atomic_path(target / SAFETENSORS_WEIGHTS_NAME) as new:
        save_file(whole, new, metadata={"format": "pt"})


def write_lora(tensors: Mapping[str, Tensor], rank: int, folder: Path, alpha: int | None) -> None:
    """`lora/` of a checkpoint folder, as peft writes it."""
    target = folder / "lora"
    target.mkdir(parents=True, exist_ok=True)
    config = lora_config(rank, alpha)
    config.target_modules = sorted({_module(name) for name in tensors})
    config.save_pretrained(str(target))
    with atomic_path(target / FILE) as new:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, new)


def _renamed_branch(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    found: dict[str, Tensor] = {}
    unknown = []
    for name, tensor in tensors.items():
        match = _BLOCK.search(name)
        if "lora_" in name:
            continue
        if match:
            ours = _block_name(int(match[1]), match[2])
        elif _EMBEDDING in name:
            ours = "patch_embedding." + name.rsplit(".", 1)[1]
        else:
            ours = None
        if ours is None:
            unknown.append(f"{name} {tuple(tensor.shape)}")
        else:
            found[ours] = tensor
    return found, unknown


def _is_of_branch(name: str) -> bool:
    return bool(_BLOCK.search(name)) or _EMBEDDING in name


def _block_name(block: int, rest: str) -> str | None:
    """Our name of `vace_blocks.<block>.<rest>`; None when we have no such tensor."""
    if rest == "modulation":
        return f"blocks.{block}.scale_shift_table"
    module, _, kind = rest.rpartition(".")
    if module == "after_proj":
        return f"zero.{block}.{kind}"
    if module == "before_proj" and block == 0:
        return f"before.{kind}"
    inner = BLOCK_NAMES.get(module)
    return None if inner is None else f"blocks.{block}.{inner}.{kind}"


def _fold_first_projection(found: dict[str, Tensor]) -> None:
    """Puts `before_proj` into the embedding before it: B (W x + b) + c = (B W) x + (B b + c)."""
    weight, bias = found.pop("before.weight", None), found.pop("before.bias", None)
    kernel, offset = found.get("patch_embedding.weight"), found.get("patch_embedding.bias")
    if weight is None or kernel is None or weight.shape[-1] != kernel.shape[0]:
        return
    wide = weight.double()
    folded = torch.einsum("oi,i...->o...", wide, kernel.double())
    found["patch_embedding.weight"] = folded.to(kernel.dtype)
    if offset is not None and bias is not None:
        shifted = wide @ offset.double() + bias.double()
        found["patch_embedding.bias"] = shifted.to(offset.dtype)


def _widen_embedding(found: dict[str, Tensor], wanted: tuple[int, ...]) -> None:
    """Zero weights for the geometry channels, which a reference branch does not take."""
    from mirage_ros.models.mini.codec import GEOMETRY_CHANNELS

    kernel = found.get("patch_embedding.weight")
    if kernel is None or kernel.shape[1] != wanted[1] - GEOMETRY_CHANNELS:
        return
    extra = kernel.new_zeros(kernel.shape[0], GEOMETRY_CHANNELS, *kernel.shape[2:])
    found["patch_embedding.weight"] = torch.cat([kernel, extra], 1)


def _refuse_unfit(
    what: str, found: dict[str, Tensor], wanted: dict[str, tuple], unknown: list[str]
) -> None:
    wrong = [f"unknown {name}" for name in unknown]
    wrong += [f"missing {name} {shape}" for name, shape in wanted.items() if name not in found]
    for name, tensor in found.items():
        shape = tuple(tensor.shape)
        if name not in wanted:
            wrong.append(f"no place for {name} {shape}")
        elif wanted[name] != shape:
            wrong.append(f"{name} is {shape} where {wanted[name]} is needed")
    if wrong:
        raise MisfitError(
            f"The {what} does not fit this backbone, {len(wrong)} tensors differ: "
            f"{'; '.join(wrong)}. Give the checkpoint's own backbone."
        )


def _lora_name(module: str, half: str) -> str:
    return f"base_model.model.{module}.lora_{half}.weight"


def _module(name: str) -> str:
    return name.removeprefix("base_model.model.").rsplit(".lora_", 1)[0]
