"""Worlds that can be loaded: seeds and saved worlds, by name, path or file:// URI; and the one that is loaded."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import Float

from mirage_ros.data.seeds import MissingSeed, find_seed, level_camera_pose, shipped_seeds
from mirage_ros.errors import MirageError
from mirage_ros.files import WORLD, header_of_world, user_path, world_file
from mirage_ros.protocol import Chunk
from mirage_ros.ros import NodeConfig
from mirage_ros.ros.worker import Load, Reset, SeedName

SEED, SAVED = "seed", "saved"
PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff")
# A plan that starts further off the start, or where memory shows less, gets a warning; so does a world that leans.
FAR_M = 2.0
LEAST_SEEN = 0.05
TILT_DEG = 2.0


class UnknownWorld(MirageError):
    """There is no such world."""


class UnsupportedWorld(MirageError):
    """There is something, but no world."""


@dataclass(frozen=True)
class WorldEntry:
    """A world.

    Attributes:
        name: short, not unique.
        uri: what loads it.
        kind: seed or saved.
        hfov_deg: of a picture without intrinsics.
    """

    name: str
    uri: str
    kind: str
    hfov_deg: float | None = None

    def command(self, stamp_ns: int | None) -> Reset | Load:
        """What the worker has to do. `stamp_ns` is the time from which on it shall go."""
        if self.kind == SAVED:
            return Load(str(user_path(self.uri).absolute()), stamp_ns, redate=stamp_ns is None)
        seed = SeedName(self.uri, self.hfov_deg)
        return Reset(seed, stamp_ns, f"{self.kind} '{self.name}'")


def find_world(uri: str, hfov_deg: float | None = None) -> WorldEntry:
    """The world that a URI, a path (see `user_path`) or a shipped name stands for.

    Raises:
        UnknownWorld, UnsupportedWorld: both MirageError.
    """
    try:
        return _find(uri, hfov_deg)
    except (UnknownWorld, UnsupportedWorld):
        raise
    except MissingSeed as error:
        raise UnknownWorld(f"There is no world: {error}") from error
    except MirageError as error:
        raise UnsupportedWorld(str(error)) from error
    except OSError as error:
        raise UnsupportedWorld(
            f"The world '{uri}' cannot be looked up ({error.strerror}); give a readable path."
        ) from error


def _find(uri: str, hfov_deg: float | None) -> WorldEntry:
    folder = user_path(uri)
    if world_file(folder, WORLD).exists():
        return WorldEntry(folder.name, uri, SAVED)
    path, _ = find_seed(uri)
    if path.is_file() and path.suffix.lower() not in PICTURES:
        raise UnsupportedWorld(f"{path} is no picture; give a picture, a seed or a saved world.")
    name = path.stem if path.is_file() else folder.name
    return WorldEntry(name, uri, SEED, hfov_deg)


def available_worlds(folder: str, more: list[str]) -> tuple[list[WorldEntry], list[str]]:
    """The shipped seeds, what lies in the folder and in others; and the sources that failed."""
    found = [WorldEntry(name, name, SEED) for name in shipped_seeds()]
    failed = []
    for source in ([folder] if folder else []) + more:
        try:
            path = user_path(source)
            children = [path, *sorted(path.iterdir())]
        except (OSError, MirageError):
            failed.append(source)
            continue
        found += [entry for child in children if (entry := _entry(child)) is not None]
    return found, failed


def _entry(folder: Path) -> WorldEntry | None:
    """The world in a folder; None without one, or where nobody lets us look."""
    try:
        saved = header_of_world(world_file(folder, WORLD)) is not None
        if not saved and not (folder / "camera.yaml").is_file():
            return None
    except OSError:
        return None
    return WorldEntry(folder.name, folder.absolute().as_uri(), SAVED if saved else SEED)


@dataclass
class LoadedWorld:
    """The world that is there, where it came from and where it begins.

    Attributes:
        current: what was loaded, None without a world.
        origin: the command that made it.
        start_pose: world_from_camera where the world begins.
        coming: worlds that are on their way.
        first_failed: the world that was asked for first will not come.
    """

    current: WorldEntry | None = None
    origin: Reset | Load | None = None
    start_pose: Float[np.ndarray, "4 4"] = field(default_factory=level_camera_pose)
    coming: int = 0
    first_failed: bool = False

    def forget(self) -> None:
        """It is gone, and nothing is on its way."""
        self.current = self.origin = None
        self.coming, self.first_failed = 0, False

    def again(self, stamp_ns: int | None) -> Reset | Load:
        """The command that makes it once more, to begin at a time."""
        if isinstance(self.origin, Load):
            return Load(self.origin.path, stamp_ns, redate=stamp_ns is None)
        return Reset(self.origin.seed, stamp_ns, self.origin.origin)

    def start(self, world_frame: str) -> str:
        """The start's position, for people."""
        position = ", ".join(f"{value:.2f}" for value in self.start_pose[:3, 3])
        return f"({position}) m in '{world_frame}'"

    def move_start(self, start_pose: Float[np.ndarray, "4 4"]) -> str:
        """The seed's camera, and the world with it, was put elsewhere; says where the world leans by it."""
        world_from_seed = start_pose @ np.linalg.inv(self.start_pose)
        tilt_deg = np.degrees(np.arccos(np.clip(world_from_seed[2, 2], -1, 1)))
        self.start_pose = start_pose
        return f"; its up leans {tilt_deg:.0f} degrees there" if tilt_deg > TILT_DEG else ""

    def far_start(self, chunk: Chunk, config: NodeConfig) -> str:
        """A warning where the plan's first chunk shows little of the world, '' where it shows it."""
        first = chunk.frames[0].camera.world_from_camera
        far_m = float(np.linalg.norm(first[:3, 3] - self.start_pose[:3, 3]))
        unseen = config.use_memory and chunk.observed_fraction < LEAST_SEEN
        if far_m <= FAR_M and not unseen:
            return ""
        return (
            f"The plan starts {far_m:.1f} m from where the world does, and memory shows "
            f"{chunk.observed_fraction:.0%} of its first pictures; what it does not hold is "
            f"imagined. The world starts at {self.start(config.world_frame)}, as '{config.start_frame}' on "
            "/tf_static says; plan from there, or set anchor to tf."
        )
