"""What `mirage doctor` runs: all checks of the graph and of the machine."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import rclpy
from rclpy.context import Context
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node

from mirage_ros.core.errors import MirageError
from mirage_ros.doctor.findings import Finding
from mirage_ros.doctor.host import check_gpu, check_shared_memory
from mirage_ros.ros import graph_checks as checks
from mirage_ros.ros.graph_watch import NAME, GraphWatch


@dataclass(frozen=True)
class DoctorConfig:
    """What to look at.

    Attributes:
        listen_s: how long to listen to the graph.
        world_frame: the frame that all others must reach.
        frames: frames that must be on TF even if no message names them.
        need_shm_mib: least free shared memory, MiB.
        need_gpu_mib: least free memory of a GPU, MiB.
    """

    listen_s: float = 5.0
    world_frame: str = "world"
    frames: Sequence[str] = ()
    need_shm_mib: float = 64.0
    need_gpu_mib: float = 1024.0


def examine(config: DoctorConfig) -> list[Finding]:
    """All findings, in a fixed order of checks.

    Raises:
        MirageError: no time to listen, or ROS does not start.
    """
    # Nobody is heard in no time, and a graph that nobody heard looks sound.
    if not 0 < config.listen_s < np.inf:
        raise MirageError(
            f"The doctor got {config.listen_s} s to listen; give more than 0, 2 or more to hear "
            "what is published once a second."
        )
    graph = _watch(config.listen_s)
    return [
        *checks.check_nodes(graph, os.environ.get("ROS_DOMAIN_ID", "0")),
        *checks.check_qos(graph),
        *checks.check_clock(graph),
        *checks.check_tf(graph, config.world_frame, config.frames),
        *checks.check_diagnostics(graph),
        *check_shared_memory(config.need_shm_mib),
        *check_gpu(config.need_gpu_mib),
    ]


def _watch(listen_s: float):
    context = Context()
    try:
        rclpy.init(context=context)
    except Exception as error:  # noqa: BLE001 - rcl's errors have no public class of their own
        reason = " ".join(str(error).split())
        raise MirageError(f"ROS did not start ({reason}); check ROS_DOMAIN_ID and RMW.") from None
    try:
        # Without parameter services the doctor adds as little as it can to what it looks at.
        node = Node(NAME, context=context, start_parameter_services=False, enable_rosout=False)
        executor = SingleThreadedExecutor(context=context)
        executor.add_node(node)
        return GraphWatch(node).watch(listen_s, lambda timeout_s: executor.spin_once(timeout_s))
    except ExternalShutdownException:
        raise KeyboardInterrupt from None
    finally:
        rclpy.try_shutdown(context=context)
