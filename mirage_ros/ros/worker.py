"""The one inference worker: commands in, results out, everything heavy in its thread."""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from mirage_ros.core.camera import Camera
from mirage_ros.core.errors import MirageError
from mirage_ros.core.memory import Points
from mirage_ros.core.types import Chunk, Frame, WorldModel
from mirage_ros.core.world import World, WorldConfig
from mirage_ros.ros.plan import Planned
from mirage_ros.seeds import Seed

QUEUE_SIZE = 8


@dataclass(frozen=True)
class WorkerConfig:
    """Attributes:
    world: how the world is made.
    size: (height, width) of the frames that come out; None is the model's.
    hfov_deg: their field of view; 0 is the seed's.
    period_ns: time between frames.
    cloud_period_s: least wall time between two clouds.
    """

    world: WorldConfig
    size: tuple[int, int] | None = None
    hfov_deg: float = 0.0
    period_ns: int = 100_000_000


@dataclass(frozen=True)
class Reset:
    """A new world.

    Attributes:
        load: gives the seed, in the worker's thread.
        stamp_ns: its time. Without one, or with one after the plan's first frame, the seed
            dates from just before that frame.
        origin: where it comes from, for messages.
    """

    load: Callable[[], Seed]
    stamp_ns: int | None = None
    origin: str = "seed"


@dataclass(frozen=True)
class Step:
    """Render these frames, and send the cloud if the last one is older than a period."""

    planned: Planned
    cloud_period_s: float = 1.0


@dataclass(frozen=True)
class Cloud:
    """Send the cloud as it is now."""


Command = Reset | Step | Cloud


@dataclass(frozen=True)
class ModelReady:
    """The model is loaded; how it looks to the rest of the node."""

    name: str
    size: tuple[int, int]
    chunk_frames: int


@dataclass(frozen=True)
class Done:
    """A command that went well.

    Attributes:
        chunk: what was rendered; of a reset the seed itself; None of a Cloud.
        seconds: wall time of all of it.
        points: the memory's cloud, where it is due.
        stamp_ns: planned time of the world's last frame.
    """

    command: Command
    chunk: Chunk | None
    seconds: float
    points: Points | None
    stamp_ns: int


@dataclass(frozen=True)
class Failed:
    """A command (None: loading the model) that did not; the world is as it was."""

    command: Command | None
    message: str


Result = ModelReady | Done | Failed


class Worker:
    """Loads the model, then works off one command after the other.

    Args:
        make_model: called in the worker's thread.
        on_result: called in the worker's thread with each Result; must be quick.
    """

    def __init__(
        self,
        make_model: Callable[[], WorldModel],
        config: WorkerConfig,
        on_result: Callable[[Result], None],
    ) -> None:
        self.config = config
        self._make_model, self._on_result = make_model, on_result
        self._commands: queue.Queue[Command | None] = queue.Queue(QUEUE_SIZE)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="mirage_worker", daemon=True)
        self._world: World | None = None
        self._fresh: Seed | None = None
        self._dated = False
        self._cloud_sent_s = -np.inf

    def start(self) -> None:
        self._thread.start()

    def submit(self, command: Command) -> None:
        """Queues a command. Raises MirageError when the queue is full."""
        try:
            self._commands.put_nowait(command)
        except queue.Full:
            raise MirageError(
                f"{QUEUE_SIZE} commands wait for the inference worker already; send fewer."
            ) from None

    def stop(self, timeout_s: float) -> bool:
        """Ends after the command at hand. False if that takes longer than the timeout."""
        self._stopping.set()
        with contextlib.suppress(queue.Full):
            self._commands.put_nowait(None)
        if self._thread.is_alive():
            self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            model = self._make_model()
            self._world = World(model, self.config.world)
        except Exception as error:  # noqa: BLE001 - a thread must not die unheard
            self._on_result(Failed(None, _message(error)))
            return
        self._on_result(ModelReady(model.name, tuple(model.size), model.chunk_frames))
        while not self._stopping.is_set():
            command = self._commands.get()
            if command is None or self._stopping.is_set():
                return
            try:
                result = self._carry_out(command)
            except Exception as error:  # noqa: BLE001
                result = Failed(command, _message(error))
            self._on_result(result)

    def _carry_out(self, command: Command) -> Done:
        start_s = time.perf_counter()
        chunk = None
        if isinstance(command, Reset):
            chunk = self._reset(command)
        elif isinstance(command, Step):
            chunk = self._step(command.planned)
        seconds = time.perf_counter() - start_s
        points = self._due_points(getattr(command, "cloud_period_s", 0.0))
        return Done(command, chunk, seconds, points, self._world.stamp_ns)

    def _due_points(self, period_s: float) -> Points | None:
        now_s = time.monotonic()
        if now_s - self._cloud_sent_s < period_s:
            return None
        self._cloud_sent_s = now_s
        return self._world.memory.to_points()

    def _reset(self, command: Reset) -> Chunk:
        seed = command.load()
        stamp_ns = command.stamp_ns or 0
        chunk = self._world.reset(seed.rgb, seed.camera, seed.depth_m, stamp_ns)
        self._fresh = seed
        self._dated = command.stamp_ns is not None
        return chunk

    def _step(self, planned: Planned) -> Chunk:
        self._date_seed(planned.stamps_ns[0])
        chunk = self._world.step(self._cameras(planned), np.array(planned.stamps_ns, np.int64))
        if self.config.size is None:
            return chunk
        frames = tuple(resized_frame(frame, self.config.size) for frame in chunk.frames)
        return replace(chunk, frames=frames)

    def _date_seed(self, first_ns: int) -> None:
        """A world begins before its first frame, whatever clock the seed's stamp is from."""
        seed, self._fresh = self._fresh, None
        if seed is None or (self._dated and self._world.stamp_ns < first_ns):
            return
        stamp_ns = first_ns - self.config.period_ns
        self._world.reset(seed.rgb, seed.camera, seed.depth_m, stamp_ns)

    def _cameras(self, planned: Planned) -> Camera:
        view = self._world.camera
        if self.config.hfov_deg:
            size = self.config.size or view.size
            return Camera.from_hfov(self.config.hfov_deg, size, planned.world_from_camera)
        return Camera(view.intrinsics, planned.world_from_camera, view.size)


def resized_frame(frame: Frame, size: tuple[int, int]) -> Frame:
    """The frame at another size (height, width): smooth colours, nearest depth and mask."""
    if frame.rgb.shape[:2] == size:
        return frame
    import cv2

    smaller = size[0] < frame.rgb.shape[0]
    smooth = cv2.INTER_AREA if smaller else cv2.INTER_LINEAR
    whole, nearest = size[::-1], cv2.INTER_NEAREST_EXACT
    observed = cv2.resize(frame.observed.astype(np.uint8), whole, interpolation=nearest)
    return Frame(
        frame.stamp_ns,
        frame.camera.resized(size),
        cv2.resize(frame.rgb, whole, interpolation=smooth),
        cv2.resize(frame.depth_m, whole, interpolation=nearest),
        observed.astype(bool),
    )


def _message(error: Exception) -> str:
    if isinstance(error, MirageError):
        return str(error)
    logging.getLogger(__name__).exception("unexpected")
    return f"An unexpected {type(error).__name__} ({error}); please report it with the log."
