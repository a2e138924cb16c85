"""From a recording to a world: which frames say something new, in one exposure, and what came of it.

Twice through the recording: first all frames in small, to compare them (agreement.py), then in order, each frame that
is sound and adds enough to what memory holds. What is on the way is kept beside the world that is to be, so that a
build that was killed, or failed late, goes on where it stopped, and gives the same world.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Float

from mirage_ros.data import Walk
from mirage_ros.data.agreement import Agreement, Thumb, agreement_of, at_poses, better_reading, refined, thumb_of, usual
from mirage_ros.data.seeds import PosedFrame
from mirage_ros.errors import MirageError
from mirage_ros.files import UNREADABLE, WORLD, header_of_world, read_json, world_file, write_json
from mirage_ros.geometry.camera import Camera, floor_axes
from mirage_ros.geometry.depth import cell_depth, completed
from mirage_ros.geometry.images import fit_seed
from mirage_ros.geometry.rigid import from_quaternion, inverse, log_rotation
from mirage_ros.protocol import WorldModel
from mirage_ros.world.observing import lacking
from mirage_ros.world.state import latent_size
from mirage_ros.world.world import World, WorldConfig

FRAME_NS = 33_333_333
"""Worlds count the frames of a recording as if 30 a second: with their own stamps one walk would give two worlds."""
THUMB_WIDTH = 160
DEPTHS_M = (0.05, 200.0)
"""Where the median depth of a walk in metres lies."""
DECIMALS = 9
"""Of poses: a folder's matrix and a bag's quaternion say the same pose with other last bits."""
SAVED_EVERY = 20
"""Keyframes between two saves on the way."""
UPS = {"+z": (0, 0, 1), "-z": (0, 0, -1), "+y": (0, 1, 0), "-y": (0, -1, 0), "+x": (1, 0, 0), "-x": (-1, 0, 0)}

USED, ADDS_LITTLE, BLURRED, DISAGREES, UNREAD = "used", "adds little", "blurred", "disagrees", "not read"


@dataclass(frozen=True)
class BuildConfig:
    """How a world is built.

    Attributes:
        least_added: share of a frame's cells of known depth that have to be new for it to be taken.
        up: the recording's axis that points up, one of UPS; "auto" takes the one that cameras hold up most.
        exposure: bring all frames to one exposure.
        refine: move poses so that pictures and depths of one place fit each other; needs scipy.
        keep_bad: take blurred and disagreeing frames as well.
        max_memory_bytes: of the world.
    """

    least_added: float = 0.05
    up: str = "auto"
    exposure: bool = True
    refine: bool = False
    keep_bad: bool = False
    max_memory_bytes: int = 512 * 2**20


@dataclass(frozen=True)
class Plan:
    """What is known of a recording after the first time through it: of each frame, and of all.

    Attributes:
        verdicts: of each frame why it is left out, "" of sound ones.
        reasons: the sentences of those that could not be read, by frame.
        gain, offset: to one exposure, (n, 3).
        moves: to refined poses: refined_from_camera = moves @ recorded_from_camera, both in the recording's world, (n, 4, 4).
        shift, gap: usual residuals of pictures (share of their width) and of depths.
        world_from_source: a turn by right angles that brings up to z.
    """

    verdicts: tuple[str, ...]
    reasons: dict[int, str]
    gain: Float[np.ndarray, "n 3"]
    offset: Float[np.ndarray, "n 3"]
    moves: Float[np.ndarray, "n 4 4"]
    shift: float
    gap: float
    pairs: int
    world_from_source: Float[np.ndarray, "4 4"]


@dataclass(frozen=True)
class Built:
    """A finished build: the world, the plan, of each frame what became of it.

    Attributes:
        coverage: share of what the frames show that was in memory before they came, on average.
    """

    world: World
    plan: Plan
    verdicts: tuple[str, ...]
    coverage: float


Tick = Callable[[str, int], object]
"""Called with the stage (look, compare, refine, build) and how many frames are through it."""


def planned(walk: Walk, model: WorldModel, config: BuildConfig, tick: Tick) -> Plan:
    """Looks at all frames, and compares them.

    Raises:
        MirageError: no frame is sound, or most of them disagree.
    """
    scale = min(1.0, THUMB_WIDTH / model.size[1])
    size = (round(model.size[0] * scale), round(model.size[1] * scale))
    verdicts, reasons, thumbs = [""] * len(walk), {}, {}
    for i in range(len(walk)):
        try:
            frame = walk.read(i)
            if len(walk) > 1 and frame.depth_m is None:
                raise MirageError(f"{walk.names[i]} has no depth; give depth pictures with each, or a COLMAP model.")
            if frame.depth_m is not None:
                pose = canonical(frame.camera.world_from_camera)
                thumbs[i] = thumb_of(replace(frame, camera=replace(frame.camera, world_from_camera=pose)), size)
        except MirageError as error:
            verdicts[i], reasons[i] = UNREAD, str(error)
        tick("look", i + 1)
    _check_read(walk, reasons)
    found = agreement_of(list(thumbs.values()), lambda frames: tick("compare", frames)) if thumbs else None
    gain, offset, moves = np.ones((len(walk), 3)), np.zeros((len(walk), 3)), np.tile(np.eye(4), (len(walk), 1, 1))
    if found is not None:
        _check_depth(walk, thumbs)
        numbers = np.array(list(thumbs))
        if config.refine:
            found, moves[numbers] = _refined(list(thumbs.values()), found, tick)
        if config.exposure:
            gain[numbers], offset[numbers] = found.gain, found.offset
        if not config.keep_bad:
            _judge(walk, thumbs, found, verdicts)
    if all(verdicts):
        raise MirageError(f"No frame of {walk.source} is sound; the first is left out because it {verdicts[0]}.")
    turn = upright([thumb.camera for thumb in thumbs.values()], config.up)
    shift, gap = (usual(found.shift), usual(found.gap)) if found else (np.nan, np.nan)
    return Plan(tuple(verdicts), reasons, gain, offset, moves, shift, gap, found.pairs if found else 0, turn)


def _refined(thumbs: list[Thumb], found: Agreement, tick: Tick) -> tuple[Agreement, Float[np.ndarray, "n 4 4"]]:
    """How frames agree after refinement, and how each moved; where that does not bring them together, as they were."""
    poses = refined(thumbs, found, lambda frames: tick("refine", frames))
    after = agreement_of(at_poses(thumbs, poses), lambda frames: tick("compare", frames))
    if not after.residual < found.residual:
        return found, np.tile(np.eye(4), (len(thumbs), 1, 1))
    return after, poses @ np.stack([inverse(thumb.camera.world_from_camera) for thumb in thumbs])


def _judge(walk: Walk, thumbs: dict, found: Agreement, verdicts: list[str]) -> None:
    """Marks what is blurred or disagrees. Raises MirageError where that is nearly everything, or all is misread."""
    if reading := better_reading(list(thumbs.values())):
        raise MirageError(f"The frames of {walk.source} would fit each other far better if {reading}; mend it, or give --keep-bad.")
    numbers = np.array(list(thumbs))
    for i in numbers[found.blurred]:
        verdicts[i] = BLURRED
    for i in numbers[found.disagreeing]:
        verdicts[i] = DISAGREES
    if len(numbers) > 2 and not verdicts.count("") or usual(found.shift) > 0.05 or usual(found.gap) > 0.2:
        raise MirageError(
            f"The frames of {walk.source} do not fit each other: by their poses and depth, pictures of one place lie "
            f"{usual(found.shift):.1%} of their width apart and depths differ by {usual(found.gap):.0%}; check the axes "
            "of the poses, the intrinsics and the unit of depth (--depth-units)."
        )


def _check_read(walk: Walk, reasons: dict[int, str]) -> None:
    """Raises MirageError with the first reason where most frames could not be read."""
    if 2 * len(reasons) > len(walk):
        first = min(reasons)
        raise MirageError(f"{len(reasons)} of {len(walk)} frames of {walk.source} cannot be used: {reasons[first]}")


def _check_depth(walk: Walk, thumbs: dict) -> None:
    """Raises MirageError for depth in another unit."""
    depth = [thumb.depth_m[np.isfinite(thumb.depth_m)] for thumb in thumbs.values()]
    median = usual(np.array([np.median(one) for one in depth if len(one)]))
    if not DEPTHS_M[0] < median < DEPTHS_M[1]:
        raise MirageError(
            f"The median depth of {walk.source} is {median:.3g} m, which no room has: it is in another unit; give how "
            "many of its units make a metre (--depth-units)."
        )


def upright(cameras: list[Camera], up: str) -> Float[np.ndarray, "4 4"]:
    """The turn by right angles that brings a recording's up to z; unless asked for, the axis that the cameras hold up."""
    if up != "auto" and up not in UPS:
        raise MirageError(f"Up is {up!r}; give one of auto, {', '.join(UPS)}.")
    axis = np.array(UPS.get(up, (0, 0, 1)), float)
    if up == "auto" and cameras:
        axis = np.zeros(3)
        total = sum(floor_axes(camera.world_from_camera)[0] for camera in cameras)
        axis[np.abs(total).argmax()] = np.sign(total[np.abs(total).argmax()])
    turn = np.eye(4)
    if axis[2] == 1:
        return turn
    # Rows: where the new x and y come from; the cyclic order keeps the hand.
    ahead = np.roll(np.abs(axis), 1) if axis[2] == 0 else np.array([1.0, 0, 0])
    turn[:3, :3] = np.stack([ahead, np.cross(axis, ahead), axis])
    return turn


