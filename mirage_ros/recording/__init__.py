"""Recording: MCAP bytes, video and pictures. Imports no ROS."""

FORMATS = ("lerobot", "mcap", "video", "png", "exr")
"""What can be recorded, by name; formats.py says how."""
