"""Worlds listed, loaded, named and unloaded, and what is refused."""

from __future__ import annotations

from ros_client import PICTURES
from sim_client import OK, PERIOD, START
from simulation_interfaces import srv
from simulation_interfaces.msg import Result

from mirage_ros.srv import SaveWorld


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
    sim.clear()
    assert sim.step().result == OK
    sim.wait_for_frames(1)
    assert sim.stamps("color/image_raw") == [START + PERIOD]
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
    assert current.world.name == folder.name
    assert sim.step().result == OK
