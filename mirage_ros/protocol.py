"""What the layers hand to each other: small frozen dataclasses, and what a model and a memory offer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, Float32, Int, Int8, Int32, Int64, UInt8

from mirage_ros.geometry.camera import Camera
from mirage_ros.geometry.rigid import SECOND_NS, Track

if TYPE_CHECKING:
    from torch import Tensor
else:  # the node's own process imports this module and does without torch
    Tensor = Any

FREE, OCCUPIED, UNKNOWN = 0, 100, -1  # cells of floor plans


@dataclass(frozen=True)
class Scan:
    """Ranges that one planar scanner measured at once.

    Attributes:
        ranges_m: of each beam; inf where all is free up to the largest range, -inf nearer than the least, NaN
            where nobody saw anything (REP 117).
        angle_min_rad, angle_step_rad: of the first beam, and from each to the next; 0 is ahead, to the left is
            positive.
        range_min_m, range_max_m: of the scanner.
        world_from_scan: its pose, x ahead, y left, z up.
    """

    ranges_m: Float32[np.ndarray, "n"]
    angle_min_rad: float
    angle_step_rad: float
    range_min_m: float
    range_max_m: float
    world_from_scan: Float[np.ndarray, "4 4"]


@dataclass(frozen=True)
class LidarCloud:
    """What a lidar measured in one turn, at one instant.

    Attributes:
        points_m: (ring, beam) in its own axes, the lowest ring first, beams from right to left; NaN: no return.
        world_from_lidar: its pose, x ahead, y left, z up.
    """

    points_m: Float32[np.ndarray, "r b 3"]
    world_from_lidar: Float[np.ndarray, "4 4"]


@dataclass(frozen=True)
class ImuSample:
    """What an inertial sensor measured, along its own axes.

    Attributes:
        angular_velocity: rad/s.
        acceleration: m/s^2, of the sensor against free fall: at rest gravity's opposite.
        gyro_std, accel_std: of the noise in each.
    """

    angular_velocity: Float[np.ndarray, "3"]
    acceleration: Float[np.ndarray, "3"]
    gyro_std: float
    accel_std: float


@dataclass(frozen=True)
class FloorPlan:
    """Cells of equal sides.

    Attributes:
        cells: FREE, OCCUPIED or UNKNOWN; the first index goes along y, the second along x.
        origin_m: x and y of the outer corner of cell (0, 0).
        resolution_m: side of a cell.
    """

    cells: Int8[np.ndarray, "h w"]
    origin_m: Float[np.ndarray, "2"]
    resolution_m: float


@dataclass(frozen=True)
class SurfacePoints:
    """Points where bodies touch, or that may stop one.

    Attributes:
        normals: away from the surface; 0 where that is not known.
        bodies: the number of the entity that touches; 0 is the robot.
        labels: of the entity whose surface it is; 0 is the world.
    """

    points_m: Float32[np.ndarray, "n 3"]
    normals: Float32[np.ndarray, "n 3"]
    bodies: Int32[np.ndarray, "n"]
    labels: Int32[np.ndarray, "n"]

    def of(self, chosen: np.ndarray) -> SurfacePoints:
        """Some of the points, by mask or by index."""
        return SurfacePoints(*(values[chosen] for values in (self.points_m, self.normals, self.bodies, self.labels)))


@dataclass(frozen=True)
class Frame:
    """One generated picture with everything that belongs to its instant.

    Attributes:
        stamp_ns: the planned time.
        camera: a single Camera of the picture's size.
        rgb: the picture.
        depth_m: along z; NaN invalid, +inf beyond range (REP 117, 118).
        observed: True where the model took the pixel from memory, latent cell by latent cell, False
            where it imagined it (`Readout.known`).
        scan, lidar: of sensors at the camera's place; None unless they were asked for.
        labels: the number of the entity that each pixel shows, 0 for the world; None where there are no entities.
            `observed` is of the world behind them.
        contacts, obstacles: of the robot that carries the camera, as scan; the latter of a chunk's last frame alone.
    """

    stamp_ns: int
    camera: Camera
    rgb: UInt8[np.ndarray, "h w 3"]
    depth_m: Float[np.ndarray, "h w"]
    observed: Bool[np.ndarray, "h w"]
    scan: Scan | None = None
    lidar: LidarCloud | None = None
    labels: Int32[np.ndarray, "h w"] | None = None
    contacts: SurfacePoints | None = None
    obstacles: SurfacePoints | None = None


#: Of the cycle, in order.
STAGES = ("read", "generate", "decode", "perceive", "write")


@dataclass(frozen=True)
class Chunk:
    """One step of the cycle.

    Attributes:
        frames: in time order.
        seconds: wall seconds by stage, of `STAGES`.
        observed_fraction: share of the chunk's latent cells that the model took from memory.
        tokens, memory_bytes: in memory after the write.
    """

    frames: tuple[Frame, ...]
    seconds: dict[str, float]
    observed_fraction: float
    tokens: int
    memory_bytes: int


@dataclass(frozen=True)
class Spawn:
    """One more entity.

    Attributes:
        name: '' takes the model's.
        uri: see `data.meshes.load`; text: what the model says itself, URDF or MJCF, instead.
        rename: a name that is taken, or none, gets a number.
        pose: world_from_entity; where `beside` names an entity, from that one's axes.
    """

    name: str
    uri: str
    pose: Float[np.ndarray, "4 4"]
    rename: bool = False
    text: str = ""
    namespace: str = ""
    beside: str = ""


@dataclass(frozen=True)
class Delete:
    """One entity less."""

    name: str


@dataclass(frozen=True)
class Move:
    """An entity elsewhere, or in another motion.

    Attributes:
        pose: None leaves it where it is; as of Spawn.
        twist: linear (m/s) and angular (rad/s) velocity, along its own axes if `in_body`, else the world's; None: as before.
        lasts_ns: the motion ends so long after it begins; None never.
        joints: names and positions (rad, m) of some; then nothing else of it changes.
        route: a path to follow, at its stamps, or from now on at `speed_mps` if that is not 0; then nothing else counts.
    """

    name: str
    pose: Float[np.ndarray, "4 4"] | None = None
    twist: tuple[Float[np.ndarray, "3"], Float[np.ndarray, "3"]] | None = None
    in_body: bool = False
    lasts_ns: int | None = None
    beside: str = ""
    joints: tuple[tuple[str, float], ...] = ()
    route: Track | None = None
    speed_mps: float = 0.0


@dataclass(frozen=True)
class Describe:
    """What is said of an entity."""

    name: str
    category: int
    description: str
    tags: tuple[str, ...]


@dataclass(frozen=True)
class Clear:
    """No entity any more."""


EntityChange = Spawn | Delete | Move | Describe | Clear


class Points(NamedTuple):
    """The memory as a cloud, for viewing. Confidence is the cosine under which a token was seen: 1 frontal."""

    xyz: Float32[np.ndarray, "n 3"]
    rgb: UInt8[np.ndarray, "n 3"]
    confidence: Float32[np.ndarray, "n"]
    written_ns: Int64[np.ndarray, "n"]


class Patches(NamedTuple):
    """Pieces of surfaces: their corners in turn, which way they face, and whether a real picture showed them."""

    corners_m: Float32[np.ndarray, "n 4 3"]
    normals: Float32[np.ndarray, "n 3"]
    real: Bool[np.ndarray, "n"]

    def of(self, chosen: np.ndarray) -> Patches:
        """Some of the pieces, by mask or by index."""
        return Patches(*(values[chosen] for values in self))


@dataclass(frozen=True)
class Readout:
    """What memory shows to f cameras, per cell of the cameras' pictures.

    Unseen cells hold zeros, depth NaN, index -1.

    Attributes:
        latents, visible, index: features of the winning tokens, where one won, and its row in the memory.
        depth_m: depth of the winning token's surface along z, metres; NaN unseen.
        place: (du, dv) of the cell's centre from the winning token's, in its own cells, on its plane and as
            seen from the view it was born in (zbuffer.py).
        log_scale: natural log of the token's footprint over the cell's width there; above 0 it is coarser than the cell.
    """

    latents: Float[Tensor, "f c h w"]
    visible: Bool[np.ndarray, "f h w"]
    depth_m: Float[np.ndarray, "f h w"]
    index: Int[np.ndarray, "f h w"]
    place: Float[np.ndarray, "f 2 h w"]
    log_scale: Float[np.ndarray, "f h w"]

    def known(self, cells: int) -> Bool[np.ndarray, "f lh lw"]:
        """Of latents of so many cells to a side: those of which memory shows at least half."""
        frames, height, width = self.visible.shape
        return self.visible.reshape(frames, height // cells, cells, width // cells, cells).mean((2, 4)) >= 0.5


@dataclass(frozen=True)
class Perception:
    """What a perceiver sees in f pictures: depth along z (NaN invalid, +inf sky), moving things, and sky: nothing to lift."""

    depth_m: Float[np.ndarray, "f h w"]
    dynamic: Bool[np.ndarray, "f h w"]
    sky: Bool[np.ndarray, "f h w"]


@dataclass(frozen=True)
class Views:
    """Whole views of f cameras: latents, and depth along z of each latent cell (+inf sky, NaN unknown)."""

    latents: Float[Tensor, "f c lh lw"]
    depth_m: Float[np.ndarray, "f lh lw"]
    cameras: Camera


@runtime_checkable
class SpatialMemory(Protocol):
    """What the cycle needs of a memory: LatentMemory, or a baseline. It holds `tokens` things in `nbytes` bytes."""

    tokens: int
    nbytes: int

    def read(self, cameras: Camera) -> Readout:
        """What f cameras of as many pixels as there shall be cells see."""

    def references(self, readout: Readout, count: int) -> list[int]:
        """At most `count` source frames of what is seen, the most seen first."""

    def fork(self) -> SpatialMemory:
        """A memory of its own with the same content."""


@runtime_checkable
class Surfaces(Protocol):
    """A memory that can be measured, as LatentMemory."""

    def measure(self, cameras: Camera) -> tuple[Float32[np.ndarray, "f h w"], Bool[np.ndarray, "f h w"]]: ...


@runtime_checkable
class FreeSpace(Protocol):
    """What was seen to be free, as FreeSpaceViews."""
    cameras: Camera
    reach_m: np.ndarray
    real: np.ndarray

    def seen_free(self, points: Float[np.ndarray, "n 3"], margin: float, only_real: bool = False) -> Bool[np.ndarray, "n"]: ...


@runtime_checkable
class WorldModel(Protocol):
    """The neural parts as the cycle sees them: a `ChunkModel` or an `Imaginer`. A model holds no state of the world.

    A model may have `readout_cells` besides: it is shown a readout of so many cells to a side of each latent cell. And
    `segmented(rgb)`: what moves in real pictures (f, h, w), by a segmenter that was asked for, or None if none was. And
    `device`, the torch device that it runs on, where that is not the CPU: memory is read there, too. And `network`, which
    its drawing calls on tensors with the batch in front: episodes that are drawn together share its calls.

    Attributes:
        name: what checkpoints and saved worlds are tagged with.
        stride, channels: pixels per latent cell; latent channels.
        size: (height, width) of the pictures it was made for, multiples of 2 * stride.
        chunk_frames: frames per chunk.
        preceding_frames, reference_frames: context latents that a ChunkModel can use, at most.
    """

    name: str
    stride: int
    channels: int
    size: tuple[int, int]
    chunk_frames: int
    preceding_frames: int
    reference_frames: int

    def encode(self, rgb: UInt8[np.ndarray, "f h w 3"]) -> Float[Tensor, "f c lh lw"]: ...

    def decode(self, latents: Float[Tensor, "f c lh lw"]) -> UInt8[np.ndarray, "f h w 3"]: ...

    def perceive(
        self, rgb: UInt8[np.ndarray, "f h w 3"], cameras: Camera, anchor_depth_m: Float[np.ndarray, "f ah aw"] | None
    ) -> Perception:
        """Depth and masks of pictures; `anchor_depth_m` is the readout's depth (NaN unseen)."""


