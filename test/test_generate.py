"""Generated datasets: the same bytes from any workers, nothing lost when they are killed."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import threading
import time
from collections import deque
from pathlib import Path

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest
import torch

from mirage_ros.apps import generate as run
from mirage_ros.apps.generate import BatchBarrier, generate
from mirage_ros.apps.generate_episode import POLICIES, Job
from mirage_ros.apps.generate_pool import MOST_TRIES, retried, run_here
from mirage_ros.cli import main
from mirage_ros.env import draw_start
from mirage_ros.errors import MirageError
from mirage_ros.geometry import rigid
from mirage_ros.geometry.camera import floor_axes
from mirage_ros.models import SHIPPED, load_model
from mirage_ros.world.world import World

OPTIONS = ("--frames", "6", "--starts", "room", "yard", "--policy", "wander", "orbit")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """The shipped weights at a quarter of the pixels and one step, for speed."""
    folder = tmp_path_factory.mktemp("model") / "small"
    shutil.copytree(SHIPPED["mini"], folder)
    index = json.loads((folder / "model_index.json").read_text())
    index["size"], index["dream"]["steps"] = [64, 80], 2
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


@pytest.fixture(scope="module")
def job(checkpoint) -> Job:
    return Job(3, 6, policies=("wander", "orbit"), starts=("room", "yard"), model=str(checkpoint))


@pytest.fixture(scope="module")
def plain(job, tmp_path_factory) -> Path:
    """Four episodes, generated in this process and never disturbed."""
    out = tmp_path_factory.mktemp("plain") / "data"
    report = generate(job, 4, out)
    assert (report.episodes, report.generated, report.frames) == (4, 4, 24)
    # The model's loading is no part of the steady rate.
    assert report.started == 1 and 0 < report.startup_s < report.seconds
    assert report.steady_frames == 24 and report.steady_frames_per_s > report.frames_per_s
    return out


@pytest.fixture(autouse=True, scope="module")
def threads():
    """Generating fixes the number of threads of this process: give it back."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def command(job: Job, out: Path, episodes: int, *more: str) -> list[str]:
    return [sys.executable, "-m", "mirage_ros.cli", "generate", "--episodes", str(episodes),
            "--out", str(out), "--model", job.model, "--seed", "3", *OPTIONS, *more]  # fmt: skip


def contents(out: Path) -> dict[str, str]:
    """What every file of a dataset holds."""
    files = [path for path in sorted(out.rglob("*")) if path.is_file()]
    return {
        str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files
    }


def wait_for(condition, seconds: float = 300.0):
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "nothing happened in time"
        time.sleep(0.02)
    return found


def begun(out: Path) -> list[Path]:
    """Episodes on the disk, adopted or waiting."""
    return [*out.rglob("data/*/*.parquet"), *out.glob(".parts/episode-*")]


def test_two_workers_write_the_same_bytes_as_one(job, plain, tmp_path):
    report = generate(job, 4, tmp_path / "data", workers=2)
    assert report.generated == 4 and report.retries == 0 and report.started == 2
    assert contents(tmp_path / "data") == contents(plain)
    assert [detail["index"] for detail in report.details] == [0, 1, 2, 3]


def test_a_killed_worker_costs_no_episode(job, plain, tmp_path):
    out, reports = tmp_path / "data", []
    driver = threading.Thread(target=lambda: reports.append(generate(job, 4, out, workers=2)))
    driver.start()
    wait_for(lambda: begun(out))
    workers = [c for c in psutil.Process().children() if "spawn_main" in " ".join(c.cmdline())]
    workers[0].kill()
    driver.join(300)
    assert reports and reports[0].episodes == 4 and reports[0].retries <= 1
    assert contents(out) == contents(plain)


def test_a_killed_driver_takes_its_workers_along_and_is_resumed(job, plain, tmp_path, capsys):
    out = tmp_path / "data"
    driver = subprocess.Popen(command(job, out, 4, "--workers", "2"))
    wait_for(lambda: begun(out))
    children = psutil.Process(driver.pid).children(recursive=True)
    driver.kill()
    driver.wait()
    gone, alive = psutil.wait_procs(children, timeout=20)
    assert not alive
    assert main(command(job, out, 4, "--json", f"{out}.json")[3:]) == 0
    report = json.loads(Path(f"{out}.json").read_text())
    assert report["episodes"] == 4 and 0 < report["generated"] < 4
    assert contents(out) == contents(plain)
    assert "4 episodes" in capsys.readouterr().out


def test_frames_are_told_as_they_are_drawn(job, tmp_path):
    kinds = [kind for kind, _ in run_here(run.runner_of(job, tmp_path), set, [(0,)])]
    assert kinds[0] == "ready" and kinds[-1] == "episode" and kinds[1:-1].count("frames") >= 2


def test_a_dataset_grows_to_what_it_would_have_been(job, plain, tmp_path):
    assert generate(job, 2, tmp_path / "data").episodes == 2
    assert generate(job, 4, tmp_path / "data").generated == 2
    assert contents(tmp_path / "data") == contents(plain)
    assert generate(job, 4, tmp_path / "data").generated == 0


