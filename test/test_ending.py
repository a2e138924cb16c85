"""A context that goes away in the middle of a call is the order to end, and nothing else is."""

import pytest
import rclpy
from rclpy.executors import ExternalShutdownException

from mirage_ros.errors import MirageError
from mirage_ros.ros.callbacks import ending_with_ros


@pytest.fixture
def context(ros_domain):
    rclpy.init()
    yield
    rclpy.try_shutdown()


def test_a_call_that_finds_no_context_says_to_end(context):
    rclpy.shutdown()
    with pytest.raises(ExternalShutdownException), ending_with_ros():
        rclpy.create_node("too_late")


def test_other_errors_stay_what_they_are(context):
    with pytest.raises(ZeroDivisionError), ending_with_ros():
        1 / 0
    rclpy.shutdown()
    with pytest.raises(MirageError), ending_with_ros():
        raise MirageError("The disk is full; free some space.")
