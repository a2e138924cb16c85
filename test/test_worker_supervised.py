"""What goes wrong on the node's side of the inference worker: it is reported, and nobody waits for ever."""

from __future__ import annotations

import os
import resource

import pytest
from test_worker import Hired, seed, step

from mirage_ros.ros.worker import Cloud, Died, Done, Failed, Reset, Revived


class Pressed(Hired):
    """This process can open no more than `spare` files from `lack` on, until a result of some kind comes."""

    def __init__(self, until: type) -> None:
        self._until, self._limits = until, resource.getrlimit(resource.RLIMIT_NOFILE)
        super().__init__()

    def lack(self, spare: int) -> None:
        free = [os.open(os.devnull, os.O_RDONLY) for _ in range(spare + 1)]
        resource.setrlimit(resource.RLIMIT_NOFILE, (free[-1], self._limits[1]))
        for descriptor in free:
            os.close(descriptor)

    def relieve(self) -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, self._limits)

    def _take(self, result) -> None:
        if isinstance(result, self._until):
            self.relieve()
        super()._take(result)


@pytest.fixture
def press():
    pressed = []

    def make(until: type, spare: int = 0) -> Pressed:
        pressed.append(Pressed(until))
        assert isinstance(pressed[-1].ask(Reset(seed(), 0, "test")), Done)
        pressed[-1].lack(spare)
        return pressed[-1]

    yield make
    for one in pressed:
        one.relieve()
        assert one.worker.stop()


@pytest.mark.parametrize("spare, words", [(0, "Too many open files"), (1, "received 0 items of ancdata")])
def test_a_result_for_which_no_file_descriptor_is_left_comes_from_the_next_worker(press, spare, words):
    one = press(until=Died, spare=spare)
    done = one.ask(Cloud())
    assert isinstance(done, Done) and len(done.points.xyz)
    assert words in one.wait(Died)[0].message and one.wait(Revived)


def test_a_command_for_which_no_file_descriptor_is_left_goes_to_the_next_worker(press):
    one = press(until=Died)
    assert isinstance(one.ask(step(0)), Done)
    assert len(one.wait(Died)) == 1 and one.wait(Revived)


def test_without_any_file_descriptor_it_is_told_that_no_worker_comes(press):
    one = press(until=Failed)
    one.worker.submit(Cloud())
    (failed,) = one.wait(Failed)
    assert failed.command is None and "Too many open files" in failed.message


class Deaf(Hired):
    """Fails when it is to hear that a worker died."""

    def _take(self, result) -> None:
        if isinstance(result, Died):
            raise ValueError("out of luck")
        super()._take(result)


def test_whatever_ends_the_supervision_is_told():
    one = Deaf()
    try:
        one.ask(Reset(seed(), 0, "test"))
        one.kill()
        (failed,) = one.wait(Failed)
        assert failed.command is None and "ValueError: out of luck" in failed.message
    finally:
        assert one.worker.stop()
