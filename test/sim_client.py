"""A user of the simulator's services: asks, sends goals, hears the clock, and drives a plan."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import numpy as np
from lifecycle_msgs.msg import State, Transition
from lifecycle_msgs.srv import ChangeState, GetState
from plans import sideways
from rclpy.action import ActionClient
from ros_client import PICTURES, Client, NodeProcess
from rosgraph_msgs.msg import Clock
from simulation_interfaces import srv
from simulation_interfaces.msg import EntityState, Resource, Result, SimulationState

from mirage_ros.ros.messages import pose_to_ros, stamp_from_ros

SECOND = 1_000_000_000
PERIOD = SECOND // 10
START = SECOND
PLAYING, PAUSED, STOPPED = 1, 2, 0
OK = Result.RESULT_OK
# The node as it ships, with the mini model.
NODE = ("-m", "mirage_ros.ros.node")
LOCKSTEP = ("-p", "time_mode:=lockstep", "-p", "start_paused:=true", "-p", "on_missing_plan:=hold",
            "-p", "plan_idle_s:=0.3")  # fmt: skip


class Feedback(Sequence):
    """What was told of one goal, of all that is told."""

    def __init__(self, told: list, goal_id) -> None:
        self._told, self._goal_id = told, goal_id

    def _own(self) -> list:
        return [feedback for goal_id, feedback in self._told if goal_id == self._goal_id]

    def __len__(self) -> int:
        return len(self._own())

    def __getitem__(self, index):
        return self._own()[index]


class SimClient(Client):
    """A client of the simulator's services, too; it also hears the clock."""

    def __init__(self, process: NodeProcess) -> None:
        super().__init__(process)
        self.clock: list[int] = []
        self.hears_clock = self.node.create_subscription(
            Clock, "/clock", lambda message: self.clock.append(stamp_from_ros(message.clock)), 100
        )
        self._services: dict[str, object] = {}

    def begin(self, kind: type, service: str, **fields):
        """The future of an answer."""
        return self.begin_raw(kind, service, kind.Request(**fields))

    def begin_raw(self, kind: type, service: str, request):
        """The same with a request that is there."""
        if service not in self._services:
            self._services[service] = self.node.create_client(kind, f"mirage_node/{service}")
        self.spin(self._services[service].service_is_ready)
        return self._services[service].call_async(request)

    def ask(self, kind: type, service: str, **fields):
        future = self.begin(kind, service, **fields)
        self.spin(future.done)
        return future.result()

    def state(self) -> int:
        answer = self.ask(srv.GetSimulationState, "get_simulation_state")
        assert answer.result.result == OK
        return answer.state.state

    def set_state(self, state: int) -> Result:
        wanted = SimulationState(state=state)
        return self.ask(srv.SetSimulationState, "set_simulation_state", state=wanted).result

    def step(self, steps: int = 1) -> Result:
        return self.ask(srv.StepSimulation, "step_simulation", steps=steps).result

    def load(self, uri: str, **fields):
        resource = Resource(uri=uri, **fields)
        return self.ask(srv.LoadWorld, "load_world", world_resource=resource)

    def send_goal(self, kind: type, name: str, goal):
        """The goal's handle, and the list that its feedback goes to.

        An ActionClient drops feedback that it takes after the result, though it was sent before.
        """
        feedback, told = [], lambda message: feedback.append((message.goal_id, message.feedback))
        topic = f"mirage_node/{name}/_action/feedback"
        self.node.create_subscription(kind.Impl.FeedbackMessage, topic, told, 200)
        client = ActionClient(self.node, kind, f"mirage_node/{name}")
        self.spin(client.server_is_ready)
        future = client.send_goal_async(goal)
        self.spin(future.done)
        handle = future.result()
        assert handle.accepted
        return handle, Feedback(feedback, handle.goal_id)

    def result_of(self, handle):
        future = handle.get_result_async()
        self.spin(future.done)
        return future.result()


