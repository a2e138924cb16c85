"""The inference worker as the node's process sees it: a queue, and a process that may be lost.

A worker that dies (killed, out of memory, silent for too long) is followed by another one. The new
one takes over the last snapshot, repeats what was done since then without handing it out again, and
goes on with the command at which the last one stopped: nothing is lost, nothing comes twice. Deaths
are counted for the command that was being done or repeated; one that kills again and again is left
out, and where the world cannot be brought back without it there is no other worker.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from multiprocessing import forkserver, get_context, resource_tracker
from multiprocessing.connection import wait

from mirage_ros.errors import MirageError
from mirage_ros.machine import spin_briefly
from mirage_ros.ros.worker import (
    Beat,
    Command,
    Died,
    Dying,
    Failed,
    Journal,
    Result,
    Revived,
    WorkerConfig,
)
from mirage_ros.ros.worker.shared import Scratch, receive, send

# The worker's program. It is another process's, and named as the fork server is given it: the node's process must never
# import it, nor torch with it.
PROGRAM = "mirage_ros.ros.worker.process"
QUEUE_SIZE = 8
# A worker whose loop has not gone on for so long is taken for stuck, and one that has not ended a
# command for so long, too.
SILENCE_S = 60.0
DEADLINE_S = 3600.0
MOST_TRIES = 5
# Tries of what makes a worker stand still: what it waits for will hardly come.
MOST_STUCK_TRIES = 2
# Of deaths in a row while the world is brought back, whatever was being repeated.
MOST_FAILED_REVIVALS = 20
MOST_FAILED_STARTS = 3


class Worker:
    """One inference worker and its successors.

    Args:
        make_model: picklable; called in the worker's process.
        config: how the world is made; its `snapshots` is chosen here.
        on_result: called in a thread of its own with each Result; must be quick.
        preload: modules that every worker needs; they are imported once, and workers forked.
        silence_s: between two reports of a worker's progress, unless it asked for more.
        deadline_s: for each command, and for loading the model, whatever is reported.
    """

    def __init__(
        self,
        make_model: Callable,
        config: WorkerConfig,
        on_result: Callable[[Result], None],
        preload: Sequence[str] = (),
        silence_s: float = SILENCE_S,
        deadline_s: float = DEADLINE_S,
    ) -> None:
        self._scratch = Scratch()
        self.config = replace(config, snapshots=str(self._scratch.path))
        self._make_model, self._on_result = make_model, on_result
        self._silence_s, self._deadline_s = silence_s, deadline_s
        self._context = _forkserver(preload)
        self._lock = threading.Lock()
        self._waiting: deque[Command] = deque()
        self._at_work: Command | None = None
        self._connection = None
        self._ready = False
        self._process = None
        self._journal = Journal()
        # When what the process does now was begun, None while it does nothing.
        self._begun_s: float | None = None
        self._stuck = False
        self._repeated: Command | None = None
        self._suspect: Command | None = None
        self._tries: dict[int, int] = {}
        self._failed_revivals = 0
        self._left_out: list[str] = []
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._supervise, name="mirage_worker", daemon=True)

    def start(self) -> None:
        self._thread.start()

    @property
    def pid(self) -> int | None:
        """The process at work now, None between two of them."""
        process = self._process
        return None if process is None else process.pid

    def submit(self, command: Command) -> None:
        """Queues a command. Raises MirageError when the queue is full."""
        with self._lock:
            if len(self._waiting) >= QUEUE_SIZE:
                raise MirageError(
                    f"{QUEUE_SIZE} commands wait for the inference worker already; send fewer."
                )
            self._waiting.append(command)
            self._send_next()

    def cancel(self, command: Command) -> bool:
        """Takes a command back. False if it is at work or done already."""
        with self._lock:
            for index, waiting in enumerate(self._waiting):
                if waiting is command:
                    del self._waiting[index]
                    return True
        return False

    def stop(self, timeout_s: float = 5.0) -> bool:
        """Ends the process, whatever it does: what it holds is of no use to anybody else."""
        self._stopping.set()
        self._kill()
        if self._thread.is_alive():
            self._thread.join(timeout_s)
        # Killed only now if it was just being started.
        self._kill()
        self._scratch.remove()
        return not self._thread.is_alive()

    def _kill(self) -> None:
        process = self._process
        if process is not None and process.pid:
            with contextlib.suppress(OSError, ValueError):
                process.kill()

    def _supervise(self) -> None:
        """Whatever ends this thread, whoever waits gets to know that no worker comes any more."""
        try:
            _deafen()
            self._follow()
        except Exception as error:  # noqa: BLE001 - a thread must not die unheard
            self._kill()
            self._on_result(Failed(None, f"The inference worker cannot be looked after ({_named(error)})."))

    def _follow(self) -> None:
        """One process after the other until `stop`, or until one cannot load its model."""
        lost_s, failed_starts = None, 0
        while not self._stopping.is_set():
            reason, started = self._live(lost_s)
            if self._stopping.is_set() or reason is None:
                return
            failed_starts = 0 if started else failed_starts + 1
            if failed_starts >= MOST_FAILED_STARTS:
                self._on_result(Failed(None, f"{reason} It was started {failed_starts} times."))
                return
            lost_s = time.monotonic()
            with contextlib.suppress(OSError):
                self._scratch.keep(self._journal.snapshot)
            self._on_result(Died(reason))
            hopeless = self._blame()
            if hopeless:
                self._on_result(Failed(None, f"{reason} {hopeless}"))
                return

    def _live(self, lost_s: float | None) -> tuple[str | None, bool]:
        """One process from start to end: why it ended (None: for good), and if it had started."""
        started, reason, self._stuck = False, None, False
        try:
            self._connection, theirs = self._context.Pipe()
            self._process = self._context.Process(
                target=_enter, args=(theirs, self._make_model, self.config), daemon=True
            )
            self._process.start()
        except Exception as error:  # noqa: BLE001 - a thread must not die unheard
            self._on_result(Failed(None, f"No process for inference can be started ({error})."))
            return None, False
        try:
            theirs.close()
            if self._stopping.is_set():
                self._kill()
            self._begun_s = time.monotonic()
            ready = self._next()
            if isinstance(ready, Failed):
                self._on_result(ready)
                return None, False
            started = True
            if lost_s is None:
                self._on_result(ready)
            else:
                self._revive(lost_s)
            self._serve()
        except Exception as error:  # noqa: BLE001 - whatever it is, this process is of no use any more
            reason, self._stuck = _reason(error), isinstance(error, _Silent)
        finally:
            with self._lock:
                self._suspect = self._repeated or (self._at_work if self._ready else None)
                self._ready, self._repeated = False, None
            self._kill()
            self._process.join(5.0)
            self._connection.close()
        return reason or _ending(self._process.exitcode), started

    def _serve(self) -> None:
        """Hands out results until the process ends, which raises."""
        with self._lock:
            self._ready, self._begun_s = True, None
            if self._at_work is not None:
                self._begin(self._at_work)
            else:
                self._send_next()
        while True:
            result = self._next()
            with self._lock:
                command, self._at_work, self._begun_s = self._at_work, None, None
                self._tries.pop(id(command), None)
                self._journal.note(command, result)
                self._send_next()
            self._on_result(replace(result, command=command))

    def _send_next(self) -> None:
        """With the lock held: the next command to an idle process."""
        if self._ready and self._at_work is None and self._waiting:
            self._at_work = self._waiting.popleft()
            try:
                self._begin(self._at_work)
            except OSError:
                # It is gone, or got half of the command. The thread notices its end, and sends it to the next one.
                self._kill()

    def _begin(self, command: Command) -> None:
        self._begun_s = time.monotonic()
        send(self._connection, command)

    def _next(self):
        """The next result. Raises EOFError or OSError with the process gone, _Silent, _End."""
        allowed_s = self._silence_s
        while True:
            begun_s = self._begun_s
            left_s = self._deadline_s - (0.0 if begun_s is None else time.monotonic() - begun_s)
            if left_s <= 0:
                raise _Silent(
                    f"The inference worker has worked on one command for {self._deadline_s:.0f} s."
                )
            if not wait([self._connection], min(allowed_s, left_s)):
                if left_s > allowed_s:
                    raise _Silent(f"The inference worker has been silent for {allowed_s:.0f} s.")
                continue
            value = receive(self._connection)
            if isinstance(value, Dying):
                raise _End(value.message)
            if not isinstance(value, Beat):
                return value
            allowed_s = max(self._silence_s, value.allow_s)

    def _revive(self, lost_s: float) -> None:
        """The world as it was: the last snapshot, and what was done since."""
        self._failed_revivals += 1
        failed = ""
        for command in self._journal.replay():
            self._repeated = command
            self._begin(command)
            result = self._next()
            self._tries.pop(id(command), None)
            if isinstance(result, Failed):
                failed = result.message
        if self._journal.dropped:
            self._left_out.append(
                f"{self._journal.dropped} changes since the last snapshot were more than is kept."
            )
        message = " ".join([*self._left_out, failed]).strip()
        self._repeated, self._failed_revivals, self._left_out = None, 0, []
        self._on_result(Revived(time.monotonic() - lost_s, message))

    def _blame(self) -> str:
        """A command that took one process down after the other is not tried again. Returns why
        another process would be of no use, '' where it may be."""
        if self._failed_revivals >= MOST_FAILED_REVIVALS:
            return f"It died {self._failed_revivals} times while the world was brought back."
        command, self._suspect = self._suspect, None
        if command is None:
            return ""
        tries = self._tries[id(command)] = self._tries.get(id(command), 0) + 1
        if tries < (MOST_STUCK_TRIES if self._stuck else MOST_TRIES):
            return ""
        del self._tries[id(command)]
        reason = f"took the inference worker down {tries} times; it is left out."
        with self._lock:
            waits = command is self._at_work
            self._at_work = None if waits else self._at_work
        if waits:
            self._on_result(Failed(command, f"It {reason}"))
        elif self._journal.leave_out(command):
            self._left_out.append(f"{type(command).__name__}, repeated, {reason}")
        else:
            return f"It died {tries} times when it took over the world."
        return ""


class _Silent(Exception):
    """No progress, or no end of it."""


class _End(Exception):
    """The worker said why it ends."""


def _enter(connection, make_model, config: WorkerConfig) -> None:
    """In the worker's process, where torch may be imported."""
    importlib.import_module(PROGRAM).run(connection, make_model, config)