@runtime_checkable
class ChunkModel(WorldModel, Protocol):
    """A model that makes the frames of a chunk together."""

    def generate(
        self, readout: Readout, cameras: Camera, preceding: Float[Tensor, "p c lh lw"],
        references: Float[Tensor, "r c lh lw"], seed: int,
    ) -> Float[Tensor, "f c lh lw"]:
        """Latents of the chunk. `cameras` is the batch of f target cameras at the readout's size."""


@runtime_checkable
class Imaginer(WorldModel, Protocol):
    """A model that imagines depth with what it shows: a place is imagined once and read from memory ever after."""

    def aligned(self, readout: Readout) -> Float[Tensor, "f c lh lw"]:
        """The latents that memory shows; those that it does not show mean nothing."""

    def imagine(self, readout: Readout, camera: Camera, style: Views, seed: int) -> Views:
        """The whole view of one camera (a batch of one, at the readout's size); what memory shows of it is kept.
        `style` are views of the same world, which tell how it looks."""


DecoderState = dict[str, Any]
"""What a causal decoder remembers: tensors, which are never changed in place, so states share them."""


def imagines(model: WorldModel) -> bool:
    """Whether a model, or what stands in for one, is an Imaginer."""
    return hasattr(model, "imagine")


def readout_cells(model: WorldModel) -> int:
    """Cells of a readout to a side of each latent cell; 1 where the model asks for no more."""
    return int(getattr(model, "readout_cells", 1))


def readout_side(model: WorldModel) -> int:
    """Pixels to a side of each cell of a readout."""
    return model.stride // readout_cells(model)
