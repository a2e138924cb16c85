"""The neural parts: codec, denoiser, sampler, perception, and how they are loaded."""
