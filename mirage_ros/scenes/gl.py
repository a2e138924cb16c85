"""Choose how MuJoCo draws without a window, before mujoco is imported.

Import `mujoco` from here (`from mirage_ros.scenes.gl import mujoco`), so that the
choice is made first. MUJOCO_GL set by the user wins.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import importlib
import os
import threading

from mirage_ros.errors import MirageError


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


__all__ = ["choose_backend", "mujoco", "use_drawing_context"]
