"""What is wrong and how fast it goes: one log line per problem, kept for /diagnostics."""

from __future__ import annotations

import re
import time
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from mirage_ros.protocol import Chunk

OK, WARN, ERROR = b"\x00", b"\x01", b"\x02"  # as in diagnostic_msgs/DiagnosticStatus
# A problem that is over stays visible this long, so that a 1 Hz listener cannot miss it.
SHOWN_S = 5.0
REPEAT_S = 60.0
# A topic on which everything is wrong, each time otherwise, fills no disk: so many lines in so many seconds.
MOST_LINES, LINES_S = 20, 10.0
QUIET = f" More of it is on /diagnostics alone, for {LINES_S:.0f} s."


@dataclass
class Problem:
    """A problem of one topic. `over` is set once it is mended."""

    level: bytes
    text: str
    since_s: float
    logged_s: float
    count: int = 1
    over: bool = False


class Health:
    """The problems at hand, by topic: callback, recording, model, worker, snapshot, seed,
    observe, prompt, plan, robots, path, untimed, tf, world, clock, pictures, graph, start.

    Args:
        warn, error: where a line goes when a problem is new.
    """

    def __init__(self, warn: Callable[[str], None], error: Callable[[str], None]) -> None:
        self._log_warning, self._log_error = warn, error
        self._problems: dict[str, Problem] = {}
        self._lines: defaultdict[str, deque[float]] = defaultdict(lambda: deque(maxlen=MOST_LINES))
        self.last_error = ""
        self.errors = 0
        self._news = False

    def error(self, topic: str, text: str) -> None:
        self.errors += 1
        self.last_error = text
        self._raise(topic, ERROR, text)

    def warn(self, topic: str, text: str, once: bool = False) -> None:
        """Args: once: never log the same text again, however long it goes on."""
        self._raise(topic, WARN, text, once)

    def ok(self, topic: str) -> None:
        if topic in self._problems:
            self._problems[topic].over = True

    def state(self, topic: str) -> tuple[bytes, str, int]:
        """Level, text and how often the topic's problem came; OK, '' and 0 without one."""
        problem = self._problems.get(topic)
        if problem is None or (problem.over and time.monotonic() - problem.since_s > SHOWN_S):
            return OK, "", 0
        return problem.level, problem.text, problem.count

    def take_news(self) -> bool:
        """Whether a new problem came since the last call: worth a message at once."""
        news, self._news = self._news, False
        return news

    def _raise(self, topic: str, level: bytes, text: str, once: bool = False) -> None:
        now_s = time.monotonic()
        known = self._problems.get(topic)
        same = known is not None and _but_numbers(known.text) == _but_numbers(text)
        if same and (once or now_s - known.logged_s < REPEAT_S):
            known.text = text
            known.count += 1
            known.over, known.since_s = False, now_s
            return
        self._problems[topic] = Problem(level, text, now_s, now_s)
        lines = self._lines[topic]
        if len(lines) == MOST_LINES and now_s - lines[0] < LINES_S:
            return
        lines.append(now_s)
        self._news = True
        if len(lines) == MOST_LINES and now_s - lines[0] < LINES_S:
            text += QUIET
        # Two lines, because rclpy ties a severity to the line of code that logs.
        if level == ERROR:
            self._log_error(text)
        else:
            self._log_warning(text)


def _but_numbers(text: str) -> str:
    """A problem that comes again with other numbers (a stamp, a count) is the same problem."""
    return re.sub(r"[\d.]+", "#", text)


@dataclass
class Figures:
    """Running figures of the rollout."""

    frames: int = 0
    chunks: int = 0
    tokens: int = 0
    memory_bytes: int = 0
    restarts: int = 0
    stage_s: dict[str, float] = field(default_factory=dict)
    _recent: deque = field(default_factory=lambda: deque(maxlen=8))

    def add(self, chunk: Chunk, seconds: float) -> None:
        self.frames += len(chunk.frames)
        self.chunks += 1
        self.tokens, self.memory_bytes = chunk.tokens, chunk.memory_bytes
        self.stage_s = {**chunk.seconds, "total": seconds}
        self._recent.append((len(chunk.frames), seconds))

    def new_world(self, tokens: int, memory_bytes: int) -> None:
        self.chunks = 0
        self.tokens, self.memory_bytes = tokens, memory_bytes

    @property
    def frames_per_s(self) -> float:
        """Of the last chunks while they were made, waiting not counted."""
        seconds = sum(item[1] for item in self._recent)
        return sum(item[0] for item in self._recent) / seconds if seconds else 0.0


@dataclass(frozen=True)
class Status:
    """How one part of the node is."""

    level: bytes
    text: str
    values: dict[str, Any] = field(default_factory=dict)


def worst(health: Health, *topics: str) -> tuple[bytes, str]:
    """The worst level of these topics, and all that is wrong at that level."""
    states = [health.state(topic)[:2] for topic in topics]
    level = max(level for level, _ in states)
    return level, " ".join(text for other, text in states if other == level and text)
