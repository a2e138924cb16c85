"""The Gymnasium face: the checker's opinion, equal runs."""

from __future__ import annotations

import warnings

import gymnasium
import numpy as np
import pytest
from fakes import PixelModel
from gymnasium.utils.env_checker import check_env

import mirage_ros.env
from mirage_ros.env.environments import driven
from mirage_ros.errors import MirageError
from mirage_ros.geometry.camera import Camera
from mirage_ros.scenes.worlds import make_goal_room

FORWARD, LEFT = np.array([1.0, 0.0]), np.array([0.0, 1.0])


class GrainyModel(PixelModel):
    """Imagines a different grey for every seed of the noise and frame of the chunk."""

    calls = 0

    def generate(self, readout, cameras, preceding, references, seed):
        self.calls += 1
        latents = super().generate(readout, cameras, preceding, references, seed)
        grey = np.random.default_rng(seed).uniform(-1, 1, len(latents)).astype(np.float32)
        hidden = ~readout.visible
        return latents + latents.new_tensor(hidden * grey[:, None, None])[:, None]


def made(name, **options):
    options = {"model": GrainyModel()} | options
    return gymnasium.make(f"mirage/{name}-v0", **options)


def played(env, actions, seed=5):
    shown = [env.reset(seed=seed)[0]]
    shown += [env.step(action)[0] for action in actions]
    return shown


def equal(one, other):
    return all(
        np.array_equal(a[key], b[key]) for a, b in zip(one, other, strict=True) for key in a
    )


@pytest.mark.parametrize("name", ["Camera", "Navigate"])
def test_gymnasiums_checker_has_nothing_to_say(name):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        check_env(made(name, render_mode="rgb_array").unwrapped)


def test_the_shipped_model_passes_through_the_same_face():
    env = gymnasium.make("mirage/Navigate-v0")
    first, second = (played(env, [FORWARD, LEFT]) for _ in range(2))
    assert equal(first, second) and all(shown in env.observation_space for shown in first)
    assert first[0]["rgb"].shape == (128, 160, 3)


@pytest.mark.parametrize("name", ["Camera", "Navigate"])
def test_equal_seeds_and_actions_give_equal_observations(name):
    one, other = made(name), made(name)
    one.action_space.seed(3)
    actions = [one.action_space.sample() for _ in range(4)] + [one.action_space.sample()] * 4
    runs = [played(one, actions), played(other, actions), played(one, actions)]
    assert equal(runs[0], runs[1]) and equal(runs[0], runs[2])
    assert not equal(runs[0], played(one, actions, seed=6))


def test_what_comes_next_changes_nothing_that_was_shown():
    turn = [LEFT, LEFT, LEFT]
    ways = [turn + [LEFT] * 3, turn + [FORWARD] * 3]
    one, other = (played(made("Navigate"), way) for way in ways)
    assert equal(one[:4], other[:4]) and not equal(one[4:], other[4:])


def test_memory_holds_what_was_shown():
    """Turning away and back shows the same pictures again."""
    env = made("Camera", action="delta", speed_mps=1e-6, turn_rps=2.0)
    right, back = np.eye(6)[4], -np.eye(6)[4]
    shown = played(env, [right, right, right])
    returned = [env.step(back)[0] for _ in range(3)]
    for there, again in zip(shown[2::-1], returned, strict=True):
        assert again["observed"].mean() > 0.9
        both = again["observed"].astype(bool)
        error = np.abs(there["rgb"].astype(int) - again["rgb"].astype(int))[both]
        assert error.mean() < 6


def test_the_robot_is_paid_for_coming_nearer_and_arrives():
    env = made("Navigate", backend="mujoco")
    observation, info = env.reset(options={"start": "boxes:3"})
    room, total, start_m = make_goal_room(3), 0.0, info["distance_m"]
    terminated, steps = False, 0
    while not terminated and steps < 60:
        pose = env.unwrapped._frame.camera.world_from_camera
        away = (room.goal_world - pose[:3, 3])[:2]
        ahead = pose[:2, 2] / np.linalg.norm(pose[:2, 2])
        bearing = np.arctan2(ahead[0] * away[1] - ahead[1] * away[0], ahead @ away)
        action = np.clip([1 - abs(bearing), 3 * bearing], -1, 1)
        observation, reward, terminated, truncated, info = env.step(action)
        total, steps = total + reward, steps + 1
    assert terminated and info["is_success"] and info["distance_m"] <= 0.7
    assert total == pytest.approx(start_m - info["distance_m"] - 0.01 * steps + 10, abs=1e-6)
    red = observation["rgb"].astype(int)
    assert ((red[..., 0] > 150) & (red[..., 1] < 90) & (red[..., 2] < 90)).mean() > 0.05