def canonical(pose: Float[np.ndarray, "4 4"]) -> Float[np.ndarray, "4 4"]:
    """The pose, the same to the last bit whether it was told as a matrix or as a quaternion."""
    from transforms3d.quaternions import mat2quat

    turn = mat2quat(pose[:3, :3])
    turn = np.round(turn * np.sign(turn[np.abs(turn).argmax()]), DECIMALS)
    return from_quaternion(np.round(pose[:3, 3], DECIMALS) + 0.0, turn / np.linalg.norm(turn))


def fitted(frame: PosedFrame, size: tuple[int, int], plan: Plan, number: int | None = None) -> PosedFrame:
    """A frame upright and at the model's size; with its number, in the walk's exposure and at its refined pose."""
    rgb = frame.rgb
    if number is not None and ((plan.gain[number] != 1).any() or (plan.offset[number] != 0).any()):
        rgb = np.clip(np.rint(rgb * plan.gain[number] + plan.offset[number]), 0, 255).astype(np.uint8)
    pose = canonical(frame.camera.world_from_camera)
    if number is not None and (plan.moves[number] != np.eye(4)).any():
        pose = canonical(plan.moves[number] @ pose)
    pose = plan.world_from_source @ pose
    rgb, camera, depth_m = fit_seed(rgb, replace(frame.camera, world_from_camera=pose), frame.depth_m, size)
    return PosedFrame(rgb, depth_m, camera)


