"""Wan backbones with a memory-conditioned side branch."""
