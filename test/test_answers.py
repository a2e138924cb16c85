"""A service's answer that is dropped because the node has not met its reader: sent again, and its loss reported, over DDS."""

from __future__ import annotations

import time
import warnings
from collections import Counter

import pytest
import rclpy
from lifecycle_msgs.srv import GetState
from mirage_ros.srv import Record
from rcl_interfaces.srv import ListParameters
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile
from rclpy.service import Service

from mirage_ros.ros import answers
from mirage_ros.ros.callbacks import Deferred, GuardedNode, create_service
from mirage_ros.ros.diagnostics import Health

# A reader of replies that asks for more than the node's writer offers: the two never meet, the requests' ends do.
UNMET = QoSProfile(depth=10, durability=DurabilityPolicy.TRANSIENT_LOCAL)
SERVICES = [("at_once", Record), ("later", Record), ("get_state", GetState), ("list_parameters", ListParameters)]


class Answering(GuardedNode):
    """Answers `at_once`, and `later`."""

    def __init__(self, context: Context) -> None:
        super().__init__("answering", context=context)
        self.lines: list[str] = []
        self.health = Health(self.lines.append, self.lines.append)
        self._waiting: list[Deferred] = []
        create_service(self, Record, "~/at_once", lambda request, response: Record.Response(message="here"))
        create_service(self, Record, "~/later", self._defer)
        self.create_timer(0.05, self._answer)

    def _defer(self, request, response) -> Deferred:
        self._waiting.append(Deferred())
        return self._waiting[-1]

    def _answer(self) -> None:
        while self._waiting:
            self._waiting.pop().finish(Record.Response(message="here"))


class Asking:
    """A node that answers, and another that calls it."""

    def __init__(self) -> None:
        self._context = Context()
        rclpy.init(context=self._context)
        self.node, self._client = Answering(self._context), Node("asking", context=self._context)
        self._executor = SingleThreadedExecutor(context=self._context)
        for node in (self.node, self._client):
            self._executor.add_node(node)

    def spin_for(self, seconds: float) -> None:
        end_s = time.monotonic() + seconds
        while time.monotonic() < end_s:
            self._executor.spin_once(timeout_sec=0.05)

    def spin(self, until, patience_s: float = 30.0) -> None:
        end_s = time.monotonic() + patience_s
        while not until():
            assert time.monotonic() < end_s, self.node.lines
            self._executor.spin_once(timeout_sec=0.05)

    def client(self, name: str, kind: type, **options):
        return self._client.create_client(kind, f"answering/{name}", **options)

    def call(self, name: str, kind: type):
        client = self.client(name, kind)
        self.spin(client.service_is_ready)
        return client.call_async(kind.Request())

    def close(self) -> None:
        self._executor.shutdown()
        self.node.destroy_node()
        self._client.destroy_node()
        rclpy.shutdown(context=self._context)


class Sender:
    """Counts the tries to send an answer, by service, and drops the next ones as rclpy drops them."""

    def __init__(self, monkeypatch) -> None:
        self.tries: Counter[str] = Counter()
        self.drops = 0
        self._send = Service.send_response
        monkeypatch.setattr(Service, "send_response", lambda *args: self._try(*args))

    def _try(self, service: Service, response, header) -> None:
        self.tries[service.service_name.removeprefix("/answering/")] += 1
        if self.drops:
            self.drops -= 1
            warnings.warn("failed to send response (timeout): client will not receive response", RuntimeWarning, 1)
        else:
            self._send(service, response, header)


@pytest.fixture
def sender(monkeypatch):
    return Sender(monkeypatch)


@pytest.fixture
def asking(ros_domain, sender):
    asking = Asking()
    yield asking
    asking.close()


@pytest.mark.parametrize("name, kind", SERVICES)
def test_an_answer_whose_reader_never_comes_is_tried_again_and_its_loss_told(asking, sender, monkeypatch, name, kind):
    monkeypatch.setattr(answers, "PATIENCE_S", 1.2)
    unmet = asking.client(name, kind, qos_profile=UNMET)
    futures = []
    end_s = time.monotonic() + 30.0
    while not sender.tries[name]:  # until the requests' ends have met
        assert time.monotonic() < end_s
        futures.append(unmet.call_async(kind.Request()))
        asking.spin_for(0.3)
    asking.spin(lambda: asking.node.lines)
    assert sender.tries[name] >= 3 and not any(future.done() for future in futures)
    (line,) = asking.node.lines
    assert f"An answer of /answering/{name} is lost" in line
    answered = asking.call(name, kind)
    asking.spin(answered.done, patience_s=5.0)
    tries = sender.tries[name]
    asking.spin_for(2 * answers.AGAIN_S)
    assert sender.tries[name] == tries, "what is lost is left alone"


@pytest.mark.parametrize("name, kind", SERVICES)
def test_an_answer_whose_reader_comes_late_arrives_once(asking, sender, name, kind):
    sender.drops = 2
    future = asking.call(name, kind)
    asking.spin(future.done)
    assert sender.tries[name] == 3 and isinstance(future.result(), kind.Response) and not asking.node.lines


def test_answers_that_wait_are_all_sent_once_one_arrives(asking, sender):
    sender.drops = 4
    futures = [asking.call("later", Record) for _ in range(3)]
    asking.spin(lambda: all(future.done() for future in futures))
    assert sender.tries["later"] == 7 and {future.result().message for future in futures} == {"here"}
