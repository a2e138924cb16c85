"""What writing one episode has in common in all formats: checks, errors, all or nothing."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from glob import escape
from itertools import count
from pathlib import Path

import numpy as np

from mirage_ros.errors import MirageError
from mirage_ros.protocol import Frame
from mirage_ros.recording import NOTHING, Feature, RecordingConfig

SCARCE_BYTES = 1 << 20
PARTIAL = ".tmp"
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turns what goes wrong with files below `path` into one clear MirageError."""
    try:
        yield
    except MirageError:
        raise
    except Exception as error:
        # Libraries' own errors (FFmpeg's, Arrow's) carry the number of the system's error too.
        number = getattr(error, "errno", None)
        if number in FULL or _tells_of_no_space(error, path):
            raise MirageError(
                f"The disk is full while recording to {path}; free some space: everything that "
                "was finished is kept, and `mirage recover` mends what was cut off."
            ) from error
        if not isinstance(error, OSError) and number is None:
            raise
        reason = os.strerror(number) if number else str(error).partition("\n")[0]
        raise MirageError(
            f"Cannot record to {path} ({reason}); give a path in a writable folder."
        ) from error


def _tells_of_no_space(error: Exception, path: Path) -> bool:
    """Whether an error without the system's number comes of a full disk: ffmpeg just goes."""
    if "No space left" in str(error):
        return True
    folder = next(parent for parent in path.absolute().parents if parent.is_dir())
    return "Broken pipe" in str(error) and shutil.disk_usage(folder).free < SCARCE_BYTES


@contextmanager
def lock_or_refuse(file: int, path: Path) -> Iterator[None]:
    """Holds an open file or folder for this process alone. Raises MirageError when it is taken."""
    take_lock(file, path)
    try:
        yield
    finally:
        fcntl.flock(file, fcntl.LOCK_UN)


def take_lock(file: int, path: Path) -> None:
    """Holds it until the file is closed; the system lets go of it when the process dies."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise MirageError(
            f"{path} is being recorded to; end that recording first, or give another path."
        ) from error


class PathLock:
    """Keeps a file or folder to one process until `release`, whatever name it gets meanwhile."""

    _file = -1

    def __init__(self, path: Path, target: Path | None = None) -> None:
        """Raises MirageError, naming `target` or the path, when another one holds it."""
        self._file = os.open(path, os.O_RDONLY)
        try:
            take_lock(self._file, target or path)
        except BaseException:
            self.release()
            raise

    def release(self) -> None:
        """A second call does nothing."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def __enter__(self) -> PathLock:
        return self

    def __exit__(self, *exception: object) -> None:
        self.release()

    def __del__(self) -> None:
        self.release()


def check_left(partial: Path, target: Path) -> None:
    """Raises MirageError, naming `target`, while somebody writes `partial`, a file or a folder."""
    # A bag is locked by its file.
    file = next(partial.glob("*.mcap"), partial) if partial.is_dir() else partial
    PathLock(file, target).release()


def check_free(target: Path) -> None:
    """Raises MirageError where `target` is there already or cannot be made; makes its folder."""
    if os.path.lexists(target):
        raise MirageError(f"{target} is there already; give another path or remove it.")
    check_writable(target.parent, target)


def check_writable(folder: Path, target: Path | None = None) -> None:
    """Makes the folder where it lacks. Raises MirageError, naming `target`, where it takes no file."""
    with disk_errors(target or folder):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass


