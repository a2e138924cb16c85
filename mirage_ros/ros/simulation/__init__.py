"""The node as a simulator: its states and its time, and the standard services on them."""
