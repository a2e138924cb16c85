"""The latent spatial memory: tokens in 3D, and what a camera sees of them."""
