"""A drive watched from a process that is not otherwise a ROS one."""

from __future__ import annotations

import os
import time
from types import TracebackType

import rclpy
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor

from mirage_ros.loop.footprint import Footprint
from mirage_ros.loop.trace import Trace
from mirage_ros.ros.loop_monitor import LoopMonitor

SETTLE_S = 1.0


class LoopWatch:
    """Context manager: a LoopMonitor with its own ROS context, in a child's ROS domain.

    Args:
        environment: of the children that are watched.
    """

    def __init__(self, environment: dict[str, str], footprint: Footprint, step: int) -> None:
        key = "ROS_AUTOMATIC_DISCOVERY_RANGE"
        os.environ[key] = environment.get(key, "LOCALHOST")
        self._context = Context()
        rclpy.init(context=self._context, domain_id=int(environment["ROS_DOMAIN_ID"]))
        self._monitor = LoopMonitor(footprint, step, context=self._context)
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self._monitor)

    def __enter__(self) -> LoopWatch:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._executor.shutdown()
        self._monitor.destroy_node()
        rclpy.try_shutdown(context=self._context)

    def spin(self, seconds: float) -> None:
        """Takes in messages for so long."""
        end_s = time.monotonic() + seconds
        while (left_s := end_s - time.monotonic()) > 0:
            self._executor.spin_once(timeout_sec=left_s)

    def settle(self) -> None:
        """Lets the last messages arrive."""
        self.spin(SETTLE_S)

    def way_m(self) -> float:
        return self._monitor.way_m()

    def frames(self) -> int:
        return len(self._monitor.instants())

    def trace(self) -> Trace:
        return self._monitor.trace()
