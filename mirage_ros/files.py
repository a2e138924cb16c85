"""Files on the disk: written whole or not at all, and read only where they are regular ones.

Every write here keeps to this:
- Whoever opens the path finds the old content or the new one, never a part, also after a kill or a power cut: the
  content is synced before it takes the name, and the folder after.
- A write that fails leaves the old file as it was, and nothing else.
- Missing folders are made. A symbolic link is written through, and a file that is replaced keeps its permissions.
- Something other than a regular file, such as a pipe or a device, is never replaced.

Here are also the names of the files of a saved world, by which it is found without reading it, and where
files lie: those that come with the package (config, seeds, launch), and those that users name.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import unquote_to_bytes

from mirage_ros.errors import MirageError, report

PIECE_BYTES = 64 * 2**20
"""Bytes that are written between two reports of progress."""

FORMAT = "mirage_ros world"
MEMORY, LATENTS, SKY, DECODER = (f"{name}.safetensors" for name in ("memory", "latents", "sky", "decoder"))
WORLD = "world.json"
FILES = (MEMORY, LATENTS, SKY, DECODER, WORLD)
"""Of a saved world, in the order in which a save puts them in their places (world/files.py)."""

SAVING, SAVED = ".mirage_saving", ".mirage_saved"
KEYS = {"version", "model", "frames_seen", "stamp_ns", "frame_ids"}
"""Of world.json, which tell one from other programs' (the first ones named no format)."""

UNREADABLE = (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError)
"""What reading a damaged or hostile header may raise."""


def open_file(path: str | os.PathLike) -> BinaryIO:
    """A regular file to read. OSError for anything else: a pipe or device could block for ever."""
    # Asked before as well: opening some devices does something.
    _check_regular(path, os.stat(path))
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        _check_regular(path, os.fstat(handle))
    except OSError:
        os.close(handle)
        raise
    return os.fdopen(handle, "rb")


def read_json(path: str | os.PathLike) -> Any:
    """What a JSON file holds. Raises OSError, or one of UNREADABLE."""
    with open_file(path) as file:
        return json.loads(file.read())


def write_file(path: str | os.PathLike, *parts: str | bytes | memoryview) -> None:
    """Writes the parts, one after the other; progress is reported meanwhile.

    Raises MirageError where that fails.
    """
    try:
        with atomic_file(path) as file:
            for part in parts:
                data = part.encode() if isinstance(part, str) else part
                _write_all(file, memoryview(data).cast("B"))
    except OSError as error:
        raise MirageError(
            f"{path} cannot be written ({error.strerror}); choose a writable path with free space."
        ) from error


def write_json(path: str | os.PathLike, values: object, indent: int = 2) -> None:
    """Writes JSON and a line end. Raises MirageError where that fails."""
    write_file(path, json.dumps(values, indent=indent), "\n")


@contextlib.contextmanager
def atomic_file(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """A file without a name to write to, which takes the path's place when the block ends.

    A process that is killed meanwhile leaves nothing behind. Raises OSError.
    """
    target = _target(path)
    folder = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY)
    temporary = f".{target.name}.{threading.get_native_id()}"
    try:
        _unlink(folder, temporary)
        handle, nameless = _open_new(folder, temporary)
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            _finish(handle, target)
            if nameless:
                source = f"/proc/self/fd/{handle}"
                os.link(source, temporary, src_dir_fd=folder, dst_dir_fd=folder)
        os.replace(temporary, target.name, src_dir_fd=folder, dst_dir_fd=folder)
        os.fsync(folder)
    except BaseException:
        _unlink(folder, temporary)
        raise
    finally:
        os.close(folder)


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """A hidden path beside the file for what writes to names alone; takes the file's place when the block ends.

    What a killed process left at that path is overwritten by the next one, so that one process at a time may
    write a file. Raises OSError.
    """
    target = _target(path)
    temporary = target.with_name(f".{target.name}.tmp")
    try:
        temporary.unlink(missing_ok=True)
        yield temporary
        handle = os.open(temporary, os.O_RDONLY)
        try:
            _finish(handle, target)
        finally:
            os.close(handle)
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(target.parent)


