"""The features that are claimed are those that tests prove."""

from __future__ import annotations

from simulation_interfaces import srv
from simulation_interfaces.msg import SimulatorFeatures


def test_features_are_those_that_the_tests_here_prove(sim):
    features = sim.ask(srv.GetSimulatorFeatures, "get_simulator_features").features
    names = {
        getattr(SimulatorFeatures, name): name
        for name in dir(SimulatorFeatures)
        if name.isupper() and isinstance(getattr(SimulatorFeatures, name), int)
    }
    assert {names[feature] for feature in features.features} == {
        "NAMED_POSES",
        "ENTITY_STATE_GETTING",
        "ENTITY_STATE_SETTING",
        "SIMULATION_RESET",
        "SIMULATION_RESET_TIME",
        "SIMULATION_RESET_STATE",
        "SIMULATION_STATE_GETTING",
        "SIMULATION_STATE_SETTING",
        "SIMULATION_STATE_PAUSE",
        "STEP_SIMULATION_SINGLE",
        "STEP_SIMULATION_MULTIPLE",
        "STEP_SIMULATION_ACTION",
        "WORLD_LOADING",
        "WORLD_TAGS",
        "WORLD_UNLOADING",
        "WORLD_INFO_GETTING",
        "AVAILABLE_WORLDS",
    }
    assert "lockstep" in features.custom_info and not features.spawn_formats
