"""Worlds that can be loaded: seeds and saved worlds, by name, path or file:// URI."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlparse

from mirage_ros.core.errors import MirageError
from mirage_ros.ros.worker import Load, Reset, SeedName
from mirage_ros.seeds import shipped_seeds

SEED, SAVED = "seed", "saved"
# So much of a name is worth reading.
SHOWN = 200
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
            return Load(_path(self.uri), stamp_ns, redate=stamp_ns is None)
        seed = SeedName(_path(self.uri), self.hfov_deg)
        return Reset(seed, stamp_ns, f"{self.kind} '{self.name}'")


def find_world(uri: str, hfov_deg: float | None = None) -> WorldEntry:
    """The world that a URI, a path or a shipped name stands for.

    Raises:
        UnknownWorld, UnsupportedWorld: both MirageError.
    """
    try:
        return _find(uri, hfov_deg)
    except (OSError, ValueError) as error:
        shown = uri if len(uri) <= SHOWN else f"{uri[:SHOWN]}..."
        raise UnsupportedWorld(
            f"The world '{shown}' cannot be looked up ({_reason(error)}); give a readable path, a "
            "file:// URI or a name."
        ) from error


def _find(uri: str, hfov_deg: float | None) -> WorldEntry:
    scheme = urlparse(uri).scheme
    if scheme not in ("", "file") and not Path(uri).exists():
        raise UnsupportedWorld(
            f"The world '{uri}' has the scheme '{scheme}'; give a path, a file:// URI or a name."
        )
    name = _path(uri)
    path = Path(name)
    if path.is_dir() and (path / "world.json").is_file():
        return WorldEntry(path.name, uri, SAVED)
    if path.is_file() and path.suffix.lower() not in PICTURES:
        raise UnsupportedWorld(f"{path} is no picture; give a picture, a seed or a saved world.")
    head, _, tail = name.rpartition(":")
    known = name in shipped_seeds() or path.exists() or (tail.isdigit() and Path(head).exists())
    if not known:
        names = ", ".join(shipped_seeds()) or "none"
        raise UnknownWorld(f"There is no world '{uri}' (shipped: {names}); give an existing path.")
    return WorldEntry(path.stem if path.is_file() else path.name, uri, SEED, hfov_deg)


def available_worlds(folder: str, more: list[str]) -> tuple[list[WorldEntry], list[str]]:
    """The shipped seeds, what lies in the folder and in others; and the sources that failed."""
    found = [WorldEntry(name, name, SEED) for name in shipped_seeds()]
    failed = []
    for source in ([folder] if folder else []) + more:
        try:
            path = Path(_path(source))
            children = [path, *sorted(path.iterdir())]
        except (OSError, ValueError):
            failed.append(source)
            continue
        found += [entry for child in children if (entry := _entry(child)) is not None]
    return found, failed


def _entry(folder: Path) -> WorldEntry | None:
    """The world in a folder; None without one, or where nobody lets us look."""
    try:
        saved = (folder / "world.json").is_file()
        if not saved and not (folder / "camera.yaml").is_file():
            return None
    except OSError:
        return None
    return WorldEntry(folder.name, folder.absolute().as_uri(), SAVED if saved else SEED)


def _reason(error: OSError | ValueError) -> str:
    """Without the path, which may be long."""
    return getattr(error, "strerror", None) or str(error)


def _path(uri: str) -> str:
    parts = urlparse(uri)
    return unquote(parts.path) if parts.scheme == "file" else uri
