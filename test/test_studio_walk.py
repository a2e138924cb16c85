"""The studio's walk without a page, and what its panels reckon."""

from __future__ import annotations

import sys
import threading
import time
from dataclasses import replace

import cv2
import numpy as np
import pytest
from fakes import PixelModel
from studio_helpers import SIZE, Notes, did, moved, seed, studio, walk  # noqa: F401, fixtures too

from mirage_ros.apps.studio import see
from mirage_ros.apps.studio.bodies import SHAPES, place_ahead, spawnables
from mirage_ros.apps.studio.browsers import checked_name, view_vfov
from mirage_ros.apps.studio.paths import between, clicked, facing
from mirage_ros.apps.studio.see import MOST_CLOUDS, CloudChanges, floor_m
from mirage_ros.apps.studio.walk import BODY, Walk
from mirage_ros.data.seeds import shipped_seeds
from mirage_ros.errors import MirageError
from mirage_ros.geometry.camera import Camera
from mirage_ros.protocol import SECOND_NS, Delete, Move
from mirage_ros.world.collision import obstacles
from mirage_ros.world.observing import only_seen
from mirage_ros.world.world import World


def test_the_newest_pose_wins(walk, monkeypatch):
    one, notes = walk
    start = notes.views[-1].frame.camera.world_from_camera
    stuck, step = threading.Event(), one.world.model.generate
    monkeypatch.setattr(one.world.model, "generate", lambda *given: (stuck.wait(20), step(*given))[1])
    poses = [moved(start, 0.01 * k) for k in range(1, 60)]
    for pose in poses:
        one.look(pose)
    stuck.set()
    notes.wait(lambda: np.allclose(notes.views[-1].frame.camera.world_from_camera, poses[-1]))
    assert len(notes.views) <= 3


def test_a_picture_is_shown_before_its_depth_is_known_and_taken_back_where_that_fails(walk, monkeypatch):
    one, notes = walk
    first, perceive, glimpsed = notes.views[-1].frame, one.world.model.perceive, []
    monkeypatch.setattr(one.world.model, "perceive", lambda *given: (glimpsed.append(len(notes.glimpses)), perceive(*given))[1])
    one.look(moved(first.camera.world_from_camera, 0.2))
    notes.wait(lambda: len(notes.views) > 1)
    (rgb, camera), frame = notes.glimpses[0], notes.views[-1].frame
    assert glimpsed == [1] and np.array_equal(rgb, frame.rgb)
    assert np.array_equal(camera.world_from_camera, frame.camera.world_from_camera)
    assert notes.views[-1].waited_s < sum(notes.views[-1].seconds.values()) + 1
    monkeypatch.setattr(one.world.model, "perceive", lambda *given: 1 / 0)
    one.look(moved(first.camera.world_from_camera, 0.4))
    notes.wait(lambda: "ZeroDivisionError" in notes.sentences[-1][1])
    assert len(notes.views) == 2 and len(notes.glimpses) == 3 and notes.glimpses[-1][0] is frame.rgb
    monkeypatch.undo()
    did(one, notes, lambda: one.play(Camera(camera.intrinsics, first.camera.world_from_camera[None], camera.size)))
    assert len(notes.glimpses) == 3  # on a path the camera is moved to where its picture is


def test_the_pose_that_is_shown_is_not_shown_again(walk):
    one, notes = walk
    one.look(notes.views[-1].frame.camera.world_from_camera)
    did(one, notes, lambda: "done")
    assert len(notes.views) == 1


def test_a_moment_comes_back_with_its_picture(walk):
    one, notes = walk
    assert did(one, notes, one.keep) == (True, "Kept as moment 1.")
    first = notes.views[-1]
    one.look(moved(first.frame.camera.world_from_camera, 0.4, 0.3))
    notes.wait(lambda: len(notes.views) > 1)
    assert not np.array_equal(notes.views[-1].frame.rgb, first.frame.rgb)
    assert did(one, notes, lambda: one.restore("1"))[0]
    assert np.array_equal(notes.views[-1].frame.rgb, first.frame.rgb)
    assert notes.views[-1].state.memory.tokens == first.state.memory.tokens
    good, sentence = did(one, notes, lambda: one.restore("7"))
    assert not good and "no moment 7" in sentence


