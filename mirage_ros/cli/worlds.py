"""`mirage build`: recordings become worlds; `mirage readback`: how well one frame of them is remembered; `mirage export`: worlds
become files of other tools."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NoReturn

from mirage_ros.cli.arguments import add_command, add_model, add_ros_arguments, add_walk, walk_config, write_json
from mirage_ros.errors import MirageError
from mirage_ros.files import user_path

MESH_FACES, COLLIDER_FACES = 200_000, 4_000


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
        "  mirage build re10k/0c11dbe781b1c11c.txt --out out/house    a RealEstate10K track with its pictures\n"
        "  mirage build --live --color /camera/color/image_raw --depth /camera/aligned_depth_to_color/image_raw \\\n"
        "    --world-frame map --out out/lab                   a camera on DDS keeps the world up to date until Ctrl-C\n"
        "  mirage export out/flat --to map                     its floor plan for map_server\n\n"
        "writes the world with build.json (what was used, what was left out and why) and build.png. A build\n"
        "that was killed is gone on with by the same command.",
    )
    add = parser.add_argument
    # fmt: off
    add("source", type=user_path, nargs="?", help="a bag (rosbag2 folder, .mcap, .bag), a folder of a known layout, or a picture")
    add("--out", type=user_path, required=True, metavar="WORLD", help="the folder of the world to write")
    add_model(parser)
    add("--hold-out", type=int, default=0, metavar="N",
        help="keep each N-th frame out, and tell how well the world shows it")
    add("--least-added", type=float, default=0.05, metavar="SHARE",
        help="share of a frame that has to be new for it to be taken (default: 0.05)")
    add("--up", default="auto", help="the recording's axis that points up: +z, -y, ... (default: as cameras are held)")
    add("--refine-poses", action="store_true", help="move poses so that pictures and depths of one place fit each other")
    add("--as-exposed", action="store_true", help="do not bring frames to one exposure")
    add("--keep-bad", action="store_true", help="take blurred and disagreeing frames as well")
    add("--max-memory", type=int, default=512, metavar="MIB", help="of the world (default: 512)")
    add("--live", action="store_true", help="from a camera on DDS instead (--color, --depth, --color-info, --world-frame): "
        "what is new is remembered, what moved is replaced when two pictures agree; a world that --out holds goes on")
    add("--pictures", type=int, metavar="N", help="of a live camera: end after so many (default: Ctrl-C)")
    # fmt: on
    add_walk(parser)
    add_ros_arguments(parser)


def add_readback(parsers) -> None:
    parser = add_command(
        parsers,
        "readback",
        readback,
        "measure how well memory shows one real frame again from other real cameras",
        "example:\n  mirage readback walk/ --seed-frame 8\n\nthe folder holds color/, depth/, K.txt"
        " and world_from_camera.txt",
    )
    parser.add_argument("folder", type=user_path, help="posed RGB-D folder")
    parser.add_argument("--seed-frame", type=int, default=0, help="frame to remember (default: 0)")
    parser.add_argument("--frames", type=int, nargs="+", help="frames to look from (default: all)")
    add_model(parser)
    parser.add_argument("--out", type=user_path, metavar="PNG", help="write the pictures as well")


def add_export(parsers) -> None:
    parser = add_command(
        parsers,
        "export",
        export,
        "write what a saved world remembers for other tools: points, meshes, Gaussians, floor plans, MuJoCo, nerfstudio",
        "examples:\n  mirage export out/world                    writes out/world.ply, a cloud of coloured points\n"
        "  mirage export out/world/memory.safetensors --out cloud.ply\n"
        "  mirage export out/world --to mesh          writes out/world.glb, textured; --out room.obj for OBJ\n"
        "  mirage export out/world --to collider      writes out/world_collider.obj, simplified; --out room.stl\n"
        "  mirage export out/world --to mjcf          writes out/world_mjcf/, a MuJoCo model with what it needs;\n"
        "                                             python -m mujoco.viewer --mjcf=out/world_mjcf/world.xml\n"
        "  mirage export out/world --to splat         writes out/world_splat.ply for viewers of 3D Gaussians\n"
        "  mirage export out/world --to nerfstudio    writes out/world_nerfstudio/, pictures of the world's own views;\n"
        "                                             --poses path.txt those of a camera path (a row-major 4x4 a line)\n"
        "  mirage export out/world --to map           writes out/world.yaml and out/world.pgm for map_server\n"
        "  mirage export out/world --to map --robot-height 1.2 --resolution 0.1\n"
        "  mirage export out/world --to mesh --real   without what was imagined\n\n"
        "all of it is in the world's frame, metres, z up (a .glb is y up, as glTF wants it). Entities are no part of it.",
    )
    parser.add_argument("path", type=user_path, help="the folder of a saved world; a saved memory does for points and Gaussians")
    parser.add_argument("--out", type=user_path, metavar="PATH", help="the file or folder to write (default: next to it)")
    parser.add_argument("--to", choices=tuple(EXPORTS), default="ply", help="(default: ply)")
    parser.add_argument("--real", action="store_true", help="only what real pictures showed")
    parser.add_argument("--resolution", type=float, metavar="M",
                        help="of a map (default: 0.05), of a mesh (default: as fine as it remembers)")  # fmt: skip
    parser.add_argument("--faces", type=int, metavar="N",
                        help=f"so many triangles at most (default: {MESH_FACES:,} of a mesh, {COLLIDER_FACES:,} of a collider)")  # fmt: skip
    parser.add_argument("--robot-height", type=float, default=0.5, metavar="M",
                        help="surfaces above it do not stop a map's robot (default: 0.5)")  # fmt: skip
    parser.add_argument("--poses", type=user_path, metavar="FILE", help="world_from_camera of a nerfstudio folder's pictures")
    add_model(parser)


def build(arguments: argparse.Namespace) -> int:
    from tqdm import tqdm

    from mirage_ros.data.building import BuildConfig, describe, report_of
    from mirage_ros.data.building import build as build_world
    from mirage_ros.data.layouts import open_walk
    from mirage_ros.models import load_model

    if arguments.live:
        return _build_live(arguments)
    if arguments.source is None:
        raise MirageError("Give a recording to build from, or --live with --color and --depth.")
    whole = open_walk(arguments.source, walk_config(arguments))
    walk, rest = (whole, None) if not arguments.hold_out else whole.split(arguments.hold_out)
    config = BuildConfig(arguments.least_added, arguments.up, not arguments.as_exposed, arguments.refine_poses,
                         arguments.keep_bad, arguments.max_memory * 2**20)  # fmt: skip
    model = load_model(arguments.model)
    with tqdm(total=len(walk), unit="frame", desc="look") as bar:

        def tick(stage: str, frames: int) -> None:
            if frames < bar.n:  # the next stage goes through all frames again
                bar.reset(len(walk))
            bar.set_description_str(stage, refresh=False)
            bar.update(frames - bar.n)

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


def _build_live(arguments: argparse.Namespace) -> NoReturn:
    from tqdm import tqdm

    from mirage_ros.data.building import check_target
    from mirage_ros.ros.node import LiveConfig, keep_world

    if arguments.source is not None or not arguments.color or not arguments.depth:
        raise MirageError("A live camera is named by its topics, --color and --depth, and no recording is given with --live.")
    check_target(arguments.out)
    config = LiveConfig(arguments.out, arguments.color, arguments.depth, arguments.color_info, arguments.world_frame, arguments.model,
                        arguments.pictures, ros_arguments=tuple(arguments.ros_args))  # fmt: skip
    with tqdm(total=arguments.pictures, unit="picture", desc="observe") as bar:
        keep_world(config, lambda pictures: bar.update(pictures - bar.n))


def _draw(built, path: Path) -> None:
    """The world from above, with the cameras that saw its free space."""
    from mirage_ros.recording.drawing import draw_cloud_from_above, save_picture

    points = built.world.memory.to_points()
    picture = draw_cloud_from_above(points.xyz, points.rgb, built.world.state.free_space.cameras, (720, 960))
    save_picture(path, picture)


def readback(arguments: argparse.Namespace) -> int:
    from mirage_ros.evaluation.readback import describe, draw, read_back
    from mirage_ros.models import load_model

    model = load_model(arguments.model)
    walk = read_back(arguments.folder, arguments.seed_frame, model, arguments.frames)
    print(describe(walk))
    if arguments.out is not None:
        draw(walk, arguments.out)
    return 0


def export(arguments: argparse.Namespace) -> int:
    for name in ("resolution", "faces"):
        if (value := getattr(arguments, name)) is not None and not value > 0:
            raise MirageError(f"--{name} is {value:g}; give more than 0.")
    tail = {"ply": ".ply", "splat": "_splat.ply", "map": ".yaml", "mesh": ".glb", "collider": "_collider.obj"}
    path = arguments.path
    stem = path.stem if path.is_file() else path.name
    out = arguments.out or path.with_name(stem + tail.get(arguments.to, f"_{arguments.to}"))
    print(EXPORTS[arguments.to](arguments, out))
    return 0


def _check_ending(out: Path, *endings: str) -> None:
    if out.suffix not in endings:
        raise MirageError(f"{out} does not end in {' or '.join(endings)}, what is written; rename it.")


def _memory(arguments: argparse.Namespace):
    """The memory of a saved world, without what was imagined where that is asked for."""
    from mirage_ros.files import MEMORY, world_file
    from mirage_ros.memory import LatentMemory

    path = arguments.path
    memory = LatentMemory.load(world_file(path, MEMORY) if path.is_dir() else path)
    if arguments.real:
        memory.forget(~memory.from_real)
    return memory


def _export_points(arguments: argparse.Namespace, out: Path) -> str:
    from mirage_ros.recording.drawing import write_ply

    _check_ending(out, ".ply")
    memory = _memory(arguments)
    write_ply(out, memory.to_points())
    return f"{out}: {memory.tokens:,} points"


def _export_splats(arguments: argparse.Namespace, out: Path) -> str:
    from mirage_ros.files import WORLD, world_file
    from mirage_ros.recording.exports import fitted, write_splats
    from mirage_ros.recording.surface import parts_of_tokens, splats_of

    _check_ending(out, ".ply")
    memory = _memory(arguments)
    side = parts_of_tokens(memory) if world_file(arguments.path, WORLD).exists() else 1
    seen = _pictures(_world(arguments), arguments.real) if side > 1 else ()
    splats = splats_of(memory, *seen, side=side)
    if seen:
        splats = fitted(splats, *seen)
    write_splats(out, splats)
    return f"{out}: {len(splats.xyz):,} Gaussians"


def _export_map(arguments: argparse.Namespace, out: Path) -> str:
    from mirage_ros.recording.pictures import write_plan
    from mirage_ros.world.files import load_surroundings
    from mirage_ros.world.sensors import MapConfig, floor_plan

    _check_ending(out, ".yaml")
    config = MapConfig(
        arguments.resolution or 0.05, robot_height_m=arguments.robot_height, imagined=not arguments.real
    )
    memory, free_space, camera = load_surroundings(arguments.path)
    plan = floor_plan(memory, free_space, camera.position_world, config)
    write_plan(out, plan)
    height, width = plan.cells.shape
    return f"{out} and {out.with_suffix('.pgm').name}: {width} x {height} cells of {config.resolution_m:g} m"


def _world(arguments: argparse.Namespace):
    """The saved world, loaded with its model."""
    from mirage_ros.models import load_model
    from mirage_ros.world.world import World, WorldConfig

    world = World(load_model(arguments.model), WorldConfig())
    world.load(arguments.path)
    return world


def _surface(arguments: argparse.Namespace, memory, faces: int):
    """Of a memory, as finely as asked for."""
    from tqdm import tqdm

    from mirage_ros.recording.surface import simplified, surface_of

    with tqdm(total=100, unit="%", desc="surface") as bar:
        faces = arguments.faces or faces
        whole = surface_of(memory, faces, arguments.resolution, lambda share: bar.update(round(100 * share) - bar.n))
    return simplified(whole, faces)


def _pictures(world, real: bool):
    """The cameras of the views that a world keeps, its pictures from there, and where these show what it remembers."""
    import numpy as np
    from tqdm import tqdm

    from mirage_ros.recording.exports import shown_by

    cameras = _views(world, real)
    with tqdm(total=len(cameras), unit="picture", desc="pictures") as bar:
        frames = shown_by(world, cameras, bar.update)
    pictures, shown = (np.stack([getattr(frame, name) for frame in frames]) for name in ("rgb", "observed"))
    return cameras, pictures, shown


def _skinned(arguments: argparse.Namespace):
    """The surface of a saved world with its texture, and the world."""
    from mirage_ros.recording.surface import skin_of

    world, memory = _world(arguments), _memory(arguments)
    surface = _surface(arguments, memory, MESH_FACES)
    return surface, skin_of(surface, memory, *_pictures(world, arguments.real)), world


def _views(world, real: bool):
    """The cameras of the views that a world keeps."""
    kept = world.state.free_space
    cameras = kept.cameras[kept.real] if real else kept.cameras
    if not len(cameras):
        raise MirageError("The world keeps no view to draw it from; give one that has seen something.")
    return cameras.resized(world.model.size)


def _export_mesh(arguments: argparse.Namespace, out: Path) -> str:
    from mirage_ros.recording.exports import write_mesh

    _check_ending(out, ".glb", ".obj")
    surface, skin, _ = _skinned(arguments)
    write_mesh(out, surface, skin)
    height, width = skin.picture.shape[:2]
    return f"{out}: {len(surface.faces):,} triangles, {surface.real.mean():.0%} of them seen in real pictures; texture {width} x {height}"


def _export_collider(arguments: argparse.Namespace, out: Path) -> str:
    from mirage_ros.recording.exports import write_collider

    _check_ending(out, ".obj", ".stl")
    surface = _surface(arguments, _memory(arguments), COLLIDER_FACES)
    write_collider(out, surface)
    return f"{out}: {len(surface.faces):,} triangles"


def _export_mjcf(arguments: argparse.Namespace, out: Path) -> str:
    from mirage_ros.recording.exports import write_mjcf
    from mirage_ros.recording.surface import simplified

    surface, skin, world = _skinned(arguments)
    collider = simplified(surface, COLLIDER_FACES)
    write_mjcf(out, surface, skin, collider, _views(world, arguments.real)[0])
    return f"{out / 'world.xml'}: {len(surface.faces):,} triangles to see, {len(collider.faces):,} to touch"


def _export_nerfstudio(arguments: argparse.Namespace, out: Path) -> str:
    from tqdm import tqdm

    from mirage_ros.recording.exports import shown_by, write_nerfstudio

    world = _world(arguments)
    cameras = _views(world, arguments.real)
    if arguments.poses is not None:
        from mirage_ros.data.seeds import read_matrices
        from mirage_ros.geometry.camera import Camera

        camera = world.state.free_space.cameras[0].resized(world.model.size)
        cameras = Camera(camera.intrinsics, read_matrices(arguments.poses, 4), camera.size)
    with tqdm(total=2 * len(cameras), unit="picture") as bar:
        frames = shown_by(world, cameras, bar.update)
        write_nerfstudio(out, frames, _memory(arguments), arguments.real, bar.update)
    return f"{out / 'transforms.json'}: {len(frames)} pictures with depth"


EXPORTS = {
    "ply": _export_points, "mesh": _export_mesh, "collider": _export_collider, "mjcf": _export_mjcf, "splat": _export_splats,
    "nerfstudio": _export_nerfstudio, "map": _export_map,
}  # fmt: skip
