"""What is to be generated, and one episode of it: start, plan, draw, write. The same bytes wherever it runs.

Policies plan where the camera goes in an episode before anything is drawn. Nothing in a generated world
pushes back, so even the closed-loop expert can be played out on poses alone, and the world then draws
whole chunks.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path as FilePath

import numpy as np
from jaxtyping import Bool, Float
from transforms3d.quaternions import mat2quat

from mirage_ros.apps.generate_pool import Event
from mirage_ros.data.seeds import central_depth_m, clearance_m, plan_tour
from mirage_ros.env import Start, draw_start
from mirage_ros.env.environments import GOAL_RADIUS_M, PER_STEP, REACHED, drive_in, driven
from mirage_ros.errors import MirageError
from mirage_ros.files import write_json
from mirage_ros.geometry import rigid
from mirage_ros.geometry.camera import Camera, floor_axes
from mirage_ros.models import model_digest
from mirage_ros.protocol import SECOND_NS, Frame, WorldModel
from mirage_ros.recording import Feature, RecordingConfig
from mirage_ros.recording.formats import begin_episode
from mirage_ros.world.world import World, WorldConfig

SPEED_MPS, TURN_RPS = 0.8, 1.0
ROOM_M = 0.35
CANDIDATES = 48
OBSTACLES = 800
MANIFEST = "generate.json"

TWIST = ("vx_m_s", "vy_m_s", "vz_m_s", "wx_rad_s", "wy_rad_s", "wz_rad_s")
POSE = ("x_m", "y_m", "z_m", "qw", "qx", "qy", "qz")
FEATURES = {
    "action": Feature((6,), "float32", TWIST),
    "observation.state": Feature((7,), "float32", POSE),
    "next.reward": Feature((1,)),
    "next.done": Feature((1,), "bool"),
    "next.success": Feature((1,), "bool"),
}


@dataclass(frozen=True)
class Job:
    """A dataset to be. Episode `i` follows from this and `i` alone, whoever generates it.

    Attributes:
        seed: of all episodes.
        frames: of each episode, at most; the expert ends where it arrives.
        rate_hz: frames per second of simulated time.
        policies: each episode draws one; see POLICIES.
        starts: "shipped", "scenes", "boxes", or names and paths of seeds.
        model: checkpoint.
        format, video_codec: of the dataset; see `mirage_ros.recording.formats`.
        threads: torch threads of each worker. The last bits of a sum depend on their number.
        batch: episodes that one worker draws together, their networks' calls joined.
        use_memory: False generates without the latent memory, the baseline.
    """

    seed: int = 0
    frames: int = 48
    rate_hz: float = 5.0
    policies: Sequence[str] = ("wander",)
    starts: str | Sequence[str] = "shipped"
    model: str = "mini"
    format: str = "lerobot"
    video_codec: str = "h264"
    threads: int = 1
    batch: int = 1
    use_memory: bool = True

    def __post_init__(self) -> None:
        for name, least in (("seed", 0), ("frames", 3), ("threads", 1), ("batch", 1)):
            if getattr(self, name) < least:
                raise MirageError(f"{name} is {getattr(self, name)}; give at least {least}.")

    @property
    def period_s(self) -> float:
        return 1 / self.rate_hz

    @property
    def recording(self) -> RecordingConfig:
        """What is written with every frame."""
        return RecordingConfig(self.rate_hz, FEATURES, self.video_codec)

    def manifest(self) -> dict:
        """What has to agree before a dataset is continued."""
        starts = self.starts if isinstance(self.starts, str) else list(self.starts)
        options = asdict(self) | {"policies": list(self.policies), "starts": starts}
        return options | {"weights": model_digest(self.model)}


def check_manifest(wanted: dict, out: FilePath, begun: bool) -> None:
    """Writes what the dataset is made from, or raises MirageError where it is another.

    Args:
        wanted: `Job.manifest()`.
        begun: episodes are there already.
    """
    path = out / MANIFEST
    if not begun or not path.exists():
        write_json(path, wanted)
        return
    try:
        found = json.loads(path.read_text())
        different = [name for name in wanted if found[name] != wanted[name]]
    except (ValueError, KeyError, TypeError) as error:
        raise MirageError(f"{path} is damaged ({error!r}); choose another folder.") from error
    if different:
        differences = {name: f"{name} {found[name]!r}, not {wanted[name]!r}" for name in different}
        if "weights" in differences:
            differences["weights"] = "other weights"
        raise MirageError(
            f"{out} was begun with {', '.join(differences.values())}; give the same options or another "
            "folder."
        )


@dataclass(frozen=True)
class Path:
    """An episode's cameras, the seed's first, and what goes with each.

    Attributes:
        cameras: batch of f, of the first frame's intrinsics.
        actions: twist commanded at each frame, in the camera's levelled axes (REP 103: x ahead
            along the floor, y left, z up), m/s and rad/s.
        rewards: for what the action led to.
        success: whether the task is done after the action.
        task: in words.
    """

    cameras: Camera
    actions: Float[np.ndarray, "f 6"]
    rewards: Float[np.ndarray, "f"]
    success: Bool[np.ndarray, "f"]
    task: str


Policy = Callable[[np.random.Generator, Start, Frame, int, float], Path]


def expert(rng, start: Start, first: Frame, frames: int, period_s: float) -> Path:
    """Drives to the red box; something pushes it now and then, so that it shows how to recover.

    The actions are what the expert wants; what is done has the pushes added (noise injection as
    in DART, Laskey et al. 2017). It ends on arrival.
    """
    room = start.room
    camera, cameras, actions, rewards, arrived = first.camera, [first.camera], [], [], []
    push, spread = np.zeros(2), rng.uniform(0.1, 0.5)
    while True:
        wanted = expert_drive(camera, room.goal_world)
        push = 0.6 * push + rng.normal(0, spread, 2) * (SPEED_MPS, 1.6 * TURN_RPS)
        done = np.clip(wanted + push, (-SPEED_MPS, -TURN_RPS), (SPEED_MPS, TURN_RPS)) * period_s
        moved, _ = drive_in(room, camera, float(done[0]), float(done[1]))
        now_m, next_m = room.distance_m(camera), room.distance_m(moved)
        actions.append([wanted[0], 0, 0, 0, 0, wanted[1]])
        arrived.append(next_m <= GOAL_RADIUS_M)
        rewards.append(now_m - next_m + PER_STEP + REACHED * arrived[-1])
        if arrived[-1] or len(cameras) == frames:
            break
        camera = moved
        cameras.append(moved)
    cameras = Camera.stack(cameras)
    return Path(cameras, np.array(actions), np.array(rewards), np.array(arrived),
                "drive to the red box")  # fmt: skip


def expert_drive(camera: Camera, goal_world: Float[np.ndarray, "3"]) -> Float[np.ndarray, "2"]:
    """Forward m/s and left turn rad/s of somebody who knows where the box is."""
    up, ahead, right = floor_axes(camera.world_from_camera)
    away = goal_world - camera.position_world
    bearing = np.arctan2(-(away @ right), away @ ahead)
    forward = SPEED_MPS * max(0.0, np.cos(1.5 * np.clip(bearing, -1, 1)))
    return np.array([forward, np.clip(1.8 * bearing, -TURN_RPS, TURN_RPS)])


def wander(rng, start: Start, first: Frame, frames: int, period_s: float) -> Path:
    """Drives and looks about at random where the first picture shows free floor."""
    obstacles = _obstacles(rng, first)
    best, best_score = None, -np.inf
    for attempt in range(CANDIDATES):
        speed = rng.uniform(0.15, 0.6) * 0.92**attempt
        forward = np.clip(speed + speed * _smooth(rng, frames), -0.2, SPEED_MPS)
        turn = np.clip(rng.uniform(0.1, 0.5) * _smooth(rng, frames), -TURN_RPS, TURN_RPS)
        poses = [first.camera.world_from_camera]
        for k in range(frames - 1):
            poses.append(driven(poses[-1], float(forward[k] * period_s), float(turn[k] * period_s)))
        away = np.stack(poses)[:, None, :3, 3] - obstacles
        score = np.linalg.norm(away, axis=-1).min(initial=9.0)
        if score > best_score:
            best, best_score = np.stack(poses), score
        if best_score > ROOM_M:
            break
    return _as_flown(first.camera, best, period_s, "look around")


def orbit(rng, start: Start, first: Frame, frames: int, period_s: float) -> Path:
    """Swings to both sides around the point ahead, which stays in the middle of the picture."""
    radius = min(central_depth_m(first.depth_m), 6.0)
    free = max(0.1, min(clearance_m(first.camera, first.depth_m), 4.0))
    side_m = rng.uniform(0.15, 0.35) * min(radius, 2 * free)
    most = min(side_m / radius, SPEED_MPS * frames * period_s / (4 * radius))
    phase = np.linspace(0, 2 * np.pi, frames) * rng.choice([-1, 1])
    swing = np.arcsin(np.clip(most, 0, 0.9)) * np.sin(phase)
    up, _, _ = floor_axes(first.camera.world_from_camera)
    pose = first.camera.world_from_camera
    centre = pose[:3, 3] + radius * pose[:3, 2]
    poses = []
    for angle in swing:
        turn = rigid.exp_rotation(angle * up)
        moved = pose.copy()
        moved[:3, :3] = turn @ pose[:3, :3]
        moved[:3, 3] = centre + turn @ (pose[:3, 3] - centre)
        poses.append(moved)
    return _as_flown(first.camera, np.stack(poses), period_s, "circle what is ahead")


def tour(rng, start: Start, first: Frame, frames: int, period_s: float) -> Path:
    """The demo's path: leaves the first view, looks to the side, comes back to it."""
    poses = plan_tour(first.camera, frames, first.depth_m).world_from_camera
    return _as_flown(first.camera, poses, period_s, "leave and come back")


