"""Seeded hostile messages for a live node: what message `index` is depends on seed and index alone.

Each is a `Hostile`: what is to be published, asked or wanted as a goal, and whether the node has to refuse it. Legal
values are mixed in, so not every message has to be refused; whatever is refused must change nothing.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
from geometry_msgs.msg import Point, Vector3
from hostile_ground import Ground
from hostile_topics import (
    INF,
    MEGABYTES,
    NAN,
    Hostile,
    Maker,
    clock,
    cut,
    plan,
    prompt,
    real_pictures,
    tf,
    tf_static,
)
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState, GetAvailableStates, GetAvailableTransitions, GetState
from rcl_interfaces.msg import Parameter, ParameterType, ParameterValue
from rcl_interfaces.srv import (
    DescribeParameters,
    GetParameters,
    GetParameterTypes,
    ListParameters,
    SetParameters,
    SetParametersAtomically,
)
from simulation_interfaces import srv
from simulation_interfaces.action import SimulateSteps
from simulation_interfaces.msg import (
    Bounds,
    EntityCategory,
    EntityFilters,
    EntityInfo,
    EntityState,
    Resource,
    SimulationState,
    SpawnEntity,
    TagsFilter,
)
from std_srvs.srv import Trigger
from type_description_interfaces.srv import GetTypeDescription

from mirage_ros.action import GenerateRollout
from mirage_ros.ros.parameters import TABLE
from mirage_ros.srv import EraseRegion, ForkWorld, Record, RestoreWorld, SaveWorld

# Nobody's pattern of a name should take long, whatever it is made of.
BOMBS = ("(a+)+$", "(((((c|a|m|e|r|a)*)*)*)*)*x", "(.*)*" * 40 + "x", "(?:a{0,99}){0,99}" * 3 + "$",
         "a{99999999999}", "(" * 3000, "[[:nothing:]]", "(?P<x>", "\\", "(c|ca|cam|came|camer|camera)*" * 12 + "$",
         "(?i:" * 500, "[" * 5000, "(.?){64}" * 20 + "Z", "(a|b)" * 60_000, "(?=(c.*)*)" * 30 + "!", "*", "[z-a]",
         "\x00", "x" * 1_000_000)  # fmt: skip
READ_ONLY = [*(name for name, row in TABLE.items() if not row.live), "use_sim_time"]
LIVE = [name for name, row in TABLE.items() if row.live]
# What changes the world when it is accepted.
CHANGING = ("erase_region", "restore", "load_world", "unload_world", "reset", "reset_simulation", "change_state",
            "set_simulation_state", "step_simulation", "simulate_steps", "generate_rollout", "spawn_entity",
            "delete_entity")  # fmt: skip


def ask(kind: type, name: str, what: str, refused: bool = False, /, **fields) -> Hostile:
    return Hostile(name, what, kind=kind, request=kind.Request(**fields), refused=refused)


def filters(make: Maker) -> tuple[EntityFilters, bool]:
    """Filters of entities, and whether they have to be refused."""
    found, bad = EntityFilters(), False
    if make.chance(0.7):
        found.filter = make.one_of(BOMBS) if make.chance(0.8) else make.text()
    if make.chance(0.2):
        found.categories = [EntityCategory(category=int(make.rng.integers(256)))]
    if make.chance(0.2):
        found.tags = TagsFilter(tags=[make.text()] * 3)
    if make.chance(0.4):
        found.bounds = Bounds(type=int(make.one_of((1, 2, 3, 4, 255))))
        count = make.one_of((0, 1, 2, 3, 1000))
        found.bounds.points = [Vector3(x=make.number(), y=make.number(), z=make.number()) for _ in range(count)]
        bad |= count != 2 or found.bounds.type not in (1, 3)
    return found, bad


def bodies(make: Maker) -> Hostile:
    """Spawned, described and deleted ones; what is read lies outside of where models may lie."""
    kind = make.one_of(("spawn", "spawn", "many", "info", "describe", "bounds", "spawnables", "delete"))
    if kind == "spawnables":
        return ask(srv.GetSpawnables, "get_spawnables", "sources", sources=[make.path_name(), make.text()])
    if kind == "describe":
        said = EntityInfo(category=EntityCategory(category=int(make.rng.integers(256))), tags=[make.text()] * 3)
        entity = make.one_of(("camera", make.text()))
        return ask(srv.SetEntityInfo, "set_entity_info", "info", True, entity=entity, info=said)
    if kind == "many":
        wanted = [SpawnEntity(name=make.text())] * make.one_of((1, 3))
        wanted += [SpawnEntity(name="a")] * make.one_of((0, 1000))
        return ask(srv.SpawnEntities, "spawn_entities", f"{len(wanted)} without a model", True, spawn_requests=wanted)
    if kind == "spawn":
        sizes = ",".join(str(make.number()) for _ in range(3))
        uri, bad = make.one_of(((f"shape://box?size={sizes}", False), (make.text(), True), (make.path_name(), True)))
        request = srv.SpawnEntity.Request(name=make.text(), allow_renaming=make.chance(0.5))
        request.entity_resource.uri, request.initial_pose.pose = uri, make.pose()
        request.entity_namespace = make.text() if make.chance(0.3) else ""
        request.initial_pose.header.frame_id = make.frame() if make.chance(0.5) else "world"
        return Hostile("spawn_entity", uri, kind=srv.SpawnEntity, request=request, refused=bad)
    services = {"info": (srv.GetEntityInfo, "get_entity_info"), "bounds": (srv.GetEntityBounds, "get_entity_bounds"),
                "delete": (srv.DeleteEntity, "delete_entity")}  # fmt: skip
    return ask(*services[kind], "name", entity=make.one_of(("camera", make.text())))


def entities(make: Maker) -> Hostile:
    if make.chance(0.5):
        return bodies(make)
    kind = make.one_of(("list", "states", "get", "set", "poses"))
    if kind in ("list", "states"):
        found, bad = filters(make)
        services = {"list": (srv.GetEntities, "get_entities"), "states": (srv.GetEntitiesStates, "get_entities_states")}
        return ask(*services[kind], "filters", bad, filters=found)
    if kind == "get":
        return ask(srv.GetEntityState, "get_entity_state", "name", True, entity=make.text())
    if kind == "poses":
        tags = TagsFilter(filter_mode=make.one_of((0, 1, 255)), tags=[make.text()])
        return ask(srv.GetNamedPoses, "get_named_poses", "tags", tags=tags)
    state = EntityState(pose=make.pose())
    state.header.frame_id = make.frame() if make.chance(0.5) else "world"
    state.header.stamp = make.stamp()
    state.twist.linear.x = state.acceleration.angular.z = make.number()
    values = [state.pose.position.x, state.pose.position.y, state.pose.position.z]
    turn = state.pose.orientation
    length = np.linalg.norm([turn.x, turn.y, turn.z, turn.w])
    entity = "camera" if make.chance(0.8) else make.text()
    bad = entity != "camera" or not np.isfinite(values).all() or not abs(length - 1) < 0.01
    flags = {f"set_{name}": make.chance(0.3) for name in ("twist", "acceleration")}
    return ask(srv.SetEntityState, "set_entity_state", "state", bad, entity=entity, state=state, set_pose=True, **flags)


def worlds(make: Maker) -> Hostile:
    kind = make.one_of(("load", "load", "load", "available", "current", "unload"))
    if kind == "load":
        resource = Resource(uri=make.path_name(), resource_string=make.text() if make.chance(0.1) else "")
        trap = resource.uri.removeprefix(f"{make.ground.folder}/traps/")
        # Where a world may have been saved meanwhile, one may be there.
        bad = trap.startswith("/") and not trap.startswith(str(make.ground.folder))
        traps = ("camera-", "fifo", "world-", "zero", "loop", "text", "bomb", "cut")
        bad |= trap.startswith(traps) and "laughs" not in trap
        return ask(srv.LoadWorld, "load_world", resource.uri, bad, world_resource=resource)
    if kind == "available":
        sources = [make.path_name() for _ in range(1 + int(make.rng.integers(3)))]
        return ask(srv.GetAvailableWorlds, "get_available_worlds", "sources", additional_sources=sources,
                   continue_on_error=make.chance(0.5), filter=TagsFilter(tags=[make.text()]))  # fmt: skip
    if kind == "current":
        return ask(srv.GetCurrentWorld, "get_current_world", "as it is")
    return ask(srv.UnloadWorld, "unload_world", "as it is")


def memory(make: Maker) -> Hostile:
    kind = make.one_of(("save", "save", "erase", "fork", "restore"))
    if kind == "save":
        path = make.path_name()
        return ask(SaveWorld, "save_world", path, path=path)
    if kind == "erase":
        corners = [[make.number() for _ in range(3)] for _ in range(2)]
        low, high = (Point(x=x, y=y, z=z) for x, y, z in corners)
        return ask(EraseRegion, "erase_region", "box", not np.isfinite(corners).all(), min=low, max=high)
    name = make.one_of(("sound", "x" * 255, "x" * 300)) if make.chance(0.4) else make.text()
    if kind == "fork":
        name = name.partition("\0")[0]  # as rclpy sends it
        return ask(ForkWorld, "fork", name, not name.replace("-", "").replace("_", "").isalnum(), name=name)
    return ask(RestoreWorld, "restore", name, name=name)


def record(make: Maker) -> Hostile:
    path = make.path_name() + make.one_of(("", ".mp4", ".mcap", ".lerobot", ".png", ".exr"))
    return ask(Record, "record", path, path=path, start=make.chance(0.7))


def running(make: Maker) -> Hostile:
    """States, steps and resets in any order. Quitting is lawful, and the end: it is left out."""
    kind = make.one_of(("get", "set", "step", "reset", "trigger", "features"))
    if kind == "get":
        return ask(srv.GetSimulationState, "get_simulation_state", "as it is")
    if kind == "features":
        return ask(srv.GetSimulatorFeatures, "get_simulator_features", "as it is")
    if kind == "set":
        state = int(make.one_of((0, 1, 2, 4, 5, 77, 255)))
        wanted = SimulationState(state=state)
        return ask(srv.SetSimulationState, "set_simulation_state", str(state), state > 3, state=wanted)
    if kind == "step":
        steps = int(make.one_of((0, 1, 2, 5, 2**31, 2**63, 2**64 - 1)))
        return ask(srv.StepSimulation, "step_simulation", str(steps), steps=steps)
    if kind == "reset":
        scope = int(make.one_of((0, 1, 2, 3, 4, 99, 128, 254, 255)))
        return ask(srv.ResetSimulation, "reset_simulation", str(scope), scope=scope)
    return ask(Trigger, "reset", "as it is")


def value(make: Maker) -> ParameterValue:
    """Of any type and size."""
    kind = int(make.rng.integers(0, 11))
    found = ParameterValue(type=kind)
    found.bool_value, found.integer_value = make.chance(0.5), int(make.one_of((0, -1, 2**63 - 1, -(2**63))))
    found.double_value, found.string_value = make.number(), make.text()
    found.double_array_value = [make.number()] * int(make.one_of((0, 3, 10_000)))
    found.string_array_value = [make.text()]
    found.byte_array_value = [b"\0"] * 3
    return found


def right_value(name: str, make: Maker) -> ParameterValue:
    """A value of the parameter's own type, hostile inside of it."""
    if TABLE[name].choices or not isinstance(TABLE[name].low, float):
        return ParameterValue(type=ParameterType.PARAMETER_STRING, string_value=make.text())
    bad = make.one_of((NAN, INF, -INF, -1.0, 1e39, -0.0001, 1e308))
    return ParameterValue(type=ParameterType.PARAMETER_DOUBLE, double_value=bad)


