"""The published layout of Wan2.2-TI2V-5B in diffusers' format, and random checkpoints in it.

Shapes as in the configs of huggingface.co/Wan-AI/Wan2.2-TI2V-5B-Diffusers. The tiny
configuration has every part, key and file of the published one, only narrower: what tests run.
Its latents have as many channels, so that memory takes as much for a token.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanTransformer3DModel

from mirage_ros.core.errors import MirageError

TRANSFORMER = {
    "patch_size": [1, 2, 2],
    "num_attention_heads": 24,
    "attention_head_dim": 128,
    "in_channels": 48,
    "out_channels": 48,
    "text_dim": 4096,
    "freq_dim": 256,
    "ffn_dim": 14336,
    "num_layers": 30,
    "cross_attn_norm": True,
    "qk_norm": "rms_norm_across_heads",
    "eps": 1e-6,
    "rope_max_seq_len": 1024,
}
VAE = {
    "base_dim": 160,
    "decoder_base_dim": 256,
    "z_dim": 48,
    "dim_mult": [1, 2, 4, 4],
    "num_res_blocks": 2,
    "attn_scales": [],
    "temperal_downsample": [False, True, True],
    "is_residual": True,
    "in_channels": 12,
    "out_channels": 12,
    "patch_size": 2,
    "scale_factor_spatial": 16,
    "scale_factor_temporal": 4,
    # A random codec has no statistics of its own.
    "latents_mean": [0.0] * 48,
    "latents_std": [1.0] * 48,
}
TEXT_ENCODER = {
    "d_model": 4096,
    "d_ff": 10240,
    "d_kv": 64,
    "num_heads": 64,
    "num_layers": 24,
    "vocab_size": 256384,
    "feed_forward_proj": "gated-gelu",
    "relative_attention_num_buckets": 32,
}
SCHEDULER = {
    "num_train_timesteps": 1000,
    "prediction_type": "flow_prediction",
    "use_flow_sigmas": True,
    "flow_shift": 5.0,
    "solver_order": 2,
    "solver_type": "bh2",
}

TINY_TRANSFORMER = TRANSFORMER | {
    "num_attention_heads": 2,
    "attention_head_dim": 24,
    "text_dim": 32,
    "freq_dim": 32,
    "ffn_dim": 96,
    "num_layers": 4,
}
TINY_VAE = VAE | {"base_dim": 8, "decoder_base_dim": 8, "num_res_blocks": 1}
TINY_TEXT_ENCODER = TEXT_ENCODER | {
    "d_model": 32,
    "d_ff": 64,
    "d_kv": 8,
    "num_heads": 4,
    "num_layers": 2,
    "vocab_size": 384,
}


def random_transformer(tiny: bool = True) -> WanTransformer3DModel:
    """The denoiser with random weights, on torch's current default device."""
    return WanTransformer3DModel(**(TINY_TRANSFORMER if tiny else TRANSFORMER))


def random_vae(tiny: bool = True) -> AutoencoderKLWan:
    """The codec with random weights, on torch's current default device."""
    return AutoencoderKLWan(**(TINY_VAE if tiny else VAE))


def write_tiny_checkpoint(folder: Path, seed: int = 0) -> Path:
    """A tiny random checkpoint in the published layout, its transformer in several shards.

    Raises MirageError when the folder holds anything already.
    """
    folder = Path(folder)
    if folder.exists() and any(folder.iterdir()):
        raise MirageError(f"{folder} is not empty; give a new folder for the checkpoint.")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        random_transformer().save_pretrained(folder / "transformer", max_shard_size="100KB")
        random_vae().save_pretrained(folder / "vae")
        _text_encoder().save_pretrained(folder / "text_encoder")
    _tokenizer().save_pretrained(folder / "tokenizer")
    UniPCMultistepScheduler(**SCHEDULER).save_pretrained(folder / "scheduler")
    index = {
        "_class_name": "WanPipeline",
        "boundary_ratio": None,
        "expand_timesteps": True,
        "scheduler": ["diffusers", "UniPCMultistepScheduler"],
        "text_encoder": ["transformers", "UMT5EncoderModel"],
        "tokenizer": ["transformers", "T5TokenizerFast"],
        "transformer": ["diffusers", "WanTransformer3DModel"],
        "transformer_2": [None, None],
        "vae": ["diffusers", "AutoencoderKLWan"],
    }
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
    return folder


def _text_encoder():
    from transformers import UMT5Config, UMT5EncoderModel

    return UMT5EncoderModel(UMT5Config(**TINY_TEXT_ENCODER))


def _tokenizer():
    """A T5 tokenizer that knows the printable ASCII characters one by one."""
    from transformers import T5TokenizerFast

    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -2.0)]
    letters = [(chr(code), -3.0) for code in range(33, 127)]
    return T5TokenizerFast(vocab=special + letters, extra_ids=0, additional_special_tokens=[])
