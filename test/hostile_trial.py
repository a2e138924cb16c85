"""A node under fire: hostile messages in rounds, legal work between, and a judge of what comes of them."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import time
from dataclasses import dataclass, field

import numpy as np
from action_msgs.msg import GoalStatus
from hostile import CHANGING, hostile
from hostile_ground import Ground
from hostile_topics import Hostile
from lifecycle_msgs.msg import State, Transition
from plans import PERIOD
from rclpy.action import ActionClient
from rclpy.qos import DurabilityPolicy, QoSProfile
from ros_client import PICTURES, TESTS, NodeProcess, make_path
from sim_client import OK, PAUSED, PLAYING, START, SimClient, change, state
from std_srvs.srv import Trigger

from mirage_ros.srv import SaveWorld

# A round's: paused, the world's hash is compared after each message; playing, frames are made meanwhile; free, the node
# may be in any state at all.
KINDS = ("paused", "playing", "paused", "playing", "free")
ANSWER_S = 60.0
# Of a sentence, and of all that is wrong with one part of the node.
MOST_CHARACTERS, MOST_JOINED = 1000, 4000
HOLDING = QoSProfile(depth=100, durability=DurabilityPolicy.TRANSIENT_LOCAL)


def kind_of(number: int) -> str:
    """Of a round: nodes of two modes take every other one."""
    return KINDS[number // 2 % len(KINDS)]


class Pinger:
    """Another process that calls quick services at an even rate."""

    def __init__(self, process: NodeProcess) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(TESTS / "pinger.py")],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=process.environment, text=True,
        )  # fmt: skip
        assert self._process.stdout.readline() == "up\n"

    def end(self) -> np.ndarray:
        """(calls, 2): when each was made, and seconds until it was answered."""
        out, _ = self._process.communicate("", timeout=60)
        return np.array(json.loads(out))

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


@dataclass
class Tally:
    """What came of the messages."""

    sent: int = 0
    refused: int = 0
    accepted: int = 0
    compared: int = 0
    names: set[str] = field(default_factory=set)

    def __str__(self) -> str:
        return (
            f"{self.sent} messages to {len(self.names)} names, {self.refused} refused, {self.accepted} accepted, "
            f"{self.compared} hashes"
        )


class Trial:
    """One node under fire.

    Attributes:
        findings: what must not be, each with the message that it came after.
    """

    def __init__(self, client: SimClient, ground: Ground, seed: int, lockstep: bool) -> None:
        self.client, self.ground, self.seed, self.lockstep = client, ground, seed, lockstep
        # It would have to bear the hostile times as well.
        client.node.destroy_subscription(client.hears_clock)
        self.tally = Tally()
        self.findings: list[str] = []
        self._at = ""
        self._read = 0
        self.last: list[str] = []
        self.begun: list[tuple[float, str]] = []
        self._publishers: dict[str, object] = {}
        self._actions: dict[str, ActionClient] = {}
        self._open: list[tuple[str, object]] = []

    # --- the node's state ---

    def settle(self, playing: bool = True) -> None:
        """Active, the seed's world as new, no plan; whatever was before."""
        client = self.client
        self._leave_clock()
        for _ in range(4):
            now = state(client)
            if now == State.PRIMARY_STATE_ACTIVE:
                break
            up = now == State.PRIMARY_STATE_INACTIVE
            change(client, Transition.TRANSITION_ACTIVATE if up else Transition.TRANSITION_CONFIGURE)
        assert state(client) == State.PRIMARY_STATE_ACTIVE
        for name, value in (("on_missing_plan", "hold"), ("plan_idle_s", 0.3), ("cloud_period_s", 1.0),
                            ("max_extrapolation_s", 1.0), ("use_sim_time", False)):  # fmt: skip
            assert client.set_parameter(name, value)[0], name
        loaded = client.load(str(self.ground.seed)).result
        assert loaded.result == OK, loaded.error_message
        # Poses that came while there was no world are for the one that is loaded then; not here.
        assert client.ask(Trigger, "reset").success
        wanted = PLAYING if playing else PAUSED
        done = client.set_state(wanted)
        assert done.result == OK, done.error_message
        self._close_answers()
        client.clear()

    def frames(self, count: int, after: int = 0) -> list[str]:
        """Pictures and depths of a planned path from the seed on, as hashes.

        Args:
            after: periods before it begins; pictures of another plan may still be on their way.
        """
        client = self.client
        planned = [START + PERIOD * (1 + after + index) for index in range(count)]
        poses = [self.ground.pose.copy() for _ in range(count)]
        for index, pose in enumerate(poses):
            pose[:3, 3] += self.ground.pose[:3, 0] * 0.02 * index
        client.send_path(make_path(planned, poses))

        def found(name: str) -> list:
            stamps = client.stamps(name)
            first = stamps.index(planned[0]) if planned[0] in stamps else len(stamps)
            return client.got[name][first : first + count] if stamps[first : first + count] == planned else []

        client.spin(lambda: all(found(name) for name in PICTURES), ANSWER_S)
        pictures = zip(found("color/image_raw"), found("depth/image_rect"), strict=True)
        return [hashlib.sha256(bytes(rgb.data) + bytes(depth.data)).hexdigest() for rgb, depth in pictures]

    def pause(self) -> None:
        if self.client.state() != PAUSED:
            assert self.client.set_state(PAUSED).result == OK

    def world(self) -> str:
        """A hash of all that the world is; '' without one."""
        folder = self.ground.folder / "hashed"
        answer = self.client.ask(SaveWorld, "save_world", path=str(folder))
        if not answer.success:
            assert "No world" in answer.message or "not configured" in answer.message, answer.message
            return ""
        digest = hashlib.sha256()
        for path in sorted(folder.iterdir()):
            digest.update(path.name.encode() + path.read_bytes())
        return digest.hexdigest()

    def report(self) -> str:
        return "\n".join(self.findings)

    def find(self, text: str) -> None:
        """Something that must not be; the rest of the messages still come."""
        self.findings.append(f"{self._at}: {text}")
        print(self.findings[-1], flush=True)

    # --- one message ---

    def send(self, message: Hostile) -> bool | None:
        """Whether it was accepted; None where nobody answers."""
        self.tally.sent += 1
        self.tally.names |= {topic for topic, _, _ in message.sends} or {message.name}
        if message.sends:
            for topic, kind, content in message.sends:
                self._publisher(topic, kind).publish(content)
            return None
        accepted = self._goal(message) if message.goal else self._service(message)
        if accepted:
            self.tally.accepted += 1
            if message.refused:
                self.find("it was accepted")
        elif accepted is not None:
            self.tally.refused += 1
        return accepted

    def _publisher(self, topic: str, kind: type):
        if topic not in self._publishers:
            qos = HOLDING if topic == "/tf_static" else 100
            publisher = self.client.node.create_publisher(kind, topic, qos)
            self._publishers[topic] = publisher
            if topic != "/clock":
                self.client.spin(publisher.get_subscription_count, ANSWER_S)
        return self._publishers[topic]

    def _leave_clock(self) -> None:
        """Somebody else's clock stops a node in lockstep until it is gone."""
        publisher = self._publishers.pop("/clock", None)
        if publisher is not None:
            self.client.node.destroy_publisher(publisher)
            if self.lockstep:
                self.client.spin(lambda: self.client.node.count_publishers("/clock") == 1, ANSWER_S)
                self.client.spin_for(0.1)

    def _service(self, message: Hostile) -> bool | None:
        future = self.client.begin_raw(message.kind, message.name, message.request)
        if message.name == "step_simulation":
            self._open.append((message.name, future))
            self.client.spin_for(0.1)
            return future.result().result.result == OK if future.done() else True
        answer = self._answer(message.name, future)
        for text in reasons(answer):
            if not text or len(text) > MOST_CHARACTERS:
                self.find(f"the reason has {len(text)} characters: {text[:300]!r}")
        return accepted(answer)

    def _goal(self, message: Hostile) -> bool | None:
        name = message.name
        if name not in self._actions:
            self._actions[name] = ActionClient(self.client.node, message.kind, f"mirage_node/{name}")
        handle = self._answer(name, self._actions[name].send_goal_async(message.request))
        if message.cancel:
            self._answer(f"{name} cancel", handle.cancel_goal_async())
        future = handle.get_result_async()
        if message.refused:
            self._answer(name, future)
        self._open.append((name, future))
        self.client.spin_for(0.1)
        # What was canceled may have begun.
        return not future.done() or future.result().status != GoalStatus.STATUS_ABORTED

    def _answer(self, name: str, future):
        until_s = time.monotonic() + ANSWER_S
        while not future.done():
            assert time.monotonic() < until_s, f"{name} is not answered"
            assert self.client.process.process.poll() is None, f"the node has died ({self.client.process.process.poll()})"
            self.client.executor.spin_once(timeout_sec=0.05)
        return future.result()

    def _close_answers(self) -> None:
        """Whatever was asked is answered by now: its world is gone."""
        waiting, self._open = self._open, []
        for name, future in waiting:
            self._answer(name, future)

    # --- a round ---

    def round(self, number: int, indices: list[int]) -> None:
        kind = kind_of(number)
        # Within the plan's horizon of where a world in lockstep begins.
        begin = 20 + 60 * (number % 40)
        self.settle()
        self.frames(4, begin)
        if kind == "paused":
            self.pause()
            self._known = self.world()
        elif kind == "playing":
            later = [START + PERIOD * (begin + 10 + index) for index in range(40)]
            self.client.send_path(make_path(later, [self.ground.pose] * 40))
        for index in indices:
            message = hostile(self.seed, index, self.ground, kind == "free")
            self._at = f"{index} {message.name} ({message.what[:60]!r})"
            self.last = [*self.last[-5:], self._at]
            self.begun.append((time.monotonic(), self._at))
            took = self.send(message)
            if kind == "paused":
                self._compare(message, took)
            elif took is None:
                self.client.spin_for(0.005)
        if kind == "paused":
            self.client.spin_for(0.1)
            self._same_world()
        self._check_texts()

    def _compare(self, message: Hostile, took: bool | None) -> None:
        """Refused input changes nothing."""
        if took and message.name in CHANGING:
            if self.client.state() != PAUSED or self._open:
                self.settle()
                self.pause()
            self._known = self.world()
            return
        if took is None:
            self.client.state()
        self.tally.compared += 1
        self._same_world()

    def _same_world(self) -> None:
        now = self.world()
        if now != self._known:
            self.find("refused input changed the world")
            self._known = now

    def _check_texts(self) -> None:
        """What is said is short, and no failure that nobody thought of."""
        for array in self.client.got["/diagnostics"]:
            for status in array.status:
                for text in (status.message, *(pair.value for pair in status.values)):
                    if len(text) > MOST_JOINED:
                        self.find(f"{len(text)} characters in diagnostics: {text[:300]}")
        news = self.client.process.text()[self._read :]
        self._read += len(news)
        for line in news.splitlines():
            if "please report" in line:
                self.find(line[:500])

    def slowest(self, calls: np.ndarray) -> str:
        """What was sent last before the calls that took longest were made."""
        begun = np.array([when_s for when_s, _ in self.begun])
        worst: dict[str, float] = {}
        for when_s, wait_s in calls[np.argsort(-calls[:, 1])][:100]:
            at = self.begun[max(0, int(np.searchsorted(begun, when_s)) - 1)][1]
            worst[at] = max(wait_s, worst.get(at, 0.0))
        return "\n".join(f"  {wait_s:.3f} s: {at}" for at, wait_s in list(worst.items())[:10])

    def unheard(self) -> set[str]:
        """Topics, services and actions of the node that no message of a long run goes to."""
        node = self.client.node
        topics = node.get_subscriber_names_and_types_by_node("mirage_node", "/")
        services = node.get_service_names_and_types_by_node("mirage_node", "/")
        names = {name.lstrip("/") for name, _ in topics}
        names |= {name.removeprefix("/mirage_node/").partition("/_action")[0] for name, _ in services}
        for index in range(1500):
            if not names:
                break
            message = hostile(self.seed, index, self.ground, index % 2 == 0)
            names -= {topic.lstrip("/") for topic, _, _ in message.sends} or {message.name}
        return names

    def restarts(self) -> int:
        return int(self.client.fresh_diagnostic("worker")["restarts"])


def accepted(answer) -> bool | None:
    """Whether a service did what it was asked; None where its answer has no word for it."""
    found = getattr(answer, "result", None)
    if hasattr(found, "error_message"):
        return found.result == OK
    if hasattr(answer, "results"):
        return bool(answer.results) and all(result.successful for result in answer.results)
    return answer.success if hasattr(answer, "success") else getattr(found, "successful", None)


def reasons(answer) -> list[str]:
    """What a service says of why it refused."""
    if accepted(answer) is not False:
        return []
    found = getattr(answer, "result", None)
    if found is not None:
        return [getattr(found, "error_message", "") or getattr(found, "reason", "")]
    if hasattr(answer, "results"):
        return [result.reason for result in answer.results if not result.successful] or [""]
    return [answer.message] if hasattr(answer, "message") else []