POLICIES: dict[str, Policy] = {"wander": wander, "orbit": orbit, "tour": tour, "expert": expert}


def check_policies(names, starts) -> None:
    """Raises MirageError for a name that is not in POLICIES, for none, for starts without a box
    where one is needed."""
    wrong = [name for name in names if name not in POLICIES]
    if wrong or not names:
        raise MirageError(f"The policies are {list(names)}; give some of {', '.join(POLICIES)}.")
    if "expert" in names and starts != "boxes":
        raise MirageError(f"The expert needs a box and the starts are {starts!r}; give boxes.")


def _as_flown(camera: Camera, poses, period_s: float, task: str) -> Path:
    """A path whose actions are what was done; the last frame's is to stay."""
    actions = np.zeros((len(poses), 6))
    for k in range(len(poses) - 1):
        up, ahead, right = floor_axes(poses[k])
        level_from_world = np.stack([ahead, -right, up])
        turned = level_from_world @ poses[k][:3, :3]
        motion = rigid.log(rigid.inverse(poses[k]) @ poses[k + 1]) / period_s
        actions[k] = np.concatenate([turned @ motion[:3], turned @ motion[3:]])
    nothing = np.zeros(len(poses))
    cameras = Camera(camera.intrinsics, poses, camera.size)
    return Path(cameras, actions, nothing, nothing.astype(bool), task)


