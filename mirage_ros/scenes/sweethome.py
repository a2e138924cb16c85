"""Makes the cache of `catalogue.py` from Sweet Home 3D's furniture and miniworld's pictures.

    mirage data furniture /usr/share/sweethome3d/furniture --out data/furniture.npz --coverings miniworld.whl

Reads the catalogues inside the .sh3f files (zip), loads OBJ with MTL by trimesh, scales each model to its stated size,
simplifies heavy ones by fast-simplification (without it those over `MOST_FACES` are left out), and keeps what scenes
have a role for. Only models under CC0 and CC-BY are taken.
"""

from __future__ import annotations

import re
import tempfile
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from mirage_ros.errors import MirageError
from mirage_ros.scenes.catalogue import Catalogue, Model, Part, Surface
from mirage_ros.scenes.meshes import (
    Piece,
    TooIntricate,
    areas_of,
    can_simplify,
    find_tops,
    fit,
    simplified,
    smooth_normals,
)

MOST_FACES = 20_000
HARDEST_FACES = 200_000
SOURCE = "Sweet Home 3D, Debian sweethome3d-furniture"
LICENCES = {
    "BlendSwap-CC-0": "CC0",
    "BlendSwap-CC-BY": "CC-BY-3.0",
    "KatorLegaz": "CC-BY-3.0-US",
    "Reallusion": "CC-BY-3.0-US",
    "Scopia": "CC-BY-3.0",
}
# The first role whose pattern fits "category/name/id", in lower case, is taken; "" leaves the model out.
# People, animals and vehicles stay out: what looks as if it moved must not stand still.
ROLES = tuple(
    (role, re.compile(pattern))
    for role, pattern in (
        ("", r"^(characters|vehicles|staircases|exterior|doors)|fence|railing|container|childhut|deer"),
        ("", r"horse|guitar|wheelchair|chimney|furnace|billet|trouser|dress/|jacket|skirt|socket|short/|suit/"),
        ("", r"clothes hanger|hanging clothes|washbasin/bathroom[34]|urinal|towel/towel|umbrella|shovel|cone/"),
        ("", r"ring/|watch|emergency|number ?lock|wall hanger|switch|plug|lavatory/|(upper|lower) ?corner|coathanger"),
        ("", r"plug|dimmer|tatami|sleeping|mattress|hospital|baby|crib|shopping|hot dog|intercom"),
        ("", r"mower|stroller|wood logs|glass door|shower door|curtain|blind|smoke|cctv|surveillance"),
        ("", r"kitchen tool|/tool/|shower head|island ext|thermometer|doll house|trunck/|futon/"),
        ("", r"saw/|child(ren)? (chair|table)|ryokan|treadmill|abdominal|fitness|flipper|pallet/|workbench"),
        ("rug", r"rug/|carpet|doormat"),
        ("bathmat", r"bathmat"),
        ("toilet", r"toilets? unit"),
        ("bidet", r"bidet|potty"),
        ("bath", r"/bath/|bathtub|island bath"),
        ("shower", r"shower stall"),
        ("washbasin", r"washbasin/|vanity"),
        ("towel rack", r"towel rack|radiatorandtowels|bathroom/radiator"),
        ("clothes basket", r"clothes basket|clothes horse|bathroom/basin"),
        ("bed", r"opened convertible|bed/|bed frame|iron bed"),
        ("sofa", r"sofa|couch"),
        ("armchair", r"living room/.*armchair|office/armchair/armchair2|ottoman|puff|living room/chair/leaf"),
        ("office chair", r"office/(arm)?chair|class seat"),
        ("stool", r"stool|bar chair|piano bench|folding ?chair/foldingchair"),
        ("chair", r"chair"),
        ("bedside table", r"bedside"),
        ("desk", r"office/.*(desk|table)|dressing"),
        ("tv stand", r"tv stand|television cabinet|box_room|contemporary"),
        ("tv", r"living room/tv(/| 16)|led_tv"),
        ("wall tv", r"wall flat tv"),
        ("coffee table", r"coffee table|living_room_table"),
        ("bench", r"living room/bench"),
        ("table", r"living room/.*table"),
        ("fireplace", r"fireplace"),
        ("piano", r"piano/|keyboard"),
        ("wardrobe", r"wardrobe"),
        ("bookcase", r"bookcase|shelves/(shelves|vertical|kids|utility)|office_box|locker"),
        ("cabinet", r"cupboard|dresser|chest/|changing|office/bookcase|safe/"),
        ("filing cabinet", r"filing|office/box"),
        ("white board", r"white ?board"),
        ("water cooler", r"water cooler"),
        ("dustbin", r"dustbin|trash|recycling"),
        ("kitchen sink", r"kitchen/sink"),
        ("stove", r"large stove|kitchen/(double )?oven|propane"),
        ("hood", r"hood"),
        ("fridge", r"fridge|refrigerator|high cabinet"),
        ("washing machine", r"washing machine|dryer"),
        ("upper cabinet", r"upper|kitchen/glass door cabinet"),
        ("lower cabinet", r"(lower|drawers) ?cabinet|kitchen/island"),
        ("freezer", r"freezer"),
        ("radiator", r"radiator"),
        ("wall clock", r"cuckoo|dart"),
        ("wall unit", r"air conditioning - internal|water heater/"),
        ("ceiling lamp", r"hanging|pendant|chandelier|ceiling|fluorescent light|lights/lamp/lamp2|track"),
        ("wall lamp", r"wall (lamp|light)"),
        ("", r"porch|spotlight|lamppost|street|park light|outdoor|fluorescent"),
        ("lamp", r"^lights/(lamp|little|desk|candle|pedestal|japanese)"),
        ("plant", r"plant|ficus|yucca|bamboo|cactus|bonsai|orchid|tulip|lily|spathi|flowers|christmas"),
        ("vase", r"vase|pottery|old jar"),
        ("screen", r"imac|laptop|ibook"),
        ("screen wall", r"japanese_style_screen"),
        ("big thing", r"^miscellaneous/.*box/|clothes rack|crate|barrel|suitcase|step ladder|backpack|aquarium"),
        ("big thing", r"pool|table tennis/|football table"),
        ("big thing", r"indoor bike|punching|speaker|broom|extinguisher"),
        ("cooktop", r"cooktop|stove/stove|induction"),
        ("kitchen thing", r"^kitchen"),
        ("bath thing", r"^bathroom"),
        ("desk thing", r"^office|camera|/(mobile )?phone|wireless|book/|printer"),
        ("toy", r"^bedroom/(rocking|biplane|puzzle|teddy|rubik|toy|chess|card|xylo|doll|wood toy|car model)|ball/"),
        ("bedroom thing", r"^bedroom"),
        ("thing", r"^(living room|miscellaneous|lights)"),
    )
)  # fmt: skip
ON_TOPS = ("tv", "lamp", "vase", "screen", "cooktop", "kitchen thing", "bath thing", "desk thing", "toy",
           "bedroom thing", "thing")  # fmt: skip
