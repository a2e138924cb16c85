"""Models that entities are spawned from: files of all kinds, shapes, and what is refused in a sentence."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
import trimesh
from bodies import at, changed, engine

from mirage_ros.data.meshes import MESHES, SHAPES, Spawnables, load, shape
from mirage_ros.errors import MirageError
from mirage_ros.protocol import Spawn
from mirage_ros.world.entities import MOST_TRIANGLES, EntityError, Mesh, Motion


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    """A folder of good and of hostile models."""
    folder = tmp_path_factory.mktemp("models")
    box = trimesh.creation.box(extents=[1, 2, 3])
    box.visual.face_colors = [200, 10, 10, 255]
    for kind in ("obj", "stl", "glb", "ply", "dae"):
        data = box.export(file_type=kind)
        (folder / f"box.{kind}").write_bytes(data if isinstance(data, bytes) else data.encode())
    triangle = "v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 3\n"
    texts = {
        "empty.obj": "",
        "points.obj": "v 0 0 0\n",
        "flat.obj": "v 0 0 0\nv 1 0 0\nv 2 0 0\nf 1 2 3\n",
        "nan.obj": triangle.replace("v 1", "v nan"),
        "huge.obj": triangle.replace("v 1", "v 1e9"),
        "outside.obj": "mtllib ../../../../etc/passwd\n" + triangle,
        "index.obj": triangle.replace("f 1", "f 9"),
        "bomb.dae": '<!DOCTYPE a [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]><COLLADA>&b;</COLLADA>',
        "torn.dae": "<COLLADA><asset>",
        "buffer.gltf": '{"asset": {"version": "2.0"}, "buffers": [{"uri": "../../../etc/passwd", "byteLength": 9}]}',
        "what.xyz": "0 0 0",
    }
    for name, text in texts.items():
        (folder / name).write_text(text)
    (folder / "link.obj").symlink_to("/etc/passwd")
    (folder / "torn.glb").write_bytes(b"glTF" + bytes(40))
    with open(folder / "huge.stl", "wb") as file:  # 10^7 triangles
        file.truncate(84 + 50 * 10**7)
    many = MOST_TRIANGLES + 1
    (folder / "many.stl").write_bytes(bytes(80) + many.to_bytes(4, "little") + bytes(50 * many))
    return folder


def test_mesh_files_of_all_kinds_say_the_same(models):
    for kind in ("obj", "stl", "glb", "ply", "dae"):
        name, mesh = load((models / f"box.{kind}").as_uri(), Spawnables(models))
        # glTF and COLLADA files have y up, where they say nothing else.
        half = [0.5, 1.5, 1.0] if kind in ("glb", "dae") else [0.5, 1.0, 1.5]
        np.testing.assert_allclose(mesh.bounds_m, [np.negative(half), half], atol=1e-6)
        assert len(mesh.faces) == 12 and mesh.closed and mesh.colours[0].tolist() == ([200, 10, 10], [190] * 3)[kind == "stl"]


def test_shapes_and_shipped_models_are_closed_and_have_their_sizes():
    for kind in SHAPES:
        mesh = shape(f"shape://{kind}?color=0a141e")
        assert mesh.closed == (kind != "plane") and mesh.colours[-1].tolist() == [10, 20, 30]
    sizes = {"chair": 0.92, "carton": 0.4, "ball": 0.24, "mannequin": 1.75, "robot": 0.355}
    files = list(Spawnables().files(MESHES))
    assert {file.stem for file in files} == set(sizes) and sum(file.stat().st_size for file in files) < 2e6
    for name, height in sizes.items():
        _, mesh = load(f"package://mirage_ros/config/spawnables/{name}.glb", Spawnables())
        assert abs(mesh.bounds_m[1, 2] - height) < 2e-3 and abs(mesh.bounds_m[0, 2]) < 2e-3 and mesh.closed


@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [
        ("missing.obj", "missing_assets", "cannot be read"),
        ("empty.obj", "parse", "empty"),
        ("points.obj", "parse", "no triangle"),
        ("flat.obj", "parse", "with an area"),
        ("nan.obj", "parse", "NaN"),
        ("huge.obj", "parse", "scale it"),
        ("outside.obj", "not_allowed", "outside"),
        ("index.obj", "parse", "mend"),
        ("bomb.dae", "parse", "document type"),
        ("torn.dae", "parse", "no whole XML"),
        ("buffer.gltf", "not_allowed", "outside"),
        ("what.xyz", "unsupported_format", "give one of"),
        ("link.obj", "not_allowed", "outside"),
        ("torn.glb", "parse", "mend"),
        ("huge.stl", "unsupported_assets", "477 MiB"),
        ("many.stl", "unsupported_assets", "200,001"),
        ("../../etc/passwd", "not_allowed", "outside"),
        ("file:///etc/passwd", "not_allowed", "spawnables|put it in"),
        ("package://nowhere/a.obj", "missing_assets", "no ROS package"),
        ("package://../../etc/passwd", "missing_assets", "no ROS package"),
        ("package://mirage_ros/../../etc/passwd", "not_allowed", "outside"),
        ("http://example.org/a.obj", "parse", "scheme"),
        ("shape://cone", "parse", "there are"),
        ("file://[", "parse", "names no model"),
        ("package://mirage_ros/%00.obj", "parse", "names no model"),
        ("shape://box?size=1,2", "parse", "3 numbers"),
        ("shape://box?size=nan,1,1", "parse", "above 0"),
        ("shape://box?color=red", "parse", "hexadecimal"),
        ("", "no_resource", "uri"),
    ],
)
def test_bad_models_are_refused_in_a_sentence_and_nothing_is_spawned(models, name, kind, words):
    found = engine(spawnables=str(models))
    uri = name if "://" in name or not name else f"file://{models}/{name}"
    start_s = time.perf_counter()
    (outcome,) = changed(found, Spawn("bad", uri, at(2)))
    assert isinstance(outcome, EntityError) and outcome.kind == kind
    assert any(word in str(outcome) for word in words.split("|")) and len(str(outcome)) < 400
    assert not len(found._world.entities) and not found._change._kept
    assert time.perf_counter() - start_s < 10


def test_meshes_beyond_all_bounds_are_refused():
    with pytest.raises(EntityError, match="at most 200,000"):
        Mesh.of(np.zeros((3, 3)), np.zeros((10**7, 3), np.int8), [0, 0, 0])
    with pytest.raises(MirageError, match="finite numbers"):
        Motion(np.array([np.inf, 0, 0]), np.zeros(3))
