"""Real furniture: read at its stated size, standing on something, in nothing else; nothing without it."""

from __future__ import annotations

import zipfile

import numpy as np
import pytest

pytest.importorskip("mujoco")
pytest.importorskip("cv2")
trimesh = pytest.importorskip("trimesh")

from mirage_ros import cli
from mirage_ros.errors import MirageError
from mirage_ros.scenes import Renderer, camera_path, make_clip, make_scene
from mirage_ros.scenes.builder import Builder, MaterialSet
from mirage_ros.scenes.catalogue import Catalogue
from mirage_ros.scenes.homes import make_home
from mirage_ros.scenes.meshes import Piece, simplified
from mirage_ros.scenes.paths import CLEARANCE_M
from mirage_ros.scenes.placing import Layout
from mirage_ros.scenes.sweethome import make_catalogue
from mirage_ros.scenes.worlds import HOMES, KINDS
from mirage_ros.training.clips import ShardConfig, each_shard, make_shards

SEEDS = range(2_000_300, 2_000_303)
# What `make_scene` drew of each kind before there was furniture: materials, vertices, sum of their coordinates, solids.
BEFORE = {
    "room": (29, 8570, 41230.26, 66),
    "corridor": (28, 3356, 17885.18, 10),
    "hall": (38, 10006, 90188.42, 74),
    "warehouse": (31, 16537, 148897.50, 38),
    "doorway": (31, 6245, 38935.40, 47),
    "yard": (24, 6989, 81672.74, 35),
}
# name, category, (width, depth, height) in cm, boxes of its shape: centre and size in thousandths of the whole.
TOP, FOOT = ((0, 0, 475), (1000, 1000, 50)), ((0, 0, 225), (300, 300, 450))
BOARDS = [((0, 0, z), (1000, 1000, 30)) for z in (15, 340, 665, 985)]
SIDES = [((x, 0, 500), (30, 1000, 1000)) for x in (-485, 485)] + [((0, -490, 500), (1000, 20, 1000))]
BLOCK = [((0, 0, 500), (1000, 1000, 1000))]
THINGS = [
    ("Sofa", "Living room", (190, 85, 80), BLOCK),
    ("Coffee table", "Living room", (110, 60, 45), [TOP, FOOT]),
    ("Table", "Living room", (140, 80, 74), [TOP, FOOT]),
    ("Chair", "Living room", (45, 45, 90), [((0, 0, 250), (1000, 1000, 500)), ((0, -450, 750), (1000, 100, 500))]),
    ("Bookcase", "Living room", (90, 30, 180), BOARDS + SIDES),
    ("Bed", "Bedroom", (140, 205, 60), BLOCK),
    ("Bedside table", "Bedroom", (45, 40, 45), BLOCK),
    ("Lamp", "Lights", (25, 25, 40), BLOCK),
    ("Lower cabinet", "Kitchen", (60, 60, 88), BLOCK),
    ("Upper cabinet", "Kitchen", (60, 35, 70), BLOCK),
    ("Coffee cup", "Kitchen", (9, 9, 11), BLOCK),
    ("Desk", "Office", (140, 70, 74), [TOP, FOOT]),
    ("Book", "Miscellaneous", (20, 15, 4), BLOCK),
    ("Bath", "Bathroom", (170, 75, 60), BLOCK),
    ("Washbasin", "Bathroom", (60, 45, 86), BLOCK),
    ("Horse", "Characters", (60, 200, 200), BLOCK),
]


def write_library(folder) -> None:
    """A .sh3f file of boxes, y up as Sweet Home 3D has it, one of them with a ball of 20,000 faces."""
    entries = []
    with zipfile.ZipFile(folder / "Scopia.sh3f", "w") as archive:
        for number, (name, category, size_cm, boxes) in enumerate(THINGS, 1):
            parts = []
            for (x, y, z), (wide, deep, high) in boxes:
                box = trimesh.creation.box((wide, high, deep))
                parts.append(box.apply_translation((-x, z, y)))
            text = trimesh.util.concatenate(parts).export(file_type="obj", include_normals=False)
            archive.writestr(f"m/{number}.obj", f"mtllib {number}.mtl\nusemtl paint\n{text}")
            archive.writestr(f"m/{number}.mtl", f"newmtl paint\nKd {0.2 + 0.05 * number:.2f} 0.5 0.3\n")
            about = dict(id=f"x#{number}", name=name, category=category, model=f"/m/{number}.obj", creator="A. Maker")
            about |= dict(zip(("width", "depth", "height"), size_cm, strict=True))
            entries += [f"{key}#{number}={value}" for key, value in about.items()]
        archive.writestr("PluginFurnitureCatalog.properties", "\n".join(entries))


