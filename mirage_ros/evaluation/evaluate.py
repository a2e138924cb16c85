"""`mirage evaluate`: closed loops against truth, for every memory and every ablation of the model."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from mirage_ros.data import WalkConfig
from mirage_ros.errors import MirageError
from mirage_ros.evaluation.bench_common import describe_machine
from mirage_ros.evaluation.readback import folder_world, track_worlds
from mirage_ros.evaluation.rgb_cache import KeyframeWorld, RgbWorld
from mirage_ros.evaluation.scoring import (
    Evaluation,
    Scored,
    at_the_seed,
    check_model,
    score,
    summarise,
)
from mirage_ros.evaluation.worlds import (
    PROGRAM,
    TRUTH,
    Rolled,
    TrueWorld,
    cached,
    hash_of_sources,
    name_of,
    roll,
    scene_world,
)
from mirage_ros.geometry.camera import Camera
from mirage_ros.models import load_model, model_digest
from mirage_ros.protocol import Readout, Views, WorldModel, imagines
from mirage_ros.world.imagining import nearest_shown
from mirage_ros.world.world import World, WorldConfig

MEMORIES = ("latent", "rgb", "keyframesN", "none")
"""The latent memory; a cloud of coloured points; N pictures as JPEG and PNG; none."""
KEYFRAMES = re.compile(r"keyframes([1-9]\d*)")
ABLATIONS = {
    "sub_cell": "offsets and scales of the tokens are left out",
    "visibility": "the network does not get where memory sees anything",
    "dynamic_filter": "moving things are remembered like all else",
    "references": "no reference frames, or no views that tell how the world looks",
    "network": "what is not shown is the nearest that is, in place of what the network imagines",
}
#: A variant that differs from the first one by its world seed alone.
OTHER_SEED = "other_seed"


@dataclass(frozen=True)
class Variant:
    """One thing to evaluate.

    Attributes:
        memory: one of `MEMORIES`, with a number for N.
        ablation: one of `ABLATIONS`, `OTHER_SEED`, or "".
        model: another checkpoint than the evaluated one, or "".
    """

    name: str
    memory: str = "latent"
    ablation: str = ""
    model: str = ""


def parse_variants(
    memories: Sequence[str], ablations: Sequence[str], checkpoints: Sequence[str]
) -> list[Variant]:
    """Memories first, then ablations of the latent one, then checkpoints given as NAME=PATH."""
    unknown = [m for m in memories if (m not in MEMORIES and not KEYFRAMES.fullmatch(m)) or m == "keyframesN"]
    unknown += [a for a in ablations if a not in (*ABLATIONS, OTHER_SEED)]
    if unknown or not memories:
        raise MirageError(
            f"There is no variant {', '.join(unknown) or 'at all'}; memories are "
            f"{', '.join(MEMORIES)}, ablations {', '.join([*ABLATIONS, OTHER_SEED])}."
        )
    variants = [Variant(memory, memory) for memory in memories]
    variants += [Variant("other seed" if name == OTHER_SEED else f"no {name}", ablation=name) for name in ablations]
    for text in checkpoints:
        name, _, path = text.partition("=")
        if not name or not path:
            raise MirageError(f"A checkpoint to compare is {text!r}; give NAME=FOLDER.")
        variants.append(Variant(name, model=path))
    if len({variant.name for variant in variants}) < len(variants):
        raise MirageError("Two variants have one name; name each once.")
    return variants


def make_world(
    variant: Variant, model: WorldModel, noise_seed: int, forget_moving: str = "imagined"
) -> World:
    """The cycle of a variant; `model` is its own checkpoint, `forget_moving` as in WorldConfig."""
    use_memory = variant.memory != "none"
    config = WorldConfig(seed=noise_seed, use_memory=use_memory, forget_moving=forget_moving)
    if variant.ablation == "dynamic_filter":
        config = replace(config, forget_moving="none")
    elif variant.ablation == OTHER_SEED:
        config = replace(config, seed=noise_seed + 1)
    elif variant.ablation:
        model = ablated(model, variant.ablation)
    if keyframes := KEYFRAMES.fullmatch(variant.memory):
        return KeyframeWorld(model, config, int(keyframes[1]))
    return (RgbWorld if variant.memory == "rgb" else World)(model, config)


class AblatedModel:
    """A model that does not get one part of what it is given; all else is the model's own."""

    def __init__(self, model: WorldModel, ablation: str) -> None:
        self._model, self._ablation = model, ablation

    def __getattr__(self, name: str):
        return getattr(self._model, name)


class AblatedChunks(AblatedModel):
    """A ChunkModel whose `generate` does not."""

    def generate(
        self, readout: Readout, cameras: Camera, preceding: torch.Tensor, references: torch.Tensor, seed: int
    ) -> torch.Tensor:
        if self._ablation == "references":
            references = references[:0]
        return self._model.generate(blinded(readout, self._ablation), cameras, preceding, references, seed)


