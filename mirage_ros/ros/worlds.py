"""Worlds that can be loaded: seeds and saved worlds, by name, path or file:// URI."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mirage_ros.core.errors import MirageError
from mirage_ros.core.files import WORLD, header_of_world, world_file
from mirage_ros.resources import user_path
from mirage_ros.ros.worker import Load, Reset, SeedName
from mirage_ros.seeds import MissingSeed, find_seed, shipped_seeds

SEED, SAVED = "seed", "saved"
PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff")


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
