"""`mirage doctor`: what is wrong with this machine and this ROS graph, and what to do about it."""
