"""The demo: a planner, the node and a recorder that find each other over DDS."""
