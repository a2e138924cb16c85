"""Wan's video VAE as a stream of latents decoded chunk by chunk.

The decoder is causal: every convolution over time keeps the last frames it saw. diffusers'
`AutoencoderKLWan.decode` forgets them after each call, so two calls show a seam and the second
begins with a single frame again. Here they are handed out and taken back, and a stream decoded
in pieces is the stream decoded at once, bit by bit.
"""

from __future__ import annotations

import torch
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import WanCausalConv3d, unpatchify
from jaxtyping import Float
from torch import Tensor

from mirage_ros.errors import report
from mirage_ros.protocol import DecoderState

#: diffusers marks a time convolution that has seen the first frame only with this word.
FIRST_SEEN = "Rep"


class WanCodec:
    """Encodes pictures and videos, decodes streams; latents have zero mean and unit variance."""

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
