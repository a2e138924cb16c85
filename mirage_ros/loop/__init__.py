"""A robot that drives through a generated world by what it sees there; no ROS.

base.py       where commands take the robot, and its camera with it
wander.py     the policy: from a depth picture to a command
obstacles.py  its map: what pictures showed, and what speaks against it
footprint.py  whether the robot's body touches points
drive.py      the closed loop, around any simulator of chunks
simulators.py a generated world and a MuJoCo scene as such simulators
trace.py      what a drive leaves behind, and its figures
report.py     JSON, the picture from above, the video
"""
