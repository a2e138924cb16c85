"""What a recording says about its types: message definitions, QoS profiles and type hashes."""

from __future__ import annotations

import os
import re
import sys
from importlib import import_module
from pathlib import Path

import yaml
from rclpy.duration import Duration
from rclpy.node import Node
from rclpy.qos import QoSProfile

from mirage_ros.errors import MirageError
from mirage_ros.recording.topics import FOREVER

SEPARATOR = "=" * 80
PRIMITIVES = {
    "bool", "byte", "char", "float32", "float64", "string", "wstring",
    *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)),
}  # fmt: skip
FIELD_TYPE = re.compile(r"^\s*([A-Za-z][\w/]*)")


def message_definition(type_name: str) -> str:
    """The .msg text of a type, followed by those of all types it is made of.

    Raises:
        MirageError: a package's share/<package>/msg folder is not installed.
    """
    texts: dict[str, str] = {}
    waiting = [type_name]
    while waiting:
        name = waiting.pop(0)
        if name not in texts:
            texts[name] = _read_definition(name)
            waiting += _parts(texts[name], name.split("/")[0])
    parts = [texts.pop(type_name)]
    parts += [f"{SEPARATOR}\nMSG: {_short(name)}\n{text}" for name, text in texts.items()]
    return "\n".join(parts)


def offered_qos(node: Node, topic: str) -> tuple[str, str]:
    """rosbag2's YAML of the QoS that a topic's publishers offer, and the type's hash."""
    infos = node.get_publishers_info_by_topic(topic)
    profiles = [_qos_to_dict(info.qos_profile) for info in infos]
    type_hash = str(infos[0].topic_type_hash) if infos else ""
    return yaml.safe_dump(profiles, sort_keys=False), type_hash


def _parts(text: str, package: str) -> list[str]:
    """Full names of the composed types that a definition uses."""
    names = []
    for line in text.splitlines():
        match = FIELD_TYPE.match(line.split("#")[0])
        if not match or match[1] in PRIMITIVES:
            continue
        pieces = match[1].split("/")
        names.append(f"{pieces[0] if len(pieces) > 1 else package}/msg/{pieces[-1]}")
    return names


def _read_definition(type_name: str) -> str:
    package, _, name = type_name.partition("/msg/")
    for prefix in _prefixes(package):
        path = prefix / "share" / package / "msg" / f"{name}.msg"
        if path.is_file():
            return path.read_text()
    raise MirageError(
        f"The definition of {type_name} is not installed; the package {package} must install "
        f"share/{package}/msg/{name}.msg."
    )


def _prefixes(package: str) -> list[Path]:
    """Where ament packages may be installed: the environment's, the package's own, Python's."""
    prefixes = [Path(part) for part in os.environ.get("AMENT_PREFIX_PATH", "").split(":") if part]
    origin = getattr(import_module(f"{package}.msg"), "__file__", None)
    return [*prefixes, *(Path(origin).parents if origin else ()), Path(sys.prefix)]


def _short(type_name: str) -> str:
    return type_name.replace("/msg/", "/")


def _qos_to_dict(profile: QoSProfile) -> dict:
    return {
        "history": _history(profile),
        "depth": profile.depth,
        "reliability": profile.reliability.name.lower(),
        "durability": profile.durability.name.lower(),
        "deadline": _span(profile.deadline),
        "lifespan": _span(profile.lifespan),
        "liveliness": profile.liveliness.name.lower(),
        "liveliness_lease_duration": _span(profile.liveliness_lease_duration),
        "avoid_ros_namespace_conventions": profile.avoid_ros_namespace_conventions,
    }


def _history(profile: QoSProfile) -> str:
    # Discovery does not carry the history policy; rosbag2 writes "unknown" then and so do we.
    return profile.history.name.lower()


def _span(duration: Duration) -> dict[str, int]:
    nanoseconds = duration.nanoseconds
    if nanoseconds >= 9223372036854775807 or nanoseconds <= 0:
        return dict(FOREVER)
    return {"sec": nanoseconds // 10**9, "nsec": nanoseconds % 10**9}
