"""A whole world as a folder: world.json, memory.safetensors, latents.safetensors.

A world of a causal video codec has decoder.safetensors as well: what the decoder remembers.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import glob
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from mirage_ros.core.camera import Camera
from mirage_ros.core.carving import Sights
from mirage_ros.core.errors import MirageError
from mirage_ros.core.files import VERSION, load_tensors, save_tensors, write_file
from mirage_ros.core.memory import LatentMemory, MemoryConfig
from mirage_ros.core.types import WorldModel
from mirage_ros.core.video import DecoderState
from mirage_ros.core.world_state import WorldState

KIND = "world"
# Of linux/fcntl.h and linux/fs.h.
AT_FDCWD, RENAME_EXCHANGE = -100, 2


def save_world(state: WorldState, model: WorldModel, folder: str | os.PathLike) -> None:
    """Writes a new folder next to the old one and swaps them: the old world or the new one, also
    for whoever is killed meanwhile. What a killed one left is removed by the next.

    Refuses with MirageError to replace a folder that is not a saved world.
    """
    folder = Path(folder)
    if folder.exists() and not (folder / "world.json").is_file() and _not_empty(folder):
        raise MirageError(f"{folder} exists and is no saved world; choose another folder.")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        if not folder.exists() and _aside(folder).is_dir():
            os.rename(_aside(folder), folder)
        _remove_left(folder)
        with _beside(folder) as fresh:
            _write_world(state, model, fresh)
            _swap(fresh, folder)
    except OSError as error:
        raise MirageError(
            f"{folder} cannot be written ({error.strerror}); choose a writable folder."
        ) from error


def load_world(folder: str | os.PathLike, model: WorldModel, config: MemoryConfig) -> WorldState:
    """The state of a saved world; missing, damaged or another model's raises MirageError."""
    folder = Path(folder)
    if not folder.exists() and _aside(folder).is_dir():
        folder = _aside(folder)
    try:
        told = json.loads((folder / "world.json").read_text())
        version, tag = int(told["version"]), told["model"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise MirageError(
            f"{folder} holds no readable world.json ({type(error).__name__}); give the folder of "
            "a saved world."
        ) from error
    if version > VERSION or tag != _tag(model):
        raise MirageError(
            f"{folder} is a world of version {version} and model {tag}; this program needs up to "
            f"version {VERSION} and model {_tag(model)}: load the model it was saved with."
        )
    tensors, info = load_tensors(folder / "latents.safetensors", KIND)
    if info != told:
        raise MirageError(f"{folder} mixes files of two worlds; take a sound copy of it.")
    try:
        kept = dict(zip(info["frame_ids"], torch.from_numpy(tensors["latents"]), strict=True))
        camera = Camera(
            np.array(info["intrinsics"]), np.array(info["world_from_camera"]), tuple(info["size"])
        )
        memory = LatentMemory.load(folder / "memory.safetensors", config)
        decoder = _load_decoder(folder, info) if "decoder" in info else None
        seen, last = info["frames_seen"], (camera, info["stamp_ns"])
        grouped, sights = info.get("grouped", 0), _sights_of(tensors)
        return WorldState(memory, kept, seen, *last, decoder, grouped, sights)
    except (KeyError, ValueError, TypeError, IndexError) as error:
        raise MirageError(f"{folder} is not a whole saved world; take a sound copy.") from error


def _write_world(state: WorldState, model: WorldModel, folder: Path) -> None:
    info = {
        "version": VERSION,
        "model": _tag(model),
        "frames_seen": state.frames_seen,
        "stamp_ns": state.stamp_ns,
        "frame_ids": list(state.latents),
        "intrinsics": state.camera.intrinsics.tolist(),
        "world_from_camera": state.camera.world_from_camera.tolist(),
        "size": list(state.camera.size),
    }
    if state.decoder is not None:
        info["grouped"] = state.grouped
        info["decoder"] = {name: str(t.dtype)[6:] for name, t in state.decoder.items()}
        raw = {name: _bytes(tensor) for name, tensor in state.decoder.items()}
        save_tensors(folder / "decoder.safetensors", KIND, raw, info)
    state.memory.save(folder / "memory.safetensors")
    latents = torch.stack(list(state.latents.values())).numpy()
    tensors = {"latents": latents} | _tensors_of(state.sights)
    save_tensors(folder / "latents.safetensors", KIND, tensors, info)
    write_file(folder / "world.json", json.dumps(info, indent=1).encode())


def _tensors_of(sights: Sights) -> dict[str, np.ndarray]:
    return {
        "sights.intrinsics": sights.cameras.intrinsics,
        "sights.world_from_camera": sights.cameras.world_from_camera,
        "sights.reach_m": sights.reach_m,
        "sights.real": sights.real,
    }


def _sights_of(tensors: dict[str, np.ndarray]) -> Sights:
    reach, poses = tensors["sights.reach_m"], tensors["sights.world_from_camera"]
    cameras = Camera(tensors["sights.intrinsics"], poses, reach.shape[1:])
    return Sights(cameras, reach, tensors["sights.real"])


def _load_decoder(folder: Path, info: dict) -> DecoderState:
    raw, told = load_tensors(folder / "decoder.safetensors", KIND)
    if told != info:
        raise MirageError(f"{folder} mixes files of two worlds; take a sound copy of it.")
    kinds = {name: getattr(torch, kind) for name, kind in info["decoder"].items()}
    return {name: torch.from_numpy(raw[name]).view(kinds[name]) for name in kinds}


def _bytes(tensor: torch.Tensor) -> np.ndarray:
    """The tensor's bytes (numpy knows no bfloat16), the last axis that much longer."""
    return tensor.detach().cpu().contiguous().view(torch.uint8).numpy()


def _tag(model: WorldModel) -> str:
    return f"{model.name} ({model.channels} channels, stride {model.stride}, size {model.size})"


@contextlib.contextmanager
def _beside(folder: Path) -> Iterator[Path]:
    """A new folder next to this one, locked while it is needed, and then removed."""
    fresh = Path(tempfile.mkdtemp(dir=folder.parent, prefix=_prefix(folder)))
    lock = os.open(fresh, os.O_RDONLY)
    try:
        # A file system without locks keeps what a killed saver left.
        with contextlib.suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield fresh
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
        os.close(lock)


def _remove_left(folder: Path) -> None:
    """What savers of this folder left that live no more: nobody holds the lock."""
    for left in folder.parent.glob(f"{glob.escape(_prefix(folder))}*"):
        with contextlib.suppress(OSError):
            lock = os.open(left, os.O_RDONLY)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(left, ignore_errors=True)
            finally:
                os.close(lock)


def _prefix(folder: Path) -> str:
    return f".{folder.name}.saving-"


def _aside(folder: Path) -> Path:
    """Where the old world is for a moment, on systems that cannot exchange two folders."""
    return folder.with_name(f"{_prefix(folder)}old")


def _swap(fresh: Path, folder: Path) -> None:
    """Puts `fresh` in the place of `folder`; an old world then lies at `fresh`, or is dropped."""
    os.chmod(fresh, 0o755)
    if not folder.exists():
        os.rename(fresh, folder)
    elif not _exchange(fresh, folder):
        _swap_in_turn(fresh, folder)
    _sync(folder.parent)


def _exchange(one: Path, other: Path) -> bool:
    """Two folders change places at once. False where that cannot be done."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    names = os.fsencode(one), os.fsencode(other)
    return rename(AT_FDCWD, names[0], AT_FDCWD, names[1], RENAME_EXCHANGE) == 0


def _swap_in_turn(fresh: Path, folder: Path) -> None:
    """In two steps; between them `load_world` finds the old world aside."""
    old = _aside(folder)
    os.rename(folder, old)
    try:
        os.rename(fresh, folder)
    except OSError:
        os.rename(old, folder)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _sync(folder: Path) -> None:
    """The names in a folder are on the disk after this."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _not_empty(folder: Path) -> bool:
    return not folder.is_dir() or any(folder.iterdir())
