"""Procedural worlds, from a seed to a lit, furnished MuJoCo model; and rooms with a coloured box to drive to.

In a goal room the robot is a disc on the floor with a level camera on top; where it can stand follows
from the scene's solids, so the same rules hold in a generated world and in MuJoCo.

Decoys are plain, bright, sometimes glowing things that stand still. Moving bodies have colours that
furniture does not have. Without still things of such colours a perceiver learns that a bright colour
moves, and a goal painted red is never remembered.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from mirage_ros.errors import MirageError
from mirage_ros.geometry.camera import Camera
from mirage_ros.scenes import layouts
from mirage_ros.scenes.builder import Builder, Material, MaterialSet
from mirage_ros.scenes.catalogue import Catalogue
from mirage_ros.scenes.gl import mujoco, sky_faces
from mirage_ros.scenes.homes import make_home
from mirage_ros.scenes.movers import Scene, Solids, make_movers
from mirage_ros.scenes.pictures import hsv
from mirage_ros.scenes.placing import Layout

KINDS = {
    "room": layouts.room,
    "corridor": layouts.corridor,
    "hall": layouts.hall,
    "warehouse": layouts.warehouse,
    "doorway": layouts.doorway,
    "yard": layouts.yard,
}
WEIGHTS = {
    "room": 0.3, "corridor": 0.12, "hall": 0.15, "warehouse": 0.13, "doorway": 0.15, "yard": 0.15,
}  # fmt: skip
# Worlds that need a furniture cache; with one, half of the worlds are of these.
HOMES = {"living": 0.3, "bedroom": 0.22, "kitchen": 0.2, "office": 0.18, "bathroom": 0.1}
HOME_SHARE = 0.5
MOVING_SHARE = 0.2
MOVING_GROUP = 1


def make_scene(
    seed: int,
    kind: str | None = None,
    *,
    moving: bool | None = None,
    texture_px: int = 256,
    furniture: Catalogue | None = None,
    add: Callable[[Builder, Layout], None] | None = None,
) -> Scene:
    """A world, the same for the same arguments.

    Args:
        kind: one of `KINDS`, or of `HOMES` where there is furniture; None draws one.
        moving: with moving bodies or without; None draws (about a fifth have them).
        texture_px: side of the big surfaces' textures; shadow maps have twice as many.
        furniture: a cache of models; without it worlds are as if there were none, and so are half of them with it.
        add: called with the furnished builder and its layout, to add things of its own.
    Raises:
        MirageError: an unknown kind, or one that needs furniture without any.
    """
    rng = np.random.default_rng([seed, 11])
    drawn = str(rng.choice(list(WEIGHTS), p=list(WEIGHTS.values())))
    moves = bool(rng.random() < MOVING_SHARE)
    if furniture is not None:
        drawn = _home_of(seed) or drawn
    kind = drawn if kind is None else kind
    plan = _plan_of(kind, furniture)
    builder = Builder()
    materials = MaterialSet(np.random.default_rng([seed, 12]), texture_px)
    layout = plan(builder, materials, rng)
    if add is not None:
        add(builder, layout)
    moves = moves if moving is None else moving
    return _assembled(seed, kind, builder, materials, layout, rng, moves)


def _assembled(
    seed: int, kind: str, builder: Builder, materials: MaterialSet, layout: Layout, rng, moves: bool
) -> Scene:
    """The lit model of what was built, with moving bodies and a sky where they belong."""
    solids = Solids.from_builder(builder)
    spec = _empty_spec(layout.ambient, 2 * materials.texture_px)
    builder.add_to(spec, spec.worldbody, "static", 0)
    for light in layout.lights:
        spec.worldbody.add_light(**light)
    movers = make_movers(spec, materials, rng, solids, layout, MOVING_GROUP) if moves else ()
    if layout.has_sky:
        _add_sky(spec, sky_faces(rng, 128))
    return Scene(
        seed=seed,
        kind=kind,
        model=spec.compile(),
        solids=solids,
        low=np.array(layout.low),
        high=np.array(layout.high),
        movers=movers,
        points_of_interest=np.array(layout.points_of_interest).reshape(-1, 3),
        has_sky=layout.has_sky,
    )


def _home_of(seed: int) -> str | None:
    """The kind of home that a seed is where there is furniture, or none."""
    rng = np.random.default_rng([seed, 15])
    if rng.random() > HOME_SHARE:
        return None
    return str(rng.choice(list(HOMES), p=list(HOMES.values())))


def _plan_of(kind: str, furniture: Catalogue | None):
    """The floor plan of a kind."""
    if kind in HOMES:
        if furniture is None:
            raise MirageError(
                f"A scene of kind {kind!r} needs a furniture cache and got none; "
                "give one that `mirage data furniture` made, or choose one of " + ", ".join(KINDS) + "."
            )
        return make_home(kind, furniture)
    if kind not in KINDS:
        raise MirageError(f"There is no scene kind {kind!r}; choose one of {', '.join([*KINDS, *HOMES])}.")
    return KINDS[kind]


def _empty_spec(ambient: np.ndarray, shadow_px: int) -> mujoco.MjSpec:
    spec = mujoco.MjSpec()
    spec.stat.extent = 1.0
    spec.stat.center = (0, 0, 0)
    visual = spec.visual
    visual.quality.offsamples = 0  # Renderer supersamples, which is cheaper without a GPU.
    visual.quality.shadowsize = shadow_px
    visual.map.znear, visual.map.zfar = 0.02, 100.0
    visual.map.shadowclip, visual.map.shadowscale = 14.0, 0.9
    visual.headlight.ambient = np.clip(ambient, 0, 1)
    # A lamp on the camera would make surfaces change their colour as it moves.
    visual.headlight.diffuse = (0, 0, 0)
    visual.headlight.specular = (0, 0, 0)
    return spec


def _add_sky(spec: mujoco.MjSpec, faces: np.ndarray) -> None:
    """`faces` is (6 * n, n, 3): right, left, up, down, front, back."""
    texture = spec.add_texture(
        name="sky",
        type=mujoco.mjtTexture.mjTEXTURE_SKYBOX,
        width=faces.shape[1],
        height=faces.shape[0],
        nchannel=3,
    )
    texture.data = np.ascontiguousarray(faces).tobytes()


TRIES = 40
FREE_M = 0.3


def decoys(rng: np.random.Generator) -> Callable[[Builder, Layout], None]:
    """What `make_scene` takes as `add`: 3 to 7 boxes and drums on free floor."""

    def add(builder: Builder, layout: Layout) -> None:
        solids = Solids.from_builder(builder)
        for number in range(int(rng.integers(3, 8))):
            place = _free_place(rng, solids, layout)
            if place is None:
                continue
            glow = float(rng.choice([0.0, 0.35, 0.9]))
            rgb = hsv(rng.random(), rng.uniform(0.5, 1), rng.uniform(0.4, 1))
            picture = np.full((8, 8, 3), rgb, np.uint8)
            paint = Material(f"decoy{number}", picture, 0.0, 0.05, glow)
            wide, high = rng.uniform(0.15, 0.6), rng.uniform(0.15, 0.9)
            with builder.at(*place, float(rng.uniform(0, np.pi))):
                if rng.random() < 0.75:
                    builder.box(paint, (0, 0, high / 2), (wide, wide, high), skip="b")
                else:
                    builder.cylinder(paint, (0, 0, 0), wide / 2, high)

    return add


def _free_place(rng, solids: Solids, layout: Layout) -> np.ndarray | None:
    low, high = np.array(layout.low)[:2], np.array(layout.high)[:2]
    for place in rng.uniform(low, high, (TRIES, 2)):
        if solids.distance(np.array([[*place, FREE_M + 0.1]])).min() > FREE_M:
            return place
    return None


BOX_M = 0.5
BOX_RGB = (230, 20, 30)
CAMERA_HEIGHT_M, PITCH_DEG, HFOV_DEG = 0.6, -8.0, 75.0
ROBOT_RADIUS_M = 0.25
LANE_M = 0.4  # free to either side of the straight way to the box
NEAREST_M, FARTHEST_M = 2.0, 4.5
MOST_BEARING_DEG = 30.0  # the box begins inside the picture
GOAL_KINDS = ("room", "hall")
GOAL_TRIES = 4000
WORLDS = 20


@dataclass(frozen=True)
class GoalRoom:
    """A scene with a box, and where the robot begins.

    Attributes:
        scene: the world; the box is one of its solids.
        goal_world: (3,) the box's centre, metres.
        start: the robot's first camera, the box in its picture and the way to it free.
        obstacles: what the robot runs into: everything upright, the box included.
    """

    scene: Scene
    goal_world: Float[np.ndarray, "3"]
    start: Camera
    obstacles: Solids

    def distance_m(self, camera: Camera) -> float:
        """From a camera to the box's centre, along the floor."""
        return float(np.linalg.norm((self.goal_world - camera.position_world)[:2]))

    def blocked(self, camera: Camera) -> bool:
        """Whether the robot would stand in something."""
        place = np.append(camera.position_world[:2], BOX_M / 2)
        return bool(self.obstacles.distance(place[None])[0] < ROBOT_RADIUS_M)


