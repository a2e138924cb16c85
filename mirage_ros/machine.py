"""This machine: its name, child processes that never outlive their parent's block, and what is wrong with its shared
memory and its GPU.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import platform
import queue
import re
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import threading
from collections import deque
from collections.abc import MutableMapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from mirage_ros.errors import MirageError
from mirage_ros.files import share_path

GENTLE_S = 10.0
TAIL_LINES = 12
DOMAINS = 100
DISCOVERY_PORT = 7400
PORTS_PER_DOMAIN = 250
RESERVED_DOMAINS = 8
_reserved: deque[socket.socket] = deque(maxlen=RESERVED_DOMAINS)


class Children:
    """Context manager that starts processes with logs and stops them all at its end."""

    def __init__(self, log_folder: Path, environment: dict[str, str]) -> None:
        self.log_folder = log_folder
        self.environment = environment
        self.gentle_s = GENTLE_S
        self._running: dict[str, subprocess.Popen] = {}

    def __enter__(self) -> Children:
        self.log_folder.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(self, *exception: object) -> None:
        for name in reversed(list(self._running)):
            self.stop(name)

    def start(self, name: str, command: list[str], read_stdout: bool = False) -> subprocess.Popen:
        """Start a process; stderr, and stdout unless read, go to `<log_folder>/<name>.log`.

        It gets its own process group, so that Ctrl-C reaches it through `stop`, in order.
        """
        with self.log_path(name).open("w") as log:
            self._running[name] = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE if read_stdout else log,
                stderr=log,
                text=True,
                env=self.environment,
                start_new_session=True,
            )
        return self._running[name]

    def log_path(self, name: str) -> Path:
        return self.log_folder / f"{name}.log"

    def check(self) -> None:
        """Raises MirageError with the end of its log when a process has failed."""
        for name, process in self._running.items():
            if process.poll() not in (None, 0):
                raise self.failure(name)

    def failure(self, name: str) -> MirageError:
        """What to say about a process that ended when it should not have."""
        code = self._running[name].poll()
        return MirageError(
            f"The {name} ended with exit code {code}; see {self.log_path(name)}:\n{self._log_end(name)}"
        )

    def silence(self, text: str) -> MirageError:
        """What to say about processes that run and do nothing: the text, and the ends of all their logs."""
        ends = [f"{name}:\n{self._log_end(name)}" for name in self._running]
        return MirageError("\n".join([f"{text} See {self.log_folder}.", *ends]))

    def _log_end(self, name: str) -> str:
        lines = self.log_path(name).read_text(errors="replace").strip().splitlines()
        return textwrap.indent("\n".join(lines[-TAIL_LINES:]) or "(its log is empty)", "  ")

    def events(self, name: str) -> Events:
        """The JSON lines that a process started with `read_stdout` prints."""
        return Events(self._running[name].stdout)

    def running(self, name: str) -> bool:
        return self._running[name].poll() is None

    def peak_memory_bytes(self, name: str) -> int | None:
        """Largest resident size so far of a running process and of the largest one below it.

        What several processes below it share, as forks do, is counted once. None where Linux does
        not tell.
        """
        own = _peak_bytes(self._running[name].pid)
        below = [_peak_bytes(pid) or 0 for pid in _descendants(self._running[name].pid)]
        return None if own is None else own + max(below, default=0)

    def stop(self, name: str) -> int:
        """Interrupt, then terminate, then kill; returns the exit code."""
        process = self._running[name]
        for request in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
            if process.poll() is not None:
                break
            try:
                os.killpg(process.pid, request)
                process.wait(self.gentle_s)
            except (ProcessLookupError, subprocess.TimeoutExpired):
                continue
        if process.stdout is not None:
            process.stdout.close()
        return process.wait()


class Events:
    """JSON lines of a pipe, read by a thread so that nobody waits on a silent process."""

    def __init__(self, stream) -> None:
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self.ended = False
        threading.Thread(target=self._read, args=(stream,), daemon=True).start()

    def next(self, timeout_s: float) -> dict | None:
        """The next event, None when none came in time or the stream has ended."""
        try:
            line = None if self.ended else self._lines.get(timeout=timeout_s)
        except queue.Empty:
            return None
        if line is None:
            self.ended = True
            return None
        return json.loads(line)

    def _read(self, stream) -> None:
        try:
            for line in stream:
                if line.startswith("{"):
                    self._lines.put(line)
        except ValueError:
            pass  # the stream was closed because its process is being stopped
        self._lines.put(None)


def mirage_command(*arguments: str) -> list[str]:
    """The command line of a `mirage` subcommand under this Python."""
    return [sys.executable, "-m", "mirage_ros.cli", *arguments]


def child_environment() -> dict[str, str]:
    """This environment, in which Python finds this package and writes its lines at once."""
    root = str(Path(__file__).resolve().parents[1])
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}


def private_environment() -> dict[str, str]:
    """The same with a ROS domain of its own, kept to this machine."""
    return {
        **child_environment(),
        "ROS_DOMAIN_ID": str(free_domain()),
        "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST",
    }


def free_domain(first: int | None = None) -> int:
    """A ROS domain whose discovery port nobody here has bound and that no other program here was just given.

    Whoever gets it starts its nodes later, so its port says nothing yet: the last few that this process was given stay
    reserved until it ends.

    Args:
        first: the number to begin to look at; by default another one in each process.
    """
    for attempt in range(DOMAINS):
        domain = 1 + ((os.getpid() if first is None else first) + attempt) % DOMAINS
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            reservation = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            try:
                probe.bind(("", DISCOVERY_PORT + PORTS_PER_DOMAIN * domain))
                # A name without a file, which Linux frees with the process.
                reservation.bind(f"\0mirage_ros/domain/{domain}")
            except OSError:
                reservation.close()
                continue
            _reserved.append(reservation)
            return domain
    raise MirageError(
        f"All ROS domains from 1 to {DOMAINS} are in use on this machine; end other ROS programs."
    )


def _peak_bytes(pid: int) -> int | None:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return None
    lines = [line for line in status.splitlines() if line.startswith("VmHWM:")]
    return int(lines[0].split()[1]) * 1024 if lines else None


def _descendants(pid: int) -> list[int]:
    """Processes below a process."""
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        children = [int(word) for task in tasks for word in (task / "children").read_text().split()]
    except OSError:
        return []
    return children + [below for child in children for below in _descendants(child)]


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


# Names the file with Fast DDS's profiles; it reads one of the second name in the working folder by itself.
PROFILES, LOCAL_FILE = "FASTDDS_DEFAULT_PROFILES_FILE", "DEFAULT_FASTDDS_PROFILES.xml"
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


def repair_soon(environment: MutableMapping[str, str] = os.environ, folder: Path = Path()) -> None:
    """Lets lost messages be repaired in 50 ms instead of 3 s; see config/fastdds.xml. Has to come before ROS starts. Other
    DDS implementations repair soon by themselves and do not read the variable."""
    if PROFILES in environment or (folder / LOCAL_FILE).exists():
        return
    with contextlib.suppress(MirageError):
        environment[PROFILES] = str(share_path("config", "fastdds.xml"))


def spin_briefly(environment: MutableMapping[str, str] = os.environ) -> None:
    """Lets threads that wait for each other give their cores away: by default GNU's OpenMP spins for 300,000 rounds, Intel's
    for 200 ms. Has to come before torch; who has settled either is left alone."""
    if not environment.keys() & {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"}:
        environment.update(GOMP_SPINCOUNT="1000", OMP_WAIT_POLICY="passive")


def processor_name() -> str:
    """As the kernel names it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def has_fast_bfloat16() -> bool:
    """Whether the processor multiplies bfloat16 in hardware (AMX, AVX-512 BF16): others are slower in it than in float32."""
    try:
        return any(flag in Path("/proc/cpuinfo").read_text() for flag in (" amx_bf16", " avx512_bf16"))
    except OSError:
        return False