@pytest.fixture(scope="module")
def furniture(tmp_path_factory) -> Catalogue:
    folder = tmp_path_factory.mktemp("furniture")
    write_library(folder)
    make_catalogue(folder).save(folder / "furniture.npz")
    return Catalogue.load(folder / "furniture.npz")


def planned(seed: int, kind: str, furniture: Catalogue) -> Layout:
    """A home's layout, without the cost of compiling it."""
    rng = np.random.default_rng(seed)
    return make_home(kind, furniture)(Builder(), MaterialSet(rng, 16), rng)


def furnished(seed: int, kind: str, furniture: Catalogue):
    """A scene and its layout."""
    kept = {}
    scene = make_scene(seed, kind, moving=False, texture_px=32, furniture=furniture,
                       add=lambda builder, layout: kept.update(layout=layout))  # fmt: skip
    return scene, kept["layout"]


def test_models_have_their_stated_size_and_maker(furniture):
    assert [m.name for m in furniture.models] == [name for name, *_ in THINGS if name != "Horse"]
    for model, (_, _, size_cm, _) in zip(furniture.models, THINGS, strict=False):
        points = np.concatenate([part.vertices for part in model.parts])
        np.testing.assert_allclose(np.ptp(points, axis=0), np.array(size_cm) / 100, atol=1e-3)
        np.testing.assert_allclose(points.min(0)[2], 0, atol=1e-4)
        assert model.licence == "CC-BY-3.0" and model.author == "A. Maker"
    assert "A. Maker (CC-BY-3.0" in furniture.credits()


def test_the_front_is_at_plus_y_and_backs_are_at_minus_y(furniture):
    chair = furniture.models[furniture.of("chair")[0]]
    points = np.concatenate([part.vertices for part in chair.parts])
    assert points[points[:, 2] > 0.6][:, 1].max() < -0.15


def test_tops_are_where_things_can_stand_and_be_seen(furniture):
    table = furniture.models[furniture.of("table")[0]]
    np.testing.assert_allclose(table.tops[:, 4], [0.74], atol=1e-3)
    assert (table.tops[0, :4] * [-1, 1, -1, 1] > [0.65, 0.65, 0.35, 0.35]).all()
    shelves = furniture.models[furniture.of("bookcase")[0]]
    np.testing.assert_allclose(shelves.tops[:, 4], [0.054, 0.639, 1.224, 1.8], atol=0.01)
    assert (shelves.tops[:-1, 5] < 0.6).all()


def test_heavy_models_keep_their_shape_and_their_picture():
    pytest.importorskip("fast_simplification", reason="only making the cache needs fast-simplification")
    ball = trimesh.creation.icosphere(subdivisions=5)
    corners = ball.vertices[ball.faces]
    pieces = [Piece(corners, corners[..., :2], np.zeros((4, 4, 3), np.uint8), np.zeros(3))]
    (made,) = simplified(pieces, 600)
    assert 300 < len(made.corners) < 900
    np.testing.assert_allclose(np.linalg.norm(made.corners, axis=-1), 1, atol=0.03)
    assert np.abs(made.texcoords - made.corners[..., :2]).mean() < 0.03
    leaves = trimesh.creation.box((0.05, 0.001, 0.02))
    corners = np.concatenate([leaves.vertices[leaves.faces] + [[[x, y, 0.0]]] for x in range(20) for y in range(20)])
    assert 0 < sum(len(piece.corners) for piece in simplified([Piece(corners, None, None, np.zeros(3))], 900)) < 3000


@pytest.mark.parametrize("kind", HOMES)
def test_everything_stands_on_something_and_in_nothing_else(kind, furniture):
    count = 0
    for seed in SEEDS:
        layout = planned(seed, kind, furniture)
        placed = layout.placed
        count += len(placed)
        lows, highs = (np.array([getattr(p, name) for p in placed]).reshape(-1, 3) for name in ("low", "high"))
        assert (lows > np.array(layout.low) - 0.01).all() and (highs < np.array(layout.high) + 0.01).all()
        for number, one in enumerate(placed):
            model = furniture.models[one.index]
            if one.on is None:
                assert one.z == 0 or model.placement in ("wall", "ceiling")
            else:
                levels = one.on.z + furniture.models[one.on.index].tops[:, 4]
                assert np.abs(levels - one.z).min() < 0.01
                assert (one.low[:2] > one.on.low[:2] - 0.05).all() and (one.high[:2] < one.on.high[:2] + 0.05).all()
            shared = np.minimum(highs, one.high) - np.maximum(lows, one.low)
            for other in np.flatnonzero((shared > 0.01).all(1)):
                assert other == number or placed[other].on is one or one.on is placed[other]
    assert count > 2 * len(SEEDS)