def make_goal_room(
    seed: int, size: tuple[int, int] = (128, 160), hfov_deg: float = HFOV_DEG
) -> GoalRoom:
    """A room, the same for the same arguments.

    Args:
        size: (height, width) of the robot's pictures.
        hfov_deg: horizontal field of view; the box may be outside of one below 65.
    Raises:
        MirageError: no room for the box, which twenty worlds in a row would need.
    """
    for world in np.random.default_rng([seed, 41]).integers(0, 2**31, WORLDS):
        rng = np.random.default_rng([int(world), 42])
        room = _try_room(int(world), rng, size, hfov_deg)
        if room is not None:
            return room
    raise MirageError(f"The seed {seed} leaves no room for a box; take another seed.")


def robot_camera(
    place: Float[np.ndarray, "2"], yaw: float, size: tuple[int, int], hfov_deg: float = HFOV_DEG
) -> Camera:
    """The camera of a robot at a place (metres), looking along yaw (radians)."""
    pitch = np.radians(PITCH_DEG)
    forward = np.array([np.cos(yaw) * np.cos(pitch), np.sin(yaw) * np.cos(pitch), np.sin(pitch)])
    right = np.array([np.sin(yaw), -np.cos(yaw), 0.0])
    pose = np.eye(4)
    pose[:3, :3] = np.stack([right, np.cross(forward, right), forward], -1)
    pose[:3, 3] = *place, CAMERA_HEIGHT_M
    return Camera.from_hfov(hfov_deg, size, pose)


