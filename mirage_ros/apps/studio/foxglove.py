"""A live bridge for Foxglove: what the studio's walk makes, as the messages that the node would publish. No ROS.

Each row of the topics table that can be made of a picture is a channel of its own name, type and bytes, so one layout
serves the bridge, a recording and a running node. Only what a viewer has subscribed to is made, in a thread of its own
and of the newest picture alone: the walk waits for no viewer.
"""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from dataclasses import replace
from types import TracebackType

import foxglove
import numpy as np

from mirage_ros.apps.studio import View
from mirage_ros.errors import MirageError
from mirage_ros.protocol import STAGES, Frame
from mirage_ros.recording.messages import definition, serialize
from mirage_ros.recording.topics import (
    BY_NAME,
    COLOR_POINT,
    LIDAR,
    MAP,
    POINTS,
    SCAN,
    STATUS,
    TF,
    TOPICS,
    Fields,
    FrameIds,
    cloud_fields,
    header_fields,
    map_fields,
    packed_colours,
)
from mirage_ros.world.drawing import Solid
from mirage_ros.world.sensors import MapConfig, ScanConfig, floor_plan, scan

SLOW_S = 1.0
"""Between two clouds, and between two maps."""
KEPT_MESSAGES = 64
"""For a viewer that is slow; the oldest go."""
IDS = FrameIds()
SLOW = (POINTS, MAP)
NUMBERS = [*(f"{stage}_s" for stage in STAGES), "total_s", "frames_per_s", "observed_fraction", "cache_tokens", "cache_bytes"]


class Bridge:
    """A Foxglove WebSocket server until it is closed; a context manager.

    Args:
        port: of this machine alone; 0 takes any that is free.

    Attributes:
        port: that it listens on.

    Raises:
        MirageError: the port is taken.
    """

    def __init__(self, port: int) -> None:
        self._context = foxglove.Context()
        self._view: View | None = None
        self._scanned: tuple[View, Frame] | None = None
        self._sent: dict[str, tuple[View, bool, float]] = {}
        self._changed, self._closing = threading.Event(), False
        names = [topic.name for topic in TOPICS if topic.fields is not None and topic.name != LIDAR]
        self._channels = {name: _channel(name, self._context) for name in (*names, POINTS, MAP)}
        schema = {"title": BY_NAME[STATUS].type_name, "type": "object", "properties": dict.fromkeys(NUMBERS, {"type": "number"})}
        self._channels[STATUS] = foxglove.Channel(f"/{STATUS}", schema=schema, context=self._context)
        try:
            self._server = foxglove.start_server(
                name="mirage studio", host="127.0.0.1", port=port, context=self._context, server_listener=self,
                message_backlog_size=KEPT_MESSAGES,
            )  # fmt: skip
        except (RuntimeError, OSError, OverflowError) as error:
            raise MirageError(
                f"The bridge for Foxglove cannot listen on port {port} ({error}); give another number to --foxglove."
            ) from error
        self.port = self._server.port
        self._thread = threading.Thread(target=self._run, name="foxglove", daemon=True)
        self._thread.start()

    def __enter__(self) -> Bridge:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def saw(self, view: View) -> None:
        """There is a new picture; never waits."""
        self._view = view
        self._changed.set()

    def close(self) -> None:
        self._closing = True
        self._changed.set()
        self._thread.join()
        self._server.stop()

    def on_subscribe(self, _client: object, channel: object) -> None:
        """Foxglove's: whoever comes while nothing moves is given what is there."""
        for name in (channel.topic, channel.topic.removeprefix("/")):
            self._sent.pop(name, None)
        self._changed.set()

    def on_unsubscribe(self, _client: object, _channel: object) -> None: ...

    def _run(self) -> None:
        while not self._closing:
            self._changed.wait(SLOW_S)  # what was too soon is made later
            self._changed.clear()
            if (view := self._view) is not None:
                self._send(view)

    def _send(self, view: View) -> None:
        wanted = {name: channel for name, channel in self._channels.items() if channel.has_sinks()}
        frame = self._frame(view) if SCAN in wanted else view.frame
        for name, channel in wanted.items():
            if not self._due(name, view, frame):
                continue
            with suppress(MirageError):  # a memory of which no map can be made
                message = self._message(name, view, frame)
                channel.log(message, log_time=frame.stamp_ns)
                self._sent[name] = view, frame.scan is not None, time.monotonic()

    def _due(self, name: str, view: View, frame: Frame) -> bool:
        before, scanned, made_s = self._sent.get(name, (None, False, -SLOW_S))
        has_scan = frame.scan is not None
        if name == SCAN and not has_scan or name in SLOW and time.monotonic() - made_s < SLOW_S:
            return False
        return before is not view or (name == TF and has_scan and not scanned)  # TF places the scan, too

    def _frame(self, view: View) -> Frame:
        """The view's frame with its scan, which is made once; without where there can be none."""
        if self._scanned is None or self._scanned[0] is not view:
            frame, state = view.frame, view.state
            with suppress(MirageError):
                pose = frame.camera.world_from_camera
                solid = Solid(state.memory, state.entities, frame.stamp_ns)
                frame = replace(frame, scan=scan(solid, state.free_space, pose, ScanConfig()))
            self._scanned = view, frame
        return self._scanned[1]

    def _message(self, name: str, view: View, frame: Frame) -> bytes | dict:
        if name == STATUS:
            return status_numbers(view)
        if name == POINTS:
            fields = points_fields(view)
        elif name == MAP:
            plan = floor_plan(view.state.memory, view.state.free_space, frame.camera.position_world, MapConfig())
            fields = map_fields(plan, frame.stamp_ns, IDS.world)
        else:
            fields = BY_NAME[name].fields(frame, IDS)
        return serialize(BY_NAME[name].type_name, fields)


def _channel(name: str, context: foxglove.Context) -> foxglove.Channel:
    type_name = BY_NAME[name].type_name
    schema = foxglove.Schema(name=type_name, encoding="ros2msg", data=definition(type_name)[0].encode())
    topic = name if name.startswith("/") else f"/{name}"
    return foxglove.Channel(topic, schema=schema, message_encoding="cdr", context=context)


def points_fields(view: View) -> Fields:
    """sensor_msgs/PointCloud2 of the memory: x y z and the packed colour."""
    known = view.state.memory.to_points()
    points = np.empty(len(known.xyz), COLOR_POINT)
    points["x"], points["y"], points["z"] = known.xyz.T
    points["rgb"] = packed_colours(known.rgb)
    return cloud_fields(points, view.frame.stamp_ns, IDS.world)


def status_numbers(view: View) -> dict[str, object]:
    """The numbers of mirage_ros/msg/RolloutStatus that a walk has, by their names there."""
    memory, total_s = view.state.memory, sum(view.seconds.values())
    return {
        "header": header_fields(view.frame.stamp_ns, IDS.world),
        **{f"{stage}_s": view.seconds.get(stage, 0.0) for stage in STAGES},
        "total_s": total_s, "frames_per_s": view.rate_hz, "observed_fraction": view.observed_fraction,
        "cache_tokens": memory.tokens, "cache_bytes": memory.nbytes,
    }  # fmt: skip
