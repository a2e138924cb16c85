"""Where files lie: those that come with the package (config, seeds, launch), and those that users name."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path
from urllib.parse import unquote_to_bytes

from mirage_ros.errors import MirageError

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
