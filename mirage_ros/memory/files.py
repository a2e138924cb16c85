"""Saved memories: safetensors files with a kind, a version and a checksum."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from mirage_ros.errors import MirageError, report
from mirage_ros.files import UNREADABLE, open_file, write_file
from mirage_ros.geometry.camera import FARTHEST_M, LEAST_SIDES
from mirage_ros.memory.rows import (
    FEATURE_TYPES,
    FIRST_OBSERVED,
    VIEW_FIELDS,
    Fields,
    ViewTable,
    token_fields,
)
from mirage_ros.memory.surfels import view_numbers

VERSION, OLDEST = 4, 3
"""Of the memory and world files, as they are written and as they are still read. Version 1 kept tokens
by their place in the world, without the views that they come from; 2 had no parts of cells; 3 did not
tell which views were real pictures."""

_KEY = "mirage_ros"


def save_tensors(
    path: str | os.PathLike, kind: str, tensors: dict[str, np.ndarray], info: dict
) -> None:
    """Writes tensors with JSON-able `info` in the header of a safetensors file."""
    header = {"kind": kind, "version": VERSION, "info": info}
    header["sha256"] = _digest(header, tensors)
    arrays = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
    write_file(path, save(arrays, metadata={_KEY: json.dumps(header)}))


def load_tensors(path: str | os.PathLike, kind: str) -> tuple[dict[str, np.ndarray], dict]:
    """Tensors and `info` of a file of this kind.

    A file that is missing, damaged, of another kind or of another version raises MirageError.
    """
    try:
        with open_file(path) as file, safe_open(f"/proc/self/fd/{file.fileno()}", "numpy") as stored:
            return _read_checked(path, kind, stored)
    except OSError as error:
        raise MirageError(
            f"{path} cannot be read ({error.strerror}); give the path of a saved {kind}."
        ) from error
    except SafetensorError as error:
        raise MirageError(
            f"{path} is truncated or its header is damaged ({error}); save the {kind} again or take a copy."
        ) from error


def _read_checked(path: str | os.PathLike, kind: str, stored: safe_open) -> tuple[dict[str, np.ndarray], dict]:
    """The tensors and `info`, if kind, version and checksum agree."""
    try:
        header = json.loads(stored.metadata()[_KEY])
        found, version = header["kind"], int(header["version"])
    except UNREADABLE as error:
        raise MirageError(
            f"{path} is not a saved {kind} or its header is damaged; save it again."
        ) from error
    if found != kind or not OLDEST <= version <= VERSION:
        way = "update mirage_ros" if version > VERSION else "make it anew with this one"
        raise MirageError(
            f"{path} holds a {found} of version {version}; this program reads a {kind} of version "
            f"{OLDEST} to {VERSION}: give another file or {way}."
        )
    try:
        tensors, info = _read_tensors(stored), header["info"]
        sound = _digest(header, tensors) == header["sha256"]
    except UNREADABLE:
        sound = False
    if not sound:
        raise MirageError(
            f"{path} is truncated or damaged (its checksum does not match); save the {kind} again "
            "or take a copy."
        )
    return tensors, info


def _read_tensors(stored: safe_open) -> dict[str, np.ndarray]:
    tensors = {}
    for name in stored.keys():
        report()
        tensors[name] = stored.get_tensor(name)
    return tensors


def _digest(header: dict, tensors: dict[str, np.ndarray]) -> str:
    """Of kind, version and info in the header, and of every tensor."""
    described = [header["kind"], header["version"], header["info"]]
    digest = hashlib.sha256(json.dumps(described, sort_keys=True).encode())
    for name in sorted(tensors):
        array = np.ascontiguousarray(tensors[name])
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(array.reshape(-1).view(np.uint8))
    return digest.hexdigest()


KIND = "memory"

LAST_TICK = 2**16 - 1
"""The highest number of a read or write, as tokens keep it."""

_MOST_RAY = 1e9
"""Of a ray per metre of depth; no Camera makes longer ones."""

_VIEW = "view."
"""What the names of the views' fields start with."""


@dataclass(frozen=True)
class SavedMemory:
    """A memory as a file holds it; the table of voxels and the blocks' bounds follow from its rows.

    Attributes:
        channels, dtype: of latents.
        max_bytes: the memory's cap.
        tick: the number of its last read or write.
        rows: every field of the tokens (rows.token_fields).
        views: every field of the views (rows.VIEW_FIELDS).
    """

    channels: int
    max_bytes: int
    dtype: str
    tick: int
    rows: dict[str, np.ndarray]
    views: dict[str, np.ndarray] | ViewTable


def save_memory(path: str | os.PathLike, memory: SavedMemory) -> None:
    """Writes every field."""
    tensors = memory.rows | {f"{_VIEW}{name}": memory.views[name] for name in VIEW_FIELDS}
    info = {name: getattr(memory, name) for name in ("channels", "max_bytes", "tick", "dtype")}
    save_tensors(path, KIND, tensors, info)


def load_memory(path: str | os.PathLike, channels: int | None, dtype: str | None) -> SavedMemory:
    """A saved memory whose channels and type must be these, where they are given. Raises MirageError."""
    tensors, info = load_tensors(path, KIND)
    try:
        saved, max_bytes = int(info["channels"]), int(info["max_bytes"])
        tick, kept = int(info["tick"]), info["dtype"]
        known = kept in FEATURE_TYPES and 0 <= tick <= LAST_TICK
    except UNREADABLE:
        known = False
    if not known:
        raise MirageError(f"{path} tells no latent memory in its header; save it again.")
    if channels is not None and saved != channels:
        raise MirageError(
            f"{path} holds latents of {saved} channels where {channels} are needed; load it with "
            "the model it was saved with."
        )
    if dtype not in (None, kept):
        raise MirageError(
            f"{path} keeps latents as {kept} where {dtype} is needed; load it with the type it was "
            "saved with."
        )
    views = {name: tensors.pop(f"{_VIEW}{name}", None) for name in VIEW_FIELDS}
    if views["real"] is None and views["frame_ids"] is not None:
        # Of a version that did not tell: the seed's id is 0, those of observed pictures are large.
        ids = views["frame_ids"]
        views["real"] = (ids == 0) | (ids >= FIRST_OBSERVED)
    if not (_fit(tensors, token_fields(saved, kept)) and _fit(views, VIEW_FIELDS) and _sound(tensors, views)):
        raise MirageError(f"{path} does not hold the fields of a latent memory; save it again.")
    return SavedMemory(saved, max_bytes, kept, tick, tensors, views)


def _fit(tensors: dict[str, np.ndarray | None], fields: Fields) -> bool:
    """Are all fields there, and nothing else, each with as many rows?"""
    if set(tensors) != set(fields) or any(tensor is None for tensor in tensors.values()):
        return False
    rows = len(next(iter(tensors.values())))
    return all(
        tensors[name].dtype == dtype and tensors[name].shape == (rows, *shape)
        for name, (dtype, shape) in fields.items()
    )


def _sound(tensors: dict[str, np.ndarray], views: dict[str, np.ndarray]) -> bool:
    """Does every token lie somewhere, and was it born in one of the views?"""
    return bool(
        view_numbers(tensors["places"]).max(initial=-1) < len(views["focals"])
        and (np.abs(views["rays"][:, :3]) <= _MOST_RAY).all()
        and (np.abs(views["rays"][:, 3]) <= FARTHEST_M).all()
        and np.isfinite(views["focals"]).all()
        and (views["focals"] >= LEAST_SIDES).all()
    )
