"""Honest timing: the machine in words, medians, and what the memory bus alone would need."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numba import njit


@dataclass(frozen=True)
class Timing:
    """Seconds of several runs of one thing."""

    median_s: float
    fastest_s: float
    slowest_s: float
    repeats: int


def measure(work: Callable[[], object], repeats: int, warm_up: int = 1) -> Timing:
    """Runs the work some times unmeasured, then `repeats` times with a clock."""
    for _ in range(warm_up):
        work()
    seconds = []
    for _ in range(max(repeats, 1)):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return Timing(statistics.median(seconds), min(seconds), max(seconds), len(seconds))


def describe_machine() -> dict[str, str | int]:
    """Processor, cores that may be used, threads of torch, Python and torch."""
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "torch_threads": torch.get_num_threads(),
        "load_average": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU",
    }


def streaming_bytes_per_s(size_bytes: int = 2**28, repeats: int = 5) -> float:
    """Bytes a second at which all cores together read an array from memory, in order."""
    cores = len(os.sched_getaffinity(0))
    parts = np.array_split(np.ones(size_bytes // 8), cores)

    with ThreadPoolExecutor(cores) as pool:
        timing = measure(lambda: list(pool.map(_add_up, parts)), repeats)
    return size_bytes / timing.median_s


@njit(cache=True, nogil=True, fastmath=True)
def _add_up(values):
    total = 0.0
    for value in values:
        total += value
    return total


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
