"""What a Wan2.2 folder holds: how it is run (`mirage.json` beside the published parts, or parameters), the shapes of its
networks and random checkpoints, and its video VAE as a codec of streams.

Shapes as in the configs of huggingface.co/Wan-AI/Wan2.2-TI2V-5B-Diffusers. The tiny
configuration has every part, key and file of the published one, only narrower: what tests run.
Its latents have as many channels, so that memory takes as much for a token.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanTransformer3DModel
from diffusers.models.autoencoders.autoencoder_kl_wan import WanCausalConv3d, unpatchify
from jaxtyping import Float
from torch import Tensor

from mirage_ros.errors import MirageError, report
from mirage_ros.files import write_json
from mirage_ros.models.parts import read_json
from mirage_ros.protocol import DecoderState

SETTINGS_FILE = "mirage.json"
#: What model_index.json says of the published folders.
PIPELINES = ("WanPipeline", "WanImageToVideoPipeline")
DTYPES = ("auto", "bfloat16", "float32")
#: What may move or has no surface, as a text-prompted segmenter is asked for it.
DYNAMIC_PROMPTS = ("person", "hand", "animal", "car", "truck", "bicycle", "motorcycle")


@dataclass(frozen=True)
class WanConfig:
    """What of the large model can be set.

    Attributes:
        size: (height, width) of the pictures, multiples of 2 * stride (32).
        chunk_latents: latents generated at a time, each of 4 frames: 8 are 32 frames. With the
            latent before them that makes the 9 (33 frames) that the paper trains on.
        preceding_frames, reference_frames: context latents, at most.
        steps, shift: of UniPC; the paper has 20 and 5. Few-step checkpoints take 4.
        guidance: 1 is off; above it every step runs the negative prompt as well.
        dtype: of the networks; auto is bfloat16 on CUDA and float32 on the CPU.
        depth: who perceives depth, see perceivers.py.
        masks: who finds what moves and the sky; empty is the depth estimator's own or nobody.
        dynamic_prompts: what a text-prompted segmenter takes for moving.
        attention: diffusers' attention backend: native is PyTorch's SDPA; flash, _flash_3_hub, ...
        compile: compile each kind of transformer block once; auto does so on CUDA.
    """

    size: tuple[int, int] = (704, 1280)
    chunk_latents: int = 8
    preceding_frames: int = 1
    reference_frames: int = 2
    steps: int = 20
    shift: float = 5.0
    guidance: float = 1.0
    prompt: str = ""
    negative_prompt: str = ""
    dtype: str = "auto"
    depth: str = "mini"
    masks: str = ""
    dynamic_prompts: tuple[str, ...] = DYNAMIC_PROMPTS
    attention: str = "native"
    compile: str = "auto"


def is_wan_folder(folder: Path) -> bool:
    """Whether loading.py runs the folder, or says why not: diffusers' pipelines, and ours."""
    if (folder / SETTINGS_FILE).is_file():
        return True
    index = folder / "model_index.json"
    return index.is_file() and str(read_json(index).get("_class_name")).endswith("Pipeline")


def check_index(path: Path) -> None:
    """Raises MirageError unless the model_index.json is one of Wan2.2-TI2V-5B."""
    if not path.is_file():
        raise MirageError(
            f"{path} is missing, so {path.parent} is not in the layout of Wan2.2-TI2V-5B for "
            "diffusers; give such a folder."
        )
    index = read_json(path)
    if index.get("_class_name") not in PIPELINES:
        raise MirageError(
            f"{path} describes a {index.get('_class_name')}; give the folder of Wan2.2-TI2V-5B, a "
            f"{' or '.join(PIPELINES)}."
        )
    second = (index.get("transformer_2") or [None])[-1]
    if second is not None or not index.get("expand_timesteps"):
        raise MirageError(
            f"{path} describes another Wan: two transformers, or no timestep per token "
            "(expand_timesteps); give the folder of Wan2.2-TI2V-5B."
        )


def read_config(folder: Path, settings: Mapping[str, Any]) -> WanConfig:
    """The folder's `mirage.json`, where it has one, with `settings` on top.

    Raises MirageError for unknown names and values that cannot be.
    """
    path = folder / SETTINGS_FILE
    try:
        stored = json.loads(path.read_text()) if path.is_file() else {}
        values = {k: v for k, v in stored.items() if k != "base"} | dict(settings)
    except (ValueError, OSError, AttributeError) as error:
        raise MirageError(f"{path} is no JSON object ({error}); mend or remove it.") from error
    fields = {field.name: field for field in dataclasses.fields(WanConfig)}
    unknown = sorted(set(values) - set(fields))
    if unknown:
        raise MirageError(f"{folder} is given unknown settings {unknown}; known: {sorted(fields)}.")
    defaults = WanConfig()
    typed = {name: _typed(name, value, getattr(defaults, name)) for name, value in values.items()}
    return check_config(WanConfig(**typed))


