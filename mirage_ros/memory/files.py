"""A latent memory as one safetensors file.

Files: safetensors with a kind, a version and a checksum, all-or-nothing writes, and which files
make a saved world.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from mirage_ros.errors import MirageError
from mirage_ros.geometry.camera import FARTHEST_M, LEAST_SIDES
from mirage_ros.memory.features import FEATURE_TYPES, Fields
from mirage_ros.memory.store import TokenStore
from mirage_ros.memory.surfels import view_numbers
from mirage_ros.memory.views import FIRST_OBSERVED, VIEW_FIELDS
from mirage_ros.progress import report

VERSION, OLDEST = 4, 3
"""Of the memory and world files, as they are written and as they are still read. Version 1 kept tokens
by their place in the world, without the views that they come from; 2 had no parts of cells; 3 did not
tell which views were real pictures."""

FORMAT = "mirage_ros world"
MEMORY, LATENTS, DECODER = (f"{name}.safetensors" for name in ("memory", "latents", "decoder"))
WORLD = "world.json"
FILES = (MEMORY, LATENTS, DECODER, WORLD)
"""Of a saved world, in the order in which a save puts them in their places (world_files.py)."""

SAVING, SAVED = ".mirage_saving", ".mirage_saved"
KEYS = {"version", "model", "frames_seen", "stamp_ns", "frame_ids"}
"""Of world.json, which tell one from other programs' (the first ones named no format)."""

PIECE = 64 * 2**20
"""Bytes that are read or written between two reports of progress."""

_KEY = "mirage_ros"


_KINDS = {
    **{"BOOL": "bool", "F16": "float16", "F32": "float32", "F64": "float64"},
    **{
        f"{sign}{bits}": f"{name}{bits}"
        for sign, name in (("I", "int"), ("U", "uint"))
        for bits in (8, 16, 32, 64)
    },
}
"""Names of number types in safetensors -> numpy's."""


UNREADABLE = (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError)
"""What reading a damaged or hostile header may raise."""


def open_file(path: str | os.PathLike) -> BinaryIO:
    """A regular file to read. OSError for what is none: a pipe or device could block for ever."""
    # Asked before as well: opening some devices does something.
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise OSError(errno.EINVAL, "it is no regular file", str(path))
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, "it is no regular file", str(path))
    return os.fdopen(handle, "rb")


def read_json(path: str | os.PathLike) -> Any:
    """What a JSON file holds. Raises OSError, or one of UNREADABLE."""
    with open_file(path) as file:
        return json.loads(file.read())


def world_file(folder: str | os.PathLike, name: str) -> Path:
    """Where a file of a saved world is: in its place, or yet to be put there (world_files.py)."""
    coming = Path(folder) / SAVED / name
    return coming if coming.exists() else Path(folder) / name


def header_of_world(path: str | os.PathLike) -> dict | None:
    """What a world.json tells; None where it is none of a saved world, of any version or model."""
    try:
        told = read_json(path)
        ours = told.get("format") == FORMAT or KEYS <= told.keys()
    except (OSError, *UNREADABLE):
        return None
    return told if ours else None


