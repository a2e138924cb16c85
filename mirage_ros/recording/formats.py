"""Recording formats by name: how their datasets are opened, and how a recording that was cut off is made whole.

Nothing but the format that is opened is imported. `mirage recover` writes nothing over: what was cut off is removed
only after the mended recording has its name. What somebody is writing is left alone: each writer holds a lock on its
file or folder, and whoever fills a dataset one on the dataset's.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path

from mirage_ros.errors import MirageError
from mirage_ros.recording import (
    FORMATS,
    NOTHING,
    Dataset,
    EpisodeWriter,
    QueuedRecorder,
    Recorder,
    RecordingConfig,
)
from mirage_ros.recording.episodes import (
    PARTIAL,
    PathLock,
    check_free,
    check_left,
    check_writable,
    partials_of,
    remove,
    remove_halves,
)
from mirage_ros.recording.pictures import FolderDataset, SingleDataset, episode_path, trim_pictures

# ffmpeg ends its file by itself when its source dies, within this time.
FFMPEG_END_S = 1.0


@dataclass(frozen=True)
class Format:
    """A format whose episodes stand beside each other.

    Attributes:
        module, name: where its episode's class is.
        ending: of an episode's path.
        options: of the class.
        live: more options, for an episode that is a recording of its own.
    """

    module: str
    name: str
    ending: str = ""
    options: Mapping[str, object] = field(default_factory=dict)
    live: Mapping[str, object] = field(default_factory=dict)

    def make(self, target: Path, config: RecordingConfig, task: str, info: Mapping):
        """A writer of the episode at `target`."""
        make = getattr(_import(f"mirage_ros.recording.{self.module}"), self.name)
        return make(target, config, task, info, **self.options)


FOLDERS = {
    "mcap": Format("messages", "McapEpisode", live={"flush_s": 1.0}),
    "video": Format("video", "VideoEpisode", ".mp4"),
    "png": Format("pictures", "PictureEpisode", options={"depth": "png"}),
    "exr": Format("pictures", "PictureEpisode", options={"depth": "exr"}),
}


def open_dataset(path: str | Path, format: str, config: RecordingConfig) -> Dataset:
    """Opens or resumes a dataset of many episodes.

    Raises:
        MirageError: an unknown format, something else at the path, a package that is missing.
    """
    check_format(format)
    check_folder(Path(path), format)
    if format == "lerobot":
        return _lerobot(Path(path), config)
    kind = FOLDERS[format]
    return FolderDataset(Path(path), config, kind.make, kind.ending)


def open_single(path: str | Path, format: str, config: RecordingConfig) -> Dataset:
    """Opens a path that is to be one episode; a LeRobot dataset may hold more all the same."""
    check_format(format)
    if format == "lerobot":
        check_folder(Path(path), format)
        return _lerobot(Path(path), config, keep_halves=True)
    kind = FOLDERS[format]
    live = replace(kind, options={**kind.options, **kind.live})
    return SingleDataset(Path(path), config, live.make)


def open_recorder(
    path: str | Path, format: str, config: RecordingConfig, single: bool = False
) -> Recorder:
    """Opens a dataset to be written by this process, episode after episode.

    Args:
        single: the path is to be one episode itself, which is kept when recording is cut off.
    """
    dataset = (open_single if single else open_dataset)(path, format, config)
    if format == "lerobot":
        try:
            dataset.adopt_waiting()
        except BaseException:
            dataset.close()
            raise
    return QueuedRecorder(dataset, config, keep_half=single)


def check_start(path: Path, format: str) -> None:
    """Raises MirageError where a recording that is one episode itself could not begin.

    Something else is there, somebody records to it, or the folder cannot be written.
    """
    check_format(format)
    if format != "lerobot":
        check_free(path)
        return
    check_folder(path, format)
    check_writable(path)
    PathLock(path).release()


def begin_episode(
    path: str | Path,
    format: str,
    config: RecordingConfig,
    index: int,
    task: str = "",
    info: Mapping[str, object] = NOTHING,
) -> EpisodeWriter:
    """A writer of one episode of the dataset at `path`, in any process.

    Whoever holds the dataset open adopts it afterwards. A half one of the same index is removed:
    whoever wrote it is taken for dead.
    """
    check_format(format)
    if format == "lerobot":
        schema = _import("mirage_ros.recording.lerobot")
        make = _import("mirage_ros.recording.lerobot.episode").LerobotEpisode
        target = schema.part_path(Path(path), index)
    else:
        make = FOLDERS[format].make
        target = episode_path(Path(path), index, FOLDERS[format].ending)
    remove_halves(target)
    return make(target, config, task, info)


def guess_format(path: str | Path) -> str:
    """By the ending: .mcap, .mp4, .lerobot, .png, .exr; anything else is an MCAP bag."""
    endings = {".mp4": "video", ".lerobot": "lerobot", ".png": "png", ".exr": "exr"}
    return endings.get(Path(path).suffix, "mcap")


def check_format(format: str) -> None:
    """Raises MirageError for a name that is not in FORMATS."""
    if format not in FORMATS:
        raise MirageError(f"There is no format {format!r}; give one of {', '.join(FORMATS)}.")


def check_folder(path: Path, format: str) -> None:
    """Raises MirageError where a dataset of `format` would mix with what is there already."""
    if path.exists() and not path.is_dir():
        raise MirageError(f"{path} is a file and a dataset is a folder; give another path.")
    held = held_format(path)
    if held is not None and held != format:
        way_out = ", or that format" if held in FORMATS else ""
        raise MirageError(
            f"{path} holds {held} and a dataset of format {format} was to go there; give another "
            f"folder{way_out}."
        )


def held_format(path: Path) -> str | None:
    """The format of the dataset in a folder, or words for what else is there; None for neither."""
    if (path / "meta" / "info.json").is_file() or (path / ".parts").is_dir():
        return "lerobot"
    if any(path.glob("*.mcap")) or (path / "color").is_dir():
        return "a single recording"
    if any((path / name).exists() for name in ("data", "meta", "videos")):
        return "data of another kind"
    for episode in path.glob("episode-*"):
        if episode.suffix == ".mp4":
            return "video"
        if any(episode.glob("*.mcap")):
            return "mcap"
        if (episode / "depth").is_dir():
            return "exr" if any((episode / "depth").glob("*.exr")) else "png"
    return None


def _lerobot(path: Path, config: RecordingConfig, **options: bool) -> Dataset:
    return _import("mirage_ros.recording.lerobot.dataset").LerobotDataset(path, config, **options)


def _import(module: str):
    try:
        return import_module(module)
    except ImportError as error:
        raise MirageError(
            f"This format needs a package that is missing ({error}); "
            "pip install 'mirage_ros[record]'."
        ) from error


def recover(path: str | Path) -> list[str]:
    """Mends the recording at `path`, which may also be the temporary name it was left under.

    Returns:
        Sentences about what was found and done.

    Raises:
        MirageError: nothing there was left by a recording, or it is still being written.
    """
    path = _target(Path(path))
    partials = partials_of(path)
    for partial in partials:
        # None is mended beside a recording that is to get the same name.
        check_left(partial, path)
    done = [_mend_partial(partial, path) for partial in partials]
    if path.is_dir() and not done:
        done = _recover_folder(path)
    elif path.suffix == ".mcap" and path.is_file() and not done:
        done = [_mend_file(path)]
    if not done:
        raise MirageError(
            f"There is no recording {path}, nor one that was cut off; give the path that was "
            "recorded to."
        )
    return done


def _target(path: Path) -> Path:
    """The name that a temporary name stands for."""
    if path.name.endswith(PARTIAL) and not path.name.startswith("."):
        return path.with_name(path.name.removesuffix(PARTIAL))
    return path


def _mend_partial(partial: Path, target: Path) -> str:
    """A single recording that never got its name."""
    target = _free(target)
    if partial.suffix == ".mp4" or (partial / "K.txt").is_file():
        mend = _mend_video if partial.suffix == ".mp4" else _mend_pictures
        with PathLock(partial, target):
            return mend(partial, target)
    bag = next(partial.glob("*.mcap"), None) if partial.is_dir() else partial
    if bag is None:
        raise MirageError(f"{partial} was cut off before its first frame; remove it.")
    done = _import("mirage_ros.recording.mcap").mend(bag, target)
    remove(partial)
    return done


def _mend_file(path: Path) -> str:
    mcap = _import("mirage_ros.recording.mcap")
    return f"{path} is whole." if mcap.is_whole(path) else mcap.mend(path, path)


def _mend_pictures(partial: Path, target: Path) -> str:
    """Drops pictures that came without a line in the tables, and a half line."""
    frames = trim_pictures(partial)
    if not frames:
        raise MirageError(f"{partial} was cut off before its first frame; remove it.")
    partial.replace(target)
    return f"{target}: {frames} frames"


def _mend_video(partial: Path, target: Path) -> str:
    """ffmpeg ends its file by itself when its source dies, a moment later."""
    video, size = _import("mirage_ros.recording.video"), -1
    while size != (size := partial.stat().st_size):
        time.sleep(FFMPEG_END_S)
    video.index_once(partial, target)
    remove(partial)
    return f"{target}: {video.count_frames(target)} frames"


def _recover_folder(path: Path) -> list[str]:
    """A bag, a dataset of episodes, a LeRobot dataset, by what is in it."""
    if (path / "meta" / "info.json").is_file() or (path / ".parts").is_dir():
        return [_import("mirage_ros.recording.lerobot.dataset").recover_dataset(path)]
    bags = sorted(path.glob("*.mcap"))
    if bags:
        return [_mend_file(bag) for bag in bags]
    with PathLock(path):
        return _drop_halves(path)


def _drop_halves(path: Path) -> list[str]:
    """The same of a folder of episodes; every finished one is whole by itself."""
    half = sorted(path.glob(f".episode-*{PARTIAL}*"))
    whole = sorted(path.glob("episode-*"))
    for episode in half:
        check_left(episode, path)
    for episode in half:
        remove(episode)
    if not half and not whole:
        return []
    return [f"{path}: {len(whole)} episodes, {len(half)} half ones removed"]


def _free(target: Path) -> Path:
    """`target`, or a name beside it when a recording of that name is there."""
    others = (f"{target.stem}.recovered{n or ''}{target.suffix}" for n in range(1000))
    names = (target, *(target.with_name(other) for other in others))
    return next(name for name in names if not name.exists())
