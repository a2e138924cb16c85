"""What a world remembers, written for other tools: each file is opened by its own tool, or a reader of its own right."""

import json
import types

import cv2
import numpy as np
import pytest
import trimesh
from analytic import cameras, look, remember, room
from transforms3d.quaternions import quat2mat

from mirage_ros import cli
from mirage_ros.data.layouts import open_walk
from mirage_ros.evaluation import psnr_where
from mirage_ros.geometry.camera import Camera
from mirage_ros.memory import LatentMemory, MemoryConfig
from mirage_ros.models import load_model
from mirage_ros.recording.exports import shown_by, write_collider, write_mesh, write_mjcf
from mirage_ros.recording.surface import Surface, simplified, skin_of, surface_of
from mirage_ros.world.world import World


@pytest.fixture
def saved(tmp_path):
    memory = LatentMemory(MemoryConfig(4))
    remember(memory, cameras([look((0, 0, 1), (0, 5, 1))], (12, 20)), room())
    (tmp_path / "world").mkdir()
    memory.save(tmp_path / "world" / "memory.safetensors")
    return memory, tmp_path / "world"


def test_a_world_is_exported_as_a_cloud(saved, capsys):
    memory, folder = saved
    assert cli.main(["export", str(folder)]) == 0
    assert "240 points" in capsys.readouterr().out
    cloud, points = trimesh.load(folder.with_suffix(".ply")), memory.to_points()
    np.testing.assert_array_equal(np.float32(cloud.vertices), points.xyz)
    np.testing.assert_array_equal(cloud.colors[:, :3], points.rgb)
    data = cloud.metadata["_ply_raw"]["vertex"]["data"]
    np.testing.assert_array_equal(data["confidence"], points.confidence)


def test_a_memory_is_exported_where_asked_and_faults_are_one_line(saved, tmp_path, capsys):
    memory_file, out = saved[1] / "memory.safetensors", tmp_path / "cloud.ply"
    assert cli.main(["export", str(memory_file), "--out", str(out)]) == 0
    assert out.read_bytes().startswith(b"ply\nformat binary_little_endian 1.0\n")
    for arguments in ([str(tmp_path / "none")], [str(memory_file), "--out", "cloud.obj"]):
        assert cli.main(["export", *arguments]) != 0
        assert len(capsys.readouterr().err.strip().splitlines()) == 1


def gaussians(path) -> dict[str, np.ndarray]:
    """Places, covariances, colours and opacities, as viewers of splats read them."""
    data = trimesh.load(path).metadata["_ply_raw"]["vertex"]["data"]
    columns = lambda *names: np.stack([np.float64(data[name]).reshape(-1) for name in names], -1)  # noqa: E731
    turns = np.stack([quat2mat(turn) for turn in columns("rot_0", "rot_1", "rot_2", "rot_3")])
    axes = turns * np.exp(columns("scale_0", "scale_1", "scale_2"))[:, None]
    return {
        "xyz": columns("x", "y", "z"),
        "normals": columns("nx", "ny", "nz"),
        "covariance": axes @ axes.transpose(0, 2, 1),
        "rgb": 255 * np.clip(0.5 + 0.28209479 * columns("f_dc_0", "f_dc_1", "f_dc_2"), 0, 1),
        "opacity": 1 / (1 + np.exp(-columns("opacity")[:, 0])),
    }


def splatted(read: dict[str, np.ndarray], camera) -> tuple[np.ndarray, np.ndarray]:
    """What a camera sees of Gaussians, from front to back, on black; and how much it sees through them."""
    k, there = camera.intrinsics, np.linalg.inv(camera.world_from_camera)
    points = read["xyz"] @ there[:3, :3].T + there[:3, 3]
    picture, through = np.zeros((*camera.size, 3)), np.ones(camera.size)
    for i in np.argsort(points[:, 2]):
        x, y, z = points[i]
        if z <= 0.05:
            continue
        slope = np.array([[k[0, 0] / z, 0, -k[0, 0] * x / z**2], [0, k[1, 1] / z, -k[1, 1] * y / z**2]]) @ there[:3, :3]
        wide = slope @ read["covariance"][i] @ slope.T + 0.3 * np.eye(2)
        middle, reach = np.array([k[0, 0] * x / z + k[0, 2], k[1, 1] * y / z + k[1, 2]]), 3 * np.sqrt(np.diag(wide)) + 1
        low, high = np.maximum(middle - reach, 0).astype(int), np.minimum(middle + reach + 1, camera.size[::-1]).astype(int)
        if (low >= high).any():
            continue
        off = np.stack(np.meshgrid(np.arange(low[0], high[0]), np.arange(low[1], high[1])), -1) - middle
        alpha = read["opacity"][i] * np.exp(-0.5 * np.einsum("hwi,ij,hwj->hw", off, np.linalg.inv(wide), off))
        here = slice(low[1], high[1]), slice(low[0], high[0])
        picture[here] += (through[here] * alpha)[..., None] * read["rgb"][i]
        through[here] *= 1 - alpha
    return picture, through


