"""Cameras, depth and pictures: numpy alone."""
