"""URDF and MJCF as entities: what is drawn, how joints move it, and what is refused."""

from __future__ import annotations

import re
import struct

import numpy as np
import pytest

from mirage_ros.data.meshes import MOST_BYTES, Spawnables, description_of
from mirage_ros.data.robot_models import read_model
from mirage_ros.data.spawning import EntityChanges
from mirage_ros.protocol import Move, Spawn
from mirage_ros.ros import Carrier
from mirage_ros.ros.worker.robots import Robots
from mirage_ros.world.entities import MOST_TRIANGLES, Entities, EntityError

pytest.importorskip("yourdfpy", reason="pip install 'mirage_ros[entities]'")
ARM = """<robot name="arm">
  <material name="red"><color rgba="1 0 0 1"/></material>
  <link name="base"><visual><geometry><box size="0.4 0.2 0.1"/></geometry><material name="red"/></visual></link>
  <link name="upper"><visual><origin xyz="0.5 0 0"/><geometry><cylinder radius="0.05" length="0.2"/></geometry></visual></link>
  <link name="slider"><visual><geometry><sphere radius="0.1"/></geometry></visual></link>
  <link name="shadow"><visual><geometry><mesh filename="MESH" scale="2 2 2"/></geometry></visual></link>
  <joint name="turn" type="revolute"><parent link="base"/><child link="upper"/><origin xyz="0 0 1"/><axis xyz="0 0 1"/>
    <limit lower="-3" upper="3" effort="1" velocity="1"/></joint>
  <joint name="slide" type="prismatic"><parent link="upper"/><child link="slider"/><origin xyz="1 0 0"/><axis xyz="1 0 0"/>
    <limit lower="0" upper="1" effort="1" velocity="1"/></joint>
  <joint name="follows" type="revolute"><parent link="base"/><child link="shadow"/><origin xyz="0 -1 0"/><axis xyz="0 0 1"/>
    <mimic joint="turn" multiplier="2"/><limit lower="-6" upper="6" effort="1" velocity="1"/></joint>
</robot>"""
MJCF = """<mujoco model="cart"><compiler meshdir="meshes"/>
  <asset><mesh name="wedge" file="wedge.stl"/></asset>
  <worldbody><geom type="plane" size="9 9 1"/>
    <body name="cart" pos="0 0 0.5"><geom type="box" size="0.2 0.1 0.05" rgba="0 0 1 1"/><geom type="sphere" size="3" group="3"/>
      <body pos="0 0 0.5"><joint name="mast" type="hinge" axis="0 1 0"/><geom type="capsule" size="0.05" fromto="0 0 0 0 0 1"/></body>
      <body pos="1 0 0"><joint name="rail" type="slide" axis="1 0 0"/><geom type="mesh" mesh="wedge"/></body>
    </body></worldbody></mujoco>"""


def stl(scale: float = 1.0) -> bytes:
    """A tetrahedron."""
    corners = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]], np.float32) * scale
    faces = [(0, 2, 1), (0, 1, 3), (0, 3, 2), (1, 2, 3)]
    body = b"".join(struct.pack("<12fH", 0, 0, 0, *corners[list(face)].ravel(), 0) for face in faces)
    return bytes(80) + struct.pack("<I", len(faces)) + body


@pytest.fixture
def models(tmp_path):
    """A folder of models, and what may be read of it."""
    folder = tmp_path / "models"
    (folder / "meshes").mkdir(parents=True)
    (folder / "meshes/wedge.stl").write_bytes(stl(0.2))
    (folder / "arm.urdf").write_text(ARM.replace("MESH", "meshes/wedge.stl"))
    (folder / "cart.xml").write_text(MJCF)
    (tmp_path / "outside.stl").write_bytes(stl())
    return folder


def near(mesh, point, reach_m=0.12) -> int:
    return int((np.linalg.norm(mesh.vertices_m - point, axis=1) < reach_m).sum())