def check_config(config: WanConfig) -> WanConfig:
    """The config, if it can be run; MirageError else."""
    least = {"chunk_latents": 1, "preceding_frames": 1, "reference_frames": 0, "steps": 1}
    for name, low in least.items():
        if getattr(config, name) < low:
            raise MirageError(f"{name} is {getattr(config, name)}; give at least {low}.")
    if len(config.size) != 2 or any(side <= 0 or side % 32 for side in config.size):
        raise MirageError(f"size is {config.size}; give (height, width), multiples of 32 pixels.")
    if config.dtype not in DTYPES:
        raise MirageError(f"dtype is '{config.dtype}'; give one of {', '.join(DTYPES)}.")
    if config.compile not in ("auto", "on", "off"):
        raise MirageError(f"compile is '{config.compile}'; give auto, on or off.")
    if config.shift <= 0 or config.guidance < 1:
        raise MirageError(
            f"shift is {config.shift} and guidance {config.guidance}; give a shift above 0 and a "
            "guidance of at least 1 (off)."
        )
    return config


def _typed(name: str, value: Any, default: Any) -> Any:
    try:
        if isinstance(default, tuple):
            if isinstance(value, str):
                raise ValueError("a list is needed")
            return tuple(type(default[0])(item) for item in value)
        if isinstance(default, str) and isinstance(value, bool):
            return "on" if value else "off"  # what YAML makes of these words
        return type(default)(value)
    except (TypeError, ValueError) as error:
        raise MirageError(f"{name} is {value!r}; give it like {default!r}.") from error


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
    write_json(folder / "model_index.json", index)
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


#: diffusers marks a time convolution that has seen the first frame only with this word.
FIRST_SEEN = "Rep"


class WanCodec:
    """Encodes pictures and videos, decodes streams; latents have zero mean and unit variance.

    The decoder is causal: every convolution over time keeps the last frames it saw. diffusers'
    `AutoencoderKLWan.decode` forgets them after each call, so two calls show a seam and the second
    begins with a single frame again. Here they are handed out and taken back, and a stream decoded
    in pieces is the stream decoded at once, bit by bit.
    """

    def __init__(self, vae: AutoencoderKLWan):
        self.vae = vae.eval().requires_grad_(False)
        config = vae.config
        self.stride, self.channels = config.scale_factor_spatial, config.z_dim
        self.frames_per_latent = config.scale_factor_temporal
        self._caches = sum(isinstance(part, WanCausalConv3d) for part in vae.decoder.modules())
        shape = (1, -1, 1, 1, 1)
        self._mean = torch.tensor(config.latents_mean).view(shape).to(vae.device)
        self._std = torch.tensor(config.latents_std).view(shape).to(vae.device)

    @torch.no_grad()
    def encode(self, video: Float[Tensor, "b 3 f h w"]) -> Float[Tensor, "b c n lh lw"]:
        """float32 latents of videos in [-1, 1] of 1 + k * `frames_per_latent` frames."""
        latents = self.vae.encode(video.to(self.vae.device, self.vae.dtype)).latent_dist.mode()
        return (latents.float() - self._mean) / self._std

    @torch.no_grad()
    def decode_stream(
        self, latents: Float[Tensor, "b c n lh lw"], state: DecoderState | None = None
    ) -> tuple[Float[Tensor, "b 3 f h w"], DecoderState]:
        """The pictures, in [-1, 1], that follow on those after which `state` was returned.

        Without a state the first latent begins a stream and gives one frame, every other one
        `frames_per_latent`.
        """
        vae, first = self.vae, state is None
        cache = _cache_from_state(state or {}, self._caches, vae.device)
        pieces = []
        for index, latent in enumerate(latents.to(vae.device).float().split(1, 2)):
            report()
            begins = first and index == 0
            # One latent at a time from the first layer on: so pieces round like the whole.
            hidden = vae.post_quant_conv((latent * self._std + self._mean).to(vae.dtype))
            piece = vae.decoder(hidden, feat_cache=cache, feat_idx=[0], first_chunk=begins)
            pieces.append(piece.clamp(-1, 1))
        video = torch.cat(pieces, 2)
        if vae.config.patch_size is not None:
            video = unpatchify(video, patch_size=vae.config.patch_size)
        return video, _state_from_cache(cache)


def _cache_from_state(state: DecoderState, caches: int, device: torch.device) -> list:
    """diffusers' list of caches; an empty tensor stands for its word, nothing for None."""
    cache: list = [None] * caches
    for name, tensor in state.items():
        cache[int(name)] = tensor.to(device) if tensor.numel() else FIRST_SEEN
    return cache


def _state_from_cache(cache: list) -> DecoderState:
    kept = {str(i): entry for i, entry in enumerate(cache) if entry is not None}
    return {k: torch.zeros(0) if isinstance(v, str) else v for k, v in kept.items()}
