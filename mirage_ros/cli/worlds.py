"""`mirage build`: recordings become worlds; `mirage export`: worlds become files of other tools."""

from __future__ import annotations

import argparse
from pathlib import Path

from mirage_ros.cli.arguments import add_command, add_model, write_json
from mirage_ros.errors import MirageError
from mirage_ros.files import user_path


def add_build(parsers) -> None:
    parser = add_command(
        parsers,
        "build",
        build,
        "build a world from a recording of a real place: a bag, a posed RGB-D folder, a COLMAP model",
        "examples:\n"
        "  mirage build walk/ --out out/studio/worlds/office   K.txt, color/, depth/, world_from_camera.txt;\n"
        "                                                      `mirage studio` lists it among its saved worlds\n"
        "  mirage build rgbd_dataset_freiburg1_room --out out/room                     TUM RGB-D\n"
        "  mirage build bag/ --color /camera/color/image_raw --out out/lab             rosbag2, MCAP or ROS 1\n"
        "  mirage build scan/ --out out/flat --hold-out 2      and judge it on every second frame\n"
        "  mirage export out/flat --to map                     its floor plan for map_server\n\n"
        "writes the world with build.json (what was used, what was left out and why) and build.png. A build\n"
        "that was killed is gone on with by the same command.",
    )
    add = parser.add_argument
    # fmt: off
    add("source", type=user_path, help="a bag (rosbag2 folder, .mcap, .bag), a folder of a known layout, or a picture")
    add("--out", type=user_path, required=True, metavar="WORLD", help="the folder of the world to write")
    add_model(parser)
    add("--every", type=int, default=1, metavar="N", help="take each N-th frame (default: all)")
    add("--hold-out", type=int, default=0, metavar="N",
        help="keep each N-th frame out, and tell how well the world shows it")
    add("--least-added", type=float, default=0.05, metavar="SHARE",
        help="share of a frame that has to be new for it to be taken (default: 0.05)")
    add("--up", default="auto", help="the recording's axis that points up: +z, -y, ... (default: as cameras are held)")
    add("--intrinsics", type=float, nargs=4, metavar=("FX", "FY", "CX", "CY"), help="of colour, where a recording has none")
    add("--depth-units", type=float, metavar="N", help="of integer depth in a metre (default: the layout's, mostly 1000)")
    add("--refine-poses", action="store_true", help="move poses so that pictures and depths of one place fit each other")
    add("--as-exposed", action="store_true", help="do not bring frames to one exposure")
    add("--keep-bad", action="store_true", help="take blurred and disagreeing frames as well")
    add("--max-memory", type=int, default=512, metavar="MIB", help="of the world (default: 512)")
    for name, what in (("color", "of colour"), ("depth", "of depth"), ("color-info", "with colour's CameraInfo"),
                       ("depth-info", "with depth's CameraInfo"), ("poses", "of odometry or poses, instead of TF")):
        add(f"--{name}", default="", metavar="TOPIC", help=f"topic {what} of a bag (default: found by type)")
    add("--world-frame", default="", metavar="FRAME", help="of a bag's TF (default: the root)")
    # fmt: on


def add_export(parsers) -> None:
    parser = add_command(
        parsers,
        "export",
        export,
        "write what a saved world remembers as a cloud of coloured points, 3D Gaussians or a floor plan",
        "examples:\n  mirage export out/world                    writes out/world.ply\n"
        "  mirage export out/world/memory.safetensors --out cloud.ply\n"
        "  mirage export out/world --to splat         writes out/world_splat.ply for viewers of 3D Gaussians\n"
        "  mirage export out/world --to map           writes out/world.yaml and out/world.pgm\n"
        "  mirage export out/world --to map --robot-height 1.2 --resolution 0.1 --real\n\n"
        "the points are in the world's frame, metres, z up; each has a colour and a confidence\n"
        "(1 seen frontally, towards 0 grazing). A map is what map_server reads.",
    )
    parser.add_argument("path", type=user_path, help="the folder of a saved world, or a saved memory")
    parser.add_argument(
        "--out", type=user_path, metavar="FILE", help="the file to write (default: next to it)"
    )
    parser.add_argument("--to", choices=("ply", "splat", "map"), default="ply", help="(default: ply)")
    parser.add_argument("--resolution", type=float, default=0.05, metavar="M", help="of a map (default: 0.05)")
    parser.add_argument("--robot-height", type=float, default=0.5, metavar="M",
                        help="surfaces above it do not stop the robot (default: 0.5)")  # fmt: skip
    parser.add_argument("--real", action="store_true", help="a map of what real pictures showed alone")