@pytest.fixture(scope="module")
def ray():
    """A caller's cluster on two cores, whose workers are not nice: beside other tests they would hardly ever run."""
    ray = pytest.importorskip("ray")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_worker_niceness", "0")
        ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield ray
    ray.shutdown()


def test_a_ray_cluster_loses_nothing_with_an_actor(job, plain, tmp_path, ray):
    out, reports = tmp_path / "data", []
    # There is room for two of the three: nothing waits for the third.
    run = threading.Thread(target=lambda: reports.append(generate(job, 4, out, 3, "local")))
    run.start()
    wait_for(lambda: begun(out))
    # It is at work, or still loads and then never counts as started.
    name = next(name for name in ray.util.list_named_actors() if name.endswith("_0"))
    ray.kill(ray.get_actor(name))
    run.join(300)
    assert reports and reports[0].episodes == 4 and reports[0].retries <= 1
    assert contents(out) == contents(plain)


def test_a_ray_pool_ends_its_actors_in_the_caller_s_cluster(tmp_path, monkeypatch, ray):
    from mirage_ros.apps import generate_pool as pools

    class Quick:
        """Stands in for the actor: what is tested is how actors come and go."""

        def __init__(self, make_runner) -> None:
            self.make_runner = make_runner

        def load(self) -> None:
            pass

        def run(self, unit, skip) -> list:
            return [("episode", unit)]

    get, lost = ray.get, [ray.exceptions.ObjectLostError("00", None, "")]

    def get_but_once(reference):
        answer = get(reference)
        if answer and lost:
            raise lost.pop()
        return answer

    theirs = ray.remote(Quick).options(name="mirage_generate_0", num_cpus=0).remote(int)
    get(theirs.load.remote())
    monkeypatch.setattr(pools, "_Actor", Quick)
    monkeypatch.setattr(ray, "get", get_but_once)
    pool = pools.RayPool(run.runner_of(Job(), tmp_path), set, 2, 1)
    events = list(pool.run([(0,), (1,)]))
    assert sorted(what for kind, what in events if kind == "episode") == [(0,), (1,)]
    assert [kind for kind, _ in events].count("retry") == 1
    wait_for(lambda: ray.util.list_named_actors() == ["mirage_generate_0"], 30)
    assert ray.is_initialized()
    ray.kill(theirs)


def test_episodes_drawn_together_are_the_same_on_every_run(checkpoint, tmp_path):
    job = Job(3, 6, starts="room", model=str(checkpoint), batch=2)
    datasets = []
    for name in ("one", "other"):
        generate(job, 2, tmp_path / name)
        datasets.append(contents(tmp_path / name))
    assert datasets[0] == datasets[1]
    # With one more episode than a unit holds, the second unit is drawn whole and one kept.
    report = generate(job, 3, tmp_path / "one")
    assert (report.episodes, report.generated) == (3, 1)


def test_episodes_drawn_together_are_no_more_than_asked_for(checkpoint, tmp_path):
    job = Job(3, 3, starts="room", model=str(checkpoint), batch=2, format="mcap")
    report = generate(job, 3, tmp_path)
    assert (report.episodes, report.generated) == (3, 3)
    names = sorted(path.name for path in tmp_path.glob("episode-*"))
    assert names == [f"episode-{index:06d}" for index in range(3)]
    # What is asked for later is drawn with those that are there.
    assert generate(job, 4, tmp_path).generated == 1


@pytest.mark.parametrize("lost", [0, 1])
def test_an_episode_whose_worker_died_before_telling_of_it_is_adopted(
    job, tmp_path, monkeypatch, lost
):
    """As when the worker is killed between its episode's rename and its event."""

    def silent(runner, finished, units):
        for kind, what in run_here(runner, finished, units):
            if kind != "episode" or what.index != lost:
                yield kind, what

    monkeypatch.setattr(run, "run_here", silent)
    report = generate(Job(**{**vars(job), "frames": 3}), 2, tmp_path)
    assert report.episodes == 2 and report.generated == 2
    assert len(pq.read_table(tmp_path / "data/chunk-000/file-000.parquet")) == 6


def test_a_dataset_with_a_gap_is_not_called_complete(job, tmp_path, monkeypatch):
    monkeypatch.setattr(run, "run_here", lambda runner, finished, units: iter([("ready", None)]))
    with pytest.raises(MirageError, match="holds 0 episodes in a row and 2"):
        generate(job, 2, tmp_path)


def test_calls_meet_in_the_order_of_their_worlds():
    seen = []

    def network(numbers):
        seen.append(numbers.flatten().tolist())
        return numbers * 10

    barrier, answers = BatchBarrier(network, 3), {}

    def world(number: int, calls: int) -> None:
        for call in range(calls):
            asked = torch.full((1, 1), 10.0 * call + number)
            answers[number, call] = barrier.call((asked,), number).item()
        barrier.leave()

    threads = [threading.Thread(target=world, args=(n, c)) for n, c in ((0, 1), (1, 3), (2, 2))]
    for thread in reversed(threads):
        thread.start()
    for thread in threads:
        thread.join(10)
    assert seen == [[0, 1, 2], [11, 12], [21]]
    assert answers == {(n, c): 100.0 * c + 10 * n for n, c in answers}


