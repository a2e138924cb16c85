"""Procedural worlds: from a seed to a lit, furnished MuJoCo model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from mirage_ros.errors import MirageError
from mirage_ros.scenes import layouts
from mirage_ros.scenes.builder import Builder, Solids
from mirage_ros.scenes.catalogue import Catalogue
from mirage_ros.scenes.furniture import MaterialSet
from mirage_ros.scenes.gl import mujoco
from mirage_ros.scenes.homes import make_home
from mirage_ros.scenes.movers import Mover, make_movers
from mirage_ros.scenes.placing import Layout
from mirage_ros.scenes.shells import sky_faces

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


@dataclass(frozen=True)
class Scene:
    """A world to render.

    Attributes:
        seed, kind: what made it.
        model: the MuJoCo model; moving things are its mocap bodies, in `movers` order.
        solids: what cameras keep away from.
        low, high: corners of the box in which cameras may be, metres.
        movers: moving bodies, poses analytic in time.
        points_of_interest: (n, 3) world points worth looking at.
        has_sky: rays may leave the scene.
    """

    seed: int
    kind: str
    model: mujoco.MjModel
    solids: Solids
    low: np.ndarray
    high: np.ndarray
    movers: tuple[Mover, ...]
    points_of_interest: np.ndarray
    has_sky: bool


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
    solids = Solids.from_builder(builder)
    spec = _empty_spec(layout.ambient, 2 * texture_px)
    builder.add_to(spec, spec.worldbody, "static", 0)
    for light in layout.lights:
        spec.worldbody.add_light(**light)
    movers = ()
    if moves if moving is None else moving:
        movers = make_movers(spec, materials, rng, solids, layout, MOVING_GROUP)
    if layout.has_sky:
        _add_sky(spec, sky_faces(rng, 128))
    model = spec.compile()
    return Scene(
        seed=seed,
        kind=kind,
        model=model,
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
