"""Calls a quick service at an even rate until its stdin ends: python pinger.py; prints when (s) each call
was made and the seconds to its answer.

It does not wait for one answer before it asks again, so a node that is mute for a second counts with all the calls of
that second. What is not answered at all is infinite.
"""

import json
import sys
import threading
import time

import rclpy
from rclpy.executors import SingleThreadedExecutor
from simulation_interfaces.srv import GetEntityState, GetSimulationState

from mirage_ros.machine import repair_soon

PERIOD_S = 0.05
LAST_S = 20.0


def main() -> None:
    # A lost request is repaired by its caller's heartbeats, by default every 3 s; judged is the node.
    repair_soon()
    rclpy.init()
    node = rclpy.create_node("pinger")
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    clients = [
        node.create_client(kind, f"mirage_node/{name}")
        for kind, name in ((GetSimulationState, "get_simulation_state"), (GetEntityState, "get_entity_state"))
    ]
    while not all(client.service_is_ready() for client in clients):
        executor.spin_once(timeout_sec=0.1)
    ended = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), ended.set()), daemon=True).start()
    print("up", flush=True)
    waits: list[tuple[float, float]] = []
    pending: dict[int, float] = {}
    asked, next_s = 0, time.monotonic()

    def answered(number: int) -> None:
        since_s = pending.pop(number)
        waits.append((since_s, time.monotonic() - since_s))

    until_s = None
    while until_s is None or (pending and time.monotonic() < until_s):
        now_s = time.monotonic()
        if ended.is_set() and until_s is None:
            until_s = now_s + LAST_S
        if now_s >= next_s and until_s is None:
            client = clients[asked % 2]
            future = client.call_async(client.srv_type.Request())
            pending[asked] = now_s
            future.add_done_callback(lambda future, number=asked: answered(number))
            asked, next_s = asked + 1, now_s + PERIOD_S
        executor.spin_once(timeout_sec=max(0.0, min(next_s - time.monotonic(), PERIOD_S)) if until_s is None else 0.1)
    print(json.dumps(waits + [(since_s, float("inf")) for since_s in pending.values()]))


if __name__ == "__main__":
    main()
