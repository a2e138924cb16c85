"""What the last snapshot of the worker's world does not hold yet."""

from __future__ import annotations

from collections.abc import Iterator

from mirage_ros.ros.worker import CHANGING, Command, Done, Load, Observe, Prompt, Reset, Unload

# Repeating more than that would take longer than the world is worth waiting for.
MOST_COMMANDS = 256
# Of observed pictures with their depth: 60 of 640 x 480.
MOST_BYTES = 128 * 2**20


class Journal:
    """The last snapshot and the commands that changed the world since.

    Attributes:
        snapshot: its folder, None without one.
        dropped: commands since then that were too many or too large to be kept.
    """

    def __init__(self) -> None:
        self.snapshot: str | None = None
        self.dropped = 0
        self._begin: Load | None = None
        self._since: list[Command] = []
        # What the model was last told, and what it had been told before `_since`.
        self._prompt: Prompt | None = None
        self._told: Prompt | None = None

    def note(self, command: Command | None, result) -> None:
        """Takes in how a command went."""
        if not isinstance(result, Done) or not isinstance(command, CHANGING):
            return
        if isinstance(command, Prompt):
            self._prompt = command
        if result.snapshot is not None:
            self._start(result.snapshot)
            return
        if isinstance(command, (Reset, Load, Unload)):
            self._start(None)
        if not isinstance(command, Unload):
            self._since.append(command)
        self._shorten()

    def _start(self, snapshot: str | None) -> None:
        """What was done before now is in a snapshot, or is of no use any more."""
        self.snapshot, self._since, self._told, self.dropped = snapshot, [], self._prompt, 0
        self._begin = None if snapshot is None else Load(snapshot)

    def _shorten(self) -> None:
        """The oldest commands go, but never the one that the world began with; of observations
        those whose pictures are too much."""
        begin = int(isinstance(self._since[0], (Reset, Load))) if self._since else 0
        end = begin + max(0, len(self._since) - MOST_COMMANDS)
        for command in self._since[begin:end]:
            if isinstance(command, Prompt):
                self._told = command
        del self._since[begin:end]
        self.dropped += end - begin
        seen = [kept for kept in self._since if isinstance(kept, Observe)]
        size = sum(_bytes(kept) for kept in seen)
        for oldest in seen:
            if size <= MOST_BYTES:
                break
            size -= _bytes(oldest)
            self._since = [kept for kept in self._since if kept is not oldest]
            self.dropped += 1

    def replay(self) -> Iterator[Command]:
        """What brings a new worker to where the last one was: the same objects every time."""
        if self._told is not None:
            yield self._told
        if self._begin is not None:
            yield self._begin
        yield from list(self._since)

    def leave_out(self, command: Command) -> bool:
        """Takes out a command that cannot be repeated. False for what the world begins with."""
        if isinstance(command, (Reset, Load)):
            return False
        self._since = [kept for kept in self._since if kept is not command]
        self._told = None if command is self._told else self._told
        prompts = [kept for kept in self._since if isinstance(kept, Prompt)]
        self._prompt = prompts[-1] if prompts else self._told
        return True


def _bytes(command: Observe) -> int:
    depth_m = command.seed.depth_m
    return command.seed.rgb.nbytes + (0 if depth_m is None else depth_m.nbytes)
