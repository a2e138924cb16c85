"""Runs the real node with a model that needs no weights: python fake_node.py NODE_ARGUMENTS."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from fakes import pixel_model

from mirage_ros.cli import build_parser
from mirage_ros.cli.node import node_ros_arguments
from mirage_ros.ros.node import main

if __name__ == "__main__":
    arguments = build_parser().parse_args(["node", *sys.argv[1:]])
    sys.exit(main(node_ros_arguments(arguments), make_model=pixel_model))