def test_a_failing_network_fails_every_world_that_asked():
    def network(numbers):
        raise RuntimeError("out of memory")

    barrier, errors = BatchBarrier(network, 2), []

    def world(number: int) -> None:
        with pytest.raises(RuntimeError, match="memory"):
            barrier.call((torch.zeros(1, 1),), number)
        errors.append(number)

    threads = [threading.Thread(target=world, args=(n,)) for n in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert sorted(errors) == [0, 1]


def test_the_mcap_format_holds_an_episode_a_file(job, tmp_path):
    own = Job(**{**vars(job), "format": "mcap", "frames": 3})
    report = generate(own, 2, tmp_path / "walks")
    assert report.frames == 6
    assert len(list((tmp_path / "walks").rglob("*.mcap"))) == 2


def test_another_job_does_not_go_into_the_same_folder(job, plain):
    with pytest.raises(MirageError, match="seed 3, not 4"):
        generate(Job(**{**vars(job), "seed": 4}), 4, plain)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"policies": ("fly",)}, "fly"),
        ({"policies": ("expert",), "starts": "room"}, "needs a box"),
        ({"starts": ("scenes", "room")}, "give scenes alone"),
        ({"model": "nowhere"}, "no model nowhere"),
        ({"starts": "nowhere"}, "nowhere"),
        ({"format": "tape"}, "tape"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(job, options, message, tmp_path):
    with pytest.raises(MirageError, match=message) as error:
        generate(Job(**{**vars(job), **options}), 1, tmp_path / "data")
    assert "\n" not in str(error.value) and not (tmp_path / "data").exists()


def test_a_wrong_start_is_not_held_against_the_next_try(job, tmp_path):
    with pytest.raises(MirageError, match="nowhere"):
        generate(Job(**{**vars(job), "starts": "nowhere"}), 1, tmp_path / "data")
    assert generate(Job(**{**vars(job), "frames": 3}), 1, tmp_path / "data").episodes == 1


def test_a_worker_tells_its_error_to_the_driver(job, tmp_path):
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "other.json").write_text("{}")
    wrong = Job(**{**vars(job), "model": str(broken)})
    with pytest.raises(MirageError, match="model_index.json is missing"):
        generate(wrong, 2, tmp_path / "data", workers=2)


def test_another_format_does_not_go_into_the_same_folder(job, plain):
    before = contents(plain)
    with pytest.raises(MirageError, match="holds lerobot"):
        generate(Job(**{**vars(job), "format": "mcap"}), 4, plain)
    assert contents(plain) == before


def test_a_report_that_cannot_be_written_is_told_before_the_work(job, tmp_path, capsys):
    out = tmp_path / "data"
    assert main([*command(job, out, 1)[3:], "--json", "/proc/nowhere/report.json"]) == 2
    error = capsys.readouterr().err
    assert "cannot be written" in error and error.count("\n") == 1 and not out.exists()


def test_a_unit_that_is_lost_again_and_again_ends_the_run():
    waiting, tries = deque(), {(0, 1): MOST_TRIES - 1}
    assert list(retried((0, 1), waiting, tries, "killed")) == [("retry", (0, 1))]
    assert waiting == deque([(0, 1)])
    with pytest.raises(MirageError, match="failed 3 times .killed."):
        list(retried((0, 1), waiting, {(0, 1): MOST_TRIES}, "killed"))


@pytest.fixture(scope="module")
def started(checkpoint):
    """A start with a box and its first frame."""
    model = load_model(str(checkpoint), "cpu")
    start = draw_start("boxes", 5, model.size)
    seed = start.seed
    return start, World(model).reset(seed.rgb, seed.camera, seed.depth_m).frames[0]


@pytest.mark.parametrize("name", sorted(POLICIES))
def test_policies_keep_to_speeds_and_say_what_they_did(name, started):
    start, first = started
    path = POLICIES[name](np.random.default_rng(1), start, first, 40, 0.2)
    poses = path.cameras.world_from_camera
    assert np.allclose(poses[0], first.camera.world_from_camera) and len(path.actions) == len(poses)
    speeds = np.linalg.norm(np.diff(poses[:, :3, 3], axis=0), axis=1) / 0.2
    assert 0.01 < speeds.max() < 1.5 and path.task
    if name == "expert":
        assert path.success[-1] and not path.success[:-1].any() and path.rewards[-1] > 9
        return
    for k in range(len(poses) - 1):
        up, ahead, right = floor_axes(poses[k])
        camera_from_level = poses[k][:3, :3].T @ np.stack([ahead, -right, up], -1)
        motion = np.concatenate([camera_from_level @ path.actions[k][half] for half in
                                 (slice(3), slice(3, 6))])  # fmt: skip
        assert np.allclose(poses[k] @ rigid.exp(motion * 0.2), poses[k + 1], atol=1e-9)
