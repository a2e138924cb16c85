"""Recording formats by name. Nothing but the format that is opened is imported."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path

from mirage_ros.errors import MirageError
from mirage_ros.recording import FORMATS
from mirage_ros.recording.episodes import PathLock, check_free, check_writable, remove_halves
from mirage_ros.recording.pictures import FolderDataset, SingleDataset, episode_path
from mirage_ros.recording.recorder import (
    NOTHING,
    Dataset,
    EpisodeWriter,
    QueuedRecorder,
    Recorder,
    RecordingConfig,
)


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
    "mcap": Format("mcap", "McapEpisode", live={"flush_s": 1.0}),
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
        schema = _import("mirage_ros.recording.lerobot.schema")
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
