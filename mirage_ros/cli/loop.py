"""Who drives: a policy (`mirage loop`, `base`, `wander`) or somebody at a keyboard (`mirage drive`, `teleop`) or in a
browser (`mirage studio`)."""

from __future__ import annotations

import argparse
import json
import signal
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from threading import Event

from mirage_ros.cli.arguments import (
    add_command,
    add_kind,
    add_model,
    add_namespace,
    add_numbers,
    add_ros_arguments,
    add_speeds,
    add_world_seed,
)
from mirage_ros.errors import MirageError
from mirage_ros.files import user_path

WORLDS = ("room:2000000", "room:2000001", "room:2000002", "room:2000003", "room:2000007")

LIVE_NUMBERS = (
    ("max-speed", "MPS", 1.0, "faster commands are cut down to this"),
    ("max-turn", "RPS", 1.5, "and to this"),
    ("acceleration", "MPS2", 2.0, "how fast the speed changes"),
    ("turn-acceleration", "RPS2", 6.0, "and the turn rate"),
    ("timeout", "S", 0.5, "the base stops when the newest command is older"),
    ("tf-rate", "HZ", 30.0, "poses on TF and odom"),
)
BODY_NUMBERS = (
    ("radius", "M", 0.2, "of the body, an upright cylinder as high as the camera; a node with physics stops it at surfaces"),
    ("low", "M", 0.1, "height of its lower end; what lies below is driven over"),
)


def add_loop(parsers) -> None:
    parser = add_command(
        parsers,
        "loop",
        loop,
        "let a policy drive through generated worlds by their pictures, beside the ground truth",
        "examples:\n  mirage loop\n  mirage loop --worlds room:2000007 --length 8\n"
        "  mirage loop --worlds hall street.jpg\n\n"
        "runs the node in lockstep, a kinematic base and the policy as processes; a world is\n"
        "a seed, or KIND:NUMBER for a MuJoCo scene, which the policy then also drives through\n"
        "itself. Writes report.json and each drive's path, picture from above and video; exit\n"
        "code 0 only when every drive was long enough and never inside what memory held.",
    )
    parser.add_argument("--worlds", nargs="+", default=list(WORLDS), metavar="WORLD",
                        help=f"(default: {' '.join(WORLDS)})")  # fmt: skip
    parser.add_argument("--out", type=user_path, default=Path("out/loop"), help="(default: out/loop)")
    parser.add_argument("--length", type=float, default=20.0, metavar="M",
                        help="length of each drive (default: 20)")  # fmt: skip
    parser.add_argument("--decisions", type=int, default=250,
                        help="end a drive after so many (default: 250)")  # fmt: skip
    parser.add_argument("--rate", type=float, default=5.0, help="frames/s (default: 5)")
    add_model(parser)
    parser.add_argument("--step-frames", type=int, default=4,
                        help="frames of the model's chunk (default: 4)")  # fmt: skip
    add_world_seed(parser)
    parser.add_argument("--no-truth", action="store_true", help="skip the MuJoCo drives")
    parser.add_argument("--no-video", action="store_true", help="write no videos")


def add_base(parsers) -> None:
    parser = add_command(
        parsers,
        "base",
        base,
        "run a kinematic base, in lockstep or live: cmd_vel in; odom and TF out",
        "examples:\n  mirage base --seed room              beside `mirage node --params config/lockstep.yaml`\n"
        "  mirage base --live --kind omni       beside `mirage node --params config/drive.yaml`\n"
        "  mirage base --live --robot three ada beside the same with --robots three",
    )
    parser.add_argument("--seed", default="room", help="the node's seed (default: room)")
    parser.add_argument("--hfov", type=float, metavar="DEG", help="as given to the node")
    parser.add_argument("--rate", type=float, default=5.0, help="the node's frame_rate_hz")
    parser.add_argument("--step-frames", type=int, default=4, help="the model's chunk (default: 4)")
    add_numbers(parser, BODY_NUMBERS)
    parser.add_argument("--robot", nargs=2, metavar=("YAML", "NAME"), help="the base of one of the node's --robots")
    live = parser.add_argument_group("in real time")
    live.add_argument("--live", action="store_true",
                      help="move while time passes, by Twist or TwistStamped of any stamp")  # fmt: skip
    add_kind(live)
    add_numbers(live, LIVE_NUMBERS)
    _add_names(parser)


