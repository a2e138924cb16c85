"""The prompt: read once by the text encoder, which is then let go."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from torch import Tensor

from mirage_ros.core.errors import MirageError

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
    words = tokenizer(
        [" ".join(html.unescape(prompt).split()) for prompt in prompts],
        padding="max_length",
        max_length=PROMPT_TOKENS,
        truncation=True,
        return_tensors="pt",
    ).to(device)
    hidden = encoder.eval().to(device)(words.input_ids, words.attention_mask).last_hidden_state
    return hidden * words.attention_mask[..., None].to(hidden.dtype)
