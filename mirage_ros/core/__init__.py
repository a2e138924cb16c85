"""The generated world without ROS: cameras, latent memory, z-buffer, the cycle."""
