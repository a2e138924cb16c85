"""Runs the real node with a model that waits at a gate: python gated_node.py GATE NODE_ARGUMENTS."""

import functools
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from fakes import gated_model  # noqa: E402

from mirage_ros.ros.node import main

if __name__ == "__main__":
    gate, *arguments = sys.argv[1:]
    sys.exit(main(arguments, make_model=functools.partial(gated_model, gate)))