def write_file(path: str | os.PathLike, *parts: bytes | np.ndarray) -> None:
    """Writes the parts to a file without a name, syncs, names it: the old file or the new one,
    never half, and nothing left over from a process that was killed.

    Raises MirageError where that fails; the old file then stands.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            _write_in(folder, path, parts)
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise MirageError(
            f"{path} cannot be written ({error.strerror}); choose a writable path with free space."
        ) from error


def _write_in(folder: int, path: Path, parts: Sequence[bytes | np.ndarray]) -> None:
    handle, temporary = _open_nameless(folder, path)
    try:
        with os.fdopen(handle, "wb", buffering=0) as file:
            for part in parts:
                _write_all(file, memoryview(part).cast("B"))
            os.fsync(handle)
            if temporary is None:
                temporary = f".{path.name}.{os.getpid()}"
                _unlink(folder, temporary)
                os.link(f"/proc/self/fd/{handle}", temporary, src_dir_fd=folder, dst_dir_fd=folder)
        os.replace(temporary, path.name, src_dir_fd=folder, dst_dir_fd=folder)
    except BaseException:
        if temporary is not None:
            _unlink(folder, temporary)
        raise


def _open_nameless(folder: int, path: Path) -> tuple[int, str | None]:
    """A handle to write to, and its name where the file system cannot do without."""
    try:
        return os.open(".", os.O_TMPFILE | os.O_WRONLY, 0o666, dir_fd=folder), None
    except (OSError, AttributeError):
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        return handle, os.path.basename(temporary)


def _write_all(file, data: memoryview) -> None:
    while len(data):
        report()
        data = data[file.write(data[:PIECE]) :]
        if len(data):
            os.fdatasync(file.fileno())


def _unlink(folder: int, name: str) -> None:
    try:
        os.unlink(name, dir_fd=folder)
    except FileNotFoundError:
        pass


def save_tensors(
    path: str | os.PathLike, kind: str, tensors: dict[str, np.ndarray], info: dict
) -> None:
    """Writes tensors with JSON-able `info` in the header of a safetensors file."""
    header = {"kind": kind, "version": VERSION, "info": info}
    header["sha256"] = _digest(header, tensors)
    # Wide types first, so that every tensor is aligned in the file.
    names = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
    arrays = [np.ascontiguousarray(tensors[name]) for name in names]
    table, end = {"__metadata__": {_KEY: json.dumps(header)}}, 0
    for name, array in zip(names, arrays, strict=True):
        start, end = end, end + array.nbytes
        kind_name = next(key for key, dtype in _KINDS.items() if dtype == array.dtype)
        table[name] = {"dtype": kind_name, "shape": list(array.shape), "data_offsets": [start, end]}
    head = json.dumps(table).encode()
    head += b" " * (-len(head) % 8)
    parts = [array.reshape(-1).view(np.uint8) for array in arrays]
    write_file(path, len(head).to_bytes(8, "little"), head, *parts)


def load_tensors(path: str | os.PathLike, kind: str) -> tuple[dict[str, np.ndarray], dict]:
    """Tensors and `info` of a file of this kind.

    A file that is missing, damaged, of another kind or of another version raises MirageError.
    """
    try:
        with open_file(path) as file:
            data = _read_all(file)
    except OSError as error:
        raise MirageError(
            f"{path} cannot be read ({error.strerror}); give the path of a saved {kind}."
        ) from error
    try:
        length = int.from_bytes(data[:8].tobytes(), "little")
        table = json.loads(data[8 : 8 + length].tobytes())
        header = json.loads(table.pop("__metadata__")[_KEY])
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
    return _checked(path, kind, data[8 + length :], table, header)


def _read_all(file: BinaryIO) -> np.ndarray:
    data, end = np.empty(os.fstat(file.fileno()).st_size, np.uint8), 0
    while read := file.readinto(data[end : end + PIECE]):
        report()
        end += read
    return data[:end]


def _checked(path, kind, data, table, header) -> tuple[dict[str, np.ndarray], dict]:
    """The tensors, as views of the file's bytes, if the checksum agrees."""
    try:
        tensors, info = {name: _view(data, entry) for name, entry in table.items()}, header["info"]
        sound = _digest(header, tensors) == header["sha256"]
    except UNREADABLE:
        sound = False
    if not sound:
        raise MirageError(
            f"{path} is truncated or damaged (its checksum does not match); save the {kind} again "
            "or take a copy."
        )
    return tensors, info


def _view(data: np.ndarray, entry: dict) -> np.ndarray:
    start, end = entry["data_offsets"]
    if not 0 <= start <= end <= len(data):
        raise ValueError("A tensor lies outside of the file.")
    return data[start:end].view(_KINDS[entry["dtype"]]).reshape(entry["shape"])


def _digest(header: dict, tensors: dict[str, np.ndarray]) -> str:
    """Of all that the header tells, its version too, and of every tensor."""
    told = [header["kind"], header["version"], header["info"]]
    digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode())
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


def save_store(path: str | os.PathLike, store: TokenStore, max_bytes: int, tick: int) -> None:
    """Writes every field; table and bounds follow from them."""
    tensors = {name: store[name] for name in store.fields()}
    tensors |= {f"{_VIEW}{name}": store.births[name] for name in VIEW_FIELDS}
    info = {"channels": store.channels, "max_bytes": max_bytes, "tick": tick}
    info["dtype"] = store.dtype
    save_tensors(path, KIND, tensors, info)


def load_store(
    path: str | os.PathLike, channels: int | None, max_bytes: int | None, dtype: str | None
) -> tuple[TokenStore, int, int]:
    """The store, its cap and its tick; channels, cap and type default to the saved ones.

    More tokens than the cap holds lose the ones least recently seen. Raises MirageError.
    """
    tensors, info = load_tensors(path, KIND)
    try:
        saved, tick, kept = int(info["channels"]), int(info["tick"]), info["dtype"]
        max_bytes = int(info["max_bytes"]) if max_bytes is None else max_bytes
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
    store = TokenStore(saved, max_bytes, kept)
    views = {name: tensors.pop(f"{_VIEW}{name}", None) for name in VIEW_FIELDS}
    if views["real"] is None and views["frame_ids"] is not None:
        # Of a version that did not tell: the seed's id is 0, those of observed pictures are large.
        ids = views["frame_ids"]
        views["real"] = (ids == 0) | (ids >= FIRST_OBSERVED)
    if not (_fit(tensors, store.fields()) and _fit(views, VIEW_FIELDS) and _sound(tensors, views)):
        raise MirageError(f"{path} does not hold the fields of a latent memory; save it again.")
    store.restore(tensors, views)
    return store, max_bytes, tick


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
