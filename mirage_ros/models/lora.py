"""LoRA on the backbone's self-attention, in peft's own layout.

A folder `lora/` holds adapter_config.json and adapter_model.safetensors as peft writes them, so
`PeftModel.from_pretrained(transformer, folder)` and every tool built on it read them.
"""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import WanTransformer3DModel
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import SafetensorError

from mirage_ros.core.errors import MirageError

#: The linear layers of self-attention in diffusers' names.
TARGETS = r"blocks\.\d+\.attn1\.(to_q|to_k|to_v|to_out\.0)"
FILE = "adapter_model.safetensors"


def lora_config(rank: int = 64, alpha: int | None = None) -> LoraConfig:
    """The paper's rank is 64 (its code has 32); alpha is the rank, a scale of 1."""
    return LoraConfig(r=rank, lora_alpha=alpha or rank, target_modules=TARGETS, lora_dropout=0.0)


def add_lora(transformer: WanTransformer3DModel, rank: int = 64) -> PeftModel:
    """Fresh adapters that change nothing yet; the transformer itself is changed and frozen.

    The network to run is `peft_model.base_model.model`; `peft_model.save_pretrained` writes the
    adapters.
    """
    return get_peft_model(transformer, lora_config(rank))


def merge_lora(transformer: WanTransformer3DModel, folder: Path) -> WanTransformer3DModel:
    """The transformer with a folder's adapters added to its weights: they cost nothing more.

    Raises MirageError when the folder is damaged or made for another backbone.
    """
    try:
        adapted = PeftModel.from_pretrained(transformer, str(folder))
        with torch.no_grad():
            return adapted.merge_and_unload(safe_merge=True)
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0][:200]
        raise MirageError(
            f"The LoRA adapters in {folder} do not fit this backbone ({reason}); give those that "
            "were trained on it."
        ) from error
