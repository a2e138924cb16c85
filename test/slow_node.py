"""Runs the real node with a model that takes 0.4 s a chunk: python slow_node.py NODE_ARGUMENTS."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from fakes import slow_model  # noqa: E402

from mirage_ros.ros.node import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main(make_model=slow_model))
