"""Tensors on disk: safetensors with a kind, a version, a checksum, and all-or-nothing writes."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as parse_tensors
from safetensors.numpy import save as format_tensors

from mirage_ros.core.errors import MirageError

VERSION = 1
"""Of the memory and world files; files of a newer version are refused."""

_KEY = "mirage_ros"


def write_file(path: str | os.PathLike, data: bytes) -> None:
    """Writes under a temporary name, syncs, renames: the old file or the new one, never half."""
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise
    except OSError as error:
        raise MirageError(
            f"{path} cannot be written ({error.strerror}); choose a writable path with free space."
        ) from error


def save_tensors(
    path: str | os.PathLike, kind: str, tensors: dict[str, np.ndarray], info: dict
) -> None:
    """Writes tensors with JSON-able `info` in the header of a safetensors file."""
    header = {"kind": kind, "version": VERSION, "info": info}
    header["sha256"] = _digest(kind, tensors, info)
    ordered = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
    write_file(path, format_tensors(ordered, {_KEY: json.dumps(header)}))


def load_tensors(path: str | os.PathLike, kind: str) -> tuple[dict[str, np.ndarray], dict]:
    """Tensors and `info` of a file of this kind.

    A file that is missing, damaged, of another kind or of a newer version raises MirageError.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise MirageError(
            f"{path} cannot be read ({error.strerror}); give the path of a saved {kind}."
        ) from error
    try:
        length = int.from_bytes(data[:8], "little")
        header = json.loads(json.loads(data[8 : 8 + length])["__metadata__"][_KEY])
        found, version = header["kind"], int(header["version"])
    except (ValueError, KeyError, TypeError) as error:
        raise MirageError(
            f"{path} is not a saved {kind} or its header is damaged; save it again."
        ) from error
    if found != kind or version > VERSION:
        raise MirageError(
            f"{path} holds a {found} of version {version}; this program reads a {kind} up to "
            f"version {VERSION}: give another file or update mirage_ros."
        )
    return _checked(path, kind, data, header)


def _checked(path, kind: str, data: bytes, header: dict) -> tuple[dict[str, np.ndarray], dict]:
    try:
        tensors, info = parse_tensors(data), header["info"]
        sound = _digest(kind, tensors, info) == header["sha256"]
    except (SafetensorError, ValueError, KeyError, TypeError):
        sound = False
    if not sound:
        raise MirageError(
            f"{path} is truncated or damaged (its checksum does not match); save the {kind} again "
            "or take a copy."
        )
    return tensors, info


def _digest(kind: str, tensors: dict[str, np.ndarray], info: dict) -> str:
    digest = hashlib.sha256(json.dumps([kind, VERSION, info], sort_keys=True).encode())
    for name in sorted(tensors):
        array = np.ascontiguousarray(tensors[name])
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(array.reshape(-1).view(np.uint8))
    return digest.hexdigest()