def fits(parameter: Parameter) -> bool:
    """Whether the node may take it."""
    row, kind = TABLE.get(parameter.name), parameter.value.type
    if parameter.name == "use_sim_time":
        return kind == ParameterType.PARAMETER_BOOL
    if row is None or not row.live:
        return False
    if row.choices:
        return kind == ParameterType.PARAMETER_STRING and parameter.value.string_value in row.choices
    return kind == ParameterType.PARAMETER_DOUBLE and row.low <= parameter.value.double_value <= row.high


def parameters(make: Maker) -> Hostile:
    kind = make.one_of(("set", "set", "set", "atomically", "get", "types", "describe", "list"))
    count = 1 + int(make.rng.integers(3))
    names = [make.one_of((*LIVE, *READ_ONLY)) if make.chance(0.8) else make.text() for _ in range(count)]
    if kind in ("set", "atomically"):
        found = []
        for name in names:
            fitting = name in LIVE and make.chance(0.7)
            found.append(Parameter(name=name, value=right_value(name, make) if fitting else value(make)))
        bad = not all(fits(parameter) for parameter in found)
        services = {
            "set": (SetParameters, "set_parameters"),
            "atomically": (SetParametersAtomically, "set_parameters_atomically"),
        }
        return ask(*services[kind], str(names)[:200], bad, parameters=found)
    if kind == "get":
        return ask(GetParameters, "get_parameters", "names", names=names)
    if kind == "types":
        return ask(GetParameterTypes, "get_parameter_types", "names", names=names)
    if kind == "describe":
        return ask(DescribeParameters, "describe_parameters", "names", names=names)
    return ask(ListParameters, "list_parameters", "prefixes", prefixes=names, depth=int(make.one_of((0, 1, 2**63))))