ON_WALLS = ("radiator", "wall tv", "hood", "upper cabinet", "towel rack", "wall clock", "wall unit", "wall lamp")
# miniworld's textures by what scenes cover with them; the rest shows lava, slime, logos and other games' doors.
COVERINGS = {
    "wall": "brick_wall_1 cinder_blocks_1 concrete_2 drywall_1 stucco_1",
    "floor": "wood_1 wood_2 floor_tiles_bw_1 floor_tiles_white concrete_tiles_1 marble_1 concrete_1",
    "ceiling": "ceiling_tiles_1 ceiling_tile_noborder_1 drywall_1",
    "tiles": "floor_tiles_white",
}


def role_of(category: str, name: str, identity: str) -> str:
    """What scenes use a model as; "" for nothing."""
    about = f"{category}/{name}/{identity}".lower()
    return next((role for role, pattern in ROLES if pattern.search(about)), "")


def placement_of(role: str, size_m: np.ndarray) -> str:
    if role == "ceiling lamp":
        return "ceiling"
    if role in ON_WALLS:
        return "wall"
    small = max(size_m) < (0.9 if role in ("tv", "lamp", "screen") else 0.65)
    return "top" if small and role in (*ON_TOPS, "plant", "big thing") else "floor"


def face_target(size_m: np.ndarray) -> int:
    """How many triangles are worth it: a cup covers ten pixels, a sofa half of the picture."""
    return int(np.interp(np.linalg.norm(size_m), [0.15, 0.5, 1.2, 2.2], [120, 330, 800, 1500]))


