"""A whole world as a folder: world.json, memory.safetensors, latents.safetensors.

Entities' values are in world.json, their triangles in latents.safetensors.
A world with a sky has sky.safetensors as well, one of a causal video codec decoder.safetensors: what the decoder
remembers. Whatever else lies in the folder is somebody else's and stays.

A save writes all files into a folder in the folder, and renames that when they are whole: from
then on they are the world. Then they are moved up one by one, and who reads meanwhile, or after
a kill in between, takes from there what has not been moved yet.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from mirage_ros.errors import MirageError
from mirage_ros.files import (
    DECODER,
    FILES,
    FORMAT,
    LATENTS,
    MEMORY,
    SAVED,
    SAVING,
    SKY,
    UNREADABLE,
    WORLD,
    header_of_world,
    read_json,
    sync_folder,
    world_file,
    write_file,
)
from mirage_ros.geometry.camera import Camera
from mirage_ros.geometry.rigid import Track
from mirage_ros.memory import LatentMemory, MemoryConfig
from mirage_ros.memory.files import VERSION, load_tensors, save_tensors
from mirage_ros.memory.free_space import FreeSpaceViews
from mirage_ros.memory.rows import representable
from mirage_ros.protocol import DecoderState, WorldModel
from mirage_ros.world.entities import Body, Entities, EntityState, Mesh, Motion
from mirage_ros.world.sky import sky_config
from mirage_ros.world.state import WorldState

KIND = "world"
PLAIN = ("name", "number", "stamp_ns", "category", "description", "source")
"""What of an entity JSON holds as it is."""
OPTIONAL = {"sky": SKY, "decoder": DECODER}
"""Files that not every world has, by what in world.json tells of them."""


def save_world(state: WorldState, model: WorldModel, folder: str | os.PathLike) -> None:
    """Writes the world into a folder, or to where a symbolic link leads: the old world or the new
    one, also for whoever is killed meanwhile, and nothing is touched but a saved world's files.

    Refuses with MirageError a folder that holds other things and no saved world.
    """
    folder = Path(os.path.realpath(folder))
    try:
        _check_target(folder, state)
        made = not folder.exists()
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder, fcntl.LOCK_EX):
            try:
                _move_up(folder)
                shutil.rmtree(folder / SAVING, ignore_errors=True)
                (folder / SAVING).mkdir()
                _write_world(state, model, folder / SAVING)
                os.rename(folder / SAVING, folder / SAVED)
                _move_up(folder)
            except BaseException:
                shutil.rmtree(folder / SAVING, ignore_errors=True)
                if made and not os.path.lexists(folder / SAVED):
                    folder.rmdir()
                raise
    except OSError as error:
        raise MirageError(
            f"{folder} cannot be written ({error.strerror}); choose a writable folder."
        ) from error


def load_world(folder: str | os.PathLike, model: WorldModel, config: MemoryConfig) -> WorldState:
    """The state of a saved world; missing, damaged or another model's raises MirageError."""
    folder = Path(folder)
    try:
        with _locked(folder, fcntl.LOCK_SH):
            header = read_json(world_file(folder, WORLD))
            version, tag = int(header["version"]), header["model"]
            if version <= VERSION and tag == _tag(model):
                return _read_world(folder, header, model, config)
    except (OSError, *UNREADABLE) as error:
        reason = getattr(error, "strerror", None) or f"its world.json or files: {error!r:.100}"
        raise MirageError(
            f"{folder} holds no whole saved world ({reason}); give the folder of a saved world, "
            "with its world.json and all files."
        ) from error
    raise MirageError(
        f"{folder} is a world of version {version} and model {str(tag):.100}; this program needs up "
        f"to version {VERSION} and model {_tag(model)}: load the model it was saved with."
    )


def load_surroundings(folder: str | os.PathLike) -> tuple[LatentMemory, FreeSpaceViews, Camera]:
    """What a saved world holds of space, whatever model made it: memory, free space, the last frame's camera.

    Raises MirageError for a folder that is missing, damaged or of another version.
    """
    folder = Path(folder)
    try:
        with _locked(folder, fcntl.LOCK_SH):
            tensors, info = load_tensors(world_file(folder, LATENTS), KIND)
            pose = np.array(info["world_from_camera"])
            camera = Camera(np.array(info["intrinsics"]), pose, tuple(info["size"]))
            return LatentMemory.load(world_file(folder, MEMORY)), _free_space_of(tensors), camera
    except (OSError, *UNREADABLE) as error:
        reason = getattr(error, "strerror", None) or f"{error!r:.100}"
        raise MirageError(
            f"{folder} holds no whole saved world ({reason}); give the folder that save_world wrote."
        ) from error


