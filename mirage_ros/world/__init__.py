"""The generated world without ROS: the cycle, its state, its files."""
