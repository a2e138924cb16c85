"""Pictures and depth brought to the model's size, the camera going with them, and to the grid of latent cells."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from jaxtyping import Bool, Float, UInt8

from mirage_ros.errors import MirageError
from mirage_ros.geometry.camera import Camera

SMALLEST_SIDE_PX = 8
WIDEST_DEG = 170.0
"""Field of view, from which on nothing of a flat picture is left in its middle."""
LEAST_KEPT = 0.2
"""A picture of which cropping would leave less than this share is refused."""
CROPPED_IN_SILENCE = 0.2
"""Up to this share may be cropped away without a word."""
BITS = (8, 10, 12, 14, 16)
"""What numbers of 16 bits may really hold."""


class SeedWarning(UserWarning):
    """Something about a seed that its owner should know, and that keeps no world from starting."""


def fit_seed(
    rgb: np.ndarray,
    camera: Camera,
    depth_m: np.ndarray | None,
    size: tuple[int, int],
) -> tuple[np.ndarray, Camera, np.ndarray | None]:
    """Crops the middle to the aspect of `size`, then resizes: colours by area, depth by nearest.

    Takes uint8 (H, W, 3), its camera and depth (H, W) in metres; depth
    that is not above 0 becomes NaN. Refuses with a MirageError pictures that are not
    uint8 (H, W, 3) of the camera's size, are too small or of another shape altogether, fields of view
    that no picture has, and depth of another size or without a valid pixel.
    """
    rgb = np.asarray(rgb)
    if rgb.ndim != 3 or rgb.shape[2] != 3 or rgb.dtype != np.uint8:
        raise MirageError(
            f"The seed picture is {rgb.dtype} of shape {rgb.shape}; give uint8 (height, width, 3)."
        )
    check_size(rgb.shape[:2], "The seed picture")
    if camera.batch_shape or camera.size != rgb.shape[:2]:
        raise MirageError(
            f"The seed picture is {rgb.shape[:2]} but its camera has the size {camera.size} and "
            f"batch shape {camera.batch_shape}; give one camera of the picture's size."
        )
    if (kept := 1 - cropped_share(rgb.shape[:2], size)) < LEAST_KEPT:
        raise MirageError(
            f"The seed picture is {_as_text(rgb.shape)} and the model's pictures have the shape of "
            f"{_as_text(size)}: only {kept:.1%} of it would be left; cut a part of about that shape "
            "out of it."
        )
    _check_field_of_view(camera)
    depth = None if depth_m is None else _checked_depth(depth_m, rgb.shape[:2])
    top, left, crop = _centre_window(rgb.shape[:2], size)
    window = (slice(top, top + crop[0]), slice(left, left + crop[1]))
    camera = camera.cropped(top, left, crop).resized(size)
    return resize_rgb(rgb[window], size), camera, _nearest(depth, window, size)


def _check_field_of_view(camera: Camera) -> None:
    """Raises MirageError for one that no flat picture has."""
    focal = np.diag(camera.intrinsics)[:2]
    widest_deg = float(np.degrees(2 * np.arctan(np.array(camera.size[::-1]) / 2 / focal)).max())
    if widest_deg > WIDEST_DEG:
        raise MirageError(
            f"The seed's camera has the focal lengths {focal.tolist()}, a field of view of "
            f"{widest_deg:.1f} deg; give one of at most {WIDEST_DEG:.0f}: check K in the CameraInfo."
        )


def check_size(size: tuple[int, int], what: str) -> None:
    """Raises MirageError for a picture (`what`, as a sentence begins) of too few pixels."""
    if min(size) < SMALLEST_SIDE_PX:
        raise MirageError(
            f"{what} is {_as_text(size)} pixels; give one with at least {SMALLEST_SIDE_PX} pixels on "
            "each side."
        )


def cropped_share(size: tuple[int, int], wanted: tuple[int, int]) -> float:
    """The share of a picture that is lost when its middle is cropped to the aspect of `wanted`."""
    height, width = _centre_window(size, wanted)[2]
    return 1 - height * width / (size[0] * size[1])


def warn_of_cropping(size: tuple[int, int], wanted: tuple[int, int]) -> None:
    """Warns (SeedWarning) when much of a seed picture is lost, and says how much of it."""
    share, kept = cropped_share(size, wanted), _centre_window(size, wanted)[2]
    if share > CROPPED_IN_SILENCE:
        where = "at the top and bottom" if kept[1] == size[1] else "at the sides"
        warnings.warn(
            f"{share:.0%} of the seed picture is cropped away ({where}): it is {_as_text(size)} and "
            f"the model's pictures have the shape of {_as_text(wanted)}. Give {_as_text(kept)} to choose "
            "yourself what is kept.",
            SeedWarning,
            stacklevel=3,
        )


@contextmanager
def seed_warnings() -> Iterator[list[str]]:
    """Collects what would be warned of seeds, for one who has a log of his own; others pass."""
    messages: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", SeedWarning)
        yield messages
    for one in caught:
        if issubclass(one.category, SeedWarning):
            messages.append(str(one.message))
        else:
            warnings.warn_explicit(one.message, one.category, one.filename, one.lineno)


def eight_bits(values: np.ndarray, what: str) -> UInt8[np.ndarray, "..."]:
    """Brightness of any number type as 0 to 255.

    Numbers of 16 bits are scaled by the fewest bits of `BITS` that hold them all, with a SeedWarning
    where these are fewer than 16: cameras of 12 bits write such pictures. Floating point runs from
    0, black, to 1, white.

    Args:
        what: whose they are, as a sentence begins.

    Raises:
        MirageError: another type, or floating point outside of 0 to 1.
    """
    values = values.astype(values.dtype.newbyteorder("="), copy=False)
    if values.dtype == np.uint8:
        return values
    if values.dtype == np.uint16:
        most = int(values.max(initial=0))
        bits = next(bits for bits in BITS if most < 2**bits)
        if bits < 16:
            warnings.warn(
                f"{what} is stored in 16 bits and uses {bits} of them; it is taken for a picture of "
                f"{bits} bits.",
                SeedWarning,
                stacklevel=2,
            )
        return (values >> (bits - 8)).astype(np.uint8)
    if values.dtype.kind == "f":
        low, high = float(values.min(initial=0)), float(values.max(initial=0))
        if 0 <= low and high <= 1:
            return np.rint(values * 255).astype(np.uint8)
        raise MirageError(
            f"{what} holds floating-point numbers from {low:g} to {high:g}; give 0 (black) to 1 "
            "(white), or a picture of 8 or 16 bits."
        )
    raise MirageError(f"{what} holds {values.dtype}; give 8 or 16 bits, or floats from 0 to 1.")


def resize_rgb(
    rgb: UInt8[np.ndarray, "H W 3"], size: tuple[int, int]
) -> UInt8[np.ndarray, "h w 3"]:
    """Each side shrinks by exact pixel area and grows bilinearly; outer edges stay in place."""
    if rgb.shape[:2] == tuple(size):
        return np.ascontiguousarray(rgb)
    import torch  # not for the node, which reads pictures and resizes none

    picture = torch.from_numpy(rgb.astype(np.float32))
    down, across = (
        torch.from_numpy(_weights(*sides)) for sides in zip(rgb.shape[:2], size, strict=True)
    )
    picture = torch.einsum("yY,YXc->yXc", down, picture)
    picture = torch.einsum("xX,yXc->yxc", across, picture)
    return picture.round().clamp(0, 255).to(torch.uint8).numpy()


def cell_colours(rgb: UInt8[np.ndarray, "f H W 3"], stride: int) -> UInt8[np.ndarray, "f h w 3"]:
    """The mean colour of each stride x stride cell."""
    return np.rint(_cells(rgb, stride).mean((2, 4))).astype(np.uint8)


def cell_share(mask: Bool[np.ndarray, "f H W"], stride: int) -> Float[np.ndarray, "f h w"]:
    """The share of True pixels in each stride x stride cell."""
    return _cells(mask, stride).mean((2, 4))


def upsample(cells: np.ndarray, stride: int) -> np.ndarray:
    """(f, h, w) cells as (f, h * stride, w * stride) pixels, each pixel its cell's value."""
    return cells.repeat(stride, 1).repeat(stride, 2)


