"""A saved memory becomes a cloud that a PLY reader of its own right understands."""

import numpy as np
import pytest
import trimesh
from analytic import cameras, look, remember, room

from mirage_ros import cli
from mirage_ros.memory.memory import LatentMemory, MemoryConfig


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
