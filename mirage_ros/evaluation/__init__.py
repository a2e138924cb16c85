"""How good a world is: picture metrics and read-back against real posed RGB-D."""
