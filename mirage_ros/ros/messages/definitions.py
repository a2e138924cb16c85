"""Message classes by name, messages made of fields, and what a recording says about its types."""

from __future__ import annotations

import array
import os
import re
import sys
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from rclpy.duration import Duration
from rclpy.node import Node
from rclpy.qos import QoSProfile

from mirage_ros.errors import MirageError
from mirage_ros.recording.topics import FOREVER, Fields

SEPARATOR = "=" * 80
PRIMITIVES = {
    "bool", "byte", "char", "float32", "float64", "string", "wstring",
    *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)),
}  # fmt: skip
FIELD_TYPE = re.compile(r"^\s*([A-Za-z][\w/]*)")
COMPOSED = re.compile(r"(\w+)/(\w+)")


def message_class(type_name: str) -> type:
    """The class of a full type name such as "sensor_msgs/msg/Image"."""
    package, _, name = type_name.partition("/msg/")
    try:
        return getattr(import_module(f"{package}.msg"), name)
    except (ImportError, AttributeError) as error:
        raise MirageError(
            f"The message type {type_name} is not installed; install or build its package."
        ) from error


def message_of(kind: type, fields: Fields) -> Any:
    """A message of the class `kind` with fields as `recording/topics.py` gives them."""
    layout = _layout(kind)
    return kind(**{name: _value(value, *layout[name]) for name, value in fields.items()})


@lru_cache(maxsize=64)
def _layout(kind: type) -> dict[str, tuple[type | None, bool]]:
    """By field: the class of the messages it holds, None for plain ones, and whether it is a list."""
    found = {}
    for name, text in kind.get_fields_and_field_types().items():
        part = COMPOSED.search(text)
        nested = message_class(f"{part[1]}/msg/{part[2]}") if part else None
        found[name] = (nested, text.startswith("sequence<"))
    return found


def _value(value: Any, nested: type | None, is_list: bool) -> Any:
    if nested is not None:
        return [message_of(nested, item) for item in value] if is_list else message_of(nested, value)
    if not (is_list and isinstance(value, np.ndarray)):
        return value
    # rclpy takes an array.array as it is; every other type it checks number by number.
    numbers = array.array(value.dtype.char)
    numbers.frombytes(value.data.cast("B") if value.size else b"")
    return numbers


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