def test_dreaming_again_keeps_what_was_seen(walk):
    one, notes = walk
    seen = notes.views[0].state.memory.tokens
    one.look(moved(notes.views[0].frame.camera.world_from_camera, -0.8))
    notes.wait(lambda: len(notes.views) > 1)
    before = notes.views[-1].state
    assert before.memory.tokens > seen
    state, forgotten = only_seen(before)
    assert state.memory.tokens == before.memory.tokens - forgotten and state.memory.from_real.all()
    assert before.memory.tokens > state.memory.tokens  # the state that was given stays as it is
    assert did(one, notes, one.dream_again)[0]
    assert one.world.config.seed == 1


def test_work_can_be_stopped_and_what_fails_changes_nothing(walk):
    one, notes = walk
    pose = notes.views[0].frame.camera
    path = np.stack([moved(pose.world_from_camera, 0.001 * k) for k in range(1, 500)])
    one.ask("walk", lambda: one.play(Camera(pose.intrinsics, path, pose.size)))
    notes.wait(lambda: len(notes.views) > 3)
    one.stop()
    notes.wait(lambda: any("Stopped after" in sentence for _, sentence in notes.sentences))
    assert len(notes.views) < 400
    assert [share for what, share in notes.shares if what == "Walking the path"][1:3] == [1 / 499, 2 / 499]
    tokens = one.world.memory.tokens
    good, sentence = did(one, notes, lambda: one.erase(np.ones(3), np.zeros(3)))
    assert not good and one.world.memory.tokens == tokens
    one.look(np.full((4, 4), np.nan))
    notes.wait(lambda: "NaN" in notes.sentences[-1][1])
    good, sentence = did(one, notes, lambda: 1 / 0)
    assert not good and "ZeroDivisionError" in sentence


def test_who_listens_and_fails_ends_no_walk(walk, monkeypatch):
    one, notes = walk
    done = threading.Event()
    for name in ("notify", "working"):
        monkeypatch.setattr(notes, name, lambda *_, **__: 1 / 0)
    for job in (one.keep, lambda: 1 / 0, lambda: one.restore("7"), done.set):
        one.ask("a job", job)
    assert done.wait(20)
    monkeypatch.undo()
    assert did(one, notes, one.keep) == (True, "Kept as moment 2.")