def simulated(log_folder, *arguments: str, **options):
    """Yields a client of a node of its own, active and with its world; ends both."""
    process = NodeProcess(log_folder, "--ros-args", *arguments, **options)
    client = SimClient(process)
    try:
        client.connect()
        process.wait_for("New world")
        client.spin(lambda: state(client) == State.PRIMARY_STATE_ACTIVE)
        yield client
    finally:
        client.close()
        process.close()


def change(client: SimClient, transition: int) -> bool:
    wanted = Transition(id=transition)
    return client.ask(ChangeState, "change_state", transition=wanted).success


def state(client: SimClient) -> int:
    return client.ask(GetState, "get_state").current_state.id


def worker_pid(client: SimClient) -> int:
    """0 without one."""
    value = client.fresh_diagnostic("worker")["pid"]
    return int(value) if value != "None" else 0


def reset(sim, scope: int) -> Result:
    return sim.ask(srv.ResetSimulation, "reset_simulation", scope=scope).result


def entity_state(sim, entity: str = "camera"):
    return sim.ask(srv.GetEntityState, "get_entity_state", entity=entity)


def move(sim, pose: np.ndarray, entity: str = "camera", frame: str = "", **flags) -> Result:
    """Puts an entity somewhere; flags are other fields of the request."""
    state = flags.pop("state", EntityState())
    state.pose, state.header.frame_id = pose_to_ros(pose), frame
    fields = {"entity": entity, "state": state, "set_pose": True, **flags}
    return sim.ask(srv.SetEntityState, "set_entity_state", **fields).result


def start_again(sim, folder) -> None:
    """Paused at the start of the seed's world, nothing of what was before on its way any more."""
    assert sim.load(str(folder)).result.result == OK
    if sim.state() != PAUSED:
        assert sim.set_state(PAUSED).result == OK
    sim.clear()
    # Topics keep their order: what was published before this frame comes before it.
    assert sim.step().result == OK
    sim.spin(lambda: all(sim.stamps(name)[-1:] == [START + PERIOD] for name in PICTURES))
    sim.clock.clear()
    assert reset(sim, 0).result == OK
    sim.spin(lambda: sim.clock[-1:] == [START])
    sim.clear()
    sim.clock.clear()


def flat(poses: list[np.ndarray]) -> list[float]:
    values = []
    for pose in poses:
        message = pose_to_ros(pose)
        values += [message.position.x, message.position.y, message.position.z]
        turn = message.orientation
        values += [turn.x, turn.y, turn.z, turn.w]
    return values


def hashes(sim) -> list[str]:
    pictures = zip(sim.got["color/image_raw"], sim.got["depth/image_rect"], strict=True)
    return [
        hashlib.sha256(bytes(rgb.data) + bytes(depth.data)).hexdigest() for rgb, depth in pictures
    ]


def play(sim, folder, frames: int, size: int, meanwhile: Callable[[], None] | None = None):
    """Plays a plan that arrives in pieces of some size; hashes of all pictures and depths.

    What came before has to be here already. `meanwhile` is done after the first piece's frames.
    """
    assert reset(sim, 0).result == OK
    if sim.state() != PLAYING:
        assert sim.set_state(PLAYING).result == OK
    sim.clear()
    sim.clock.clear()
    planned = [START + PERIOD * (1 + index) for index in range(frames)]
    poses = sideways(folder, frames)
    for first in range(0, frames, size):
        sim.send_tf(planned[first : first + size], poses[first : first + size])
        if first == 0 and meanwhile is not None:
            sim.wait_for_frames(1)
            meanwhile()
    sim.wait_for_frames(frames)
    for name in PICTURES:
        assert sim.stamps(name) == planned, name
    sim.spin(lambda: sim.clock and sim.clock[-1] == planned[-1])
    assert all(later > earlier for earlier, later in zip(sim.clock, sim.clock[1:], strict=False))
    return hashes(sim)