def build(walk: Walk, model: WorldModel, out: Path, config: BuildConfig, tick: Tick = lambda *_: None) -> Built:
    """Builds the world and saves it at `out`, all or nothing.

    Goes on with a build of the same recording that was killed, left by Ctrl-C or failed after its plan was made.

    Raises:
        MirageError: it is no sound recording, and nothing is kept; or what follows the plan failed, and what was built is kept.
    """
    check_target(out)
    room = out.with_name(f".{out.name}.building")
    try:
        _begin(room, walk, model, config)
        plan = _plan_of(room / "plan.json", walk, model, config, tick)
    except MirageError:
        shutil.rmtree(room, ignore_errors=True)
        raise
    try:
        built = _integrated(walk, model, room, plan, config, tick)
        built.world.save(out)
    except MirageError as error:
        kept = f"{room} keeps what was built, so the same command goes on from there, and begins anew without that folder"
        raise MirageError(f"{str(error).rstrip('.')}; {kept}.") from error
    shutil.rmtree(room, ignore_errors=True)
    return built


def check_target(out: Path) -> None:
    """Before hours of work, not after: raises MirageError where other things are than a saved world."""
    if out.exists() and not (out.is_dir() and (not any(out.iterdir()) or header_of_world(out / "world.json"))):
        raise MirageError(f"{out} holds other things and no saved world; choose another folder.")


def _begin(room: Path, walk: Walk, model: WorldModel, config: BuildConfig) -> None:
    """The folder of a build on the way; one of another recording, or with other options, is begun anew."""
    words = [str(walk.source.resolve()), walk.kind, *walk.names, model.name, str(model.size), json.dumps(asdict(config))]
    key = hashlib.sha256("\0".join(words).encode()).hexdigest()
    try:
        same = read_json(room / "key.json") == key
    except (OSError, *UNREADABLE):
        same = False
    if not same:
        shutil.rmtree(room, ignore_errors=True)
        write_json(room / "key.json", key)


def _plan_of(path: Path, walk: Walk, model: WorldModel, config: BuildConfig, tick: Tick) -> Plan:
    """The plan of a build that was killed, or a new one, which is kept."""
    try:
        kept = read_json(path)
        arrays = {name: np.array(kept[name]) for name in ("gain", "offset", "moves", "world_from_source")}
        reasons = {int(i): text for i, text in kept["reasons"].items()}
        return Plan(**{**kept, **arrays, "verdicts": tuple(kept["verdicts"]), "reasons": reasons})
    except (OSError, *UNREADABLE):
        plan = planned(walk, model, config, tick)
    write_json(path, {name: value.tolist() if isinstance(value, np.ndarray) else value
                      for name, value in asdict(plan).items()})  # fmt: skip
    return plan


