"""What the process asks of its DDS beyond QoS, unless the user has settled it already."""

from __future__ import annotations

import contextlib
import os
from collections.abc import MutableMapping
from pathlib import Path

from mirage_ros.core.errors import MirageError
from mirage_ros.resources import share_path

PROFILES = "FASTDDS_DEFAULT_PROFILES_FILE"
# Fast DDS reads a file of this name in the working folder by itself.
LOCAL_FILE = "DEFAULT_FASTDDS_PROFILES.xml"


def repair_soon(
    environment: MutableMapping[str, str] = os.environ, folder: Path = Path()
) -> None:
    """Lets lost messages be repaired in 50 ms instead of 3 s; see config/fastdds.xml.

    Has to come before ROS starts. Other DDS implementations repair soon by themselves and do not
    read the variable.
    """
    if PROFILES in environment or (folder / LOCAL_FILE).exists():
        return
    with contextlib.suppress(MirageError):
        environment[PROFILES] = str(share_path("config", "fastdds.xml"))
