"""Worlds listed, loaded, named and unloaded, and what is refused."""

from __future__ import annotations

import numpy as np
from mirage_ros.srv import SaveWorld
from plans import sideways
from sim_client import OK, PAUSED, PERIOD, PLAYING, START, STOPPED, entity_state, move
from simulation_interfaces import srv
from simulation_interfaces.msg import Result

from mirage_ros.ros.messages import pose_from_ros, stamp_from_ros


def test_worlds_are_listed_loaded_named_and_unloaded(sim, folder, tmp_path):
    saved = sim.ask(SaveWorld, "save_world", path=str(tmp_path / "kept"))
    assert saved.success, saved.message
    listed = sim.ask(
        srv.GetAvailableWorlds, "get_available_worlds", additional_sources=[str(tmp_path)]
    )
    assert listed.result.result == OK
    worlds = {world.name: world for world in listed.worlds}
    assert {"room", "hall", "yard", folder.name, "kept"} <= set(worlds)
    assert list(worlds["kept"].tags) == ["saved"] and list(worlds["room"].tags) == ["seed"]
    loaded = sim.load(worlds["kept"].world_resource.uri)
    assert loaded.result.result == OK and loaded.world.name == "kept"
    current = sim.ask(srv.GetCurrentWorld, "get_current_world")
    assert (current.result.result, current.world) == (OK, loaded.world)
    assert sim.ask(srv.UnloadWorld, "unload_world").result.result == OK
    gone = sim.ask(srv.GetCurrentWorld, "get_current_world").result
    assert gone.result == srv.GetCurrentWorld.Response.NO_WORLD_LOADED and gone.error_message
    again = sim.ask(srv.UnloadWorld, "unload_world").result
    assert again.result == srv.UnloadWorld.Response.NO_WORLD_LOADED and again.error_message


def test_available_worlds_are_filtered_and_a_missing_source_is_told(sim, folder):
    request = srv.GetAvailableWorlds.Request()
    request.filter.tags = ["saved"]
    answer = sim.ask(srv.GetAvailableWorlds, "get_available_worlds", filter=request.filter)
    assert answer.result.result == OK and not [w for w in answer.worlds if "seed" in w.tags]
    fields = {"additional_sources": ["/no/such/folder"]}
    refused = sim.ask(srv.GetAvailableWorlds, "get_available_worlds", **fields)
    assert refused.result.result == Result.RESULT_NOT_FOUND
    assert "/no/such/folder" in refused.result.error_message
    fields["continue_on_error"] = True
    answer = sim.ask(srv.GetAvailableWorlds, "get_available_worlds", **fields)
    assert answer.result.result == OK and "/no/such/folder" in answer.result.error_message
    assert folder.name in [world.name for world in answer.worlds]


def test_worlds_that_cannot_be_loaded_are_refused_and_the_world_stays(sim, folder, tmp_path):
    kinds = srv.LoadWorld.Response
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / "half").mkdir()
    (tmp_path / "half/world.json").write_text("{")
    cases = [
        ("", {}, kinds.NO_RESOURCE, "uri"),
        ("", {"resource_string": "<sdf/>"}, kinds.UNSUPPORTED_FORMAT, "string"),
        ("http://somewhere/room", {}, kinds.UNSUPPORTED_FORMAT, "http"),
        (str(tmp_path / "notes.txt"), {}, kinds.UNSUPPORTED_FORMAT, "no picture"),
        ("/no/such/world", {}, Result.RESULT_NOT_FOUND, "/no/such/world"),
        (str(tmp_path / "half"), {}, kinds.RESOURCE_PARSE_ERROR, "world.json"),
    ]
    for uri, fields, code, words in cases:
        refused = sim.load(uri, **fields).result
        assert refused.result == code and words in refused.error_message, (uri, refused)
    current = sim.ask(srv.GetCurrentWorld, "get_current_world")
    assert current.world.name == folder.name and sim.state() == PAUSED
    assert sim.step().result == OK


def test_a_loaded_world_is_stopped_at_its_start_whatever_was_played(sim, folder, tmp_path):
    there = sideways(folder, 8)[-1]
    assert move(sim, there).result == OK and sim.step(4).result == OK
    assert sim.ask(SaveWorld, "save_world", path=str(tmp_path / "kept")).success
    for uri, begins in ((str(folder), sideways(folder, 1)[0]), (str(tmp_path / "kept"), there)):
        assert sim.set_state(PLAYING).result == OK
        assert sim.load(uri).result.result == OK
        assert sim.state() == STOPPED
        refused = sim.step()
        assert refused.result == Result.RESULT_OPERATION_FAILED
        assert "stopped" in refused.error_message
        state = entity_state(sim).state
        assert stamp_from_ros(state.header.stamp) == START
        np.testing.assert_allclose(pose_from_ros(state.pose), begins, atol=1e-6)
        sim.clear()
        assert sim.set_state(PAUSED).result == OK
        assert sim.step().result == OK
        sim.wait_for_frames(1)
        assert sim.stamps("color/image_raw") == [START + PERIOD]


def test_what_plays_goes_on_where_a_load_is_refused_or_fails(sim, folder, tmp_path):
    (tmp_path / "world.json").write_text("{")
    assert sim.set_state(PLAYING).result == OK
    for uri in ("/no/such/world", str(tmp_path)):
        assert sim.load(uri).result.result != OK
        assert sim.state() == PLAYING
    planned = [START + PERIOD * (1 + index) for index in range(4)]
    sim.send_tf(planned, sideways(folder, 4))
    sim.wait_for_frames(4)
    assert sim.stamps("color/image_raw")[:4] == planned