@pytest.mark.parametrize("kind", ["living", "kitchen"])
def test_paths_keep_clear_of_furniture_and_pictures_show_it(kind, furniture):
    scene, layout = furnished(SEEDS[0], kind, furniture)
    cameras = camera_path(scene, 7, 6, size=(48, 64), period_s=0.5)
    positions = cameras.position_world
    for one in layout.placed:
        away = np.maximum(np.maximum(one.low - positions, positions - one.high), 0)
        assert np.linalg.norm(away, axis=1).min() > CLEARANCE_M - 0.05
    with Renderer(scene, (48, 64)) as renderer:
        clip = renderer.render(cameras)
    assert 40 < clip.rgb.mean() < 220 and clip.rgb.std() > 10
    assert (clip.depth_m > CLEARANCE_M / 2).all()


def test_homes_repeat_by_seed_and_vary_with_it(furniture):
    first, again, other = (furnished(seed, "office", furniture)[0].model for seed in (5, 5, 6))
    np.testing.assert_array_equal(first.mesh_vert, again.mesh_vert)
    np.testing.assert_array_equal(first.tex_data, again.tex_data)
    assert first.mesh_vert.shape != other.mesh_vert.shape


@pytest.mark.parametrize("kind", KINDS)
def test_worlds_of_before_are_what_they_were(kind):
    kept = {}
    make_scene(2_000_100, kind, moving=False, texture_px=64, add=lambda b, _: kept.update(builder=b))
    builder = kept["builder"]
    points = np.concatenate([v for mesh in builder.meshes.values() for v in mesh.vertices])
    drawn = (len(builder.meshes), len(points), round(float(np.abs(points).sum()), 2), len(builder.solids))
    assert drawn == pytest.approx(BEFORE[kind], abs=0.02)


def test_some_worlds_are_as_if_there_were_no_furniture(furniture):
    kinds = []
    for seed in range(6):
        scene = make_scene(seed, moving=False, texture_px=32, furniture=furniture)
        kinds.append(scene.kind)
        if scene.kind in KINDS:
            bare = make_scene(seed, moving=False, texture_px=32)
            assert bare.kind == scene.kind
            np.testing.assert_array_equal(bare.model.mesh_vert, scene.model.mesh_vert)
            np.testing.assert_array_equal(bare.model.tex_data, scene.model.tex_data)
    assert 1 <= sum(kind in HOMES for kind in kinds) <= 5


def test_the_command_writes_cache_and_credits(tmp_path, capsys):
    write_library(tmp_path)
    out = tmp_path / "sub" / "cache.npz"
    assert cli.main(["data", "furniture", str(tmp_path), "--out", str(out)]) == 0
    assert f"{len(THINGS) - 1} CC-BY-3.0" in capsys.readouterr().out
    assert "Sofa" in out.with_suffix(".credits.md").read_text()


def test_what_is_missing_is_told(tmp_path, furniture):
    with pytest.raises(MirageError, match="needs a furniture cache"):
        make_scene(3, "kitchen")
    with pytest.raises(MirageError, match="sweethome3d-furniture"):
        make_catalogue(tmp_path)
    with pytest.raises(MirageError, match="cannot be read"):
        Catalogue.load(tmp_path / "none.npz")


def test_clips_of_a_recipe_are_drawn_with_the_cache_it_names(furniture, tmp_path):
    furniture.save(tmp_path / "furniture.npz")
    named = ShardConfig((0, 4), 2, (48, 64), workers=1, furniture=str(tmp_path / "furniture.npz"))
    make_shards(tmp_path / "homes", named)
    for seed, clip in each_shard(tmp_path / "homes", named.seeds):
        drawn = make_clip(seed, 2, (48, 64), period_s=named.period_s, furniture=furniture)
        assert np.array_equal(clip.rgb, drawn.rgb)
    assert {make_scene(seed, furniture=furniture).kind for seed in range(4)} & set(HOMES)


def test_a_recipe_whose_cache_is_missing_renders_nothing(tmp_path):
    with pytest.raises(MirageError, match="mirage data furniture"):
        make_shards(tmp_path / "clips", ShardConfig((0, 1), furniture=str(tmp_path / "none.npz")))
    assert not any((tmp_path / "clips").iterdir())