class AblatedImaginer(AblatedModel):
    """An Imaginer that does not."""

    def aligned(self, readout: Readout) -> torch.Tensor:
        return self._model.aligned(blinded(readout, self._ablation))

    def imagine(self, readout: Readout, camera: Camera, style: Views, seed: int) -> Views:
        if self._ablation == "network":
            return nearest_shown(self._model, readout, camera)
        if self._ablation == "references":
            style = Views(style.latents[:0], style.depth_m[:0], style.cameras[:0])
        return self._model.imagine(blinded(readout, self._ablation), camera, style, seed)


def ablated(model: WorldModel, ablation: str) -> AblatedModel:
    """Raises MirageError for an ablation that means nothing to this model."""
    if ablation == ("visibility" if imagines(model) else "network"):
        raise MirageError(f"The ablation {ablation} means nothing to {model.name}; leave it out.")
    return (AblatedImaginer if imagines(model) else AblatedChunks)(model, ablation)


def blinded(readout: Readout, ablation: str) -> Readout:
    """A readout that keeps one thing for itself."""
    if ablation == "sub_cell":
        return replace(
            readout,
            place=np.zeros_like(readout.place),
            log_scale=np.zeros_like(readout.log_scale),
        )
    if ablation == "visibility":
        # All cells claim to be seen; those that are not hold zero latents, infinitely far.
        depth = np.where(readout.visible, readout.depth_m, np.inf).astype(np.float32)
        return replace(readout, visible=np.ones_like(readout.visible), depth_m=depth)
    return readout


LONGEST_BARE = 300
"""Readouts are decoded beside the frames of walks up to so long."""


@dataclass(frozen=True)
class EvaluationConfig:
    """What is evaluated.

    Attributes:
        model: the checkpoint.
        seeds: of scenes; empty with a folder.
        folder: a recording in any layout that is built from, walked from `seed_frame` on.
        re10k: a folder of RealEstate10K tracks, walked there and back.
        walk: what such recordings do not say themselves.
        frames: of the walk, the seed counted; None is 33, or all of a folder; of tracks those there.
        kind: of scene, None as the seed draws it.
        memories, ablations, checkpoints: see parse_variants.
        seed_depth: give the seed's true depth.
        noise_seed: of the worlds' noise.
        forget_moving: as in WorldConfig; "" is "all" for scenes, whose bodies the shipped perceiver
            was trained on, and "imagined" for a folder, where the seed is a real picture.
        store: where rollouts are kept.
    """

    model: str = "mini"
    seeds: tuple[int, ...] = ()
    folder: str = ""
    re10k: str = ""
    walk: WalkConfig = WalkConfig()
    seed_frame: int = 0
    frames: int | None = None
    kind: str | None = None
    memories: tuple[str, ...] = ("latent", "rgb", "keyframes1", "keyframes4", "none")
    ablations: tuple[str, ...] = ()
    checkpoints: tuple[str, ...] = ()
    seed_depth: bool = True
    noise_seed: int = 0
    forget_moving: str = ""
    store: Path = Path("out/evaluate/rollouts")


def evaluate(config: EvaluationConfig) -> Evaluation:
    """Runs what has not been run yet and judges all.

    Raises:
        MirageError: a bad checkpoint, folder, seed, variant or number of frames.
    """
    forget_moving = config.forget_moving or ("all" if config.seeds else "imagined")
    config = replace(config, forget_moving=forget_moving)
    variants = parse_variants(config.memories, config.ablations, config.checkpoints)
    models = _Models(config.model)
    model = models[""]
    truths = _true_worlds(config, model)
    rolled = _roll_all(config, variants, models, truths)
    main = rolled[variants[0].name]
    scored: dict[str, list[Scored]] = {}
    for variant in tqdm(variants, desc="judge", unit="variant"):
        scored[variant.name] = [
            score(truth, one, first, model)
            for truth, one, first in zip(truths, rolled[variant.name], main, strict=True)
        ]
    checks = [check_model(model, truth) for truth in tqdm(truths, desc="model", unit="world")]
    report = _report(config, models.digest(""), truths, checks, scored)
    return Evaluation(truths, rolled, scored, report)


def _report(
    config: EvaluationConfig,
    digest: str,
    truths: Sequence[TrueWorld],
    checks: Sequence[dict[str, float]],
    scored: dict[str, list[Scored]],
) -> dict:
    """All figures, as JSON takes them; `digest` is of the checkpoint."""
    return {
        "config": {k: str(v) if isinstance(v, Path) else v for k, v in asdict(replace(config, walk=None)).items()},
        "checkpoint": digest[:20],
        "machine": describe_machine(),
        "worlds": [truth.name for truth in truths],
        "no_return": [truth.no_return for truth in truths if truth.no_return],
        "model": dict(zip([truth.name for truth in truths], checks, strict=True)),
        "variants": {
            name: {
                "mean": summarise(truths, ones),
                "worlds": {
                    truth.name: summarise([truth], [one])
                    for truth, one in zip(truths, ones, strict=True)
                },
                "at_seed": at_the_seed(truths, ones),
                "frames": {
                    truth.name: {key: values.tolist() for key, values in one.frames.items()}
                    for truth, one in zip(truths, ones, strict=True)
                },
            }
            for name, ones in scored.items()
        },
    }


