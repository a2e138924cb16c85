"""The machine under the ROS graph: DDS's shared memory and the GPU's.

What a check found, and how a list of findings reads.
"""

from __future__ import annotations

import fcntl
import re
import shutil
import subprocess
import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

OK, WARN, FAULT = "ok", "warn", "FAULT"
HEADER = ("check", "state", "found", "what to do")
NARROWEST = 24


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's table.

    Attributes:
        check: qos, clock, tf, shared memory, gpu, nodes or diagnostics.
        state: OK, WARN or FAULT.
        found: what is the case.
        advice: what to do; empty where nothing is to be done.
    """

    check: str
    state: str
    found: str
    advice: str = ""

    def as_dict(self) -> dict[str, str]:
        return asdict(self)


def exit_code(findings: Sequence[Finding]) -> int:
    """1 with a fault, 0 without."""
    return int(any(finding.state == FAULT for finding in findings))


def describe(findings: Sequence[Finding], width: int = 120) -> str:
    """A table of `width` columns: check, state, what was found, what to do."""
    rows = [(item.check, item.state, item.found, item.advice) for item in findings]
    first = max(len(row[0]) for row in [HEADER, *rows])
    second = max(len(row[1]) for row in [HEADER, *rows])
    rest = max(width - first - second - 6, 2 * NARROWEST)
    widths = (first, second, rest // 2, rest - rest // 2)
    lines = [_row(HEADER, widths), "-" * (sum(widths) + 6)]
    return "\n".join(lines + [_row(row, widths) for row in rows])


def _row(cells: Sequence[str], widths: Sequence[int]) -> str:
    wrapped = [textwrap.wrap(cell, wide) or [""] for cell, wide in zip(cells, widths, strict=True)]
    tallest = max(map(len, wrapped))
    padded = [column + [""] * (tallest - len(column)) for column in wrapped]
    lines = zip(*padded, strict=True)
    return "\n".join(
        "  ".join(f"{cell:<{wide}}" for cell, wide in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


SHARED_MEMORY = Path("/dev/shm")
MIB = 2**20
# Fast DDS names a process's segment by 16 hex digits, since 3.0 behind `fastdds_`; the process
# holds an exclusive lock on the empty file beside it for as long as it lives.
SEGMENT = re.compile(r"(fastrtps|fastdds)_[0-9a-f]{16}")
GPU_QUERY = ("--query-gpu=index,name,memory.total,memory.free", "--format=csv,noheader,nounits")
PROCESS_QUERY = ("--query-compute-apps=pid,process_name,used_memory",
                 "--format=csv,noheader,nounits")  # fmt: skip
NVIDIA_SMI_S = 20.0


def check_shared_memory(need_mib: float, folder: Path = SHARED_MEMORY) -> list[Finding]:
    """Whether DDS finds room in /dev/shm, and what dead processes left there."""
    name = "shared memory"
    if not folder.is_dir():
        advice = "Mount a tmpfs there; without it DDS falls back to slow loopback sockets."
        return [Finding(name, FAULT, f"{folder} does not exist.", advice)]
    usage = shutil.disk_usage(folder)
    dead = dead_segments(folder)
    dead_mib = sum(path.stat().st_size for path in dead if path.exists()) / MIB
    room = f"{folder}: {usage.free / MIB:,.0f} of {usage.total / MIB:,.0f} MiB are free"
    findings = []
    if usage.free < need_mib * MIB:
        advice = "Give it more: `mount -o remount,size=1g /dev/shm`, `docker run --shm-size=1g`."
        findings.append(Finding(name, FAULT, f"{room}; {need_mib:,.0f} are needed.", advice))
    else:
        findings.append(Finding(name, OK, f"{room}."))
    if dead:
        found = f"{len(dead)} segments ({dead_mib:.1f} MiB) belong to processes that died."
        advice = f"Run `fastdds shm clean`, or remove such as {dead[0]} and {dead[0].name}_el."
        findings.append(Finding(name, WARN, found, advice))
    return findings


def dead_segments(folder: Path = SHARED_MEMORY) -> list[Path]:
    """Segments of Fast DDS whose lock nobody holds any more, sorted."""
    segments = (path for path in folder.iterdir() if SEGMENT.fullmatch(path.name))
    return sorted(path for path in segments if not _is_locked(path.with_name(path.name + "_el")))


def _is_locked(lock: Path) -> bool:
    """What cannot be looked at (another user's, or gone by now) counts as alive."""
    try:
        with lock.open("rb") as stream:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    return False


def check_gpu(need_mib: float) -> list[Finding]:
    """Whether a GPU, where there is one, has room for a model."""
    smi = shutil.which("nvidia-smi")
    if smi is None:
        return [Finding("gpu", OK, "No NVIDIA GPU here; the model runs on the CPU.")]
    rows = _query(smi, GPU_QUERY)
    if not rows:
        advice = "Look at `nvidia-smi`; reinstall the driver, or give the container `--gpus all`."
        return [Finding("gpu", FAULT, "nvidia-smi is there but names no GPU.", advice)]
    return [_judge_gpu(row, need_mib, smi) for row in rows]


def _judge_gpu(row: list[str], need_mib: float, smi: str) -> Finding:
    index, name, total, free = row[:4]
    if not (total.replace(".", "").isdigit() and free.replace(".", "").isdigit()):
        return Finding("gpu", WARN, f"GPU {index} ({name}) does not tell its memory.")
    found = f"GPU {index} ({name}): {float(free):,.0f} of {float(total):,.0f} MiB are free"
    if float(free) >= need_mib:
        return Finding("gpu", OK, f"{found}.")
    users = ", ".join(f"{pid} ({used} MiB)" for pid, _, used, *_ in _query(smi, PROCESS_QUERY))
    advice = f"End what holds it: process {users}." if users else "End what holds it, or use a "\
        "larger GPU; `device: cpu` works for the mini model."  # fmt: skip
    return Finding("gpu", FAULT, f"{found}; {need_mib:,.0f} are needed.", advice)


def _query(smi: str, query: tuple[str, ...]) -> list[list[str]]:
    """Rows of an nvidia-smi query, empty when it fails."""
    try:
        done = subprocess.run(
            [smi, *query], capture_output=True, text=True, timeout=NVIDIA_SMI_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return []
    if done.returncode:
        return []
    return [[cell.strip() for cell in line.split(",")] for line in done.stdout.splitlines() if line]