def _try_room(world: int, rng, size, hfov_deg) -> GoalRoom | None:
    found: list[tuple[np.ndarray, np.ndarray, float]] = []

    def add_box(builder: Builder, layout: Layout) -> None:
        free = _upright(Solids.from_builder(builder))
        way = _free_way(rng, free, np.array(layout.low), np.array(layout.high))
        if way is None:
            return
        found.append(way)
        picture = np.full((8, 8, 3), BOX_RGB, np.uint8)
        # It glows a little, so that it has its colour in a dark corner as well.
        paint = Material("goal", picture, 0.0, 0.05, 0.35)
        with builder.at(*way[0], float(rng.uniform(0, np.pi / 2))):
            builder.box(paint, (0, 0, BOX_M / 2), (BOX_M, BOX_M, BOX_M), skip="b")

    kind = str(rng.choice(GOAL_KINDS))
    scene = make_scene(world, kind, moving=False, add=add_box)
    if not found:
        return None
    box, robot, yaw = found[0]
    start = robot_camera(robot, yaw, size, hfov_deg)
    return GoalRoom(scene, np.array([*box, BOX_M / 2]), start, _upright(scene.solids))


def _upright(solids: Solids) -> Solids:
    """What a robot on the floor can run into: not the floor, the ceiling or high shelves."""
    low, high = (solids.centres[:, 2] + sign * solids.halves[:, 2] for sign in (-1, 1))
    return solids.where((low < 1.0) & (high > 0.1))


def _free_way(rng, solids: Solids, low, high):
    """Places of box and robot with a free lane between them, and where the robot looks."""
    for _ in range(GOAL_TRIES // 100):
        box = rng.uniform(low[:2] + 0.6, high[:2] - 0.6, (100, 2))
        robot = rng.uniform(low[:2] + 0.5, high[:2] - 0.5, (100, 2))
        away = np.linalg.norm(box - robot, axis=1)
        fit = (away > NEAREST_M) & (away < FARTHEST_M)
        for b, r in zip(box[fit], robot[fit], strict=True):
            lane = r + (b - r) * np.linspace(0, 1, 24)[:, None]
            points = np.column_stack([lane, np.full(24, BOX_M / 2)])
            room = solids.distance(points)
            if room.min() > LANE_M and room[-1] > BOX_M:
                bearing = np.arctan2(*(b - r)[::-1])
                return b, r, bearing + np.radians(rng.uniform(-1, 1) * MOST_BEARING_DEG)
    return None