def _cells(pixels: np.ndarray, stride: int) -> np.ndarray:
    frames, height, width = pixels.shape[:3]
    split = (frames, height // stride, stride, width // stride, stride, *pixels.shape[3:])
    return pixels.reshape(split)


def _checked_depth(depth_m: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    depth = np.asarray(depth_m, np.float32)
    if depth.shape != size:
        raise MirageError(
            f"The seed's depth has the shape {depth.shape} but its picture is {size}; give depth "
            "registered to the picture, of the same size."
        )
    depth = np.where(depth > 0, depth, np.nan)
    if not np.isfinite(depth).any():
        raise MirageError(
            "The seed's depth has no valid pixel; give metres above 0 somewhere, or no depth."
        )
    return depth


def _centre_window(size: tuple[int, int], wanted: tuple[int, int]):
    """(top, left, (height, width)) of the largest centred window of the wanted aspect."""
    scale = min(size[0] / wanted[0], size[1] / wanted[1])
    crop = tuple(max(1, min(s, round(w * scale))) for s, w in zip(size, wanted, strict=True))
    return (size[0] - crop[0]) // 2, (size[1] - crop[1]) // 2, crop


def _as_text(size: tuple[int, ...]) -> str:
    """A size as people write it, width first."""
    return f"{size[1]}x{size[0]}"


def _nearest(depth, window, size):
    if depth is None:
        return None
    depth = depth[window]
    rows, columns = (
        ((np.arange(new) + 0.5) * old / new).astype(int)
        for new, old in zip(size, depth.shape, strict=True)
    )
    return depth[np.ix_(rows, columns)]


def _weights(old: int, new: int) -> Float[np.ndarray, "new old"]:
    """(new, old) rows that sum to 1: overlap of pixels when shrinking, else linear."""
    if new > old:
        centre = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
        weights = np.maximum(0, 1 - np.abs(centre[:, None] - np.arange(old)))
    else:
        edges = np.arange(new + 1) * old / new
        low, high = np.arange(old), np.arange(1, old + 1)
        weights = np.minimum(edges[1:, None], high) - np.maximum(edges[:-1, None], low)
        weights = np.maximum(weights, 0)
    return (weights / weights.sum(1, keepdims=True)).astype(np.float32)
