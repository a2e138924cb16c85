"""What is looked at: pictures, depth and masks between numpy and sensor_msgs Image and CompressedImage, and a camera as a
frustum and a trail of markers.

The compressed formats are those of compressed_image_transport and compressed_depth_image_transport
(github.com/ros-perception/image_transport_plugins, codec.cpp and compression_common.hpp), so that
any subscriber of theirs reads them. Depth of 32FC1 is sent as 16-bit inverse depth,
value = A / depth + B, behind a header of 12 bytes: int32 0 for inverse depth, float32 A, float32 B.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

import cv2
import numpy as np
from geometry_msgs.msg import Point
from jaxtyping import Bool, Float, UInt8
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import ColorRGBA
from visualization_msgs.msg import Marker

from mirage_ros.errors import MirageError
from mirage_ros.geometry.camera import Camera
from mirage_ros.geometry.images import eight_bits
from mirage_ros.recording.topics import depth_metres, header_fields, image_fields, mask_pixels
from mirage_ros.ros.messages import message_of, pose_to_ros, stamp_to_ros

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
    return message_of(Image, image_fields(pixels, encoding, stamp_ns, frame_id))


def picture_to_ros(rgb: UInt8[np.ndarray, "h w 3"], stamp_ns: int, frame_id: str) -> Image:
    """rgb8."""
    return image_to_ros(np.asarray(rgb, np.uint8), "rgb8", stamp_ns, frame_id)


def depth_to_ros(depth_m: Float[np.ndarray, "h w"], stamp_ns: int, frame_id: str) -> Image:
    """32FC1 in metres; NaN invalid, +inf beyond range (REP 117, 118)."""
    return image_to_ros(depth_metres(depth_m), "32FC1", stamp_ns, frame_id)


def mask_to_ros(mask: Bool[np.ndarray, "h w"], stamp_ns: int, frame_id: str) -> Image:
    """mono8: 255 where True, 0 elsewhere."""
    return image_to_ros(mask_pixels(mask), "mono8", stamp_ns, frame_id)


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


HEADER = struct.Struct("<iff")
INVERSE_DEPTH = 0
LAST_VALUE = 65535
COMPRESSED_ENCODINGS = ("32FC1", "16UC1")
DEPTH_TRANSPORTS = ("compressedDepth", "compressedDepth png")
# Level 1 takes half the time of level 6 for a tenth more bytes of colour.
PNG_FAST = [cv2.IMWRITE_PNG_COMPRESSION, 1]


def compressed_picture_to_ros(
    rgb: UInt8[np.ndarray, "h w 3"],
    stamp_ns: int,
    frame_id: str,
    kind: str = "jpeg",
    quality: int = 90,
) -> CompressedImage:
    """A JPEG or PNG of a picture.

    Args:
        kind: jpeg or png.
        quality: of a JPEG, 1 to 100; PNG loses nothing.

    Raises:
        MirageError: another kind.
    """
    if kind not in ("jpeg", "png"):
        raise MirageError(f"A compressed picture of kind '{kind}' was asked for; use jpeg or png.")
    options = [cv2.IMWRITE_JPEG_QUALITY, quality] if kind == "jpeg" else PNG_FAST
    bgr = np.ascontiguousarray(rgb[..., ::-1])
    return _message(_encoded(kind, bgr, options), f"rgb8; {kind} compressed bgr8", stamp_ns,
                    frame_id)  # fmt: skip


def picture_from_compressed(message: CompressedImage) -> UInt8[np.ndarray, "h w 3"]:
    """RGB of a compressed colour or grey picture. MirageError when it cannot be decoded."""
    return np.ascontiguousarray(_decoded(message, message.data, cv2.IMREAD_COLOR)[..., ::-1])


def compressed_depth_to_ros(
    depth_m: Float[np.ndarray, "h w"],
    stamp_ns: int,
    frame_id: str,
    encoding: str = "32FC1",
    max_depth_m: float = 100.0,
    quantization_m: float = 100.0,
) -> CompressedImage:
    """Depth behind a PNG: inverse depth for 32FC1, millimetres for 16UC1.

    An error of half a step is depth^2 / (2 A): 1.2 mm at 5 m with the default quantization.
    What is invalid, beyond `max_depth_m` or too near for 16 bits (0.16 m) comes out as NaN.

    Args:
        quantization_m: depth q at which a step is about a metre wide; A = q (q + 1).
    """
    if encoding not in COMPRESSED_ENCODINGS:
        raise MirageError(f"Depth was to be compressed as '{encoding}'; use 32FC1 or 16UC1.")
    depth = np.where(np.isfinite(depth_m) & (depth_m > 0), depth_m, np.inf).astype(np.float64)
    if encoding == "16UC1":
        slope, offset = 0.0, 0.0
        values = np.where(depth <= min(max_depth_m, LAST_VALUE / 1000), depth * 1000, 0)
    else:
        slope = quantization_m * (quantization_m + 1)
        offset = 1 - slope / max_depth_m
        values = np.where(depth < max_depth_m, slope / depth + offset, 0)
    levels = np.where(values <= LAST_VALUE, np.round(values), 0).astype(np.uint16)
    data = HEADER.pack(INVERSE_DEPTH, slope, offset) + _encoded("png", levels, PNG_FAST)
    return _message(data, f"{encoding}; compressedDepth png", stamp_ns, frame_id)


def depth_from_compressed(message: CompressedImage) -> Float[np.ndarray, "h w"]:
    """Depth in metres of a compressedDepth message, NaN where there is none.

    Raises:
        MirageError: another format, or data cut off.
    """
    encoding, _, transport = (part.strip() for part in message.format.partition(";"))
    if encoding not in COMPRESSED_ENCODINGS or transport not in DEPTH_TRANSPORTS:
        raise MirageError(
            f"The compressed depth has the format '{message.format}'; send 32FC1 or 16UC1 as "
            "'compressedDepth png'."
        )
    data = bytes(message.data)
    if len(data) <= HEADER.size:
        raise MirageError(f"The compressed depth has {len(data)} bytes; it is cut off.")
    _, slope, offset = HEADER.unpack_from(data)
    levels = _decoded(message, data[HEADER.size :], cv2.IMREAD_UNCHANGED).astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        metres = slope / (levels - offset) if encoding == "32FC1" else levels / 1000
    return np.where(levels > 0, metres, np.nan).astype(np.float32)


def _encoded(kind: str, pixels: np.ndarray, options: list[int]) -> bytes:
    done, data = cv2.imencode(f".{kind}", pixels, options)
    if not done:
        raise MirageError(f"A picture of the shape {pixels.shape} could not be written as {kind}.")
    return data.tobytes()


def _decoded(message: CompressedImage, data, flags: int) -> np.ndarray:
    raw = np.frombuffer(bytes(data), np.uint8)
    pixels = cv2.imdecode(raw, flags) if raw.size else None
    if pixels is None:
        raise MirageError(
            f"The compressed picture ('{message.format}', {raw.size} bytes) cannot be decoded; "
            "send a whole JPEG or PNG."
        )
    return pixels


def _message(data: bytes, description: str, stamp_ns: int, frame_id: str) -> CompressedImage:
    content = np.frombuffer(data, np.uint8)
    fields = {"header": header_fields(stamp_ns, frame_id), "format": description, "data": content}
    return message_of(CompressedImage, fields)


LENGTH_M = 0.4
LINE_M = 0.012
FRUSTUM_COLOUR = (0.25, 0.77, 0.71, 1.0)
TRAIL_COLOUR = (1.0, 0.62, 0.26, 1.0)
# Edges between the camera's centre (0) and the corners of its picture (1 to 4).
EDGES = ((0, 1), (0, 2), (0, 3), (0, 4), (1, 2), (2, 3), (3, 4), (4, 1))


def frustum_corners(camera: Camera, length_m: float = LENGTH_M) -> Float[np.ndarray, "5 3"]:
    """The centre and the picture's four outer corners at a depth, in the camera's axes."""
    height, width = camera.size
    pixels = np.array(
        [[-0.5, -0.5], [width - 0.5, -0.5], [width - 0.5, height - 0.5], [-0.5, height - 0.5]]
    )
    still = Camera(camera.intrinsics, np.eye(4), camera.size)
    corners = still.unproject(pixels, np.full(4, length_m))
    return np.concatenate([np.zeros((1, 3)), corners])


def frustum_to_ros(camera: Camera, stamp_ns: int, frame_id: str, name: str = "camera") -> Marker:
    """A frustum of lines whose marker pose is the camera's pose in `frame_id`."""
    marker = _marker(Marker.LINE_LIST, f"{name}/frustum", stamp_ns, frame_id, FRUSTUM_COLOUR)
    marker.pose = pose_to_ros(camera.world_from_camera)
    corners = frustum_corners(camera)
    marker.points = _points([corners[index] for edge in EDGES for index in edge])
    return marker


def trail_to_ros(
    positions: Sequence[Float[np.ndarray, "3"]], stamp_ns: int, frame_id: str, name: str = "camera"
) -> Marker:
    """A line through the camera's past positions in `frame_id`."""
    marker = _marker(Marker.LINE_STRIP, f"{name}/trail", stamp_ns, frame_id, TRAIL_COLOUR)
    marker.pose = pose_to_ros(np.eye(4))
    marker.points = _points(positions)
    return marker


def _marker(kind: int, name: str, stamp_ns: int, frame_id: str, colour: Sequence[float]) -> Marker:
    marker = Marker(type=kind, action=Marker.ADD, ns=name, id=0)
    marker.header.stamp = stamp_to_ros(stamp_ns)
    marker.header.frame_id = frame_id
    marker.scale.x = LINE_M
    red, green, blue, alpha = colour
    marker.color = ColorRGBA(r=red, g=green, b=blue, a=alpha)
    return marker


def _points(positions) -> list[Point]:
    return [Point(x=float(x), y=float(y), z=float(z)) for x, y, z in positions]
