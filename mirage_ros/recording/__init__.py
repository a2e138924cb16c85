"""Recording: MCAP bytes, video and pictures. Imports no ROS."""