def build(arguments: argparse.Namespace) -> int:
    from tqdm import tqdm

    from mirage_ros.data.building import BuildConfig, describe, report_of
    from mirage_ros.data.building import build as build_world
    from mirage_ros.data.layouts import open_walk
    from mirage_ros.models import load_model

    whole = open_walk(arguments.source, _walk_config(arguments))
    walk, rest = (whole, None) if not arguments.hold_out else whole.split(arguments.hold_out)
    config = BuildConfig(arguments.least_added, arguments.up, not arguments.as_exposed, arguments.refine_poses,
                         arguments.keep_bad, arguments.max_memory * 2**20)  # fmt: skip
    model = load_model(arguments.model)
    with tqdm(total=2 * len(walk), unit="frame", desc="look") as bar:

        def tick(stage: str, frames: int) -> None:
            bar.set_description_str(stage)
            bar.update(frames + (len(walk) if stage == "build" else 0) - bar.n)

        built = build_world(walk, model, arguments.out, config, tick)
    report = report_of(built, walk)
    if rest is not None:
        from mirage_ros.evaluation.readback import draw_held_out, judge_held_out

        judged = judge_held_out(built, walk, rest)
        report["held_out"] = judged.figures
        draw_held_out(judged, arguments.out / "held_out.png")
    write_json(report, arguments.out / "build.json")
    _draw(built, arguments.out / "build.png")
    print(describe(report))
    pictures = "build.png" if rest is None else "build.png, held_out.png"
    print(f"{arguments.out}: the world, build.json, {pictures}")
    return 0


def _walk_config(arguments: argparse.Namespace):
    from mirage_ros.data.walks import WalkConfig

    names = ("every", "color", "depth", "color_info", "depth_info", "poses", "world_frame")
    given = {name: getattr(arguments, name) for name in names}
    intrinsics = None if arguments.intrinsics is None else tuple(arguments.intrinsics)
    return WalkConfig(intrinsics=intrinsics, depth_units_per_m=arguments.depth_units, **given)


def _draw(built, path: Path) -> None:
    """The world from above, with the cameras that saw its free space."""
    from mirage_ros.recording.drawing import draw_cloud_from_above, save_picture

    points = built.world.memory.to_points()
    picture = draw_cloud_from_above(points.xyz, points.rgb, built.world.state.free_space.cameras, (720, 960))
    save_picture(path, picture)


def export(arguments: argparse.Namespace) -> int:
    if arguments.to == "map":
        return _export_map(arguments)
    from mirage_ros.files import MEMORY, world_file
    from mirage_ros.memory import LatentMemory
    from mirage_ros.recording.drawing import write_ply
    from mirage_ros.recording.pictures import write_splats

    path, splat = arguments.path, arguments.to == "splat"
    out = arguments.out or path.with_name(f"{path.stem}_splat.ply" if splat else f"{path.stem}.ply")
    if out.suffix != ".ply":
        raise MirageError(f"{out} does not end in .ply, the only kind that is written; rename it.")
    memory = LatentMemory.load(world_file(path, MEMORY) if path.is_dir() else path)
    if splat:
        write_splats(out, memory)
    else:
        write_ply(out, memory.to_points())
    print(f"{out}: {memory.tokens:,} {'Gaussians' if splat else 'points'}")
    return 0


def _export_map(arguments: argparse.Namespace) -> int:
    from mirage_ros.recording.pictures import write_plan
    from mirage_ros.world.files import load_surroundings
    from mirage_ros.world.sensors import MapConfig, floor_plan

    out = arguments.out or arguments.path.with_suffix(".yaml")
    if out.suffix != ".yaml":
        raise MirageError(f"{out} does not end in .yaml, which map_server reads; rename it.")
    config = MapConfig(
        arguments.resolution, robot_height_m=arguments.robot_height, imagined=not arguments.real
    )
    memory, free_space, camera = load_surroundings(arguments.path)
    plan = floor_plan(memory, free_space, camera.position_world, config)
    write_plan(out, plan)
    height, width = plan.cells.shape
    print(f"{out} and {out.with_suffix('.pgm').name}: {width} x {height} cells of {config.resolution_m:g} m")
    return 0
