"""What people run: the demo and the closed loop."""
