"""The baselines that remember pixels: a coloured cloud or whole pictures, drawn and encoded at every read.

`RgbMemory` and `KeyframeMemory` are read as a LatentMemory is, `RgbWorld` and
`KeyframeWorld` run the cycle with them: same model, same rules of what is written, other memory. Of
the seed they keep the picture itself, not what the codec makes of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8

from mirage_ros.evaluation.point_cloud import CloudConfig, Drawing, PointCloud
from mirage_ros.geometry.camera import Camera
from mirage_ros.geometry.depth import cell_depth
from mirage_ros.geometry.images import cell_share, upsample
from mirage_ros.protocol import Readout, WorldModel, readout_cells
from mirage_ros.recording.pictures import LAST_MM, millimetres
from mirage_ros.world.state import REWRITE_LOG_SCALE, Pictures, anchor_frames, frames_per_latent
from mirage_ros.world.world import World, WorldConfig

JPEG_QUALITY = 90
OVERLAP = 0.75
"""A frame is kept when less than this share of it can be drawn from those kept before."""
POSE_BYTES = 4 * (12 + 4)
"""A keyframe's pose and intrinsics."""
EDGE = 0.05
"""A pixel whose inverse depth bends by more than this share hangs between two surfaces."""


class RgbMemory:
    """A point cloud behind the face of a latent memory.

    Args:
        encode: pictures (f, h, w, 3) uint8 to latents (f, c, h / stride, w / stride).
        stride: pixels per latent cell.
        cells: of a readout to a side of each latent cell.
    """

    def __init__(
        self, encode: Callable[[np.ndarray], torch.Tensor], stride: int,
        config: CloudConfig = CloudConfig(), cells: int = 1,
    ) -> None:  # fmt: skip
        self.encode, self.cells, self.cloud = encode, cells, PointCloud(config)
        self.side = stride // cells

    @property
    def tokens(self) -> int:
        """Points, that is."""
        return self.cloud.count

    @property
    def nbytes(self) -> int:
        return self.cloud.nbytes

    def draw(self, cameras: Camera) -> Drawing:
        """The cloud at cameras of a readout's size, in pixels."""
        return self.cloud.draw(cameras.resized(tuple(n * self.side for n in cameras.size)))

    def pictures(self, cameras: Camera) -> UInt8[np.ndarray, "f h w 3"]:
        """What is drawn at cameras of picture size, holes filled: no network has touched it."""
        drawing = self.cloud.draw(cameras)
        return fill_holes(drawing.rgb, drawing.covered)

    def read(self, cameras: Camera) -> Readout:
        """Draws, fills the holes from their nearest neighbours, encodes.

        A cell is visible where points cover at least half of it. What is drawn has the right position
        and scale: every cell gets a token in the middle of its latent's cell and as wide as
        that.
        """
        drawing = self.draw(cameras)
        depth = cell_depth(drawing.depth_m, self.side)
        visible = np.isfinite(depth)
        latents = self.encode(fill_holes(drawing.rgb, drawing.covered)).float().cpu()
        latents = latents.repeat_interleave(self.cells, 2).repeat_interleave(self.cells, 3)
        latents = latents * torch.from_numpy(visible)[:, None]
        index = np.where(visible, _middle(drawing.index, self.side), -1).astype(np.int32)
        return Readout(
            latents=latents.contiguous(),
            visible=visible,
            depth_m=np.where(visible, depth, np.nan).astype(np.float32),
            index=index,
            place=-self._to_middles(visible) / self.cells,
            log_scale=visible * np.float32(math.log(self.cells)),
        )

    def _to_middles(self, visible: Bool[np.ndarray, "f h w"]) -> Float[np.ndarray, "f 2 h w"]:
        """(du, dv) in cells from every visible cell's centre to its latent cell's."""
        rows, columns = ((self.cells - 1) / 2 - np.arange(n) % self.cells for n in visible.shape[1:])
        offset = np.stack(np.broadcast_arrays(columns[None], rows[:, None]))
        return (offset * visible[:, None]).astype(np.float32)

    def references(self, readout: Readout, count: int) -> list[int]:
        """At most `count` frames that tokens came from, most winners first, then the lower id."""
        frames = self.cloud["frames"][readout.index[readout.index >= 0]]
        ids, winners = np.unique(frames, return_counts=True)
        return [int(i) for i in ids[np.argsort(-winners, kind="stable")][:count]]

    def write_new(
        self,
        rgb: UInt8[np.ndarray, "f h w 3"],
        cameras: Camera,
        depth_m: Float[np.ndarray, "f h w"],
        static: Bool[np.ndarray, "f h w"],
        frame_ids: Int[np.ndarray, "f"],
        rewrite_log_scale: float = REWRITE_LOG_SCALE,
    ) -> int:
        """Adds the pixels that the cloud does not show yet, or shows too coarsely."""
        added = 0
        for i in range(len(cameras)):
            one = slice(i, i + 1)
            drawn = self.cloud.draw(cameras[one])
            wanted = ~drawn.covered | (drawn.log_scale > rewrite_log_scale)
            sound = static[one] & wanted & ~between_surfaces(depth_m[one])
            added += self.cloud.write(
                rgb[one], cameras[one], depth_m[one], sound, np.asarray(frame_ids)[one]
            )
        return added

    def fork(self) -> RgbMemory:
        twin = RgbMemory(self.encode, self.side * self.cells, self.cloud.config, self.cells)
        twin.cloud = self.cloud.copy()
        return twin


