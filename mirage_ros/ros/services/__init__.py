"""The node's services and actions, a module for each subject."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mirage_ros.ros.mirage_node import MirageNode


def serve(node: MirageNode) -> list:
    """Offers all of them; returns what has to be kept."""
    from mirage_ros.ros.services.entities import Entities
    from mirage_ros.ros.services.recording import RecordService
    from mirage_ros.ros.services.rollout import RolloutAction, StepServices
    from mirage_ros.ros.services.state import StateServices
    from mirage_ros.ros.services.worlds import MemoryServices, WorldServices

    record = RecordService(node)
    return [
        Entities(node),
        MemoryServices(node),
        record,
        RolloutAction(node, record),
        StateServices(node),
        StepServices(node),
        WorldServices(node),
    ]