def make_catalogue(folder: Path, coverings: Path | None = None, progress=None) -> Catalogue:
    """All models of the .sh3f files of a folder that scenes have a role for.

    Args:
        coverings: miniworld's wheel.
        progress: called with a sentence now and then.
    Raises:
        MirageError: no .sh3f file of a known licence is there.
    """
    files = [path for path in sorted(Path(folder).glob("*.sh3f")) if path.stem in LICENCES]
    if not files:
        raise MirageError(
            f"{folder} holds no .sh3f file of Sweet Home 3D; install Debian's sweethome3d-furniture "
            "and give /usr/share/sweethome3d/furniture."
        )
    models, why_not = [], Counter()
    for path in files:
        with zipfile.ZipFile(path) as archive, tempfile.TemporaryDirectory() as scratch:
            archive.extractall(scratch)
            for entry in read_entries(archive):
                try:
                    models.append(convert(entry, Path(scratch), path.stem))
                except _LeftOut as reason:
                    why_not[str(reason)] += 1
                except TooIntricate:
                    why_not["too intricate"] += 1
        if progress:
            counted = ", ".join(f"{count} {reason}" for reason, count in why_not.items())
            progress(f"{path.name}: {len(models)} models so far; left out: {counted}")
    return Catalogue(tuple(models), tuple(read_coverings(coverings)) if coverings else ())


class _LeftOut(Exception):
    """Why a model is not taken."""


def read_entries(archive: zipfile.ZipFile) -> list[dict[str, str]]:
    """The catalogue's entries, their keys without numbers."""
    text = archive.read("PluginFurnitureCatalog.properties").decode("latin-1")
    entries: dict[int, dict[str, str]] = {}
    for key, number, value in re.findall(r"^(\w+)#(\d+)\s*=(.*)$", text, re.M):
        entries.setdefault(int(number), {})[key] = value.strip()
    return list(entries.values())


def convert(entry: dict[str, str], folder: Path, library: str) -> Model:
    """One model at its stated size; raises `_LeftOut` with the reason why not."""
    category, name = entry["category"], entry["name"].encode().decode("unicode_escape")
    role = role_of(category, name, entry["id"].split("#")[-1])
    if not role:
        raise _LeftOut("without a role")
    if role in ON_TOPS and float(entry.get("elevation", 0)) > 0:
        raise _LeftOut("hung where nothing else is")
    size_m = np.array([float(entry[key]) for key in ("width", "depth", "height")]) / 100
    turn = np.array([float(v) for v in entry.get("modelRotation", "1 0 0 0 1 0 0 0 1").split()])
    pieces = _load_pieces(folder / entry["model"].lstrip("/"), turn.reshape(3, 3))
    fit(pieces, size_m)
    pieces = simplified(pieces, face_target(size_m))
    parts = _parts(pieces, size_m, glows=category == "Lights")
    corners = np.concatenate([p.vertices[p.faces] for p in parts])
    author = entry.get("creator") or library
    return Model(
        name=name,
        category=category,
        role=role,
        placement=placement_of(role, size_m),
        size_m=size_m.astype(np.float32),
        level_m=float(entry.get("elevation", 0)) / 100,
        tops=find_tops(corners),
        licence=LICENCES[library],
        author=author,
        source=SOURCE,
        parts=tuple(parts),
    )


def _load_pieces(path: Path, turn: np.ndarray) -> list[Piece]:
    try:
        import trimesh
    except ImportError as error:
        raise MirageError(
            "Furniture is read by trimesh, which is not there; pip install trimesh fast-simplification."
        ) from error
    try:
        loaded = trimesh.load(path, process=False)
    except Exception as error:  # trimesh raises what its parsers raise
        raise _LeftOut("unreadable") from error
    geometries = list(loaded.geometry.values()) if hasattr(loaded, "geometry") else [loaded]
    geometries = [g for g in geometries if len(getattr(g, "faces", ()))]
    count = sum(len(g.faces) for g in geometries)
    if not count:
        raise _LeftOut("unreadable")
    if count > (HARDEST_FACES if can_simplify() else MOST_FACES):
        raise _LeftOut("too heavy")
    # Sweet Home 3D: x right, y up, z to the front.
    turn = np.array([[-1, 0, 0], [0, 0, 1], [0, 1, 0]]) @ turn
    pieces = []
    for geometry in geometries:
        corners = (geometry.vertices @ turn.T)[geometry.faces]
        uv, picture, rgb = _look(geometry)
        pieces.append(Piece(corners, None if uv is None else uv[geometry.faces], picture, rgb))
    return pieces


