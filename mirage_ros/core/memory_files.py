"""A latent memory as one safetensors file."""

from __future__ import annotations

import os

import numpy as np

from mirage_ros.core.births import FIRST_OBSERVED, VIEW_FIELDS
from mirage_ros.core.camera import FARTHEST_M, LEAST_SIDES
from mirage_ros.core.errors import MirageError
from mirage_ros.core.features import FEATURE_TYPES, Fields
from mirage_ros.core.files import UNREADABLE, load_tensors, save_tensors
from mirage_ros.core.store import TokenStore
from mirage_ros.core.surfels import view_numbers

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