def test_a_world_is_exported_as_splats(saved, capsys):
    """Drawn by a renderer of its own right they show what memory shows."""
    memory, folder = saved
    assert cli.main(["export", str(folder), "--to", "splat"]) == 0
    assert "240 Gaussians" in capsys.readouterr().out
    read, points = gaussians(folder.with_name("world_splat.ply")), memory.to_points()
    np.testing.assert_array_equal(np.float32(read["xyz"]), points.xyz)
    np.testing.assert_allclose(read["rgb"], points.rgb, atol=1e-3)
    # Flat: the thinnest axis of each is its normal.
    spread, axes = np.linalg.eigh(read["covariance"])
    assert np.abs(np.einsum("ni,ni->n", axes[:, :, 0], read["normals"])).min() > 0.999
    assert np.median(np.sqrt(spread[:, 0] / spread[:, 2])) == pytest.approx(0.05, rel=0.01)
    camera = cameras([look((0, 0, 1), (0, 5, 1))], (12, 20))
    picture, through = splatted(read, camera[0])
    rows = memory.read(camera).index[0]
    assert np.median(through) < 0.05
    off = np.abs(picture - points.rgb[rows])
    print("splats beside memory's own colours: mean difference", off.mean())
    assert off.mean() < 0.1 * np.ptp(points.rgb.astype(int))


@pytest.fixture(scope="module")
def room_world(walked, tmp_path_factory):
    """A world of a rendered room whose truth is known, with something imagined; and the folder that it is saved in."""
    world = World(load_model("mini", device="cpu"))
    first, last = walked[0], walked[3]
    world.reset(first.rgb, first.camera, first.depth_m)
    world.step(Camera.stack([last.camera.resized(world.model.size)]), np.array([1]))
    folder = tmp_path_factory.mktemp("worlds") / "room"
    world.save(folder)
    return world, folder


@pytest.fixture(scope="module")
def model_of_room(room_world):
    """Its surface, texture and collider."""
    world, _ = room_world
    memory, views = world.memory.fork(), world.state.free_space.cameras.resized(world.model.size)
    surface = simplified(surface_of(memory, 20_000), 20_000)
    frames = shown_by(world, views)
    pictures, shown = (np.stack([getattr(frame, name) for frame in frames]) for name in ("rgb", "observed"))
    return surface, skin_of(surface, memory, views, pictures, shown), simplified(surface, 2_000)


def test_a_world_is_exported_as_textured_meshes(room_world, model_of_room, tmp_path, capsys):
    _, folder = room_world
    surface, skin, _ = model_of_room
    assert 0 < surface.real.mean() < 1
    assert cli.main(["export", str(folder), "--to", "mesh", "--faces", "20000", "--out", str(tmp_path / "room.glb")]) == 0
    assert f"{len(surface.faces):,} triangles" in capsys.readouterr().out
    write_mesh(tmp_path / "room.obj", surface, skin)
    for name, up in (("room.glb", 1), ("room.obj", 2)):
        scene = trimesh.load_scene(tmp_path / name)
        meshes = list(scene.geometry.values())
        assert sum(len(mesh.faces) for mesh in meshes) == len(surface.faces)
        low, high = scene.bounds
        true = surface.vertices_m[:, 2].min(), surface.vertices_m[:, 2].max()
        np.testing.assert_allclose((low[up], high[up]), true, atol=1e-4)
        picture = getattr(meshes[0].visual.material, "image", None) or meshes[0].visual.material.baseColorTexture
        np.testing.assert_array_equal(np.asarray(picture)[..., :3], skin.picture)
    assert set(trimesh.load_scene(tmp_path / "room.glb").geometry) == {"real", "imagined"}
    assert cli.main(["export", str(folder), "--to", "mesh", "--out", str(tmp_path / "room.fbx")]) == 2