def life(make: Maker) -> Hostile:
    """Transitions in any order. A shutdown is lawful, and the end: it is left out."""
    kind = make.one_of(("change", "change", "change", "state", "states", "transitions", "graph", "type"))
    if kind == "change":
        known = (Transition.TRANSITION_CONFIGURE, Transition.TRANSITION_CLEANUP, Transition.TRANSITION_ACTIVATE,
                 Transition.TRANSITION_DEACTIVATE)  # fmt: skip
        wanted = Transition(id=int(make.one_of(known if make.chance(0.8) else (0, 8, 10, 99, 255))))
        if make.chance(0.1):
            wanted.label = make.one_of(("configure", "nonsense", "activate", "x" * MEGABYTES))
        return ask(ChangeState, "change_state", f"{wanted.id} {wanted.label[:20]}", transition=wanted)
    if kind == "type":
        name = make.one_of(("mirage_ros/msg/RolloutStatus", make.text()))
        return ask(GetTypeDescription, "get_type_description", name, type_name=name, type_hash=make.text())
    services = {
        "state": (GetState, "get_state"),
        "states": (GetAvailableStates, "get_available_states"),
        "transitions": (GetAvailableTransitions, "get_available_transitions"),
        "graph": (GetAvailableTransitions, "get_transition_graph"),
    }
    return ask(*services[kind], "as it is")