def test_what_is_put_among_the_photographs_and_is_none_is_left_out(studio, seed, tmp_path):
    page, _ = studio
    photographs = page.folder / "photographs"
    photographs.mkdir(parents=True)
    data = cv2.imencode(".png", seed.rgb)[1].tobytes()
    for name in ("mine", "half", "IMG (1)"):
        (photographs / f"{name}.png").write_bytes(data)
    (photographs / "half.png").write_bytes(data[: len(data) // 2])  # while it is copied
    (photographs / "gone.png").symlink_to(tmp_path / "nowhere")
    (photographs / "tall.png").write_bytes(cv2.imencode(".png", np.zeros((10_000, 8), np.uint8))[1].tobytes())
    page.make.refresh()
    shipped = tuple(shipped_seeds())
    assert page.make._seed.options == (*shipped, "mine", "tall")
    assert "half" not in page.make._gallery.content
    (photographs / "half.png").write_bytes(data)
    page.make.refresh()
    assert page.make._seed.options == (*shipped, "half", "mine", "tall")


def test_stop_counts_from_when_work_is_told_of_and_not_before(walk, monkeypatch):
    one, notes = walk
    camera = notes.views[0].frame.camera
    path = Camera(camera.intrinsics, np.stack([moved(camera.world_from_camera, 0.1 * k) for k in range(3)]), camera.size)
    one.stop()  # of no work
    assert did(one, notes, lambda: one.play(path)) == (True, "Walked 3 pictures.")
    monkeypatch.setattr(notes, "working", lambda what, share: one.stop() if what == "a job" else None)
    assert did(one, notes, lambda: one.play(path)) == (True, "Stopped after 0 of 3 pictures.")


def test_closing_as_a_path_begins_waits_for_none_of_it(seed):
    notes, begun = Notes(), threading.Event()
    one = Walk(World(PixelModel(SIZE)), notes)
    one.ask("begin", lambda: one.begin(seed))
    notes.wait(lambda: notes.sentences)
    path = np.stack([moved(seed.camera.world_from_camera, 0.01 * k) for k in range(100)])

    def played():
        begun.set()
        while not one._closing:
            time.sleep(0.01)
        return one.play(Camera(seed.camera.intrinsics, path, seed.camera.size))

    one.ask("walk", played)
    assert begun.wait(20)
    one.close()
    assert notes.sentences[-1] == (True, "Stopped after 0 of 100 pictures.") and len(notes.views) == 1


@pytest.mark.parametrize("ending", ["mp4", "mcap"])
def test_a_walk_is_recorded(walk, tmp_path, ending):
    one, notes = walk
    path = tmp_path / f"walk.{ending}"
    assert did(one, notes, lambda: one.record(path))[0]
    for k in range(1, 4):
        one.look(moved(notes.views[0].frame.camera.world_from_camera, 0.1 * k))
        notes.wait(lambda: len(notes.views) > k)  # noqa: B023
    assert did(one, notes, one.end_recording) == (True, f"{path}: 3 pictures.")
    if ending == "mp4":
        assert int(cv2.VideoCapture(str(path)).get(cv2.CAP_PROP_FRAME_COUNT)) == 3
    else:
        from mcap.reader import make_reader

        with path.open("rb") as file:
            counts = make_reader(file).get_summary().statistics.channel_message_counts
        assert set(counts.values()) == {3}
    assert not did(one, notes, one.end_recording)[0]


def test_entities_are_drawn_anew_without_a_new_picture(walk, tmp_path):
    one, notes = walk
    bare, uris = notes.views[-1], spawnables(tmp_path)
    assert {"chair", "robot", "box"} <= uris.keys()
    for model in ("box", "chair"):
        place = place_ahead(notes.views[-1])
        assert did(one, notes, lambda model=model, place=place: one.spawn(model, uris[model], place)) == (True, model)
    view = notes.views[-1]
    assert (view.frame.stamp_ns, view.state.memory.tokens) == (bare.frame.stamp_ns, bare.state.memory.tokens)
    assert set(np.unique(view.frame.labels)) >= {0, 2}  # the chair stands in the box
    box, chair = view.state.entities
    floor = floor_m(view.state.memory.positions_m, view.frame.camera)
    for body in (box, chair):
        assert body.state.box_at(0)[0, 2] == pytest.approx(floor, abs=0.03)
        assert (view.frame.camera.camera_from_world @ np.append(body.state.pose[:3, 3], 1))[2] > 0.5
    aside = moved(chair.state.pose, right_m=0.0)
    aside[:3, 3] += 0.3 * view.frame.camera.world_from_camera[:3, 0]
    did(one, notes, lambda: one.change_entities((Move("chair", aside),)) or "moved")
    columns = [np.nonzero(seen.frame.labels == 2)[1].mean() for seen in (view, notes.views[-1])]
    assert columns[1] > columns[0] + 3
    good, sentence = did(one, notes, lambda: one.change_entities((Delete("box"), Delete("table"))))
    assert not good and "no entity 'table'" in sentence and len(one.world.entities) == 2  # all or nothing
    did(one, notes, lambda: one.record(tmp_path / "walk.mp4"))
    did(one, notes, lambda: one.change_entities((Delete("box"),)) or "deleted")
    assert notes.views[-1].frame.stamp_ns > view.frame.stamp_ns  # a recording's times go on
    did(one, notes, one.end_recording)
    did(one, notes, lambda: one.change_entities((Delete("chair"),)) or "deleted")
    assert notes.views[-1].frame.labels is None


def seen(page, seconds=30):
    """The first picture of a page."""
    deadline = time.monotonic() + seconds
    while page.view is None and time.monotonic() < deadline:
        time.sleep(0.05)
    return page.view


def test_the_track_is_drawn_at_any_moment_of_a_new_world(studio):
    page, _ = studio
    view, drawn = seen(page), []

    def between_lines(frame, _event, _argument):
        if frame.f_code.co_filename == see.__file__:  # as the thread that draws may come in there
            page.see.track.draw(view)
            drawn.append(frame.f_lineno)
        return between_lines

    sys.settrace(between_lines)
    try:
        page.see.saw(replace(view, world=view.world + 1))
    finally:
        sys.settrace(None)
    assert len(drawn) > 5


def test_a_view_that_cannot_be_drawn_keeps_no_other_from_it(studio):
    page, _ = studio
    view = seen(page)

    def told(seconds, **changed):
        page.see.saw(replace(view, frame=replace(view.frame, stamp_ns=seconds * SECOND_NS, **changed)))
        deadline = time.monotonic() + 10
        while f"World time: {seconds:.1f} s" not in page.see.gauges._words.content and time.monotonic() < deadline:
            time.sleep(0.05)
        return time.monotonic() < deadline

    empty = np.zeros((0, 0))
    assert told(70, rgb=np.zeros((0, 0, 3), np.uint8), depth_m=empty, observed=empty.astype(bool)) and told(80)


def test_clouds_are_sent_as_changes():
    rng = np.random.default_rng(1)
    xyz = rng.normal(size=(500, 3)).astype(np.float32)
    changes = CloudChanges()
    gone, (number, rows) = changes.update(xyz[:300])
    assert (gone, number, len(rows)) == ([], 0, 300)
    assert changes.update(xyz[:300][::-1]) == ([], None)  # another order is no change
    gone, (number, rows) = changes.update(xyz)
    assert (gone, number) == ([], 1) and set(rows) == set(range(300, 500))
    gone, (number, rows) = changes.update(xyz[1:])  # a point of the first cloud has gone
    assert gone == [0] and len(rows) == 299
    for held, where in changes.rows(xyz).items():
        assert held in (1, 2) and len(where) in (200, 299)
    for k in range(2 * MOST_CLOUDS):
        changes.update(np.concatenate([xyz, rng.normal(size=(k + 1, 3)).astype(np.float32)]))
        assert len(changes.clouds) <= MOST_CLOUDS + 1


def test_pictures_lie_whole_where_points_lie():
    """The page lays the picture whole into the middle of its view."""
    camera = Camera.from_hfov(70.0, (128, 160))
    for aspect in (0.45, 1.25, 2.4):
        tall = max(128, 160 / aspect)  # of the view, in the picture's pixels
        for place in ((0.7, 0.1, 1.0), (0.0, -0.5, 1.0)):
            across, down = (tall / 2 / np.tan(view_vfov(camera, aspect) / 2) * side for side in place[:2])
            assert camera.project(np.array([place]))[0][0] == pytest.approx([79.5 + across, 63.5 + down], abs=1e-6)


def test_keyframes_are_joined_in_small_steps(seed):
    poses = [seed.camera.world_from_camera, moved(seed.camera.world_from_camera, 1.0)]
    path = between([*poses, poses[0]])
    assert np.allclose(path[0], poses[0]) and np.allclose(path[-1], poses[0])
    assert np.linalg.norm(np.diff(path[:, :3, 3], axis=0), axis=1).max() < 0.16
    assert len(between(poses[:1])) == 1


def test_a_click_falls_on_what_is_seen_or_the_floor(seed):
    camera, xyz = seed.camera, seed.camera.lift(seed.depth_m).reshape(-1, 3)
    floor, eye = floor_m(xyz, camera), camera.position_world
    assert floor == pytest.approx(xyz[:, 2].min(), abs=0.05)
    place = clicked(xyz, camera, eye, seed.camera.world_from_camera[:3, :3] @ np.array([0.1, 0.6, 1.0]))
    on_floor = camera.camera_from_world @ np.append(place, 1)
    assert place[2] == pytest.approx(floor, abs=1e-6) and on_floor[1] / on_floor[2] == pytest.approx(0.6, abs=0.03)
    wall = clicked(xyz, camera, eye, camera.world_from_camera[:3, 2])
    ahead = float((wall - eye)[:2] @ camera.world_from_camera[:2, 2])
    middle = float(seed.depth_m[seed.depth_m.shape[0] // 2, seed.depth_m.shape[1] // 2])
    assert middle - 0.7 < ahead < middle - 0.3  # before the wall, not in it
    with pytest.raises(MirageError, match="neither what is remembered nor the floor"):
        clicked(xyz[:0], camera, eye, np.array([0.0, 0.0, 1.0]))
    pose = facing(camera.world_from_camera, eye + [0.0, -1.0, 0.0])
    assert pose[:2, 2] / np.linalg.norm(pose[:2, 2]) == pytest.approx([0, -1], abs=1e-6)
    assert pose[2, 2] == pytest.approx(camera.world_from_camera[2, 2])  # as high or low as before


@pytest.mark.parametrize("name", ["", "../up", "/etc", "a/b", ".hidden", "x" * 61, "nul\0"])
def test_names_that_are_paths_are_refused(name):
    with pytest.raises(MirageError, match="The name is"):
        checked_name(name)


def test_walls_stop_who_walks_where_that_is_asked_for(walk):
    one, notes = walk
    start = notes.views[-1].frame.camera.world_from_camera
    beyond = moved(start, 9.0)  # the wall is 7 m ahead
    assert did(one, notes, lambda: one.set_physics("contact")) == (True, "Surfaces and entities stop you.")
    one.look(beyond)
    notes.wait(lambda: len(notes.views) > 1)
    ahead = notes.views[-1].frame.camera.world_from_camera
    found = obstacles(*(getattr(one.world.state, name) for name in ("memory", "free_space", "entities", "stamp_ns")), ahead[:3, 3], BODY)
    away_m = np.linalg.norm(found.points_m[:, :2] - ahead[:2, 3], axis=1).min()
    assert 0.3 < np.linalg.norm(ahead[:3, 3] - start[:3, 3]) < 8
    assert away_m == pytest.approx(BODY.radius_m, abs=0.05)  # points are 4 cm apart
    assert notes.jumped[-1]  # the browser's camera comes back to it
    one.look(start)
    notes.wait(lambda: np.allclose(notes.views[-1].frame.camera.world_from_camera, start))  # away from it nothing is in the way
    did(one, notes, lambda: one.set_physics("off"))
    one.look(beyond)
    notes.wait(lambda: np.allclose(notes.views[-1].frame.camera.world_from_camera, beyond))


def test_a_ball_is_pushed_and_rolls_on_by_itself(walk):
    pytest.importorskip("mujoco", reason="needs the package mujoco: pip install 'mirage_ros[physics]'")
    one, notes = walk
    start = notes.views[-1].frame.camera.world_from_camera
    assert did(one, notes, lambda: one.set_physics("mujoco"))[0]
    place = place_ahead(notes.views[-1])
    assert did(one, notes, lambda: one.spawn("ball", SHAPES["sphere"], place)) == (True, "ball")

    def ball():
        return notes.views[-1].state.entities.known("ball").state

    notes.wait(lambda: ball().resting)  # time goes on until it lies, and no longer
    count, lay = len(notes.views), ball().pose[:2, 3]
    did(one, notes, lambda: "done")
    assert len(notes.views) == count
    way = float(np.linalg.norm(lay - start[:2, 3]))
    for step_m in np.arange(way - 0.7, way, 0.1):
        count = len(notes.views)
        one.look(moved(start, step_m))
        notes.wait(lambda: len(notes.views) > count)  # noqa: B023
    pushed = ball().pose[:2, 3]
    assert (pushed - lay) @ start[:2, 2] > 0.05
    notes.wait(lambda: (ball().pose[:2, 3] - pushed) @ start[:2, 2] > 0.1)  # nobody walks any more
