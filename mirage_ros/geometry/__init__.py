"""Cameras, rigid maps, depth and pictures: numpy alone."""
