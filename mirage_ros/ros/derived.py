"""What the plan and the worker take from the node's config."""

from __future__ import annotations

from collections.abc import Sequence

from mirage_ros.ros.config import NodeConfig
from mirage_ros.ros.plan import PlanConfig
from mirage_ros.ros.rig_config import RigCamera
from mirage_ros.ros.worker import View, WorkerConfig


def plan_config(config: NodeConfig) -> PlanConfig:
    return PlanConfig(
        config.world_frame, config.camera_frame, config.frame_rate_hz, config.plan_gap_s
    )


def worker_config(config: NodeConfig, rig: Sequence[RigCamera], single: View) -> WorkerConfig:
    """Args: rig: its cameras, empty without one; single: the one camera then."""
    return WorkerConfig(
        world_seed=config.world_seed,
        use_memory=config.use_memory,
        max_memory_bytes=config.max_memory_mb * 2**20,
        forget_moving=config.forget_moving,
        max_dynamic_share=config.max_dynamic_share,
        period_ns=plan_config(config).period_ns,
        anchored=config.anchor == "tf",
        views=tuple(camera.view for camera in rig) or (single,),
    )