def _look(geometry):
    """Texture coordinates and picture, or None and None, and the colour, of a mesh's material."""
    material = getattr(geometry.visual, "material", None)
    if material is None:
        return None, None, np.full(3, 160.0)
    red, green, blue, alpha = (float(v) for v in np.asarray(material.main_color))
    rgb = np.array([red, green, blue])
    if alpha < 128:  # glass is drawn as frosted glass: what shows through has no one depth
        rgb = 0.5 * rgb + 0.5 * np.array([205, 215, 218])
    image, uv = getattr(material, "image", None), getattr(geometry.visual, "uv", None)
    if image is None or uv is None or len(uv) != len(geometry.vertices):
        return None, None, rgb
    rgba = np.asarray(image.convert("RGBA"))
    if (rgba[..., 3] < 128).mean() > 0.1:
        raise _LeftOut("cut out by transparency")
    uv = np.nan_to_num(np.asarray(uv, float)) * [1, -1] + [0, 1]
    return uv, np.ascontiguousarray(rgba[..., :3]), rgba[..., :3].reshape(-1, 3).mean(0)


def _parts(pieces: list[Piece], size_m: np.ndarray, glows: bool) -> list[Part]:
    """One part for each of the largest pictures, and one for all plain colours with a palette."""
    pictured = sorted((p for p in pieces if p.texcoords is not None), key=lambda p: -p.area)
    kept, plain = pictured[:3], [p for p in pieces if p.texcoords is None] + pictured[3:]
    parts = [_part(p.corners, p.texcoords, _shrunk(p, size_m)) for p in kept]
    for bright in (False, True):
        group = [p for p in plain if (glows and p.rgb.min() > 150) == bright]
        if group:
            colours = np.clip([p.rgb for p in group], 0, 255).astype(np.uint8)
            palette = np.repeat(np.repeat(colours[None], 8, 0), 8, 1)
            places = (np.arange(len(group)) + 0.5) / len(group)
            texcoords = [np.full((len(p.corners), 3, 2), (at, 0.5)) for p, at in zip(group, places, strict=True)]
            corners = np.concatenate([p.corners for p in group])
            parts.append(_part(corners, np.concatenate(texcoords), palette, 0.5 * bright))
    return [part for part in parts if len(part.faces)]


def _shrunk(piece: Piece, size_m: np.ndarray) -> np.ndarray:
    """The picture with as many pixels as its size on the model is worth, about one each 8 mm."""
    tiles = max(float(np.ptp(piece.texcoords[..., axis])) for axis in (0, 1))
    side = int(np.clip(np.ptp(piece.corners.reshape(-1, 3), axis=0).max() / 0.008 / max(tiles, 1), 16, 160))
    height, width = piece.picture.shape[:2]
    scale = min(1.0, side / max(height, width))
    shape = (max(2, round(width * scale)), max(2, round(height * scale)))
    return cv2.resize(piece.picture, shape, interpolation=cv2.INTER_AREA)


def _part(corners, texcoords, picture, emission=0.0) -> Part:
    """Shaded smoothly across edges of less than `meshes.CREASE_DEG`."""
    solid = areas_of(corners) > 1e-10
    corners, texcoords = corners[solid], texcoords[solid]
    if not len(corners):
        return Part(*(np.zeros((0, k)) for k in (3, 3, 2, 3)), picture)
    rows = np.concatenate([corners, smooth_normals(corners), texcoords], -1).reshape(-1, 8)
    _, first, back = np.unique(
        np.round(rows * [1e4, 1e4, 1e4, 50, 50, 50, 1e3, 1e3]).astype(np.int64),
        axis=0, return_index=True, return_inverse=True,
    )  # fmt: skip
    rows, faces = rows[first].astype(np.float32), back.reshape(-1, 3).astype(np.int32)
    return Part(rows[:, :3], rows[:, 3:6], rows[:, 6:], faces, picture, emission)


def read_coverings(wheel: Path) -> Iterator[Surface]:
    """The pictures of miniworld that look like what covers a home, and its portraits."""
    about = {"licence": "Apache-2.0", "author": "Farama Foundation", "source": "PyPI miniworld"}
    with zipfile.ZipFile(wheel) as archive:
        for role, names in COVERINGS.items():
            for name in names.split():
                picture = _picture(archive.read(f"miniworld/textures/{name}.png"), 256)
                yield Surface(name, role, picture, **about)
        for name in sorted(archive.namelist()):
            if "/portraits/" in name and name.endswith((".png", ".jpg")):
                picture = _picture(archive.read(name), 160)
                yield Surface(Path(name).stem, "picture", picture,
                              **(about | {"licence": "public domain"}))  # fmt: skip


def _picture(data: bytes, side: int) -> np.ndarray:
    picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
    scale = side / max(picture.shape[:2])
    shape = (round(picture.shape[1] * scale), round(picture.shape[0] * scale))
    return np.ascontiguousarray(cv2.resize(picture, shape, interpolation=cv2.INTER_AREA))