class KeyframeMemory(RgbMemory):
    """At most `most` pictures as JPEG and their depth as 16-bit PNG, and nothing else.

    The pictures as they come out of their files again are warped into a view by the cloud's
    z-buffer. The first picture is kept, and every later one of which too little can be drawn.
    """

    def __init__(
        self, encode: Callable[[np.ndarray], torch.Tensor], stride: int, most: int, cells: int = 1
    ) -> None:
        super().__init__(encode, stride, CloudConfig(voxel_m=None), cells)
        self.most, self.sizes = most, ()

    @property
    def nbytes(self) -> int:
        """Bytes of the files, and of their cameras."""
        return sum(self.sizes) + len(self.sizes) * POSE_BYTES

    def write_new(
        self, rgb, cameras: Camera, depth_m, static, frame_ids, rewrite_log_scale: float = REWRITE_LOG_SCALE
    ) -> int:
        """Keeps the frames of which too little can be drawn; returns how many points came of it."""
        added, ids = 0, np.asarray(frame_ids)
        for i in range(len(cameras)):
            one = slice(i, i + 1)
            if len(self.sizes) == self.most:
                break
            if self.sizes and self.cloud.draw(cameras[one]).covered.mean() >= OVERLAP:
                continue
            files = keyframe_files(rgb[i], np.where(static[i], depth_m[i], np.nan))
            colours, depth = (part[None] for part in keyframe_of(*files))
            self.sizes += (sum(map(len, files)),)
            sound = np.isfinite(depth) & ~between_surfaces(depth)
            added += self.cloud.write(colours, cameras[one], depth, sound, ids[one])
        return added

    def fork(self) -> KeyframeMemory:
        twin = KeyframeMemory(self.encode, self.side * self.cells, self.most, self.cells)
        twin.cloud, twin.sizes = self.cloud.copy(), self.sizes
        return twin


class RgbBackend:
    """Gives a world a point cloud for a memory; saving it is not meant."""

    def __init__(self, model: WorldModel, config: WorldConfig) -> None:
        self.model, self.config = model, config

    def new(self) -> RgbMemory:
        return RgbMemory(self.model.encode, self.model.stride, cells=readout_cells(self.model))

    def sky(self) -> None:
        return None

    def write(self, memory: RgbMemory, pictures: Pictures, sky: None = None) -> None:
        perception, stride = pictures.perception, self.model.stride
        still = cell_share(perception.dynamic, stride) <= self.config.max_dynamic_share
        still = upsample(still, stride) & ~perception.dynamic
        frames = len(pictures.stamps_ns)
        anchors = anchor_frames(frames, frames_per_latent(self.model))
        latent = np.searchsorted(anchors, np.arange(frames)).clip(max=len(anchors) - 1)
        memory.write_new(
            pictures.rgb if pictures.given is None else pictures.given,
            pictures.cameras,
            perception.depth_m,
            still,
            pictures.first_id + latent,
            REWRITE_LOG_SCALE,
        )


class KeyframeBackend(RgbBackend):
    """Gives a world at most `keyframes` pictures for a memory."""

    def __init__(self, model: WorldModel, config: WorldConfig, keyframes: int) -> None:
        super().__init__(model, config)
        self.keyframes = keyframes

    def new(self) -> KeyframeMemory:
        model = self.model
        return KeyframeMemory(model.encode, model.stride, self.keyframes, readout_cells(model))


