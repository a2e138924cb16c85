"""How MuJoCo draws: without a window, which is chosen before mujoco is imported; and by what light.

Import `mujoco` from here (`from mirage_ros.scenes.gl import mujoco`), so that the choice is made first. MUJOCO_GL set by
the user wins. Lamps and suns are keyword arguments of MjSpec's add_light, skies textures for MuJoCo's skybox.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import importlib
import os
import threading

import cv2
import numpy as np

from mirage_ros.errors import MirageError
from mirage_ros.scenes.pictures import colour, fractal_noise, hsv


def _egl_works() -> bool:
    """Whether libEGL finds a device to draw on (a GPU or Mesa's llvmpipe)."""
    name = ctypes.util.find_library("EGL")
    if name is None:
        return False
    try:
        library = ctypes.CDLL(name)
        library.eglGetProcAddress.restype = ctypes.c_void_p
        address = library.eglGetProcAddress(b"eglQueryDevicesEXT")
        if not address:
            return False
        query = ctypes.CFUNCTYPE(
            ctypes.c_uint, ctypes.c_int, ctypes.c_void_p, ctypes.POINTER(ctypes.c_int)
        )(address)
        count = ctypes.c_int(0)
        return bool(query(0, None, ctypes.byref(count))) and count.value > 0
    except (OSError, AttributeError):
        return False


def choose_backend() -> str:
    """'egl' or 'osmesa', whichever this machine has.

    Raises:
        MirageError: neither is there.
    """
    if _egl_works():
        return "egl"
    if ctypes.util.find_library("OSMesa"):
        return "osmesa"
    raise MirageError(
        "Rendering scenes found neither EGL nor OSMesa on this machine and needs one of them; "
        "install Debian's libegl1 with libgl1-mesa-dri, or libosmesa6."
    )


if os.environ.get("MUJOCO_GL") not in ("egl", "osmesa"):
    os.environ["MUJOCO_GL"] = choose_backend()
# One core a process: rendering runs in several processes, or beside a training job.
os.environ.setdefault("LP_NUM_THREADS", "1")

try:
    import mujoco
except ImportError as error:
    raise MirageError(
        "The procedural scenes need MuJoCo and it is not installed; pip install mujoco."
    ) from error

_local = threading.local()


def use_drawing_context() -> None:
    """Makes this thread's own drawing context current; the first call opens it.

    It is kept for the thread's life: Mesa compiles its shaders anew for every context.
    Raises:
        MirageError: it cannot be opened.
    """
    if getattr(_local, "process", None) != os.getpid():
        try:
            # mujoco.GLContext would be another backend's if mujoco was imported before us.
            backend = importlib.import_module(f"mujoco.{os.environ['MUJOCO_GL']}")
            _local.context = backend.GLContext(640, 480)
        except Exception as error:
            raise MirageError(
                f"MuJoCo could not open an off-screen drawing context ({error}); it needs EGL or "
                "OSMesa: install Debian's libegl1 with libgl1-mesa-dri, or libosmesa6."
            ) from error
        _local.process = os.getpid()
    _local.context.make_current()


# For each face of the box: the world direction of its centre, of its right and of its down edge.
_FACES = np.array(
    [
        [[1, 0, 0], [0, -1, 0], [0, 0, -1]],
        [[-1, 0, 0], [0, 1, 0], [0, 0, -1]],
        [[0, 0, 1], [1, 0, 0], [0, -1, 0]],
        [[0, 0, -1], [1, 0, 0], [0, 1, 0]],
        [[0, 1, 0], [1, 0, 0], [0, 0, -1]],
        [[0, -1, 0], [-1, 0, 0], [0, 0, -1]],
    ],
    float,
)


def spot(rng, place, aim, strength, *, shadow, cutoff=80.0) -> dict:
    """A lamp at `place` shining towards `aim`."""
    tint = 1 + 0.12 * (colour(rng, 0.3) / 255 - 0.5)
    aim = np.asarray(aim, float) - place
    return dict(
        pos=np.asarray(place, float),
        dir=aim / np.linalg.norm(aim),
        type=mujoco.mjtLightType.mjLIGHT_SPOT,
        diffuse=strength * tint,
        ambient=(0, 0, 0),
        specular=np.full(3, 0.2),
        cutoff=cutoff,
        exponent=1.0,
        attenuation=(1, 0, 0.012),
        castshadow=shadow,
    )


def sun(rng, direction, strength, *, shadow=False, centre=(0, 0, 0)) -> dict:
    """Parallel light along `direction`; shadows fall within the map around `centre`."""
    direction = np.asarray(direction, float) / np.linalg.norm(direction)
    return dict(
        pos=np.asarray(centre, float) - 12 * direction,
        dir=direction,
        type=mujoco.mjtLightType.mjLIGHT_DIRECTIONAL,
        diffuse=strength * np.array([1.0, rng.uniform(0.92, 1.0), rng.uniform(0.82, 1.0)]),
        ambient=(0, 0, 0),
        specular=np.full(3, 0.1),
        castshadow=shadow,
    )


def indoor_lights(rng, rooms) -> tuple[np.ndarray, list[dict]]:
    """Ambient light, and a ceiling lamp in each of `rooms` (x, y, wide, deep, high) with fills.

    The first lamp throws shadows, the others seldom: each costs two more draws of the scene.
    """
    ambient = rng.uniform(0.36, 0.5) * (1 + 0.12 * (colour(rng, 0.5) / 255 - 0.5))
    lights = []
    for index, (x, y, wide, deep, high) in enumerate(rooms):
        place = np.array([x, y, high - 0.12])
        place[:2] += rng.uniform(-0.25, 0.25, 2) * (wide, deep)
        shadow = index == 0 or rng.random() < 0.15
        lights.append(spot(rng, place, (x, y, 0), rng.uniform(0.5, 0.8), shadow=shadow))
    # Fills without shadows give every wall its own shade; one comes from below, for ceilings.
    for vertical in (-0.5, 0.8):
        turn = rng.uniform(0, 2 * np.pi)
        direction = (np.cos(turn), np.sin(turn), vertical)
        lights.append(sun(rng, direction, rng.uniform(0.18, 0.35)))
    return ambient, lights


def sky_faces(rng: np.random.Generator, side: int = 128) -> np.ndarray:
    """(6 * side, side, 3) uint8: right, left, up, down, front, back."""
    place = (np.arange(side) + 0.5) / side * 2 - 1
    down, right = np.meshgrid(place, place, indexing="ij")
    rays = _FACES[:, None, None, 0] + right[..., None] * _FACES[:, None, None, 1]
    rays = rays + down[..., None] * _FACES[:, None, None, 2]
    rays = rays / np.linalg.norm(rays, axis=-1, keepdims=True)
    up = rays[..., 2]
    low = 0.35 * colour(rng, 0.7) + 0.65 * np.array([215, 225, 235.0])
    top = hsv(rng.uniform(0.55, 0.64), rng.uniform(0.25, 0.75), rng.uniform(0.6, 0.95))
    if rng.random() < 0.2:
        low, top = np.array([245, 190, 140.0]) + rng.normal(0, 15, 3), top * 0.8
    mix = np.clip(up, 0, 1)[..., None] ** 0.6
    picture = low * (1 - mix) + top * mix
    # Clouds lie on a plane overhead, so they shrink towards the horizon.
    field = fractal_noise(rng, (512, 512), (5, 5), 5)
    plane = rays[..., :2] / np.maximum(up, 0.06)[..., None] * 40
    flat = (plane % 512).astype(np.float32).reshape(6 * side, side, 2)
    cloud = cv2.remap(
        field, flat[..., 0], flat[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP
    )
    cloud = cloud.reshape(6, side, side)
    cover = rng.uniform(0.35, 0.7)
    share = np.clip((cloud - cover) * 4, 0, 0.95) * np.clip(up * 5, 0, 1)
    share = share[..., None]
    picture = picture * (1 - share) + share * np.full(3, rng.uniform(215, 252))
    return np.clip(picture, 0, 255).astype(np.uint8).reshape(6 * side, side, 3)