def goal(make: Maker) -> Hostile:
    cancel = make.chance(0.5)
    if make.chance(0.4):
        steps = int(make.one_of((0, 1, 3, 2**63, 2**64 - 1)))
        wanted = SimulateSteps.Goal(steps=steps)
        return Hostile("simulate_steps", f"{steps}, {cancel=}", kind=SimulateSteps, request=wanted, cancel=cancel)
    count = int(make.one_of((0, 1, 3, 8)))
    rows = []
    for pose in (make.pose() for _ in range(count)):
        at, turn = pose.position, pose.orientation
        rows.append([at.x, at.y, at.z, turn.x, turn.y, turn.z, turn.w])
    flat, what = [value for row in rows for value in row], "poses"
    stamps: list[int] = []
    if make.chance(0.2):
        flat, what = flat[:-1], "cut"
    if make.chance(0.4):
        stamps = [int(make.one_of((0, -1, 1, 2**62, 2**63 - 1, -(2**63), 10**18))) for _ in range(count)]
        what += " stamps"
    recording = make.path_name() + ".mcap" if make.chance(0.2) else ""
    numbers = np.array(rows or [[NAN] * 7])
    sound = np.isfinite(numbers).all() and (abs(np.linalg.norm(numbers[:, 3:], axis=1) - 1) < 0.01).all()
    refused = not flat or len(flat) % 7 != 0 or not sound or (np.diff(stamps) <= 0).any() or min(stamps, default=1) <= 0
    wanted = GenerateRollout.Goal(poses=flat, stamps_ns=stamps, recording=recording)
    what = f"{what}, {cancel=}"
    return Hostile("generate_rollout", what, (), GenerateRollout, wanted, bool(refused), cancel)


MAKERS: tuple[tuple[Callable[[Maker], Hostile], float], ...] = (
    (tf, 14), (tf_static, 4), (plan, 10), (functools.partial(real_pictures, topic="seed"), 8),
    (functools.partial(real_pictures, topic="observe"), 10), (cut, 5), (prompt, 2), (entities, 10), (worlds, 8),
    (memory, 8), (record, 4), (running, 8), (parameters, 8), (goal, 10),
)  # fmt: skip
# Only where the node may be in any state at all.
FREE = ((life, 25), (clock, 2), (running, 10))


def hostile(seed: int, index: int, ground: Ground, free: bool) -> Hostile:
    """Message `index` of a run.

    Args:
        free: transitions of the life cycle and foreign clocks are among them.
    """
    make = Maker(np.random.default_rng([seed, index]), ground, free)
    makers, weights = zip(*(MAKERS + FREE if free else MAKERS), strict=True)
    chosen = make.rng.choice(len(makers), p=np.array(weights) / sum(weights))
    return makers[chosen](make)