def drawn(model, camera: Camera):
    """What MuJoCo shows of a model to a camera."""
    render = pytest.importorskip("mirage_ros.scenes.render")
    with render.Renderer(types.SimpleNamespace(model=model, movers=[]), camera.size) as renderer:
        return renderer.render(Camera.stack([camera]))


def test_mujoco_sees_the_room_and_a_ball_rolls_on_its_floor(room_world, model_of_room, walked, tmp_path):
    mujoco = pytest.importorskip("mujoco")
    world, _ = room_world
    write_mjcf(tmp_path / "room", *model_of_room, world.state.free_space.cameras[0])
    spec = mujoco.MjSpec.from_file(str(tmp_path / "room" / "world.xml"))
    clip = drawn(spec.compile(), walked[0].camera)
    off = np.abs(clip.depth_m[0] / walked[0].depth_m - 1)
    seen = np.isfinite(off)
    own = shown_by(world, Camera.stack([walked[0].camera.resized(world.model.size)]))[0]
    picture = drawn(spec.compile(), own.camera)
    decibels = psnr_where(picture.rgb[0], own.rgb, np.isfinite(picture.depth_m[0]))
    print(f"depth off by {np.median(off[seen]):.2%} in {seen.mean():.0%} of the picture; {decibels:.1f} dB to the world's own")
    assert seen.mean() > 0.9 and np.median(off[seen]) < 0.03
    assert decibels > 22

    # Where the seed's camera sees the floor, 0.7 m above it.
    floor = next(geom for geom in spec.geoms if geom.name == "floor").pos[2]
    points = walked[0].camera.lift(walked[0].depth_m)[-20:].reshape(-1, 3)
    place = np.median(points[np.abs(points[:, 2]) < 0.05], 0)
    assert floor == pytest.approx(0, abs=0.05), "the room's floor is at 0"
    ball = spec.worldbody.add_body(name="ball", pos=[*place[:2], 0.2])
    ball.add_freejoint()
    ball.add_geom(type=mujoco.mjtGeom.mjGEOM_SPHERE, size=[0.05, 0, 0], mass=0.1)
    model = spec.compile()
    data = mujoco.MjData(model)
    mujoco.mj_step(model, data, 400)
    data.qvel[:2] = 0.2, 0.1
    start, heights = data.qpos[:2].copy(), []
    for _ in range(1000):
        mujoco.mj_step(model, data)
        heights.append(data.qpos[2])
    way = np.linalg.norm(data.qpos[:2] - start)
    print(f"the ball rolled {way:.2f} m, its middle from {min(heights):.3f} to {max(heights):.3f} m")
    assert 0.1 < way < 1 and 0.03 < min(heights) and max(heights) < 0.09
    assert not any(warning.number for warning in data.warning)


def test_colliders_are_simple_and_lie_on_the_surface(model_of_room, tmp_path):
    surface, _, collider = model_of_room
    for ending in ("obj", "stl"):
        write_collider(tmp_path / f"room.{ending}", collider)
        mesh = trimesh.load(tmp_path / f"room.{ending}", force="mesh", process=False)
        assert len(mesh.faces) == len(collider.faces) < 0.2 * len(surface.faces)
        np.testing.assert_allclose(mesh.triangles, collider.vertices_m[collider.faces], atol=1e-5)
    from scipy.spatial import cKDTree

    middles = collider.vertices_m[collider.faces].mean(1)
    assert np.median(cKDTree(surface.vertices_m).query(middles)[0]) < surface.voxel_m


def test_no_more_triangles_are_left_than_were_asked_for(monkeypatch):
    """Also where simplifying stops early: here, a floor in a thousand pieces that it leaves as it is."""
    row, column = np.indices((32, 32)).reshape(2, -1)
    corners = np.array([[0, 0], [0.06, 0], [0.06, 0.06], [0, 0.06]])
    points = np.stack([row, column], -1)[:, None] * 0.1 + corners
    points = np.concatenate([points, np.zeros((len(points), 4, 1))], -1).reshape(-1, 3).astype(np.float32)
    faces = (4 * np.arange(len(row))[:, None, None] + np.array([[0, 1, 2], [0, 2, 3]])).reshape(-1, 3)
    whole = Surface(points, faces, np.zeros((len(points), 3), np.uint8), np.ones(len(faces), bool), 0.03)
    assert 0 < len(simplified(whole, 400).faces) <= 400
    monkeypatch.setattr("fast_simplification.simplify", lambda points, faces, target_count: (points, faces))
    for most in (1500, 400, 50):
        few = simplified(whole, most)
        assert 0 < len(few.faces) <= most and few.faces.max() < len(few.vertices_m)
        low, high = few.vertices_m.min(0), few.vertices_m.max(0)
        print(most, len(few.faces), low, high)
        assert (low[:2] < 0.7).all() and (high[:2] > 2.5).all() and low[2] == high[2] == 0


