"""What `ros2 run mirage_ros mirage_node` and `mirage node` start.

Imports take a second, so they happen inside `main`, where Ctrl-C is heeded. The networks live in
the worker's process and are imported there.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import os
import signal
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import yaml

from mirage_ros.errors import MirageError
from mirage_ros.files import user_path
from mirage_ros.machine import repair_soon

if TYPE_CHECKING:
    from mirage_ros.protocol import WorldModel
    from mirage_ros.ros import NodeConfig
    from mirage_ros.ros.mirage_node import MirageNode, ModelFactory

PRELOAD = ("mirage_ros.models",)


def shipped_model(config: NodeConfig) -> WorldModel:
    """Loads it; runs in the worker's process."""
    from mirage_ros.models import load_model

    return load_model(config.model, device=config.device, settings=model_settings(config))


def model_settings(config: NodeConfig) -> dict:
    """What the parameters say of a large model's settings; MirageError when it is no mapping."""
    try:
        settings = yaml.safe_load(config.model_settings) or {}
    except yaml.YAMLError:
        settings = None
    if not isinstance(settings, dict):
        raise MirageError(
            f"model_settings is {config.model_settings!r}; give a mapping such as "
            "'{steps: 4, size: [480, 832]}'."
        )
    return settings | ({"prompt": config.prompt} if config.prompt else {})


def main(argv: Sequence[str] | None = None, make_model: ModelFactory | None = None) -> int:
    """Runs the node until Ctrl-C or SIGTERM, which end the process.

    Args:
        argv: `--params FILE`, then anything ROS knows behind `--ros-args`; sys.argv if not given.
        make_model: gives the model from the node's config; picklable (a function of a module), as
            it is called in the worker's process. By default the parameters name the model.

    Returns:
        The exit code: 0 after an orderly end, 1 when the model could not be loaded, 2 for wrong
        arguments or parameters.
    """
    node, code = None, 0
    try:
        arguments = ros_arguments(sys.argv[1:] if argv is None else list(argv))
        start_up = _StartUp()
        repair_soon()
        from mirage_ros.ros.mirage_node import MirageNode

        start_up.check()
        _init(arguments)
        start_up.check()
        node = MirageNode(make_model or shipped_model, PRELOAD if make_model is None else ())
        _spin(node)
    except MirageError as error:
        print(f"mirage node: {error}", file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        pass
    return _end(node, code)


def ros_arguments(argv: list[str]) -> list[str]:
    """The arguments as ROS wants them. MirageError if the parameter file is missing."""
    parser = argparse.ArgumentParser(prog="mirage node", description="The generated world's node.")
    parser.add_argument("--params", type=user_path, help="parameter file (YAML), as for ros2 run")
    cut = argv.index("--ros-args") if "--ros-args" in argv else len(argv)
    params = parser.parse_args(argv[:cut]).params
    arguments = argv[cut:]
    if params is None:
        return arguments
    if not params.is_file():
        raise MirageError(f"There is no parameter file {params}; give an existing YAML file.")
    return ["--ros-args", "--params-file", str(params), *arguments[1:]]


class _StartUp:
    """Ctrl-C and SIGTERM while imports run; rclpy takes both over when it starts.

    The interrupt is remembered as well as raised, because one that is raised inside a destructor
    or a callback of some import is swallowed there.
    """

    def __init__(self) -> None:
        self.interrupted = False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._interrupt)

    def _interrupt(self, number, frame) -> None:
        self.interrupted = True
        raise KeyboardInterrupt

    def check(self) -> None:
        """Raises KeyboardInterrupt if one was swallowed."""
        if self.interrupted:
            raise KeyboardInterrupt


def _init(arguments: list[str]) -> None:
    import rclpy

    try:
        rclpy.init(args=["mirage_node", *arguments])
    except Exception as error:  # noqa: BLE001 - rcl's errors have no public class of their own
        reason = " ".join(str(error).split())
        raise MirageError(f"ROS did not start ({reason}); check the arguments and files.") from None


def _spin(node: MirageNode) -> None:
    """Until Ctrl-C, SIGTERM, or the node itself ends it."""
    import rclpy
    from rclpy.executors import ExternalShutdownException

    from mirage_ros.ros.callbacks import ending_with_ros

    # A large message makes objects enough for full collections, which would walk all modules each time: 0.2 s.
    gc.collect()
    gc.freeze()
    with contextlib.suppress(KeyboardInterrupt, ExternalShutdownException), ending_with_ros():
        rclpy.spin(node)


def _end(node: MirageNode | None, code: int) -> int:
    """Ends the worker and shuts ROS down. A process that ran a node ends here.

    Threads of DDS and of multiprocessing would only hold it up.
    """
    if node is None and "rclpy" not in sys.modules:
        return code
    import rclpy

    if node is None:
        rclpy.try_shutdown()
        return code
    from mirage_ros.ros.worker.handle import leave

    node.close()
    leave()
    code = 1 if node.session.model_failed else code
    node.destroy_node()
    rclpy.try_shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    sys.exit(main())