def test_urdf_stands_as_its_joints_say(models):
    model = read_model(str(models / "arm.urdf"), Spawnables(models))
    assert model.name == "arm" and set(model.joints) == {"turn", "slide"}
    assert near(model.mesh, [1, 0, 1]) > 100 and near(model.mesh, [0.5, 0, 1], 0.2) >= 60, "ball and rod"
    assert near(model.mesh, [0.4, -1, 0], 1e-6) == 1, "a corner of the mesh, twice as large"
    assert (model.mesh.colours[:12] == [255, 0, 0]).all()
    turned = model.posed({"turn": np.pi / 2, "slide": 0.5})
    assert near(turned, [0, 1.5, 1]) > 100 and near(turned, [1, 0, 1]) == 0
    assert near(turned, [-0.4, -1, 0], 1e-6) == 1, "follows twice as far"
    np.testing.assert_allclose(np.linalg.norm(turned.normals, axis=-1), 1, atol=1e-5)


def test_mjcf_stands_as_its_joints_say(models):
    pytest.importorskip("mujoco")
    model = read_model((models / "cart.xml").as_uri(), Spawnables(models))
    assert model.name == "cart" and set(model.joints) == {"mast", "rail"}
    low, high = model.mesh.bounds_m
    assert high[2] == pytest.approx(2.05, abs=0.01) and low[2] > 0.4, "neither the floor nor what only collides"
    assert near(model.mesh, [1, 0, 0.5], 1e-5) == 1 and near(model.mesh, [1.2, 0, 0.5], 1e-5) == 1
    moved = model.posed({"mast": np.pi / 2, "rail": 0.3})
    assert moved.bounds_m[1, 0] == pytest.approx(1.5, abs=0.01) and near(moved, [1.05, 0, 1.0]) > 20
    assert near(moved, [1.3, 0, 0.5], 1e-5) == 1


def test_text_is_read_as_well(models):
    text = ARM.replace("MESH", (models / "meshes/wedge.stl").as_uri())
    assert read_model("", Spawnables(models), text).name == "arm"
    with pytest.raises(EntityError, match="lies beside nowhere"):
        read_model("", Spawnables(models), ARM.replace("MESH", "wedge.stl"))


BOMB = '<?xml version="1.0"?><!DOCTYPE r [<!ENTITY a "aaaa">]><robot name="r"><link name="&a;"/></robot>'
LINK = '<robot name="r"><link name="a"><visual>{}</visual></link>{}</robot>'
BOX = '<geometry><box size="{}"/></geometry>'
HANGS = '<joint name="{}" type="fixed"><parent link="{}"/><child link="{}"/></joint>'


@pytest.mark.parametrize(
    ("kind", "text", "words", "reason"),
    [
        ("urdf", "", "is empty", "parse"),
        ("urdf", "<robot", "no whole XML", "parse"),
        ("urdf", BOMB, "document type", "parse"),
        ("urdf", "<sdf/>", "neither URDF", "unsupported_format"),
        ("urdf", '<robot name="r"><link name="a"/></robot>', "draws nothing", "parse"),
        ("urdf", ARM.replace("MESH", "nowhere.stl"), "cannot be read", "missing_assets"),
        ("urdf", ARM.replace("MESH", "package://no_such_package/a.stl"), "no ROS package", "missing_assets"),
        ("urdf", ARM.replace("MESH", "../outside.stl"), "outside of the folders", "not_allowed"),
        ("urdf", ARM.replace("MESH", "file:///etc/passwd"), "outside of the folders", "not_allowed"),
        ("urdf", ARM.replace("MESH", "meshes/huge.stl"), "at most 200,000 are drawn", "unsupported_assets"),
        ("urdf", ARM.replace("MESH", "meshes/large.stl"), "MiB", "unsupported_assets"),
        ("urdf", ARM.replace("MESH", "meshes/nan.stl"), "NaN", "parse"),
        ("urdf", LINK.format(BOX.format("nan 1 1"), ""), "NaN|cannot be read", "parse"),
        ("urdf", LINK.format(BOX.format("a b c"), ""), "cannot be read", "parse"),
        ("urdf", LINK.format('<origin xyz="inf 0 0"/>' + BOX.format("1 1 1"), ""), "NaN|from its origin", "parse"),
        ("urdf", LINK.format(BOX.format("1 1 1"), HANGS.format("j", "a", "a")), "hang on", "parse"),
        ("urdf", LINK.format(BOX.format("1 1 1"), HANGS.format("j", "b", "a")), "hang on", "parse"),
        ("xml", MJCF.replace("wedge.stl", "nowhere.stl"), "cannot be read", "missing_assets"),
        ("xml", MJCF.replace("wedge.stl", "../../outside.stl"), "outside of the folders", "not_allowed"),
        ("xml", MJCF.replace("<asset>", '<include file="/etc/passwd"/><asset>'), "outside of the folders", "not_allowed"),
        ("xml", MJCF.replace("<asset>", '<asset><model name="m" file="cart.xml"/>'), "a model of the file", "unsupported_assets"),
        ("xml", MJCF.replace('size="0.2 0.1 0.05"', 'size="-1"'), "cannot be read", "parse"),
        ("xml", "<mujoco><worldbody/></mujoco>", "draws nothing", "parse"),
    ],
)  # fmt: skip
def test_what_is_bad_is_refused_in_a_sentence_and_nothing_is_spawned(models, kind, text, words, reason):
    if "huge" in text:
        (models / "meshes/huge.stl").write_bytes(bytes(80) + struct.pack("<I", 250_000) + 250_000 * stl()[84:134])
    if "large" in text:
        (models / "meshes/large.stl").write_bytes(bytes(MOST_BYTES + 1))
    if "nan" in text:
        (models / "meshes/nan.stl").write_bytes(stl(np.nan))
    path = models / f"bad.{kind}"
    path.write_text(text)
    entities, outcomes = EntityChanges(str(models))(Entities(), 0, (Spawn("bad", str(path), np.eye(4)),))
    (error,) = outcomes
    assert isinstance(error, EntityError) and len(entities) == 0
    assert re.search(words, str(error)), error
    assert "\n" not in str(error) and str(error).endswith(".") and (not reason or error.kind == reason), (error.kind, error)