def test_furniture_stops_the_robot():
    env = made("Navigate", backend="mujoco")
    env.reset(options={"start": "boxes:3"})
    away = [env.step(-FORWARD) for _ in range(60)]
    blocked = [step for step in away if step[4]["blocked"]]
    assert blocked and not env.unwrapped._start.room.blocked(env.unwrapped._frame.camera)
    *_, last = blocked
    assert last[1] == pytest.approx(-0.11)


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_vectors_of_environments_equal_single_ones(mode):
    options = {"model": PixelModel(), "starts": "shipped"}
    # A fork of a process whose numerics have threads may hang: spawn.
    vector = gymnasium.make_vec(
        "mirage/Camera-v0",
        num_envs=2,
        vectorization_mode=mode,
        vector_kwargs={"context": "spawn"} if mode == "async" else None,
        **options,
    )
    observations, _ = vector.reset(seed=[1, 2])
    actions = np.stack([np.eye(6)[2], np.eye(6)[4]])
    observations, rewards, *_ = vector.step(actions)
    vector.close()
    for row, action in enumerate(actions):
        single = played(made("Camera", **options), [action], seed=row + 1)[-1]
        assert all(np.array_equal(observations[key][row], single[key]) for key in single)
    assert rewards.tolist() == [0, 0]


def test_depth_stays_within_its_space():
    env = made("Camera", max_depth_m=2.0)
    observation, _ = env.reset(seed=1)
    assert observation in env.observation_space
    assert 0 <= observation["depth"].min() and observation["depth"].max() == 2.0


def test_panels_show_three_pictures():
    env = made("Camera", render_mode="panels")
    env.reset(seed=1)
    assert env.render().shape == (64, 240, 3)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("Camera", {"colour": "red"}, "colour"),
        ("Camera", {"action": "jump"}, "jump"),
        ("Camera", {"period_s": 0.0}, "period_s"),
        ("Camera", {"backend": "unreal"}, "unreal"),
        ("Navigate", {"action": "twist"}, "drive"),
    ],
)
def test_bad_options_are_named(name, options, message):
    with pytest.raises(MirageError, match=message), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made(name, **options)


def test_bad_calls_are_named_and_harm_nothing():
    with pytest.raises(MirageError, match="human"):
        mirage_ros.env.CameraEnv(render_mode="human", model=PixelModel())
    env = made("Camera").unwrapped
    with pytest.raises(MirageError, match="reset"):
        env.step(np.zeros(6))
    env.reset(seed=1)
    for action in (np.zeros(5), np.full(6, np.nan)):
        with pytest.raises(MirageError, match="finite"):
            env.step(action)
    with pytest.raises(MirageError, match="no seed"):
        env.reset(options={"start": "nowhere"})
    env.step(np.zeros(6))
    with pytest.raises(MirageError, match="without a scene"):
        made("Camera", backend="mujoco").reset(seed=1)
    with pytest.raises(MirageError, match="boxes:7"):
        made("Navigate").reset(options={"start": "room"})


def test_driving_a_circle_comes_back():
    pose = make_goal_room(1).start.world_from_camera
    there = pose
    for _ in range(8):
        there = driven(there, 0.3, np.pi / 4)
    assert np.allclose(there, pose, atol=1e-12)
    ahead = driven(pose, 1.0, 0.0)[:3, 3] - pose[:3, 3]
    assert ahead[2] == pytest.approx(0) and ahead @ pose[:3, 2] > 0.95
    left = driven(pose, 0.0, 0.5)[:3, 2]
    assert np.cross(pose[:3, 2], left)[2] > 0


def test_rooms_with_a_box_keep_their_promises():
    for seed in range(4):
        room = make_goal_room(seed)
        assert 2.0 < room.distance_m(room.start) < 4.5 and not room.blocked(room.start)
        pixel, depth = room.start.project(room.goal_world[None])
        assert 0 <= pixel[0, 0] < 160 and depth[0] > 0
        on_box = Camera(room.start.intrinsics, room.start.world_from_camera.copy(), (128, 160))
        on_box.world_from_camera[:3, 3] = room.goal_world
        assert room.blocked(on_box)
