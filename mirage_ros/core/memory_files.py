"""A latent memory as one safetensors file."""

from __future__ import annotations

import os

import numpy as np

from mirage_ros.core.errors import MirageError
from mirage_ros.core.files import load_tensors, save_tensors
from mirage_ros.core.store import FEATURE_TYPES, FIELDS, TokenStore

KIND = "memory"


def save_store(path: str | os.PathLike, store: TokenStore, max_bytes: int, tick: int) -> None:
    """Writes every field; table and bounds follow from them."""
    tensors = {name: store[name] for name in _saved_fields(store.channels, store.dtype)}
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
    saved, tick = int(info["channels"]), int(info["tick"])
    if channels is not None and saved != channels:
        raise MirageError(
            f"{path} holds latents of {saved} channels where {channels} are needed; load it with "
            "the model it was saved with."
        )
    kept = info.get("dtype", "float16")
    if kept not in FEATURE_TYPES or dtype not in (None, kept):
        raise MirageError(
            f"{path} keeps latents as {kept} where {dtype or 'a known type'} is needed; load it "
            "with the type it was saved with."
        )
    _check_rows(path, tensors, saved, kept)
    max_bytes = int(info["max_bytes"]) if max_bytes is None else max_bytes
    store = TokenStore(saved, max_bytes, kept)
    store.restore(tensors)
    return store, max_bytes, tick


def _saved_fields(channels: int, dtype: str) -> dict[str, tuple[str, tuple[int, ...]]]:
    return dict(FIELDS, features=(FEATURE_TYPES[dtype], (channels,)))


def _check_rows(path, tensors: dict[str, np.ndarray], channels: int, dtype: str) -> None:
    fields = _saved_fields(channels, dtype)
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
