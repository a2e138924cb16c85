"""What is reported of what fails, without the whole node: filters, logs, missing frames and callbacks."""

from __future__ import annotations

import time

import numpy as np
import pytest
import rclpy
from action_msgs.msg import GoalStatus
from mirage_ros.action import GenerateRollout
from mirage_ros.srv import ForkWorld, Record
from rclpy.action import ActionClient
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from sim_client import START
from simulation_interfaces import srv
from simulation_interfaces.msg import Result
from std_msgs.msg import String

from mirage_ros.errors import MirageError
from mirage_ros.ros.callbacks import GuardedNode, LongAction, create_service, refused
from mirage_ros.ros.diagnostics import MOST_LINES, QUIET, Health
from mirage_ros.ros.messages import transform_to_ros
from mirage_ros.ros.services.entities import name_filter
from mirage_ros.ros.tf import Buffer
from mirage_ros.ros.tracks import LookupException

SLOW = "(a|aa|aaa)+" * 20 + "c"


@pytest.mark.parametrize("expression", ["(.*)*" * 40 + "x", "(((((c|a|m|e|r|a)*)*)*)*)*x", "(.?){64}" * 20 + "Z"])
def test_a_filter_that_would_take_for_ever_holds_nobody_up(expression):
    matches, start_s = name_filter(expression), time.monotonic()
    try:
        assert not matches("camera")
    except MirageError as error:
        assert "takes more than" in str(error)
    assert time.monotonic() - start_s < 1


def test_a_filter_is_given_up_after_its_time():
    with pytest.raises(MirageError, match="takes more than 0.02 s"):
        name_filter(SLOW)("a" * 60 + "b")


def test_a_topic_on_which_everything_is_wrong_fills_no_log():
    lines: list[str] = []
    health = Health(lines.append, lines.append)
    for index in range(1000):
        health.error("tf", f"Transform {'x' * index} is wrong.")
    health.error("plan", "Another topic is reported as ever.")
    assert len(lines) == MOST_LINES + 1 and lines[-2].endswith(QUIET)
    assert health.state("tf")[1] == f"Transform {'x' * 999} is wrong." and health.errors == 1001


def test_a_missing_frame_names_some_of_the_others():
    buffer = Buffer()
    for index in range(1000):
        buffer.set_transform(transform_to_ros(np.eye(4), "world", f"frame{index:04}", START))
    with pytest.raises(LookupException, match=r"frame0009 and 991 more"):
        buffer.matrix("world", "nowhere", START)


class Clumsy(GuardedNode):
    """All that it is asked fails."""

    def __init__(self, context: Context) -> None:
        super().__init__("clumsy", context=context)
        self.health = Health(self.get_logger().warning, self.get_logger().error)
        create_service(self, Record, "record", self.stumble)
        self.action = LongAction(self, GenerateRollout, "walk", self.stumble, self.stumble)
        self.create_subscription(String, "words", self.stumble, 10)
        self.create_timer(0.01, self.stumble)

    def stumble(self, *args) -> None:
        raise ZeroDivisionError("out of luck")


def test_a_callback_that_fails_is_answered_and_does_not_end_the_executor(ros_domain):
    context = Context()
    rclpy.init(context=context)
    clumsy, client = Clumsy(context), Node("client", context=context)
    executor = SingleThreadedExecutor(context=context)
    for node in (clumsy, client):
        executor.add_node(node)
    try:
        words = client.create_publisher(String, "words", 10)
        service = client.create_client(Record, "record")
        action = ActionClient(client, GenerateRollout, "walk")
        for ready in (words.get_subscription_count, service.service_is_ready,
                      action.server_is_ready):  # fmt: skip
            while not ready():
                executor.spin_once(timeout_sec=0.05)
        words.publish(String(data="stumble"))

        def outcome(future):
            executor.spin_until_future_complete(future, timeout_sec=20.0)
            return future.result()

        answer = outcome(service.call_async(Record.Request()))
        assert not answer.success and "unexpected ZeroDivisionError" in answer.message
        handle = outcome(action.send_goal_async(GenerateRollout.Goal()))
        done = outcome(handle.get_result_async())
        assert done.status == GoalStatus.STATUS_ABORTED and "out of luck" in done.result.message
        assert clumsy.health.state("callback")[2] > 2
    finally:
        executor.shutdown()
        clumsy.destroy_node()
        client.destroy_node()
        rclpy.shutdown(context=context)


def test_whatever_fails_is_told_in_the_answer_s_own_words():
    answer = refused(srv.StepSimulation.Response(), "no")
    assert answer.result.result == Result.RESULT_OPERATION_FAILED
    assert answer.result.error_message == "no"
    answer = refused(ForkWorld.Response(success=True), "no")
    assert not answer.success and answer.message == "no"
    assert refused(GenerateRollout.Result(success=True), "no").message == "no"
    assert np.size(refused(srv.GetSimulatorFeatures.Response(), "no").features.features) == 0
