"""Child processes that never outlive their parent's block."""

from __future__ import annotations

import json
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

from mirage_ros.errors import MirageError

GENTLE_S = 10.0
TAIL_LINES = 12
DOMAINS = 100
DISCOVERY_PORT = 7400
PORTS_PER_DOMAIN = 250


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
        lines = self.log_path(name).read_text(errors="replace").strip().splitlines()
        tail = "\n  ".join(lines[-TAIL_LINES:]) or "(its log is empty)"
        return MirageError(
            f"The {name} ended with exit code {code}; see {self.log_path(name)}:\n  {tail}"
        )

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
    """A ROS domain whose discovery port nobody here has bound.

    Args:
        first: the number to begin to look at; by default another one in each process.
    """
    for attempt in range(DOMAINS):
        domain = 1 + ((os.getpid() if first is None else first) + attempt) % DOMAINS
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            try:
                probe.bind(("", DISCOVERY_PORT + PORTS_PER_DOMAIN * domain))
            except OSError:
                continue
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
