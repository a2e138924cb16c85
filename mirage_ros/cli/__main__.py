"""`python -m mirage_ros.cli`."""

import sys

from mirage_ros.cli import main

# Processes that a command spawns import this module as well.
if __name__ == "__main__":
    sys.exit(main())
