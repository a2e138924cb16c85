"""A latent memory as one safetensors file."""

from __future__ import annotations

import os

import numpy as np

from mirage_ros.core.errors import MirageError
from mirage_ros.core.files import load_tensors, save_tensors
from mirage_ros.core.store import FIELDS, TokenStore

KIND = "memory"


def save_store(path: str | os.PathLike, store: TokenStore, max_bytes: int, tick: int) -> None:
    """Writes every field but the voxel keys, which follow from the others."""
    tensors = {name: store[name] for name in _saved_fields(store.channels)}
    info = {"channels": store.channels, "max_bytes": max_bytes, "tick": tick}
    save_tensors(path, KIND, tensors, info)


def load_store(
    path: str | os.PathLike, channels: int | None, max_bytes: int | None
) -> tuple[TokenStore, int, int]:
    """The store, its cap and its tick; channels and cap default to the saved ones.

    More tokens than the cap holds lose the ones least recently seen. Raises MirageError.
    """
    tensors, info = load_tensors(path, KIND)
    saved, tick = int(info["channels"]), int(info["tick"])
    if channels is not None and saved != channels:
        raise MirageError(
            f"{path} holds latents of {saved} channels where {channels} are needed; load it with "
            "the model it was saved with."
        )
    _check_rows(path, tensors, saved)
    max_bytes = int(info["max_bytes"]) if max_bytes is None else max_bytes
    store = TokenStore(saved, max_bytes)
    store.restore(tensors)
    return store, max_bytes, tick


def _saved_fields(channels: int) -> dict[str, tuple[str, tuple[int, ...]]]:
    fields = dict(FIELDS, features=("float16", (channels,)))
    del fields["keys"]
    return fields


def _check_rows(path, tensors: dict[str, np.ndarray], channels: int) -> None:
    fields = _saved_fields(channels)
    sound = set(tensors) == set(fields)
    rows = len(tensors["positions_world"]) if sound else 0
    for name, (dtype, shape) in fields.items() if sound else ():
        sound = sound and tensors[name].dtype == dtype and tensors[name].shape == (rows, *shape)
    if not (
        sound
        and np.isfinite(tensors["positions_world"]).all()
        and (tensors["footprints_m"] > 0).all()
    ):
        raise MirageError(f"{path} does not hold the fields of a latent memory; save it again.")
