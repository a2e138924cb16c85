"""The features that are claimed are those that tests prove."""

from __future__ import annotations

import re

import pytest
from action_msgs.msg import GoalStatus
from ros_client import TESTS, NodeProcess
from sim_client import LOCKSTEP, OK, SimClient
from simulation_interfaces import srv
from simulation_interfaces.action import SimulateSteps
from simulation_interfaces.msg import Result, SimulationState, SimulatorFeatures

from mirage_ros.data.robot_models import MODELS

STATES, RESETS = "states_change_as_they_are_set", "reset_of_nothing_known"
STEPS, STEPS_REFUSED = "step_is_answered_after_its_frames", "step_while_playing_or_of_a_world"
ACTION, ACTION_REFUSED = "steps_as_an_action_tell", "steps_can_be_canceled_and_are_refused"
QUESTIONS, FILTERS = "wrong_questions_about_entities", "filters_that_are_not_offered"
LISTED, UNLISTED = "worlds_are_listed_loaded_named_and_unloaded", "available_worlds_are_filtered"
# Of each feature, a part of the name of the test of its promise, and of that of its refusal.
BODY, BODIES, SAID = "box_is_spawned_shown_moved", "many_are_spawned_at_once", "entities_have_bounds_a_category"
REFUSED, SPAWNABLE = "cannot_be_spawned_is_refused", "can_be_spawned_is_listed"
PROOFS = {
    "SPAWNING": (BODY, REFUSED),
    "SPAWNING_ENTITIES": (BODIES, BODIES),
    "DELETING": (BODY, BODY),
    "SPAWNABLES": (SPAWNABLE, SPAWNABLE),
    "ENTITY_TAGS": (SAID, SAID),
    "ENTITY_BOUNDS": (SAID, SAID),
    "ENTITY_CATEGORIES": (SAID, SAID),
    "ENTITY_INFO_GETTING": (SAID, SAID),
    "ENTITY_INFO_SETTING": (SAID, SAID),
    "SIMULATION_RESET_SPAWNED": ("reset_puts_bodies_back", RESETS),
    "NAMED_POSES": ("camera_is_the_entity_and_stands", QUESTIONS),
    "ENTITY_BOUNDS_BOX": ("filtered_by_where_they_are", FILTERS),
    "ENTITY_STATE_GETTING": ("state_tells_how_the_camera_moves", QUESTIONS),
    "ENTITY_STATE_SETTING": ("camera_is_the_entity_and_stands", QUESTIONS),
    "SIMULATION_RESET": ("reset_starts_over", RESETS),
    "SIMULATION_RESET_TIME": ("reset_starts_over", RESETS),
    "SIMULATION_RESET_STATE": ("reset_starts_over", RESETS),
    "SIMULATION_STATE_GETTING": (STATES, "node_that_is_not_configured_refuses"),
    "SIMULATION_STATE_SETTING": (STATES, STATES),
    "SIMULATION_STATE_PAUSE": (STATES, STATES),
    "STEP_SIMULATION_SINGLE": (STEPS, STEPS_REFUSED),
    "STEP_SIMULATION_MULTIPLE": (STEPS, STEPS_REFUSED),
    "STEP_SIMULATION_ACTION": (ACTION, ACTION_REFUSED),
    "WORLD_LOADING": ("loaded_world_is_stopped_at_its_start", "worlds_that_cannot_be_loaded"),
    "WORLD_TAGS": (UNLISTED, UNLISTED),
    "WORLD_UNLOADING": (LISTED, LISTED),
    "WORLD_INFO_GETTING": (LISTED, LISTED),
    "AVAILABLE_WORLDS": (LISTED, UNLISTED),
}


@pytest.fixture(scope="module")
def unconfigured(tmp_path_factory):
    log = tmp_path_factory.mktemp("log")
    process = NodeProcess(log, "--ros-args", *LOCKSTEP, "-p", "autostart:=false", "-p",
                          "worlds_folder:=/no/such/folder")  # fmt: skip
    client = SimClient(process)
    client.connect()
    yield client
    client.close()
    process.close()


def claimed(sim) -> set[str]:
    features = sim.ask(srv.GetSimulatorFeatures, "get_simulator_features").features
    assert "lockstep" in features.custom_info and list(features.spawn_formats) == [ending[1:] for ending in MODELS]
    names = {
        getattr(SimulatorFeatures, name): name
        for name in dir(SimulatorFeatures)
        if name.isupper() and isinstance(getattr(SimulatorFeatures, name), int)
    }
    return {names[feature] for feature in features.features}


def test_features_are_those_that_tests_prove(sim):
    tests = "\n".join(path.read_text() for path in TESTS.glob("test_*.py"))
    names = re.findall(r"^def (test_\w+)", tests, re.MULTILINE)
    for feature, parts in PROOFS.items():
        for part in parts:
            assert len([name for name in names if part in name]) == 1, (feature, part)
    assert claimed(sim) == set(PROOFS)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (srv.DeleteEntity, "delete_entity"),
        (srv.GetEntities, "get_entities"),
        (srv.GetEntitiesStates, "get_entities_states"),
        (srv.GetEntityState, "get_entity_state"),
        (srv.GetEntityBounds, "get_entity_bounds"),
        (srv.GetEntityInfo, "get_entity_info"),
        (srv.GetNamedPoses, "get_named_poses"),
        (srv.LoadWorld, "load_world"),
        (srv.ResetSimulation, "reset_simulation"),
        (srv.SetEntityInfo, "set_entity_info"),
        (srv.SetEntityState, "set_entity_state"),
        (srv.SetSimulationState, "set_simulation_state"),
        (srv.SpawnEntities, "spawn_entities"),
        (srv.SpawnEntity, "spawn_entity"),
        (srv.StepSimulation, "step_simulation"),
        (srv.UnloadWorld, "unload_world"),
    ],
)
def test_a_node_that_is_not_configured_refuses(unconfigured, kind, name):
    refused = unconfigured.ask(kind, name).result
    assert refused.result == Result.RESULT_INCORRECT_STATE
    assert "not configured" in refused.error_message


def test_a_node_that_is_not_configured_has_no_world_and_says_what_it_can_do(unconfigured):
    sim = unconfigured
    assert sim.state() == SimulationState.STATE_NO_WORLD
    gone = sim.ask(srv.GetCurrentWorld, "get_current_world").result
    assert gone.result == srv.GetCurrentWorld.Response.NO_WORLD_LOADED and gone.error_message
    assert claimed(sim) == set(PROOFS)
    worlds = sim.ask(srv.GetAvailableWorlds, "get_available_worlds", continue_on_error=True)
    assert worlds.result.result == OK and worlds.worlds
    refused = sim.ask(srv.GetAvailableWorlds, "get_available_worlds").result
    assert refused.result == srv.GetAvailableWorlds.Response.DEFAULT_SOURCES_FAILED
    assert "/no/such/folder" in refused.error_message
    handle, _ = sim.send_goal(SimulateSteps, "simulate_steps", SimulateSteps.Goal(steps=1))
    refused = sim.result_of(handle)
    assert refused.status == GoalStatus.STATUS_ABORTED
    assert refused.result.result.result == Result.RESULT_INCORRECT_STATE