def add_wander(parsers) -> None:
    parser = add_command(
        parsers,
        "wander",
        wander,
        "run the wandering policy: depth pictures and odometry in, stamped cmd_vel out",
        "example, beside a node in lockstep and a base:\n  mirage wander --speed 0.4",
    )
    parser.add_argument("--speed", type=float, default=0.6, metavar="MPS", help="(default: 0.6)")
    parser.add_argument("--turn", type=float, default=0.7, metavar="RPS", help="(default: 0.7)")
    parser.add_argument("--radius", type=float, default=0.2, metavar="M",
                        help="of the body (default: 0.2)")  # fmt: skip
    _add_names(parser)


def add_teleop(parsers) -> None:
    parser = add_command(
        parsers,
        "teleop",
        teleop,
        "drive a live base from this terminal, with the camera's picture above the status",
        "keys: WASD or arrows drive and turn, Q/E go sideways, R/F up and down, +/- change the speeds,\n"
        "space stops, Esc or Ctrl-C ends\n\n"
        "example, beside `mirage node --params config/drive.yaml` and `mirage base --live`:\n  mirage teleop",
    )
    add_speeds(parser)
    parser.add_argument("--stamped", action="store_true", help="publish TwistStamped in place of Twist")
    picture = parser.add_mutually_exclusive_group()
    picture.add_argument("--image", default="color/image_raw", metavar="TOPIC",
                         help="of the picture (default: %(default)s)")  # fmt: skip
    picture.add_argument("--no-picture", action="store_true", help="draw the status line alone")
    parser.add_argument("--gamepad", metavar="DEVICE", help="(default: the first /dev/input/js* there is)")
    add_namespace(parser)
    add_ros_arguments(parser)


def add_drive(parsers) -> None:
    parser = add_command(
        parsers,
        "drive",
        drive,
        "drive in a generated world: node, live base and teleop in one",
        "examples:\n  mirage drive room\n  mirage drive street.jpg --hfov 65 --kind free --record out/drive.mp4\n"
        "  mirage drive room --robots three             and `mirage teleop --namespace bob` in another terminal",
    )
    _add_view(parser)
    add_kind(parser)
    add_speeds(parser)
    add_model(parser)
    parser.add_argument("--record", type=user_path, metavar="PATH",
                        help="record the drive; the ending says the format, as for `mirage record`")  # fmt: skip
    parser.add_argument("--robots", metavar="YAML", help="several, of which you drive the first: a file or a shipped name (three)")
    parser.add_argument("--no-picture", action="store_true", help="draw the status line alone")
    parser.add_argument("--out", type=user_path, default=Path("out/drive"), help="logs (default: out/drive)")


def add_studio(parsers) -> None:
    parser = add_command(
        parsers,
        "studio",
        studio,
        "walk in a generated world in a browser; ROS is not needed, but a running node can be joined",
        "examples:\n  mirage studio\n  mirage studio street.jpg --hfov 65\n  mirage studio --host 0.0.0.0\n"
        "  mirage studio --foxglove 8765              open ws://localhost:8765 in Foxglove, layout config/foxglove/mirage.json\n"
        "  mirage studio --ros                        beside `mirage node --seed room --params config/drive.yaml`\n\n"
        "Open the address that it prints. W A S D walk, a drag or the arrows look around. The panel begins worlds from\n"
        "photographs, with their depth where there is one, spawns entities that can fall and be pushed, keeps moments to\n"
        "go back to, records and saves; all files go to the folder, and models of yours may lie in FOLDER/models. Other\n"
        "machines are let in with --host alone, and need the token of the printed address. Ctrl-C ends it.",
    )
    _add_view(parser)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1, this machine alone)")
    parser.add_argument("--port", type=int, default=8080, help="(default: 8080; 0: any that is free)")
    parser.add_argument("--folder", type=user_path, default=Path("out/studio"), help="(default: out/studio)")
    parser.add_argument("--light", action="store_true", help="begin with a light page")
    joined = parser.add_mutually_exclusive_group()
    joined.add_argument("--ros", action="store_true",
                        help="walk in the world of a running node: poses go out on TF, its pictures come in, its services do the rest")  # fmt: skip
    joined.add_argument("--foxglove", type=int, metavar="PORT",
                        help="feed Foxglove live, too, on this port of this machine (8765 is its usual one)")  # fmt: skip
    add_namespace(parser)
    add_model(parser)
    add_world_seed(parser)


def _add_view(parser) -> None:
    parser.add_argument("seed", nargs="?", default="room", metavar="SEED",
                        help="a shipped seed's name, a seed folder or any picture (default: room)")  # fmt: skip
    parser.add_argument("--hfov", type=float, metavar="DEG",
                        help="horizontal field of view of a picture, degrees (default: 60)")  # fmt: skip