def _integrated(walk: Walk, model: WorldModel, room: Path, plan: Plan, config: BuildConfig, tick: Tick) -> Built:
    """The second time through: keyframes into memory."""
    world = World(model, WorldConfig(max_memory_bytes=config.max_memory_bytes))
    verdicts, first, shares, since = list(plan.verdicts), 0, [], 0
    if world_file(room / "world", WORLD).exists():  # a save that was killed leaves an empty folder
        world.load(room / "world")
        kept = read_json(room / "done.json")
        first = world.stamp_ns // FRAME_NS + 1
        verdicts[:first], shares = kept["verdicts"][:first], kept["shares"][:first]
    for i in range(first, len(walk)):
        share = 0.0
        if not verdicts[i]:
            frame = fitted(walk.read(i), model.size, plan, i)
            verdicts[i], share = _added(world, frame, i * FRAME_NS, config)
        shares.append(share)
        since += verdicts[i] == USED
        if since >= SAVED_EVERY and i + 1 < len(walk):
            since = 0
            world.redate(i * FRAME_NS)
            write_json(room / "done.json", {"verdicts": verdicts, "shares": shares})
            world.save(room / "world")
        tick("build", i + 1)
    world.redate((len(walk) - 1) * FRAME_NS)
    taken = [share for share, verdict in zip(shares, verdicts, strict=True) if verdict in (USED, ADDS_LITTLE)]
    return Built(world, plan, tuple(verdicts), 1 - float(np.mean(taken)) if len(taken) > 1 else 1.0)


def _added(world: World, frame: PosedFrame, stamp_ns: int, config: BuildConfig) -> tuple[str, float]:
    """Takes a frame into the world if it adds enough; what became of it, and which share of it was new."""
    if not world.frames_seen:
        world.reset(frame.rgb, frame.camera, frame.depth_m, stamp_ns)
        return USED, 1.0
    cells = Camera.stack([frame.camera.resized(latent_size(world.model))])
    known = np.isfinite(cell_depth(completed(frame.depth_m)[None], world.model.stride))
    if not known.any():
        return ADDS_LITTLE, 0.0
    share = float(lacking(world.memory.fork(), cells)[known].mean())
    if share < config.least_added:
        return ADDS_LITTLE, share
    world.observe(frame.rgb, frame.camera, frame.depth_m, stamp_ns, adds=True)
    return USED, share


def report_of(built: Built, walk: Walk) -> dict:
    """Of a build, as JSON takes it."""
    plan, memory = built.plan, built.world.memory
    left = {verdict: [walk.names[i] for i, one in enumerate(built.verdicts) if one == verdict]
            for verdict in (BLURRED, DISAGREES, UNREAD)}  # fmt: skip
    return {
        "source": str(walk.source),
        "kind": walk.kind,
        "frames": len(walk),
        "used": [walk.names[i] for i, one in enumerate(built.verdicts) if one == USED],
        "adds_little": built.verdicts.count(ADDS_LITTLE),
        "left_out": left,
        "reasons": [*walk.held_out, *plan.reasons.values()],
        "coverage": built.coverage,
        "tokens": memory.tokens,
        "bytes": memory.nbytes,
        "pairs": plan.pairs,
        "turned_deg": {name: round(float(np.degrees(np.linalg.norm(log_rotation(move[:3, :3])))), 4)
                       for name, move in zip(walk.names, plan.moves, strict=True)},
        "picture_shift_share": plan.shift,
        "depth_gap_share": plan.gap,
        "gains": {name: gain.round(4).tolist() for name, gain in zip(walk.names, plan.gain, strict=True)},
        "offsets": {name: offset.round(2).tolist() for name, offset in zip(walk.names, plan.offset, strict=True)},
        "world_from_source": plan.world_from_source.tolist(),
    }


def describe(report: dict) -> str:
    """A few sentences on a report."""
    left = report["left_out"]
    lines = [
        f"{len(report['used'])} of {report['frames']} frames are keyframes; {report['adds_little']} more add less than "
        f"asked for. {report['coverage']:.0%} of what the frames show was there before they came.",
        f"Memory: {report['tokens']:,} tokens, {report['bytes'] / 1e6:.1f} MB.",
    ]
    if report["pairs"]:
        gains = np.array(list(report["gains"].values()))
        lines.append(
            f"Pictures of one place lie {report['picture_shift_share']:.2%} of their width apart and depths differ by "
            f"{report['depth_gap_share']:.1%} (medians over {report['pairs']:,} pairs); gains go from {gains.min():.2f} "
            f"to {gains.max():.2f}."
        )
    if "held_out" in report:
        held = report["held_out"]
        lines.append(
            f"{held['frames']} frames were held out: {held.get('built', np.nan):.1f} dB, {held.get('built_gain', np.nan):.1f} with "
            f"gains evened out; one frame alone {held.get('seed', np.nan):.1f} and {held.get('seed_gain', np.nan):.1f}."
        )
    for verdict, names in left.items():
        if names:
            shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
            lines.append(f"Left out ({verdict}): {shown}.")
    return "\n".join([*lines, *report["reasons"][:8]])