def _obstacles(rng, first: Frame) -> Float[np.ndarray, "n 3"]:
    """Some of the seen points that are at the camera's height."""
    points = first.camera.lift(first.depth_m).reshape(-1, 3)
    up, _, _ = floor_axes(first.camera.world_from_camera)
    level = np.abs((points - first.camera.position_world) @ up)
    points = points[np.isfinite(points).all(-1) & (level < ROOM_M)]
    return points[rng.permutation(len(points))[:OBSTACLES]]


def _smooth(rng, frames: int) -> Float[np.ndarray, "f"]:
    """A sum of three slow sines, about -1 to 1."""
    turns = np.linspace(0, 2 * np.pi, frames)
    waves = [np.sin(turns * rng.uniform(0.3, 2.0) + rng.uniform(0, 2 * np.pi)) for _ in range(3)]
    return np.sum(waves, 0) / 2


@dataclass(frozen=True)
class EpisodeReport:
    """What came of an episode.

    Attributes:
        observed_fraction: mean share of the pictures that came from memory.
        success: of the expert.
    """

    index: int
    frames: int
    policy: str
    start: str
    observed_fraction: float
    success: bool

    def as_dict(self) -> dict:
        return asdict(self)


def run_episode(
    model: WorldModel, job: Job, index: int, out: FilePath, write: bool = True
) -> Iterator[Event]:
    """Generates episode `index` of a job and writes it beside the others, all or nothing.

    Args:
        write: False draws the episode and forgets it.

    Yields:
        ("frames", n) as they are drawn, ("episode", EpisodeReport) when all is on the disk.
    """
    rng = np.random.default_rng([job.seed, index])
    policy = str(rng.choice(list(job.policies)))
    start = draw_start(job.starts, int(rng.integers(2**31)), model.size)
    noise = int(rng.integers(2**31))
    world = World(model, WorldConfig(seed=noise, use_memory=job.use_memory))
    first = world.reset(start.seed.rgb, start.seed.camera, start.seed.depth_m).frames[0]
    path = POLICIES[policy](rng, start, first, job.frames, job.period_s)
    info = {"seed": job.seed, "index": index, "policy": policy, "start": start.seed.name}
    seen = []
    begun = nullcontext(None)
    if write:
        begun = begin_episode(out, job.format, job.recording, index, path.task, info)
    with begun as episode:
        for frames in _chunks(world, first, path, job.rate_hz):
            for frame in frames:
                if episode is not None:
                    episode.add(frame, _values(path, len(seen)))
                seen.append(float(frame.observed.mean()))
            yield "frames", len(frames)
    done, remembered = bool(path.success.any()), float(np.mean(seen))
    yield (
        "episode",
        EpisodeReport(index, len(seen), policy, start.seed.name, remembered, done),
    )


def _chunks(
    world: World, first: Frame, path: Path, rate_hz: float
) -> Iterator[Sequence[Frame]]:
    yield [first]
    count = len(path.cameras)
    if count < 2:
        return
    stamps = np.rint(np.arange(1, count) * SECOND_NS / rate_hz).astype(np.int64)
    for chunk in world.rollout(path.cameras[1:], stamps):
        yield chunk.frames


def _values(path: Path, k: int) -> dict[str, np.ndarray]:
    poses = path.cameras.world_from_camera
    here = rigid.inverse(poses[0]) @ poses[k]
    state = np.concatenate([here[:3, 3], mat2quat(here[:3, :3])])
    return {
        "action": path.actions[k].astype(np.float32),
        "observation.state": state.astype(np.float32),
        "next.reward": np.array([path.rewards[k]], np.float32),
        "next.done": np.array([k == len(poses) - 1]),
        "next.success": np.array([path.success[k]]),
    }