def _read_world(folder: Path, header: dict, model: WorldModel, config: MemoryConfig) -> WorldState:
    tensors, info = load_tensors(world_file(folder, LATENTS), KIND)
    if info != header:
        raise MirageError(f"{folder} mixes files of two worlds; take a sound copy of it.")
    latents = torch.from_numpy(tensors["latents"])
    kept = dict(zip(info["frame_ids"], latents, strict=True))
    numbers = [info["frames_seen"], info["stamp_ns"], info.get("grouped", 0), *kept]
    grid = (model.channels, *(side // model.stride for side in model.size))
    fit = latents.shape[1:] == grid and latents.dtype == torch.float16 and representable(latents)
    if not fit or 0 not in kept or {type(number) for number in numbers} != {int}:
        raise ValueError("latents or numbers that no world has")
    intrinsics, pose = np.array(info["intrinsics"]), np.array(info["world_from_camera"])
    try:
        camera, free_space = Camera(intrinsics, pose, tuple(info["size"])), _free_space_of(tensors)
    except MirageError as error:
        raise ValueError(str(error)) from error
    memory = LatentMemory.load(world_file(folder, MEMORY), config)
    decoder = _load_decoder(folder, info) if "decoder" in info else None
    counts = info["frames_seen"], camera, info["stamp_ns"], decoder, info.get("grouped", 0)
    sky = LatentMemory.load(world_file(folder, SKY), sky_config(config)) if "sky" in info else None
    if sky is not None and sky.tokens != info["sky"]:
        raise MirageError(f"{folder} mixes files of two worlds; take a sound copy of it.")
    state = WorldState(memory, kept, *counts, free_space, _entities_of(info, tensors), sky=sky)
    return replace(state, cameras=_cameras_of(info, state))


def _cameras_of(info: dict, state: WorldState) -> dict[int, Camera]:
    """Of the latents; worlds that were saved before these were kept tell the last frame's and the real views'."""
    if "cameras" in info:
        try:
            return {i: Camera(np.array(lens), np.array(pose), state.camera.size) for i, lens, pose in info["cameras"]}
        except MirageError as error:
            raise ValueError(str(error)) from error
    real = np.flatnonzero(state.free_space.real)
    seed = state.free_space.cameras[int(real[0])].resized(state.camera.size) if len(real) else state.camera
    return {0: seed, state.latents_seen - 1: state.camera}


def _write_world(state: WorldState, model: WorldModel, folder: Path) -> None:
    info = {
        "format": FORMAT,
        "version": VERSION,
        "model": _tag(model),
        "frames_seen": state.frames_seen,
        "stamp_ns": state.stamp_ns,
        "frame_ids": list(state.latents),
        "intrinsics": state.camera.intrinsics.tolist(),
        "world_from_camera": state.camera.world_from_camera.tolist(),
        "size": list(state.camera.size),
        "cameras": [[i, one.intrinsics.tolist(), one.world_from_camera.tolist()] for i, one in state.cameras.items()],
    }
    info["entities"], meshes = _entities_to(state.entities)
    if state.sky is not None:
        info["sky"] = state.sky.tokens
        state.sky.save(folder / SKY)
    if state.decoder is not None:
        info["grouped"] = state.grouped
        info["decoder"] = {name: str(t.dtype)[6:] for name, t in state.decoder.items()}
        raw = {name: _bytes(tensor) for name, tensor in state.decoder.items()}
        save_tensors(folder / DECODER, KIND, raw, info)
    state.memory.save(folder / MEMORY)
    latents = torch.stack(list(state.latents.values())).numpy()
    tensors = {"latents": latents} | _tensors_of(state.free_space) | meshes
    save_tensors(folder / LATENTS, KIND, tensors, info)
    write_file(folder / WORLD, json.dumps(info, indent=1).encode())


def _tensors_of(free_space: FreeSpaceViews) -> dict[str, np.ndarray]:
    return {
        "sights.intrinsics": free_space.cameras.intrinsics,
        "sights.world_from_camera": free_space.cameras.world_from_camera,
        "sights.reach_m": free_space.reach_m,
        "sights.real": free_space.real,
    }


def _free_space_of(tensors: dict[str, np.ndarray]) -> FreeSpaceViews:
    reach, poses = tensors["sights.reach_m"], tensors["sights.world_from_camera"]
    cameras = Camera(tensors["sights.intrinsics"], poses, reach.shape[1:])
    return FreeSpaceViews(cameras, reach, tensors["sights.real"])


def _entities_to(entities: Entities) -> tuple[dict, dict[str, np.ndarray]]:
    """The values, the triangles and the paths of all bodies but robots; those of one make share their triangles."""
    entities = entities.but([body.state.name for body in entities if body.state.carried])
    meshes = {id(body.mesh): body.mesh for body in entities}
    places = {key: place for place, key in enumerate(meshes)}
    tensors = {
        f"entities.{places[key]}.{name}": getattr(mesh, name)
        for key, mesh in meshes.items()
        for name in ("vertices_m", "faces", "colours")
    }
    for state in entities.states:
        if state.route is not None:
            tensors[f"routes.{state.number}.stamps_ns"] = np.array(state.route.stamps_ns, np.int64)
            tensors[f"routes.{state.number}.poses"] = state.route.poses
    bodies = [{"mesh": places[id(body.mesh)]} | _values(body.state) for body in entities]
    return {"next_number": entities.next_number, "bodies": bodies}, tensors


def _values(state: EntityState) -> dict:
    motion = state.motion
    return {
        **{name: getattr(state, name) for name in (*PLAIN, "tags", "resting")},
        "pose": state.pose.tolist(),
        "by_physics": state.passed is not None,
        "motion": [motion.linear.tolist(), motion.angular.tolist(), motion.in_body, motion.until_ns],
    }


def _entities_of(info: dict, tensors: dict[str, np.ndarray]) -> Entities:
    """The bodies of a saved world; where each stood is its start from now on."""
    saved = info.get("entities", {"next_number": 1, "bodies": []})
    meshes: dict[int, Mesh] = {}
    bodies = {}
    for values in saved["bodies"]:
        place, pose = values["mesh"], np.array(values["pose"], np.float64).reshape(4, 4)
        if place not in meshes:
            parts = (tensors[f"entities.{place}.{name}"] for name in ("vertices_m", "faces", "colours"))
            meshes[place] = Mesh.of(*parts)
        linear, angular, in_body, until_ns = values["motion"]
        motion = Motion(np.array(linear, np.float64), np.array(angular, np.float64), in_body, until_ns)
        plain = {name: values[name] for name in PLAIN} | {"tags": tuple(values["tags"])}
        plain["resting"] = int(values.get("resting", 0))
        plain["passed"] = Track((plain["stamp_ns"],), pose[None]) if values.get("by_physics") else None
        if (stamps := tensors.get(f"routes.{plain['number']}.stamps_ns")) is not None:
            plain["route"] = Track(tuple(stamps.tolist()), tensors[f"routes.{plain['number']}.poses"])
        bounds = meshes[place].bounds_m
        state = EntityState(pose=pose, start_pose=pose, bounds_m=bounds, motion=motion, **plain)
        bodies[state.name] = Body(state, meshes[place])
    return Entities(bodies, saved["next_number"])


def _load_decoder(folder: Path, info: dict) -> DecoderState:
    raw, stored = load_tensors(world_file(folder, DECODER), KIND)
    if stored != info:
        raise MirageError(f"{folder} mixes files of two worlds; take a sound copy of it.")
    kinds = {name: getattr(torch, kind) for name, kind in info["decoder"].items()}
    return {name: torch.from_numpy(raw[name]).view(kinds[name]) for name in kinds}


def _bytes(tensor: torch.Tensor) -> np.ndarray:
    """The tensor's bytes (numpy knows no bfloat16), the last axis that much longer."""
    return tensor.detach().cpu().contiguous().view(torch.uint8).numpy()


def _tag(model: WorldModel) -> str:
    return f"{model.name} ({model.channels} channels, stride {model.stride}, size {model.size})"


def _check_target(folder: Path, state: WorldState) -> None:
    """Raises MirageError where a save would replace what no saved world owns."""
    if not os.path.lexists(folder):
        return
    if not folder.is_dir():
        raise MirageError(f"{folder} is no folder; choose another path.")
    found = {path.name for path in folder.iterdir()} - {SAVING}
    header = header_of_world(world_file(folder, WORLD)) if found else {}
    if header is None:
        raise MirageError(f"{folder} holds other things and no saved world; choose another folder.")
    strange = {name for name in FILES if (folder / name).is_dir()}
    for part, name in OPTIONAL.items():
        if getattr(state, part) is not None and part not in header:
            strange |= {name} & found
    if strange:
        raise MirageError(
            f"{folder} has a {' and a '.join(sorted(strange))} that the world saved there does not "
            "own; choose another folder or move it away."
        )


@contextlib.contextmanager
def _locked(folder: Path, kind: int) -> Iterator[None]:
    """Keeps out who saves to the folder, and with LOCK_EX who loads from it; where the file system
    has no locks, nobody."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(handle, kind | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(handle)
        raise MirageError(f"{folder} is being saved or loaded right now; try again.") from error
    except OSError:
        pass
    try:
        yield
    finally:
        os.close(handle)


def _move_up(folder: Path) -> None:
    """Puts the files of a finished save in their places; goes on where a killed one stopped."""
    fresh = folder / SAVED
    if not fresh.is_dir():
        return
    sync_folder(folder)
    if new := header_of_world(fresh / WORLD):
        for part in OPTIONAL.keys() & (header_of_world(folder / WORLD) or {}).keys() - new.keys():
            (folder / OPTIONAL[part]).unlink(missing_ok=True)
    for name in FILES:
        if (fresh / name).exists():
            os.rename(fresh / name, folder / name)
    fresh.rmdir()
    sync_folder(folder)
