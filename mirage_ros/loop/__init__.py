"""A robot that drives through a generated world by what it sees there; no ROS.

base.py    where commands take the robot, its body, and its camera with it
wander.py  the policy and its map: from depth pictures to commands
drive.py   the closed loop, the worlds that it drives in, and figures of a drive
"""