def leave() -> None:
    """For a process that ends now: no worker is forked any more, nor waited for.

    Where workers are forked from may still be importing, and would finish that first.
    """
    # multiprocessing has no public call that names or ends its fork server's process. Without this attribute
    # nothing is killed, and the process ends some seconds later.
    pid = getattr(forkserver._forkserver, "_forkserver_pid", None)
    if pid:
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)


def _deafen() -> None:
    """What this thread starts does not hear a terminal's Ctrl-C, not even while it imports.

    The node, which does, ends it.
    """
    # Who starts first, and unblocks the signal for whoever starts it.
    resource_tracker.ensure_running()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})


def _forkserver(preload: Sequence[str]):
    # Without it, asking for CUDA while modules are imported would spoil it for the forks.
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    spin_briefly()
    context = get_context("forkserver")
    context.set_forkserver_preload([PROGRAM, "mirage_ros.ros.worker.engine", *preload])
    return context


def _named(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _reason(error: Exception) -> str:
    """Why a process is given up; '' where it has ended by itself, and its exit code says why."""
    if isinstance(error, (_Silent, _End)):
        return str(error)
    gone = isinstance(error, (EOFError, ConnectionError)) or (isinstance(error, OSError) and error.errno is None)
    return "" if gone else f"The node could not exchange values with the inference worker ({_named(error)})."


def _ending(code: int | None) -> str:
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        hint = " (out of memory?)" if -code == signal.SIGKILL else ""
        return f"The inference worker was ended by {name}{hint}."
    return f"The inference worker ended with exit code {code}."