class Episode(ABC):
    """One episode in a temporary folder or file beside its own; a rename finishes it.

    Attributes:
        keep_half: what an error cuts off is left for `mirage recover`.
    """

    keep_half = False

    def __init__(self, target: Path, config: RecordingConfig, task: str, info: Mapping) -> None:
        """Raises MirageError when something of this name is there or cannot be."""
        self.target, self.config, self.task = target, config, task
        self.info = dict(info)
        self.frames = 0
        self.partial = _partial(target, str(os.getpid()))
        self._open, self._lock = True, None
        check_free(target)
        # In a container, the process that was killed here may have had the same number.
        for number in count(1):
            if not self.partial.exists():
                break
            self.partial = _partial(target, f"{os.getpid()}-{number}")

    def add(self, frame: Frame, values: Mapping[str, np.ndarray] = NOTHING) -> None:
        """Appends a frame and its values; see `EpisodeWriter`."""
        self._check_open()
        checked = check_values(self.config.features, values)
        with disk_errors(self.target):
            self._write(frame, checked)
        self.frames += 1

    def finish(self) -> None:
        """Gives the episode its name."""
        self._check_open()
        if not self.frames:
            raise MirageError(f"The episode {self.target.name} is empty; add frames or drop it.")
        self._open = False
        try:
            with disk_errors(self.target):
                self._complete()
                self._check_still_free()
                self._rename()
        except BaseException:
            if not self.keep_half:
                remove(self.partial)
            raise
        finally:
            self._let_go()

    def leave(self) -> None:
        """After an error: lets go of the files, and removes them unless the half is kept."""
        if self._open:
            self._open = False
            self._abandon()
            self._let_go()
            if not self.keep_half:
                remove(self.partial)

    def discard(self) -> None:
        """Removes what was written so far; a second call does nothing."""
        if self._open:
            self._open = False
            self._abandon()
            self._let_go()
            remove(self.partial)

    def __enter__(self) -> Episode:
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        if kind is not None:
            self.leave()
        elif self._open:
            self.finish()

    def _check_still_free(self) -> None:
        """A recording of its own writes over nothing that came to be meanwhile."""
        if self.keep_half and os.path.lexists(self.target):
            raise MirageError(
                f"{self.target} appeared while it was recorded; the recording is kept in "
                f"{self.partial}: run `mirage recover {self.target}`."
            )

    def _check_open(self) -> None:
        if not self._open:
            raise MirageError(f"The episode {self.target.name} has ended; begin another one.")

    def _hold(self) -> None:
        """Tells others that `self.partial`, which is there now, is being written."""
        self._lock = PathLock(self.partial, self.target)

    def _let_go(self) -> None:
        if self._lock is not None:
            self._lock.release()

    def _rename(self) -> None:
        """Gives `self.partial` the target's name."""
        self.partial.replace(self.target)

    @abstractmethod
    def _write(self, frame: Frame, values: Mapping[str, np.ndarray]) -> None:
        """Writes one frame below `self.partial`."""

    @abstractmethod
    def _complete(self) -> None:
        """Makes `self.partial` whole."""

    @abstractmethod
    def _abandon(self) -> None:
        """Closes files without completing them."""


def _partial(target: Path, writer: str) -> Path:
    return target.with_name(f".{target.stem}.{writer}.tmp{target.suffix}")


def partials_of(path: Path) -> list[Path]:
    """What single recordings to `path` left or still write: `walk.tmp`, `.walk.1234.tmp`."""
    mcap = path.with_name(path.name + PARTIAL)
    others = path.parent.glob(f".{escape(path.stem)}.*{PARTIAL}{escape(path.suffix)}")
    return [*([mcap] if mcap.exists() else []), *sorted(others)]


def remove_halves(target: Path) -> None:
    """Removes what processes that are gone left of the dataset's episode `target`."""
    for partial in target.parent.glob(f".{target.stem}.*.tmp{target.suffix}"):
        remove(partial)


def check_values(
    features: Mapping[str, Feature], values: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """The values with the types and shapes that were announced. Raises MirageError."""
    if set(values) != set(features):
        raise MirageError(
            f"A frame came with {sorted(values)}, the recording was announced to hold "
            f"{sorted(features)}; give exactly those."
        )
    checked = {}
    for name, feature in features.items():
        value = np.atleast_1d(np.asarray(values[name])).astype(feature.dtype)
        if value.shape != feature.shape:
            raise MirageError(
                f"{name!r} has the shape {value.shape}, {feature.shape} was announced; give that."
            )
        checked[name] = value
    return checked


def remove(path: Path) -> None:
    """Removes a file or a folder with all that is in it, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