def _add_names(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--base-frame", default="base_link", help="(default: base_link)")
    parser.add_argument("--camera-frame", default="camera_color_optical_frame",
                        help="(default: %(default)s)")  # fmt: skip
    add_namespace(parser)
    add_ros_arguments(parser)


def loop(arguments: argparse.Namespace) -> int:
    from mirage_ros.apps.loop import LoopConfig, describe, run_loop
    from mirage_ros.loop.drive import DriveConfig

    if not arguments.rate > 0 or not arguments.length > 0:
        raise MirageError(
            f"The loop got {arguments.rate} frames/s and {arguments.length} m; give more than 0."
        )
    report = run_loop(
        LoopConfig(
            worlds=arguments.worlds,
            out=arguments.out,
            drive=DriveConfig(arguments.length, arguments.decisions, 1 / arguments.rate),
            model=arguments.model,
            world_seed=arguments.world_seed,
            step_frames=arguments.step_frames,
            truth=not arguments.no_truth,
            video=not arguments.no_video,
        )
    )
    print(describe(report))
    return 0 if report["summary"]["passed"] else 1


def base(arguments: argparse.Namespace) -> int:
    from mirage_ros.loop import LiveBaseConfig
    from mirage_ros.ros.base_node import BaseConfig
    from mirage_ros.ros.loop_nodes import run_base
    from mirage_ros.ros.robots import robot_named

    robot = None if arguments.robot is None else robot_named(*arguments.robot)
    limits = arguments.max_speed, arguments.max_turn, arguments.acceleration, arguments.turn_acceleration
    live = LiveBaseConfig(arguments.kind, *limits, arguments.timeout)
    config = BaseConfig(
        seed=arguments.seed,
        hfov_deg=arguments.hfov,
        frame_rate_hz=arguments.rate,
        step_frames=arguments.step_frames,
        live=live,
        radius_m=arguments.radius,
        low_m=arguments.low,
        tf_rate_hz=arguments.tf_rate,
        base_frame=arguments.base_frame,
        camera_frame=arguments.camera_frame,
        namespace=arguments.namespace,
    )
    run_base(config, arguments.live, arguments.ros_args, robot)
    return 0


def wander(arguments: argparse.Namespace) -> int:
    from mirage_ros.loop import Footprint
    from mirage_ros.loop.wander import WanderConfig
    from mirage_ros.ros.loop_nodes import WanderNodeConfig, run_wander

    how = WanderConfig(
        Footprint(arguments.radius), speed_mps=arguments.speed, turn_rps=arguments.turn
    )
    config = WanderNodeConfig(
        how, arguments.base_frame, arguments.camera_frame, arguments.namespace
    )
    run_wander(config, arguments.ros_args)
    return 0


def teleop(arguments: argparse.Namespace) -> int:
    from mirage_ros.ros.driving import TeleopConfig, run_teleop

    config = TeleopConfig(
        speed_mps=arguments.speed,
        turn_rps=arguments.turn,
        stamped=arguments.stamped,
        image="" if arguments.no_picture else arguments.image,
        gamepad=arguments.gamepad,
        namespace=arguments.namespace,
    )
    run_teleop(config, arguments.ros_args)
    return 0


def drive(arguments: argparse.Namespace, node_command: Sequence[str] = ()) -> int:
    """Args: node_command: what runs the node, in place of `mirage node`."""
    from mirage_ros.data.seeds import load_seed
    from mirage_ros.loop import live_base_under
    from mirage_ros.loop.teleop import check_terminal
    from mirage_ros.machine import Children, child_environment, mirage_command
    from mirage_ros.ros.driving import TeleopConfig, run_teleop

    check_terminal()
    namespace, topic, bases = "", "color/image_raw", {"base": ["--kind", arguments.kind, *_seed_words(arguments)]}
    if arguments.robots is None:
        live_base_under(load_seed(arguments.seed, arguments.hfov).camera.world_from_camera, arguments.kind)
    else:
        namespace, topic, bases = _fleet(arguments.robots, topic)
    config = TeleopConfig(
        speed_mps=arguments.speed,
        turn_rps=arguments.turn,
        image="" if arguments.no_picture else topic,
        namespace=namespace,
        waiting=f"starting, see {arguments.out / 'node.log'}",
    )
    speeds = ["--max-speed", str(20 * arguments.speed), "--max-turn", str(20 * arguments.turn)]
    # A terminal's window that is closed ends what runs in it, the children as well.
    signal.signal(signal.SIGHUP, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with Children(arguments.out, child_environment()) as children:
        node = [*(node_command or mirage_command("node")), *_node_words(arguments)]
        children.start("node", node)
        for name, words in bases.items():
            children.start(name, mirage_command("base", "--live", *words, *speeds))

        def check() -> None:
            for name in ("node", *list(bases)[:1]):  # what the others do is theirs
                if not children.running(name):
                    raise children.failure(name)

        run_teleop(config, check=check)
    return 0


def _fleet(path: str, topic: str) -> tuple[str, str, dict[str, list[str]]]:
    """The first robot's namespace and picture, and what to start the bases with."""
    from mirage_ros.ros.robots import ELSEWHERE, read_robots

    robots = read_robots(path)
    bases = {f"base_{robot.namespace}": ["--robot", path, robot.namespace] for robot in robots if robot.base != ELSEWHERE}
    return robots[0].namespace, "/" + robots[0].cameras[0].output.prefix + topic, bases


def _seed_words(arguments: argparse.Namespace) -> list[str]:
    return ["--seed", arguments.seed, *([] if arguments.hfov is None else ["--hfov", str(arguments.hfov)])]


def _node_words(arguments: argparse.Namespace) -> list[str]:
    from mirage_ros.files import share_path

    words = ["--params", str(share_path("config", "drive.yaml")), *_seed_words(arguments), "--model", arguments.model]
    words += [] if arguments.robots is None else ["--robots", arguments.robots]
    if arguments.record is not None:
        words += ["--ros-args", "-p", f"record:={json.dumps(str(arguments.record), ensure_ascii=False)}"]
    return words


def studio(arguments: argparse.Namespace) -> int:
    from importlib.util import find_spec

    if find_spec("viser") is None:
        raise MirageError("The studio needs the package viser, which is missing; pip install 'mirage_ros[studio]'.")
    if arguments.foxglove is not None and find_spec("foxglove") is None:
        raise MirageError("--foxglove needs the package foxglove-sdk, which is missing; pip install 'mirage_ros[foxglove]'.")
    if arguments.ros and find_spec("rclpy") is None:
        raise MirageError("--ros needs rclpy, which is missing; run `make setup`, or source a ROS 2 install first.")
    from mirage_ros.apps.studio.gate import opened
    from mirage_ros.apps.studio.page import Page
    from mirage_ros.data.seeds import load_seed

    folder = arguments.folder.absolute()
    # What is wrong with it is said before the model is loaded.
    seed = None if arguments.ros else load_seed(arguments.seed, arguments.hfov)
    with ExitStack() as stack:
        viewers = () if arguments.foxglove is None else (_bridged(stack, arguments.foxglove),)
        world = _attached(stack, folder, arguments.namespace) if arguments.ros else _own_world(arguments)
        page = Page(world, folder, not arguments.light, viewers)
        stack.callback(page.close)
        if seed is None:
            page.walk.ask("Joining the node", page.walk.join)
        else:
            page.make.begin(seed)
        gate = stack.enter_context(opened(arguments.host, arguments.port, page.address))
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        print("Waiting for the first picture; where this was just installed, parts of it are compiled for a minute or two", flush=True)
        ready = Event()
        page.walk.ask("Waiting", ready.set)  # jobs are done in order
        ready.wait()
        print(f"Walk in at {gate.url}\nCtrl-C ends the studio; its files are in {arguments.folder}", flush=True)
        signal.pause()
    return 0


def _bridged(stack: ExitStack, port: int) -> Callable:
    from mirage_ros.apps.studio.foxglove import Bridge

    bridge = stack.enter_context(Bridge(port))
    print(f"Foxglove: open ws://localhost:{bridge.port} with the layout config/foxglove/mirage.json", flush=True)
    return bridge.saw


def _attached(stack: ExitStack, folder: Path, namespace: str):
    from mirage_ros.ros.attached import AttachedWorld

    print("Looking for the node", flush=True)
    world = AttachedWorld(folder / "begun", namespace)
    stack.callback(world.close)
    return world


def _own_world(arguments: argparse.Namespace):
    from mirage_ros.models import load_model
    from mirage_ros.world.world import World, WorldConfig

    print(f"Loading the model {arguments.model}", flush=True)
    return World(load_model(arguments.model), WorldConfig(seed=arguments.world_seed))