class _Models:
    """Checkpoints by name ("" is the evaluated one), loaded when first asked for."""

    def __init__(self, main: str) -> None:
        self._main, self._loaded, self._digests = main, {}, {}

    def __getitem__(self, name: str) -> WorldModel:
        path = name or self._main
        if path not in self._loaded:
            self._loaded[path] = load_model(path)
        return self._loaded[path]

    def digest(self, name: str) -> str:
        """What the checkpoint is made of: its name alone may stand for another one tomorrow."""
        path = name or self._main
        if path not in self._digests:
            self._digests[path] = model_digest(path)
        return self._digests[path]


def _true_worlds(config: EvaluationConfig, model: WorldModel) -> list[TrueWorld]:
    if config.seeds:
        return [_scene(config, model, seed) for seed in tqdm(config.seeds, desc="truth", unit="world")]
    if config.re10k:
        with tqdm(desc="truth", unit="track") as bar:
            return track_worlds(config.re10k, config.frames, model.size, config.walk, bar.update)
    if not config.folder:
        raise MirageError("Nothing to evaluate on was given; give --seeds, --folder or --re10k.")
    return [folder_world(config.folder, config.seed_frame, config.frames, model.size, config.walk)]


def _scene(config: EvaluationConfig, model: WorldModel, seed: int) -> TrueWorld:
    frames = config.frames or 33
    name = name_of(hash_of_sources(TRUTH), seed, frames, model.size, config.kind)
    path = config.store / f"truth_{seed}_{name}.npz"
    return cached(path, _StoredWorld, lambda: _StoredWorld.of(
        scene_world(seed, frames, model.size, config.kind))).world()  # fmt: skip


def _roll_all(
    config: EvaluationConfig,
    variants: Sequence[Variant],
    models: _Models,
    truths: Sequence[TrueWorld],
) -> dict[str, list[Rolled]]:
    """Every variant's rollouts, world by world; the bar counts frames."""
    rolled: dict[str, list[Rolled]] = {variant.name: [] for variant in variants}
    program = hash_of_sources(PROGRAM)
    total = sum(len(truth) for truth in truths) * len(variants)
    with tqdm(total=total, desc="rollouts", unit="frame") as bar:
        for truth in truths:
            for variant in variants:
                bar.set_postfix_str(f"{truth.name}, {variant.name}")
                before = bar.n
                rolled[variant.name].append(
                    _roll_one(config, variant, models, truth, program, bar.update)
                )
                bar.update(before + len(truth) - bar.n)
    return rolled


def _roll_one(config, variant: Variant, models: _Models, truth: TrueWorld, program, tick) -> Rolled:
    key = name_of(
        program,
        models.digest(variant.model),
        (variant.memory, variant.ablation),
        config.seed_depth,
        config.noise_seed,
        config.forget_moving,
        truth.rgb.tobytes(),
        truth.depth_m[0].tobytes(),
        truth.cameras.intrinsics.tobytes(),
        truth.cameras.world_from_camera.tobytes(),
    )

    def make() -> Rolled:
        model = models[variant.model]
        if model.size != models[""].size:
            raise MirageError(
                f"{variant.name} makes pictures of {model.size}, the evaluated model of "
                f"{models[''].size}; compare checkpoints of one size."
            )
        world = make_world(variant, model, config.noise_seed, config.forget_moving)
        bare = variant.memory != "none" and len(truth) <= LONGEST_BARE
        return roll(world, truth, seed_depth=config.seed_depth, bare=bare, tick=tick)

    name = f"{variant.name} {truth.name}".replace(" ", "_").replace("/", "_")
    return cached(config.store / f"{name}_{key}.npz", Rolled, make)


@dataclass(frozen=True)
class _StoredWorld:
    """A TrueWorld as flat arrays."""

    name: str
    intrinsics: object
    world_from_camera: object
    rgb: object
    depth_m: object
    moving: object
    first_shown: object
    returns: object
    grounded: object

    @classmethod
    def of(cls, world: TrueWorld) -> _StoredWorld:
        cameras = world.cameras
        return cls(
            world.name, cameras.intrinsics, cameras.world_from_camera, world.rgb, world.depth_m,
            world.moving, world.first_shown, world.returns, world.grounded,
        )  # fmt: skip

    def world(self) -> TrueWorld:
        cameras = Camera(self.intrinsics, self.world_from_camera, self.rgb.shape[1:3])
        return TrueWorld(
            self.name, cameras, self.rgb, self.depth_m, self.moving, self.first_shown,
            self.returns, self.grounded,
        )  # fmt: skip
