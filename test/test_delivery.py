"""A burst pushes nothing out that a subscriber does not have yet; a stuck one is not waited for."""

from __future__ import annotations

import array
import signal
import subprocess
import sys
import time

import pytest
from make_seed import write_seed
from plans import PERIOD, START, expect_the_plan, sideways, stamps
from ros_client import TESTS, Client, NodeProcess, end
from sensor_msgs.msg import Image

from mirage_ros.files import share_path
from mirage_ros.machine import LOCAL_FILE, PROFILES, repair_soon, spin_briefly
from mirage_ros.ros.callbacks import LazyPublisher
from mirage_ros.ros.chunks import PATIENCE_S
from mirage_ros.ros.messages import SECOND_NS

TOPIC = "color/image_raw"
FRAMES = 48


@pytest.fixture(scope="module")
def seed_folder(tmp_path_factory):
    return write_seed(tmp_path_factory.mktemp("seed"))


@pytest.fixture(scope="module")
def client(tmp_path_factory, seed_folder):
    """Of a node that keeps no more than one chunk for its subscribers."""
    arguments = ("-p", f"seed:={seed_folder}", "-p", "plan_idle_s:=0.3", "-p", "image_depth:=4")
    process = NodeProcess(tmp_path_factory.mktemp("log"), "--ros-args", *arguments)
    client = Client(process)
    client.connect()
    process.wait_for("New world")
    yield client
    client.close()
    process.close()


@pytest.fixture
def listener(client, tmp_path):
    """Another process that subscribes, and the file of what it got."""
    heard = tmp_path / "heard.txt"
    with heard.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, str(TESTS / "stamp_listener.py"), TOPIC],
            stdout=file,
            env=client.process.environment,
        )
    client.spin(lambda: client.node.count_subscribers(TOPIC) == 2)
    client.spin_for(0.5)
    client.reset()
    yield process, lambda: [int(line) for line in heard.read_text().splitlines()]
    process.send_signal(signal.SIGCONT)
    end(process)
    client.spin(lambda: client.node.count_subscribers(TOPIC) == 1)


def meet(client, seed_folder, heard):
    """Until the node has found the listener too, which may take it longer than the client."""
    for index in range(50):
        at = stamps(1, START + index * PERIOD)
        client.clear()
        client.send_tf(at, sideways(seed_folder, 1, 0.005))
        expect_the_plan(client, at)
        client.spin_for(0.2)
        if heard():
            client.clear()
            return
    pytest.fail("the listener heard nothing of the node")


@pytest.mark.parametrize("patient", [True, False])
def test_what_a_paused_subscriber_lacks_is_kept_by_who_asks(client, listener, patient):
    """A publisher of its own that keeps 4 pictures; without asking, some are lost for good."""
    process, heard = listener
    publisher = LazyPublisher(client.node, Image, TOPIC, 4)
    client.spin(lambda: publisher.count == 2)
    client.spin_for(1.0)
    picture = Image(data=array.array("B", bytes(60_000)))
    resume_s = time.monotonic() + 0.3
    process.send_signal(signal.SIGSTOP)
    for second in range(1, 65):
        while publisher.full_for(time.monotonic()) is not None and patient:
            time.sleep(0.001)
            if time.monotonic() > resume_s:
                process.send_signal(signal.SIGCONT)
        picture.header.stamp.sec = second
        publisher.publish(lambda: picture)
    process.send_signal(signal.SIGCONT)
    client.spin(lambda: heard() and heard()[-1] == 64 * SECOND_NS, patience_s=20)
    client.node.destroy_publisher(publisher._publisher)
    assert (heard() == [second * SECOND_NS for second in range(1, 65)]) == patient


def test_a_subscriber_that_hangs_is_told_and_costs_the_others_nothing(
    client, seed_folder, listener
):
    process, heard = listener
    meet(client, seed_folder, heard)
    first = START + 100 * PERIOD
    process.send_signal(signal.SIGSTOP)
    began = time.monotonic()
    client.send_tf(stamps(FRAMES, first), sideways(seed_folder, FRAMES, 0.005))
    expect_the_plan(client, stamps(FRAMES, first))
    assert time.monotonic() - began < 0.5 * FRAMES * PATIENCE_S, "waited at every chunk"
    client.spin(lambda: f"A subscriber of /{TOPIC} still lacks" in client.problems())
    process.send_signal(signal.SIGCONT)
    client.spin_for(2.0)
    assert first not in heard(), "it was never stuck"
    later = stamps(8, first + FRAMES * PERIOD)
    client.clear()
    client.send_tf(later, sideways(seed_folder, 8, 0.005))
    expect_the_plan(client, later)
    client.spin(lambda: heard()[-8:] == later, patience_s=20)


def test_lost_messages_are_repaired_soon_unless_the_user_has_settled_how(tmp_path):
    shipped = str(share_path("config", "fastdds.xml"))
    own, local, none = {PROFILES: "mine.xml"}, {}, {}
    repair_soon(own, tmp_path)
    repair_soon(none, tmp_path)
    (tmp_path / LOCAL_FILE).write_text("<dds/>")
    repair_soon(local, tmp_path)
    assert own == {PROFILES: "mine.xml"} and not local and none == {PROFILES: shipped}


def test_waiting_threads_spin_briefly_unless_the_user_has_settled_how():
    own, none = {"OMP_WAIT_POLICY": "active"}, {}
    spin_briefly(own)
    spin_briefly(none)
    assert own == {"OMP_WAIT_POLICY": "active"} and none == {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "1000"}


@pytest.mark.parametrize("call", ["repair_soon()", "pass"])
def test_the_middleware_heeds_it(client, call):
    """What is published is known to have arrived long before the 3 s of the middleware's own."""
    program = f"""
import time
from mirage_ros.machine import repair_soon
{call}
import rclpy
from rclpy.duration import Duration
from sensor_msgs.msg import Image
rclpy.init()
publisher = rclpy.create_node("p").create_publisher(Image, "{TOPIC}", 200)
while publisher.get_subscription_count() < 1:
    time.sleep(0.05)
time.sleep(1.0)
publisher.publish(Image())
print(publisher.wait_for_all_acked(Duration(seconds=1.5)))
"""
    environment = {**client.process.environment}
    environment.pop(PROFILES, None)
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.split() == [str(call == "repair_soon()")], done.stderr
