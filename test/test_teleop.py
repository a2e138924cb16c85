"""A terminal to drive by: keys, gamepad, picture; and the command in a terminal of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from geometry_msgs.msg import Twist, TwistStamped
from ros_client import LOCAL, Client, new_domain
from terminal import Pty, Screen

from mirage_ros.errors import MirageError
from mirage_ros.loop.teleop import EVENT, Gamepad, Keys, half_blocks
from mirage_ros.ros.driving import TeleopConfig
from mirage_ros.ros.image_messages import picture_to_ros

TELEOP = [sys.executable, "-m", "mirage_ros.cli", "teleop"]


def held(text: bytes, after_s: float = 0.0) -> dict[int, float]:
    keys = Keys()
    keys.feed(text, 10.0)
    axes = keys.held(10.0 + after_s)
    return {int(axis): float(axes[axis]) for axis in np.flatnonzero(axes)}


@pytest.mark.parametrize(
    ("text", "axes"),
    [
        (b"w", {0: 1}), (b"S", {0: -1}), (b"a", {5: 1}), (b"d", {5: -1}), (b"q", {1: 1}), (b"e", {1: -1}),
        (b"r", {2: 1}), (b"f", {2: -1}), (b"\x1b[A\x1b[D", {0: 1, 5: 1}), (b"\x1bOB", {0: -1}), (b"ws", {0: -1}),
        (b"wa", {0: 1, 5: 1}), (b"wa ", {}), (b"\x1b[1;5Aw", {0: 1}), (b"\x1b[5~", {}), (b"x\xc3\xa4\x00", {}),
    ],
)  # fmt: skip
def test_keys_drive_axes(text, axes):
    assert held(text) == axes == held(text, 0.55)
    assert held(text, 0.65) == {}, "terminals do not tell that a key is let go"


def test_sequences_may_come_in_pieces_and_a_lone_escape_ends():
    keys = Keys()
    for part in (b"\x1b", b"[", b"A"):
        keys.feed(part, 1.0)
    assert not keys.ended and keys.held(1.0)[0] == 1
    keys.feed(b"\x1b", 2.0)
    keys.feed(b"", 2.02)
    assert not keys.ended
    keys.feed(b"", 2.06)
    assert keys.ended
    for text in (b"\x03", b"\x1bw", b"\x1b\x1b"):
        keys = Keys()
        keys.feed(text, 1.0)
        assert keys.ended, text


def test_plus_and_minus_scale_within_bounds():
    keys = Keys()
    keys.feed(b"+", 1.0)
    assert keys.scale == 1.25
    keys.feed(b"-" * 100, 1.0)
    assert keys.scale == pytest.approx(0.05)
    keys.feed(b"=" * 100, 1.0)
    assert keys.scale == 20.0


def test_a_gamepad_by_its_events(tmp_path):
    """Written as the kernel writes them; no real one has been tried."""
    path = tmp_path / "js0"
    os.mkfifo(path)
    gamepad = Gamepad(path)
    writer = os.open(path, os.O_WRONLY)
    assert not gamepad.held().any()
    events = b"".join(EVENT.pack(1, value, kind, number) for value, kind, number in
                      [(-32767, 0x82, 1), (16384, 2, 0), (2000, 2, 3), (1, 1, 0), (5, 2, 17)])  # fmt: skip
    os.write(writer, events[:11])
    os.write(writer, events[11:])
    assert gamepad.held() == pytest.approx([1, 0, 0, 0, 0, -0.5], abs=1e-3)
    os.write(writer, EVENT.pack(1, 100, 2, 1))
    assert gamepad.held()[0] == 0
    gamepad.close()
    os.close(writer)
    assert not gamepad.held().any()
    with pytest.raises(MirageError, match="No such file"):
        Gamepad(tmp_path / "js9")


@pytest.mark.parametrize(("columns", "lines"), [(80, 22), (30, 22), (200, 5), (3, 1)])
def test_half_blocks_show_the_picture_in_its_shape(columns, lines):
    rgb = np.zeros((40, 50, 3), np.uint8)
    rgb[:20, :25], rgb[20:, 25:] = (250, 10, 20), (30, 200, 40)
    screen = Screen(columns, lines)
    screen.feed(half_blocks(rgb, columns, lines))
    shown = screen.picture()
    inside = np.flatnonzero(np.array([[letter == "▀" for letter in line] for line in screen.letters]).any(0))
    width = len(inside)
    assert width <= columns and abs(width - min(columns, 2 * lines * 50 / 40)) <= 2
    if width > 10:
        assert tuple(shown[0, inside[1]]) == (250, 10, 20) and tuple(shown[0, inside[-2]]) == (0, 0, 0)


@pytest.mark.parametrize("config", [{"speed_mps": 0.0}, {"turn_rps": float("nan")}])
def test_bad_speeds_are_refused(config):
    with pytest.raises(MirageError, match="The speeds are"):
        TeleopConfig(**config)


@pytest.mark.parametrize("command", [["teleop"], ["drive", "room"]])
def test_without_a_terminal_there_is_one_clear_line(command):
    done = subprocess.run([sys.executable, "-m", "mirage_ros.cli", *command], stdin=subprocess.DEVNULL,
                          capture_output=True, text=True, timeout=100)  # fmt: skip
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("mirage: There is no terminal") and done.stderr.count("\n") == 1


@pytest.fixture
def started():
    programs = []

    def start(*arguments: str) -> tuple[Pty, Client]:
        environment = {**os.environ, **LOCAL, "ROS_DOMAIN_ID": str(new_domain())}
        programs.append(program := Pty([*TELEOP, *arguments], environment))
        programs.append(client := Client(program))
        return program, client

    yield start
    for program in reversed(programs):
        program.close()


def test_keys_in_twists_out_and_the_terminal_as_it_was(started):
    program, client = started()
    twists = []
    client.node.create_subscription(Twist, "cmd_vel", twists.append, 50)
    client.spin(lambda: client.node.count_publishers("/cmd_vel") and "no picture yet" in program.screen.line(22))
    assert program.screen.alternate and not program.screen.cursor and program.mode() != program.before
    client.spin_for(0.5)
    assert not twists, "nothing is held"
    program.type("w")
    client.spin(lambda: twists and twists[-1].linear.x == 0.0)
    moving = [twist for twist in twists if twist.linear.x == 0.5]
    client.spin_for(0.3)
    assert 5 <= len(moving) <= 14 and len(twists) == len(moving) + 1, "20 Hz for 0.6 s, then one zero"
    program.type("+\x1b[D")
    client.spin(lambda: twists[-1].angular.z == pytest.approx(1.0))
    picture = np.full((128, 160, 3), (200, 60, 20), np.uint8)
    publisher = client.node.create_publisher(type(picture_to_ros(picture, 0, "")), "color/image_raw", 4)
    client.spin(lambda: publisher.get_subscription_count())
    for index in range(10):
        publisher.publish(picture_to_ros(picture, index, "camera"))
        client.spin_for(0.05)
    client.spin_for(0.3)
    assert tuple(program.screen.picture()[10, 40]) == (200, 60, 20)
    assert "frames/s" in program.screen.line(22) and "0.62 m/s" in program.screen.line(22)
    program.type("\x03")
    assert program.end() == 0
    assert program.mode() == program.before and not program.screen.alternate and program.screen.cursor
    assert "Traceback" not in program.text()


def test_stamped_commands_a_status_line_alone_and_an_end_by_signal(started):
    program, client = started("--stamped", "--no-picture", "--speed", "0.3")
    twists = []
    client.node.create_subscription(TwistStamped, "cmd_vel", twists.append, 50)
    client.spin(lambda: client.node.count_publishers("/cmd_vel") and "no odometry yet" in program.text())
    program.type("s")
    client.spin(lambda: twists)
    assert twists[0].twist.linear.x == -0.3 and abs(twists[0].header.stamp.sec - time.time()) < 60
    assert "\x1b[?1049h" not in program.text() and "frames/s" not in program.text()
    program.process.send_signal(signal.SIGTERM)
    assert program.end() == 0 and program.mode() == program.before and program.screen.cursor
