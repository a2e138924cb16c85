"""A saved memory becomes a cloud that a PLY reader of its own right understands."""

import numpy as np
import pytest
import trimesh
from analytic import cameras, look, remember, room
from transforms3d.quaternions import quat2mat

from mirage_ros import cli
from mirage_ros.memory import LatentMemory, MemoryConfig


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
    grid = np.stack(np.meshgrid(*(np.arange(side) for side in camera.size[::-1])), -1)
    picture, through = np.zeros((*camera.size, 3)), np.ones(camera.size)
    for i in np.argsort(points[:, 2]):
        x, y, z = points[i]
        if z > 0.05:
            slope = np.array([[k[0, 0] / z, 0, -k[0, 0] * x / z**2], [0, k[1, 1] / z, -k[1, 1] * y / z**2]])
            slope = slope @ there[:3, :3]
            off = grid - np.array([k[0, 0] * x / z + k[0, 2], k[1, 1] * y / z + k[1, 2]])
            spread = np.linalg.inv(slope @ read["covariance"][i] @ slope.T + 0.3 * np.eye(2))
            alpha = read["opacity"][i] * np.exp(-0.5 * np.einsum("hwi,ij,hwj->hw", off, spread, off))
            picture += (through * alpha)[..., None] * read["rgb"][i]
            through = through * (1 - alpha)
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