def test_many_triangles_of_one_mesh_are_counted(models):
    visuals = "".join(f'<visual><origin xyz="{i} 0 0"/><geometry><sphere radius="0.1"/></geometry></visual>' for i in range(999))
    with pytest.raises(EntityError, match=f"at most {MOST_TRIANGLES:,}"):
        read_model("", Spawnables(models), f'<robot name="r"><link name="a">{visuals}</link></robot>')


def test_joints_of_an_entity_are_moved_one_by_one(models):
    changes = EntityChanges(str(models))
    entities, outcomes = changes(Entities(), 0, (Spawn("arm", str(models / "arm.urdf"), np.eye(4)), Spawn("box", "shape://box", np.eye(4))))
    assert outcomes == ["arm", "box"]
    entities, outcomes = changes(entities, 0, (Move("arm", joints=(("turn", np.pi / 2),)), Move("arm", joints=(("slide", 0.5),))))
    assert outcomes == ["arm", "arm"] and near(entities.known("arm").mesh, [0, 1.5, 1]) > 100
    np.testing.assert_allclose(entities.known("arm").state.bounds_m, entities.known("arm").mesh.bounds_m)
    before = entities
    bad = (("nowhere", 1.0),), (("turn", np.nan),)
    entities, outcomes = changes(entities, 0, (*(Move("arm", joints=joints) for joints in bad), Move("box", joints=(("turn", 1.0),))))
    assert [type(outcome) for outcome in outcomes] == [EntityError] * 3 and entities is before
    assert "turn, slide" in str(outcomes[0]) or "slide, turn" in str(outcomes[0])


def test_a_robot_s_own_joints_move_and_its_description_is_its_file(models):
    uri, changes = str(models / "arm.urdf"), EntityChanges(str(models))
    robots = Robots([Carrier((0,), "ada", uri), Carrier((1,))], changes.mesh)
    changes.robots = robots.names
    way = np.stack([np.eye(4)] * 2)
    entities = robots.moved(Entities(), 0, np.array([1, 2]), [way])
    entities, outcomes = changes(entities, 2, (Move("ada", joints=(("turn", np.pi / 2),)), Move("ada", pose=np.eye(4))))
    assert outcomes[0] == "ada" and "goes where TF says" in str(outcomes[1])
    entities = robots.moved(entities, 2, np.array([3, 4]), [way])
    assert near(entities.known("ada").mesh, [0, 1, 1]) > 100 and robots.hidden(0) == ("ada",) and robots.hidden(1) == ()
    assert description_of(uri, "ada", Spawnables(models)) == (models / "arm.urdf").read_text()