def sync_folder(folder: str | os.PathLike) -> None:
    """The names in a folder are on the disk after this."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _target(path: str | os.PathLike) -> Path:
    """Where the path leads, in a folder that is there."""
    target = Path(os.path.realpath(path))
    with contextlib.suppress(FileNotFoundError):
        _check_regular(path, os.stat(target))
    target.parent.mkdir(parents=True, exist_ok=True)
    return target


def _check_regular(path: str | os.PathLike, found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "it is no regular file", str(path))


def _finish(handle: int, target: Path) -> None:
    """Gives a new file the permissions of the one that it replaces, and syncs it."""
    with contextlib.suppress(FileNotFoundError):
        os.fchmod(handle, stat.S_IMODE(target.stat().st_mode))
    os.fsync(handle)


def _open_new(folder: int, name: str) -> tuple[int, bool]:
    """A handle to write to, and whether the file has no name yet: some file systems cannot do without."""
    try:
        return os.open(".", os.O_TMPFILE | os.O_WRONLY, 0o666, dir_fd=folder), True
    except (OSError, AttributeError):
        return os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666, dir_fd=folder), False


def _write_all(file: BinaryIO, data: memoryview) -> None:
    while len(data):
        report()
        file.write(data[:PIECE_BYTES])
        data = data[PIECE_BYTES:]
        if len(data):
            file.flush()
            os.fdatasync(file.fileno())


def _unlink(folder: int, name: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(name, dir_fd=folder)


def world_file(folder: str | os.PathLike, name: str) -> Path:
    """Where a file of a saved world is: in its place, or yet to be put there (world/files.py)."""
    coming = Path(folder) / SAVED / name
    return coming if coming.exists() else Path(folder) / name


def header_of_world(path: str | os.PathLike) -> dict | None:
    """The values of a world.json; None where it is none of a saved world, of any version or model."""
    try:
        header = read_json(path)
        ours = header.get("format") == FORMAT or KEYS <= header.keys()
    except (OSError, *UNREADABLE):
        return None
    return header if ours else None


PACKAGE = Path(__file__).parent
LONGEST_NAME, LONGEST_PATH = 255, 4095
"""Bytes, on the file systems of Linux."""


def user_path(words: str | os.PathLike) -> Path:
    """The path that somebody means: ~ and ~user are home folders, file:// URIs are unpacked.

    A relative path stays one: it holds from the folder in which the process works.

    Raises:
        MirageError: no path can be meant: nothing, a NUL, an unknown user, another scheme or
            another machine in a URI, a name too long for a file system.
    """
    text = os.fspath(words)
    shown = text if len(text) <= 100 else f"{text[:100]}..."
    path = _unpacked(text, shown)
    if not path:
        raise MirageError("The path is empty; give one such as /tmp/walk or ~/walk.")
    if "\0" in path:
        raise MirageError(f"The path {shown!r} holds a NUL character; leave it out.")
    path = os.path.expanduser(path)
    if path.startswith("~"):
        raise MirageError(
            f"The path {shown} names no known user; give a whole path, or ./~... for a file of that "
            "name."
        )
    longest = max(len(os.fsencode(name)) for name in path.split("/"))
    if longest > LONGEST_NAME or len(os.fsencode(path)) > LONGEST_PATH:
        raise MirageError(
            f"The path {shown} is too long ({len(os.fsencode(path))} bytes, its longest name "
            f"{longest}); give at most {LONGEST_PATH}, and {LONGEST_NAME} a name."
        )
    return Path(path)


def check_file_or_folder(path: Path) -> None:
    """Raises MirageError for what exists and is neither, and may never end: a device, a pipe."""
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        kinds = {stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
        kind = kinds.get(stat.S_IFMT(mode), "a device")
        raise MirageError(f"{path} is {kind}; give a file or a folder.")


def _unpacked(text: str, shown: str) -> str:
    """The path in a file URI; other texts as they are. Raises MirageError for other schemes."""
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]*):(?=/)", text)
    if scheme is None or (scheme[1].lower() != "file" and _exists(text)):
        return text
    if scheme[1].lower() != "file":
        raise MirageError(
            f"The path {shown} has the scheme '{scheme[1]}'; give a path or a file:// URI."
        )
    host, slash, rest = text[len("file:") :].removeprefix("//").partition("/")
    if text.startswith("//", len("file:")) and (host not in ("", "localhost") or not slash):
        raise MirageError(
            f"The URI {shown} names the machine {host!r}; give a path of this one, such as "
            "file:///tmp/walk."
        )
    return "/" + os.fsdecode(unquote_to_bytes(rest))


def _exists(text: str) -> bool:
    try:
        return os.path.lexists(text)
    except (OSError, ValueError):
        return False


def share_path(*parts: str) -> Path:
    """A shipped file or folder, such as share_path("config", "mirage.yaml").

    In a checkout it lies beside the package. colcon and pip both install it to
    share/mirage_ros of the prefix that holds the package.

    Raises:
        MirageError: nothing of that name is installed.
    """
    roots = _roots(PACKAGE)
    for root in roots:
        path = root.joinpath(*parts)
        if path.exists():
            return path
    places = " or ".join(str(root) for root in roots) or str(PACKAGE)
    raise MirageError(
        f"'{'/'.join(parts)}' does not come with this mirage_ros (looked in {places}); "
        "give a path to a file of your own or install the package again."
    )


def _roots(package: Path) -> list[Path]:
    """Folders that may hold config/ and launch/, the checkout's root first."""
    checkout = [package.parent] if (package.parent / "package.xml").is_file() else []
    shared = (parent / "share" / "mirage_ros" for parent in package.parents)
    return checkout + [path for path in shared if path.is_dir()]
