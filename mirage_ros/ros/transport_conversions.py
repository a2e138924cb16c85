"""Pictures and depth as image_transport's `compressed` and `compressedDepth` messages.

The formats are those of compressed_image_transport and compressed_depth_image_transport
(github.com/ros-perception/image_transport_plugins, codec.cpp and compression_common.hpp), so that
any subscriber of theirs reads them. Depth of 32FC1 is sent as 16-bit inverse depth,
value = A / depth + B, behind a header of 12 bytes: int32 0 for inverse depth, float32 A, float32 B.
"""

from __future__ import annotations

import array
import struct

import cv2
import numpy as np
from jaxtyping import Float, UInt8
from sensor_msgs.msg import CompressedImage

from mirage_ros.core.errors import MirageError
from mirage_ros.ros.conversions import stamp_to_ros

HEADER = struct.Struct("<iff")
INVERSE_DEPTH = 0
LAST_VALUE = 65535
DEPTH_ENCODINGS = ("32FC1", "16UC1")
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
    if encoding not in DEPTH_ENCODINGS:
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
    if encoding not in DEPTH_ENCODINGS or transport not in DEPTH_TRANSPORTS:
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
    message = CompressedImage(format=description)
    message.header.stamp = stamp_to_ros(stamp_ns)
    message.header.frame_id = frame_id
    content = array.array("B")
    content.frombytes(data)
    message.data = content
    return message
