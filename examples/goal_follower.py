"""Drives a base to goals on the generated world's own map: `goal_pose` -> A* on `map` -> `cmd_vel`.

In three terminals, each with the same ROS_DOMAIN_ID:

    mirage drive room                                       the simulator, a live base and a picture of the drive
    python examples/goal_follower.py
    ros2 topic pub --once /goal_pose geometry_msgs/msg/PoseStamped \
        "{header: {frame_id: world}, pose: {position: {x: 2.0, y: 0.5}}}"       or RViz's "2D Goal Pose"

It needs no Nav2. What nobody has seen costs more than what is free, so the way leads through known floor where there is
one; with `--known-only` it takes no other. Each new map is planned on anew, because driving shows what was hidden.
"""

from __future__ import annotations

import argparse
import heapq
import math
from dataclasses import dataclass

import cv2
import numpy as np

OCCUPIED = 100
STEPS = [(dx, dy, math.hypot(dx, dy)) for dx in (-1, 0, 1) for dy in (-1, 0, 1) if dx or dy]


@dataclass(frozen=True)
class Follower:
    """How it drives. Lengths in metres, speeds in m/s and rad/s.

    Attributes:
        radius_m: of the robot; surfaces stay so far away, and half as much again where there is room.
        unknown_cost: of a metre through what nobody has seen; inf forbids it.
        ahead_m: of the point on the path that it steers for.
        tolerance_m: how near to the goal it stops.
    """

    radius_m: float = 0.25
    unknown_cost: float = 3.0
    speed_mps: float = 0.4
    turn_rps: float = 0.8
    ahead_m: float = 0.4
    tolerance_m: float = 0.15

    def costs(self, cells: np.ndarray, resolution_m: float, start: tuple[int, int]) -> np.ndarray:
        """Cost of a metre in every cell of an occupancy grid (rows y, columns x); inf where it must not go."""
        away = cv2.distanceTransform((cells < OCCUPIED).astype(np.uint8), cv2.DIST_L2, 5) * resolution_m
        costs = np.where(cells == 0, 1.0, self.unknown_cost)
        costs[away < 1.5 * self.radius_m] *= 3
        costs[away < self.radius_m] = np.inf
        # Where it stands it may leave, whatever the map says of that.
        rows, columns = np.indices(cells.shape)
        near = np.hypot(rows - start[0], columns - start[1]) * resolution_m < 1.5 * self.radius_m
        costs[near & (cells < OCCUPIED) & ~np.isfinite(costs)] = 10.0
        return costs

    def command(self, path: np.ndarray, x_m: float, y_m: float, yaw_rad: float) -> tuple[float, float]:
        """Speed and turn rate along a path of (n, 2) points; zeros at its end."""
        away = np.hypot(*(path - (x_m, y_m)).T)
        if away[-1] < self.tolerance_m:
            return 0.0, 0.0
        nearest = int(np.argmin(away))
        later = np.nonzero(away[nearest:] > self.ahead_m)[0]
        to_x, to_y = path[nearest + later[0]] if len(later) else path[-1]
        error = math.remainder(math.atan2(to_y - y_m, to_x - x_m) - yaw_rad, math.tau)
        turn = float(np.clip(2.0 * error, -self.turn_rps, self.turn_rps))
        slow = min(1.0, away[-1] / self.ahead_m) * max(0.0, 1 - abs(error) / 0.7)
        return self.speed_mps * slow, turn


def find_path(costs: np.ndarray, start: tuple[int, int], goal: tuple[int, int]) -> list[tuple[int, int]] | None:
    """Cells (row, column) of the cheapest way, eight neighbours each, by A*; None where there is none."""
    heap, best, came = [(0.0, start)], {start: 0.0}, {}
    while heap:
        _, cell = heapq.heappop(heap)
        if cell == goal:
            path = [cell]
            while path[-1] in came:
                path.append(came[path[-1]])
            return path[::-1]
        for down, across, length in STEPS:
            beside = cell[0] + down, cell[1] + across
            if not (0 <= beside[0] < costs.shape[0] and 0 <= beside[1] < costs.shape[1]):
                continue
            cost = best[cell] + length * costs[beside]
            if cost < best.get(beside, math.inf):
                best[beside], came[beside] = cost, cell
                rest = math.hypot(goal[0] - beside[0], goal[1] - beside[1])
                heapq.heappush(heap, (cost + rest, beside))
    return None


