"""Pictures, depth and masks between sensor_msgs/Image and numpy."""

from __future__ import annotations

import array
import sys

import numpy as np
from jaxtyping import Bool, Float, UInt8
from sensor_msgs.msg import Image

from mirage_ros.core.errors import MirageError
from mirage_ros.core.pictures import eight_bits
from mirage_ros.ros.conversions import stamp_to_ros

# encoding -> (kind of number, channels, order that gives r g b)
COLOUR_ENCODINGS = {
    "rgb8": ("u1", 3, (0, 1, 2)),
    "bgr8": ("u1", 3, (2, 1, 0)),
    "rgba8": ("u1", 4, (0, 1, 2)),
    "bgra8": ("u1", 4, (2, 1, 0)),
    "mono8": ("u1", 1, (0, 0, 0)),
    "mono16": ("u2", 1, (0, 0, 0)),
}
DEPTH_ENCODINGS = {"16UC1": "u2", "mono16": "u2", "32FC1": "f4"}


def image_to_ros(pixels: np.ndarray, encoding: str, stamp_ns: int, frame_id: str) -> Image:
    """An Image message of (h, w) or (h, w, c) pixels; the encoding must fit their type."""
    pixels = np.ascontiguousarray(pixels)
    message = Image(height=pixels.shape[0], width=pixels.shape[1], encoding=encoding)
    message.header.stamp = stamp_to_ros(stamp_ns)
    message.header.frame_id = frame_id
    message.is_bigendian = int(sys.byteorder == "big")
    message.step = pixels.strides[0]
    # rclpy takes an array('B') as it is; every other type it checks byte by byte.
    data = array.array("B")
    data.frombytes(pixels.data.cast("B") if pixels.size else b"")
    message.data = data
    return message


def picture_to_ros(rgb: UInt8[np.ndarray, "h w 3"], stamp_ns: int, frame_id: str) -> Image:
    """rgb8."""
    return image_to_ros(np.asarray(rgb, np.uint8), "rgb8", stamp_ns, frame_id)


def depth_to_ros(depth_m: Float[np.ndarray, "h w"], stamp_ns: int, frame_id: str) -> Image:
    """32FC1 in metres; NaN invalid, +inf beyond range (REP 117, 118)."""
    return image_to_ros(np.asarray(depth_m, np.float32), "32FC1", stamp_ns, frame_id)


def mask_to_ros(mask: Bool[np.ndarray, "h w"], stamp_ns: int, frame_id: str) -> Image:
    """mono8: 255 where True, 0 elsewhere."""
    pixels = np.where(mask, np.uint8(255), np.uint8(0))
    return image_to_ros(pixels, "mono8", stamp_ns, frame_id)


def _pixels(message: Image, number: str, channels: int) -> np.ndarray:
    """(h, w, channels) view of the data; rows may be padded, numbers of either byte order."""
    height, width = message.height, message.width
    if not height or not width:
        raise MirageError(
            f"The picture is {width} x {height} pixels; send one with at least 1 x 1."
        )
    kind = np.dtype((">" if message.is_bigendian else "<") + number)
    row_bytes = width * channels * kind.itemsize
    if message.step < row_bytes or len(message.data) < (height - 1) * message.step + row_bytes:
        raise MirageError(
            f"The picture of {width} x {height} in {message.encoding} has {len(message.data)} "
            f"bytes at {message.step} bytes a row; {row_bytes} a row are needed: it is cut off."
        )
    data = np.frombuffer(message.data, np.uint8)
    strides = (message.step, channels * kind.itemsize, kind.itemsize)
    return np.ndarray((height, width, channels), kind, data, strides=strides)


def picture_from_ros(message: Image) -> UInt8[np.ndarray, "h w 3"]:
    """RGB of a colour or grey Image.

    Encodings beyond rgb8, bgr8, rgba8, bgra8, mono8 and mono16 go to cv_bridge where a real one
    is installed.

    Raises:
        MirageError: no pixels, data cut off, an encoding that nothing here can read.
    """
    if message.encoding not in COLOUR_ENCODINGS:
        return _bridge(message, "rgb8")
    number, channels, order = COLOUR_ENCODINGS[message.encoding]
    pixels = _pixels(message, number, channels)
    pixels = eight_bits(pixels, "The picture")
    return np.ascontiguousarray(pixels[..., list(order)])


def depth_from_ros(message: Image) -> Float[np.ndarray, "h w"]:
    """Depth in float32 metres: NaN invalid, +inf beyond range.

    16UC1 holds millimetres, 32FC1 metres; what is not above 0 is invalid.
    """
    if message.encoding not in DEPTH_ENCODINGS:
        raise MirageError(
            f"The depth picture is in '{message.encoding}'; send 32FC1 in metres or 16UC1 in "
            "millimetres."
        )
    number = DEPTH_ENCODINGS[message.encoding]
    depth_m = _pixels(message, number, 1)[..., 0].astype(np.float32)
    if number == "u2":
        depth_m /= 1000
    depth_m[~(depth_m > 0)] = np.nan
    return depth_m


def mask_from_ros(message: Image) -> Bool[np.ndarray, "h w"]:
    """True where a mono8 picture is above its middle."""
    if message.encoding != "mono8":
        raise MirageError(f"The mask is in '{message.encoding}'; send mono8.")
    return _pixels(message, "u1", 1)[..., 0] > 127


def _bridge(message: Image, encoding: str) -> np.ndarray:
    known = ", ".join(COLOUR_ENCODINGS)
    try:
        from cv_bridge import CvBridge

        return np.array(CvBridge().imgmsg_to_cv2(message, encoding))
    except Exception as error:  # noqa: BLE001 - a broken cv_bridge fails in many ways
        raise MirageError(
            f"The picture's encoding is '{message.encoding}'; send one of {known}, or install "
            "ROS's cv_bridge for the others."
        ) from error