class RgbWorld(World):
    """The cycle with a point cloud for a memory."""

    def __init__(self, model: WorldModel, config: WorldConfig = WorldConfig()) -> None:
        super().__init__(model, config, RgbBackend)


class KeyframeWorld(World):
    """The cycle with at most `keyframes` pictures for a memory."""

    def __init__(
        self, model: WorldModel, config: WorldConfig = WorldConfig(), keyframes: int = 1
    ) -> None:
        super().__init__(model, config, partial(KeyframeBackend, keyframes=keyframes))


def keyframe_files(
    rgb: UInt8[np.ndarray, "h w 3"], depth_m: Float[np.ndarray, "h w"]
) -> tuple[bytes, bytes]:
    """JPEG of a picture and PNG of its depth, which is NaN where it is not to be kept."""
    colour = cv2.imencode(".jpg", rgb[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1]
    depth = cv2.imencode(".png", millimetres(depth_m), [cv2.IMWRITE_PNG_COMPRESSION, 9])[1]
    return colour.tobytes(), depth.tobytes()


def keyframe_of(
    colour: bytes, depth: bytes
) -> tuple[UInt8[np.ndarray, "h w 3"], Float[np.ndarray, "h w"]]:
    """Picture and depth in metres (NaN unknown or beyond range) out of their files."""
    bgr = cv2.imdecode(np.frombuffer(colour, np.uint8), cv2.IMREAD_COLOR)
    stored = cv2.imdecode(np.frombuffer(depth, np.uint8), cv2.IMREAD_UNCHANGED)
    known = (stored > 0) & (stored <= LAST_MM)
    metres = np.where(known, stored / np.float32(1000), np.float32(np.nan))
    return np.ascontiguousarray(bgr[..., ::-1]), metres


def fill_holes(
    rgb: UInt8[np.ndarray, "f h w 3"], covered: Bool[np.ndarray, "f h w"]
) -> UInt8[np.ndarray, "f h w 3"]:
    """Pictures whose uncovered pixels take the colour of the nearest covered one."""
    filled = rgb.copy()
    for i, known in enumerate(covered):
        if known.all() or not known.any():
            continue
        holes = (~known).astype(np.uint8)
        _, labels = cv2.distanceTransformWithLabels(
            holes, cv2.DIST_L2, 3, labelType=cv2.DIST_LABEL_PIXEL
        )
        colours = np.zeros((labels.max() + 1, 3), np.uint8)
        colours[labels[known]] = rgb[i][known]
        filled[i][~known] = colours[labels[~known]]
    return filled


def between_surfaces(depth_m: Float[np.ndarray, "f h w"]) -> Bool[np.ndarray, "f h w"]:
    """Pixels at a jump of depth, which smooth depth pictures smear: a plane's inverse depth is
    linear in the picture, so bends of it tell edges from slants."""
    with np.errstate(divide="ignore", invalid="ignore"):
        inverse = np.nan_to_num(1 / depth_m, nan=0.0, posinf=0.0)
        padded = np.pad(inverse, ((0, 0), (1, 1), (1, 1)), "edge")
        across = padded[:, 1:-1, :-2] + padded[:, 1:-1, 2:] - 2 * inverse
        down = padded[:, :-2, 1:-1] + padded[:, 2:, 1:-1] - 2 * inverse
        across[..., (0, -1)], down[..., (0, -1), :] = 0, 0
        return np.maximum(np.abs(across), np.abs(down)) > EDGE * inverse


def _middle(index: Int[np.ndarray, "f H W"], stride: int) -> Int[np.ndarray, "f h w"]:
    """In every cell the covered pixel's index that lies nearest to the cell's centre, else -1."""
    frames, height, width = index.shape
    cells = index.reshape(frames, height // stride, stride, width // stride, stride)
    cells = cells.transpose(0, 1, 3, 2, 4).reshape(
        frames, height // stride, width // stride, stride * stride
    )
    offset = np.arange(stride) - (stride - 1) / 2
    order = np.argsort((offset[:, None] ** 2 + offset**2).ravel(), kind="stable")
    cells = cells[..., order]
    first = (cells >= 0).argmax(-1)[..., None]
    return np.take_along_axis(cells, first, -1)[..., 0]