def test_a_world_is_exported_for_nerfstudio(room_world, tmp_path):
    """Read back by our own reader, and its matrices by nerfstudio's own definition."""
    world, folder = room_world
    out = tmp_path / "nerf"
    assert cli.main(["export", str(folder), "--to", "nerfstudio", "--real", "--out", str(out)]) == 0
    views = world.state.free_space
    camera = views.cameras[views.real][0].resized(world.model.size)
    walk = open_walk(out)
    frame = walk.read(0)
    np.testing.assert_allclose(frame.camera.world_from_camera, camera.world_from_camera, atol=1e-12)
    np.testing.assert_allclose(frame.camera.intrinsics, camera.intrinsics, atol=1e-9)
    own = shown_by(world, Camera.stack([camera]))[0]
    np.testing.assert_array_equal(frame.rgb, own.rgb)
    np.testing.assert_allclose(frame.depth_m, own.depth_m, atol=6e-4)
    values = json.loads((out / "transforms.json").read_text())
    one, points = values["frames"][0], trimesh.load(out / "sparse_pc.ply").vertices
    x, y, z = (np.linalg.inv(one["transform_matrix"]) @ np.append(points, np.ones((len(points), 1)), 1).T)[:3]
    u, v = one["fl_x"] * x / -z + one["cx"], one["fl_y"] * y / z + one["cy"]  # y up, looking along -z, edges at integers
    pixels, depth = camera.project(np.asarray(points))
    np.testing.assert_allclose(np.stack([u, v], 1)[depth > 0], pixels[depth > 0] + 0.5, atol=1e-3)
    assert (out / one["mask_path"]).exists()
    assert cli.main(["export", str(folder), "--to", "nerfstudio", "--out", str(out)]) == 2, "nothing is written over"
    np.savetxt(tmp_path / "path.txt", np.stack([one.world_from_camera.ravel() for one in world.state.free_space.cameras]))
    assert cli.main(["export", str(folder), "--to", "nerfstudio", "--poses", str(tmp_path / "path.txt"), "--out", str(tmp_path / "path")]) == 0
    assert len(open_walk(tmp_path / "path")) == len(views.real)


def test_what_was_imagined_is_left_out_where_asked(room_world, tmp_path, capsys):
    world, folder = room_world
    real = int(world.memory.from_real.sum())
    assert 0 < real < world.memory.tokens
    for kind, words in (("ply", f"{real:,} points"), ("splat", f"{64 * real:,} Gaussians")):
        assert cli.main(["export", str(folder), "--to", kind, "--real", "--out", str(tmp_path / f"{kind}.ply")]) == 0
        assert words in capsys.readouterr().out


def test_splats_show_a_room_nearly_as_well_as_the_world_itself(room_world, walked, tmp_path, capsys):
    """Judged by the true pictures of the seed's place and of one beside it, where both show something."""
    world, folder = room_world
    assert cli.main(["export", str(folder), "--to", "splat", "--out", str(tmp_path / "room.ply")]) == 0
    read = gaussians(tmp_path / "room.ply")
    for where, frame in (("at the seed", walked[0]), ("beside it", walked[2])):
        camera = frame.camera.resized(world.model.size)
        own = shown_by(world, Camera.stack([camera]))[0]
        picture, through = splatted(read, camera)
        true = cv2.resize(frame.rgb, camera.size[::-1], interpolation=cv2.INTER_AREA)
        seen = own.observed & (through < 0.5)
        ours, theirs = psnr_where(own.rgb, true, seen), psnr_where(np.clip(picture, 0, 255).astype(np.uint8), true, seen)
        with capsys.disabled():
            print(f"{where}: splats {theirs:.1f} dB, the world itself {ours:.1f} dB, in {seen.mean():.0%} of the picture")
        assert seen.mean() > 0.9 and theirs > ours - 2
