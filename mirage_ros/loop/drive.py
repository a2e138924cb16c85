"""The closed loop: look, decide, move, look again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from mirage_ros.core.camera import Camera
from mirage_ros.core.frames import Frame
from mirage_ros.loop.base import BasePose, Command, base_under
from mirage_ros.loop.simulators import Simulator
from mirage_ros.loop.trace import Snap, Trace, clearances_m
from mirage_ros.loop.wander import WanderConfig, Wanderer


@dataclass(frozen=True)
class DriveConfig:
    """How long and how fast.

    Attributes:
        length_m: the drive ends after so long a way,
        decisions: or after so many decisions, whichever comes first.
        period_s: time between frames.
        wander: the policy's.
        still_steps: steps at first in which the base stands still.
    """

    length_m: float = 21.0
    decisions: int = 250
    period_s: float = 0.2
    wander: WanderConfig = WanderConfig()
    still_steps: int = 0


def drive(
    simulator: Simulator, config: DriveConfig, on_decision: Callable[[Trace], None] = lambda t: None
) -> Trace:
    """Drives until the way is long enough; one chunk of frames is one decision.

    Args:
        on_decision: called after each chunk.
    """
    frame = simulator.start()
    pose, mount = base_under(frame.camera.world_from_camera)
    policy = Wanderer(mount, config.wander)
    policy.look(frame.depth_m, frame.camera, pose)
    trace, command, period_ns = Trace(pose), Command(), round(config.period_s * 1e9)
    while trace.length_m < config.length_m and len(trace.commands) < config.decisions:
        still = len(trace.commands) < config.still_steps
        command = Command() if still else policy.decide(command)
        poses = list(pose.along(command, config.period_s, simulator.chunk_frames))
        places = np.array([(after.x_m, after.y_m) for after in poses])
        held = simulator.points().xyz
        trace.clear_m += clearances_m(config.wander.footprint, held, places).tolist()
        stamps = frame.stamp_ns + period_ns * np.arange(1, len(poses) + 1)
        frames = simulator.step(_cameras(frame, poses, mount), stamps)
        trace.commands.append(command)
        for frame, pose in zip(frames, poses, strict=True):
            policy.look(frame.depth_m, frame.camera, pose)
            trace.snaps.append(_snap(frame, pose))
        on_decision(trace)
    points = simulator.points()
    trace.points, trace.colours = points.xyz, points.rgb
    return trace


def _cameras(frame: Frame, poses: list[BasePose], mount: np.ndarray) -> Camera:
    maps = np.stack([pose.world_from_base @ mount for pose in poses])
    return Camera(frame.camera.intrinsics, maps, frame.camera.size)


def _snap(frame: Frame, pose: BasePose) -> Snap:
    return Snap(frame.stamp_ns, pose, frame.camera, frame.rgb, frame.depth_m, frame.observed)
