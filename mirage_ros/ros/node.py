"""What `ros2 run mirage_ros mirage_node` and `mirage node` start; and `mirage build --live`, a node that a camera keeps up to date.

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
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import yaml

from mirage_ros.errors import MirageError
from mirage_ros.files import WORLD, user_path, world_file
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


@dataclass(frozen=True)
class LiveConfig:
    """A world that a camera on DDS keeps up to date.

    Attributes:
        out: its folder; a saved world there goes on, else the first picture begins one.
        color, depth, color_info: topics; depth is registered to colour and of its size, and so are their stamps.
            "" for color_info is `camera_info` beside colour.
        world_frame: of TF, in which the camera's frame has a pose at each stamp.
        pictures: end after so many; None goes on until Ctrl-C.
        save_s: between two saves on the way.
        find_s: how long the first picture may take.
    """

    out: Path
    color: str
    depth: str
    color_info: str = ""
    world_frame: str = ""
    model: str = "mini"
    pictures: int | None = None
    save_s: float = 30.0
    find_s: float = 60.0
    ros_arguments: tuple[str, ...] = ()

    def words(self) -> list[str]:
        """As the node's arguments: in a namespace of its own, so that it publishes where nobody looks."""
        info = self.color_info or f"{self.color.rpartition('/')[0]}/camera_info"
        topics = zip(("image", "depth", "camera_info"), (self.color, self.depth, info), strict=True)
        words = ["-r", "__ns:=/mirage_build", "-p", "observe_live:=true", "-p", "seed_reliability:=best_effort", "-p", "plan_idle_s:=60.0"]
        for kind, topic in topics:
            whole = topic if topic.startswith("/") else f"/{topic}"
            words += [word for name in ("seed", "observe") for word in ("-r", f"{name}/{kind}:={whole}")]
        seed = self.out if world_file(self.out, WORLD).exists() else "''"
        words += ["-p", f"seed:={seed}", "-p", f"model:={self.model}", "-p", f"world_frame:={self.world_frame or 'world'}"]
        return ["--ros-args", *words, *self.ros_arguments]


def keep_world(config: LiveConfig, tick: Callable[[int], object], make_model: ModelFactory | None = None) -> NoReturn:
    """Runs such a node until Ctrl-C, SIGTERM or `pictures`, saves its world and says so; the process ends here.

    Args:
        tick: called with how many pictures were looked at.
        make_model: as of `main`.
    """
    import rclpy
    from rclpy.signals import SignalHandlerOptions

    from mirage_ros.ros.mirage_node import MirageNode

    stop = []
    for number in (signal.SIGINT, signal.SIGTERM):  # rclpy's own would end ROS before the world is saved
        signal.signal(number, lambda *_: stop.append(True))
    rclpy.init(args=["mirage_build", *config.words()], signal_handler_options=SignalHandlerOptions.NO)
    node, code = MirageNode(make_model or shipped_model, PRELOAD if make_model is None else ()), 0
    try:
        _watched(node, config, stop, tick)
        print(f"{config.out}: the world; {node.observed:,} pictures were looked at")
    except MirageError as error:
        print(f"mirage: {error}", file=sys.stderr)
        code = 2
    _end(node, code)


def _watched(node: MirageNode, config: LiveConfig, stop: list, tick: Callable[[int], object]) -> None:
    """Until something is in `stop`, or all pictures came; saved then. Raises MirageError where none comes, or saving fails."""
    import rclpy

    start_s = saved_s = time.monotonic()
    while not stop and not (config.pictures and node.observed >= config.pictures):
        rclpy.spin_once(node, timeout_sec=0.1)
        if node.session.has_world:
            node.keep_this_world()
        tick(node.observed)
        now_s = time.monotonic()
        if node.session.model_failed or (not node.observed and now_s - start_s > config.find_s):
            raise MirageError(
                f"No picture of {config.color} became part of a world within {config.find_s:.0f} s; it needs {config.depth} of its size and "
                f"stamp, its CameraInfo, and a pose in '{config.world_frame or 'world'}' on TF: `mirage doctor` tells what is there."
            )
        if node.observed and now_s - saved_s > config.save_s:
            saved_s = now_s
            _save(node, config.out, wait=False)
    _save(node, config.out, wait=True)


def _save(node: MirageNode, out: Path, wait: bool) -> None:
    """Writes the node's world, after all that was observed. Raises MirageError where that fails and was waited for."""
    import rclpy

    from mirage_ros.ros.worker import Failed, Save

    done: list = []
    node.session.require()
    node.session.submit(Save(str(out.absolute())), done.append)
    while wait and not done:
        rclpy.spin_once(node, timeout_sec=0.1)
    if wait and isinstance(done[0], Failed):
        raise MirageError(done[0].message)


if __name__ == "__main__":
    sys.exit(main())