def plan(
    follower: Follower, cells: np.ndarray, origin_xy: tuple[float, float], resolution_m: float,
    start_xy: tuple[float, float], goal_xy: tuple[float, float],
) -> np.ndarray | None:  # fmt: skip
    """(n, 2) points of a path in the map's frame, None where there is none or an end is off the map."""
    ends = [tuple(int((xy[i] - origin_xy[i]) // resolution_m) for i in (1, 0)) for xy in (start_xy, goal_xy)]
    if any(not (0 <= row < cells.shape[0] and 0 <= column < cells.shape[1]) for row, column in ends):
        return None
    found = find_path(follower.costs(cells, resolution_m, ends[0]), *ends)
    if found is None:
        return None
    points = (np.array(found)[:, ::-1] + 0.5) * resolution_m + origin_xy
    return np.concatenate([points[:-1], [goal_xy]])


def main() -> None:
    import rclpy
    from geometry_msgs.msg import PoseStamped, Twist
    from nav_msgs.msg import OccupancyGrid, Odometry, Path
    from rclpy.node import Node
    from rclpy.qos import DurabilityPolicy, QoSProfile

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--known-only", action="store_true", help="never drive where nobody has seen what is there")
    options, ros = parser.parse_known_args()
    follower = Follower(unknown_cost=math.inf) if options.known_only else Follower()

    class GoalFollower(Node):
        def __init__(self) -> None:
            super().__init__("goal_follower")
            latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
            self.map = self.goal = self.pose = self.path = None
            self.create_subscription(OccupancyGrid, "map", self.on_map, latched)
            self.create_subscription(PoseStamped, "goal_pose", self.on_goal, 1)
            self.create_subscription(Odometry, "odom", self.on_odometry, 10)
            self.commands = self.create_publisher(Twist, "cmd_vel", 10)
            self.paths = self.create_publisher(Path, "path", 1)
            self.create_timer(0.1, self.drive)

        def on_odometry(self, message) -> None:
            # Map and odometry share their origin here; with a localiser, look the base up on TF instead.
            p, q = message.pose.pose.position, message.pose.pose.orientation
            self.pose = p.x, p.y, math.atan2(2 * (q.w * q.z + q.x * q.y), 1 - 2 * (q.y * q.y + q.z * q.z))

        def on_map(self, message) -> None:
            self.map = message
            self.replan()

        def on_goal(self, message) -> None:
            self.goal = message.pose.position.x, message.pose.position.y
            self.replan()

        def replan(self) -> None:
            if None in (self.map, self.goal, self.pose):
                return
            info = self.map.info
            cells = np.array(self.map.data, np.int8).reshape(info.height, info.width)
            origin = info.origin.position.x, info.origin.position.y
            self.path = plan(follower, cells, origin, info.resolution, self.pose[:2], self.goal)
            if self.path is None:
                self.get_logger().warning(f"No way to {self.goal} on this map; the next one may show one.", once=True)
                return
            message = Path(header=self.map.header)
            for x, y in self.path:
                message.poses.append(PoseStamped(header=self.map.header))
                message.poses[-1].pose.position.x, message.poses[-1].pose.position.y = float(x), float(y)
            self.paths.publish(message)

        def drive(self) -> None:
            if self.goal is None or self.pose is None:
                return
            twist = Twist()
            if self.path is not None:
                twist.linear.x, twist.angular.z = follower.command(self.path, *self.pose)
                if math.dist(self.goal, self.pose[:2]) < follower.tolerance_m:
                    self.get_logger().info(f"Reached {self.goal}.")
                    self.goal = self.path = None
            self.commands.publish(twist)

    rclpy.init(args=ros)
    try:
        rclpy.spin(GoalFollower())
    except KeyboardInterrupt:
        pass
    finally:
        rclpy.try_shutdown()


if __name__ == "__main__":
    main()
