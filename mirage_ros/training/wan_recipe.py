"""The large model's training from one YAML: latent cache, stage one, stage two, a folder to run.

The cache holds posed video as the denoiser takes it: latents, depth and static cells per latent. A camera
track from structure from motion has an arbitrary scale. With metric depth of every picture that one number is
searched for, first on a coarse grid of logarithms and then on a fine one: the right scale is the one with
which pictures, warped by their depth into later cameras, look most like the pictures there.
"""

from __future__ import annotations

import gc
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import torch
from accelerate import Accelerator
from jaxtyping import Float, UInt8
from safetensors.torch import load_file, save_file
from tqdm import tqdm

from mirage_ros.errors import MirageError
from mirage_ros.files import atomic_path, write_json
from mirage_ros.geometry.camera import Camera
from mirage_ros.geometry.depth import cell_depth
from mirage_ros.geometry.images import cell_share
from mirage_ros.models import load_model
from mirage_ros.models.wan.denoiser import MemoryDenoiser, SideBranch
from mirage_ros.models.parts import (
    find_folder,
    pick_device,
    picture_from_rgb,
    read_json,
)
from mirage_ros.models.wan import Perceiver
from mirage_ros.models.wan.config import SETTINGS_FILE, WanCodec, WanConfig, read_config
from mirage_ros.models.wan.loading import (
    encode_prompts,
    load_denoiser,
    load_encoder,
    published_folder,
)
from mirage_ros.models.wan.weights import write_branch, write_lora
from mirage_ros.training.chunks import Chunks, ChunksConfig, LatentClip
from mirage_ros.training.clips import LazyVideo, PosedVideo, read_re10k, read_shards
from mirage_ros.training.recipe import fill, read_values
from mirage_ros.training.wan_trainer import (
    STAGES,
    FlowConfig,
    FlowLoss,
    Trainer,
    TrainerConfig,
    make_accelerator,
    prepare_stage,
    split_trained,
)
from mirage_ros.world.state import anchor_frames, any_in_group
from mirage_ros.world.world import WorldConfig

#: Metres per unit of the track that are tried, and the width of the pictures compared.
RANGE = (0.02, 50.0)
WIDTH = 96
PAIRS = 6


def pose_scale(
    rgb: UInt8[np.ndarray, "f h w 3"],
    depth_m: Float[np.ndarray, "f h w"],
    cameras: Camera,
) -> float:
    """Metres per unit of the cameras' positions; 1.0 where the camera hardly moves."""
    size = (round(WIDTH * rgb.shape[1] / rgb.shape[2]), WIDTH)
    small = cameras.resized(size)
    first = np.linspace(0, len(rgb) - 1, PAIRS + 1).round().astype(int).tolist()
    pairs = [(i, j) for i, j in zip(first[:-1], first[1:], strict=True) if i != j]
    grey = {i: _grey(rgb[i], size) for i in first}
    depth = {i: cv2.resize(depth_m[i], size[::-1], interpolation=cv2.INTER_NEAREST) for i in first}
    if not pairs or np.ptp(cameras.position_world, 0).max() < 1e-6:
        return 1.0

    def error(scale: float) -> float:
        return float(np.mean([_error(grey, depth, small, i, j, scale) for i, j in pairs]))

    coarse = np.geomspace(*RANGE, 48).tolist()
    best = min(coarse, key=error)
    step = coarse[1] / coarse[0]
    return min(np.geomspace(best / step, best * step, 33).tolist(), key=error)


def scaled(cameras: Camera, scale: float) -> Camera:
    """The cameras with positions in metres."""
    pose = cameras.world_from_camera.copy()
    pose[:, :3, 3] *= scale
    return Camera(cameras.intrinsics, pose, cameras.size)


def _error(grey: dict, depth: dict, cameras: Camera, i: int, j: int, scale: float) -> float:
    """Mean difference between frame j and frame i drawn at its pixels; outside costs as much."""
    both = scaled(cameras[np.array([i, j])], scale)
    valid = np.isfinite(depth[i]) & (depth[i] > 0)
    points = both[0].lift(np.where(valid, depth[i], 1.0)).reshape(-1, 3)
    pixels, z = both[1].project(points)
    maps = pixels.astype(np.float32).reshape(*depth[i].shape, 2)
    seen = cv2.remap(grey[j], maps[..., 0], maps[..., 1], cv2.INTER_LINEAR, borderValue=-1)
    inside = valid & (seen >= 0) & (z.reshape(valid.shape) > 0)
    if not inside.any():
        return 1.0
    gap = np.abs(seen - grey[i])
    return float((gap[inside].sum() + 0.25 * (valid & ~inside).sum()) / max(valid.sum(), 1))


def _grey(rgb: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    small = cv2.resize(rgb, size[::-1], interpolation=cv2.INTER_AREA)
    return cv2.cvtColor(small, cv2.COLOR_RGB2GRAY).astype(np.float32) / 255


def build_cache(
    videos: Iterable[LazyVideo],
    load_networks: Callable[[], tuple[WanCodec, Perceiver]],
    folder: Path,
    share: tuple[int, int] = (0, 1),
) -> int:
    """Writes one file per clip that the folder lacks; returns how many clips there are.

    Depth and masks that a clip lacks are perceived, and its cameras brought to the scale of
    that depth. Networks are loaded, and pictures read, only for clips that are missing.

    Args:
        share: (i, n) every n-th clip from the i-th on, for n processes that share the work.
    """
    folder.mkdir(parents=True, exist_ok=True)
    videos = list(videos)
    if not videos:
        raise MirageError("The data set holds no clip that is long enough; look at its folders.")
    # Shared out by the index in the whole set, which is the same for all processes.
    ours = [(_path(folder, video), video) for video in videos[share[0] :: share[1]]]
    missing = [(path, video) for path, video in ours if not path.exists()]
    networks = load_networks() if missing else None
    for path, video in tqdm(missing, desc="latents", unit="clip", disable=share[0] > 0):
        with atomic_path(path) as new:
            save_file(_tensors(video.read(), *networks), new)
    return len(videos)


class LatentCache(Sequence[LatentClip]):
    """The clips of a cache folder, each read when it is asked for.

    Raises MirageError when there is none.
    """

    def __init__(self, folder: Path):
        self.paths = sorted(folder.glob("*.safetensors"))
        if not self.paths:
            raise MirageError(f"{folder} holds no cached clips; build the cache first.")

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> LatentClip:
        return _clip(load_file(self.paths[index]))


def _path(folder: Path, video: LazyVideo) -> Path:
    return folder / f"{video.name}.safetensors"


@torch.no_grad()
def _tensors(video: PosedVideo, codec: WanCodec, perceiver: Perceiver) -> dict[str, torch.Tensor]:
    frames = 1 + (len(video.rgb) - 1) // codec.frames_per_latent * codec.frames_per_latent
    rgb, cameras = video.rgb[:frames], video.cameras[:frames]
    picture = picture_from_rgb(torch.from_numpy(np.ascontiguousarray(rgb)))
    latents = codec.encode(picture.transpose(0, 1)[None])[0].transpose(0, 1)
    depth, dynamic, cameras = _geometry(video, rgb, cameras, perceiver)
    at = _anchors(frames, codec.frames_per_latent)
    size = latents.shape[-2:]
    anchored = cameras[at].resized((int(size[0]), int(size[1])))
    touched = np.concatenate([dynamic[:1], any_in_group(dynamic[1:], codec.frames_per_latent)])
    static = cell_share(touched, codec.stride) <= WorldConfig.max_dynamic_share
    arrays = {
        "depth_m": cell_depth(depth[at], codec.stride),
        "static": static,
        "intrinsics": anchored.intrinsics,
        "world_from_camera": anchored.world_from_camera,
    }
    tensors = {name: torch.from_numpy(np.ascontiguousarray(a)) for name, a in arrays.items()}
    return tensors | {"latents": latents.half().cpu().contiguous()}


def _geometry(video: PosedVideo, rgb, cameras: Camera, perceiver: Perceiver):
    """Depth in metres, moving pixels, cameras in metres."""
    if video.depth_m is not None:
        depth = video.depth_m[: len(rgb)]
        dynamic = np.zeros(depth.shape, bool) if video.dynamic is None else video.dynamic
        return depth, dynamic[: len(rgb)], cameras
    found = perceiver(rgb, cameras, None)
    return found.depth_m, found.dynamic, scaled(cameras, pose_scale(rgb, found.depth_m, cameras))


def _anchors(frames: int, per_latent: int) -> np.ndarray:
    """Of a whole video: its first frame is a latent of its own."""
    return np.concatenate([[0], 1 + anchor_frames(frames - 1, per_latent)]).astype(int)


def _clip(tensors: dict[str, torch.Tensor]) -> LatentClip:
    arrays = {name: tensor.numpy() for name, tensor in tensors.items() if name != "latents"}
    latents = tensors["latents"]
    size = (int(latents.shape[-2]), int(latents.shape[-1]))
    cameras = Camera(arrays["intrinsics"], arrays["world_from_camera"], size)
    return LatentClip(latents, arrays["depth_m"], arrays["static"].astype(bool), cameras)


@dataclass(frozen=True)
class WanChunksConfig(ChunksConfig):
    """Chunks as the large model generates them by itself: with references."""

    chunk_frames: int = WanConfig.chunk_latents
    references: int = WanConfig.reference_frames


@dataclass(frozen=True)
class WanRecipe:
    """Attributes:
    model: folder or hub id of the published parts, with a branch to go on from where it has one,
        and without adapters.
    run: folder of the cache, checkpoints and logs.
    output: folder to write branch, adapters and settings to.
    size: (height, width) of the clips.
    length: frames of a clip, 1 + a multiple of 4; at least 37, a chunk and what precedes it.
    re10k: folders of RealEstate10K camera files and of their frames; empty for none.
    shards: folder of the project's rendered clips, of `seeds`; empty for none.
    depth, masks: who perceives what the clips lack (perceivers.py).
    prompt: what the clips show, in words.
    lora_rank: the paper has 64, its code 32.
    """

    kind: str = "wan"
    model: str = ""
    run: str = "runs/wan"
    output: str = "runs/wan/model"
    device: str = "auto"
    size: tuple[int, int] = (704, 1280)
    length: int = 81
    re10k: tuple[str, ...] = ()
    shards: str = ""
    seeds: tuple[int, int] = (0, 0)
    depth: str = "depth-anything"
    masks: str = ""
    prompt: str = ""
    lora_rank: int = 64
    chunks: WanChunksConfig = field(default_factory=WanChunksConfig)
    flow: FlowConfig = field(default_factory=FlowConfig)
    branch: TrainerConfig = field(default_factory=TrainerConfig)
    lora: TrainerConfig = field(default_factory=TrainerConfig)


def read_wan_recipe(path: Path) -> WanRecipe:
    """A recipe from YAML; unknown keys are refused by name."""
    recipe = fill(WanRecipe, read_values(path), str(path))
    if not recipe.model:
        raise MirageError(f"{path} names no model; give the folder of a Wan2.2 checkpoint.")
    least = 4 * recipe.chunks.chunk_frames + 5
    if recipe.length < least or recipe.length % 4 != 1:
        raise MirageError(
            f"{path}: length is {recipe.length}; give 1 + a multiple of 4, at least {least}."
        )
    if len(recipe.re10k) not in (0, 2):
        raise MirageError(f"{path}: re10k needs two folders, of camera files and of frames.")
    return recipe


def train_wan(recipe: WanRecipe) -> None:
    """Whatever of cache and stages is not done yet, then the output folder."""
    run = Path(recipe.run)
    # Before any network is loaded: it gives each process a device of its own.
    accelerator = make_accelerator()
    _cache(recipe, run / "cache", accelerator)
    text = _text(recipe, run / "prompt.safetensors", accelerator)
    chunks = Chunks(LatentCache(run / "cache"), recipe.chunks)
    for stage in STAGES:
        _train_stage(recipe, stage, FlowLoss(chunks, text, recipe.flow))
        # Networks and optimisers hold each other, and the next stage needs their room.
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _train_stage(recipe: WanRecipe, stage: str, loss: FlowLoss) -> None:
    config: TrainerConfig = getattr(recipe, stage)
    # Fresh layers are the same in every process, and in a run that is begun anew.
    torch.manual_seed(config.seed)
    network = prepare_stage(_start(recipe, stage), stage, recipe.lora_rank)
    trainer = Trainer(network, Path(recipe.run) / stage, config)
    trainer.run(loss)
    trained = trainer.trained()
    if trainer.accelerator.is_main_process:
        _write(recipe, network.branch, trained)
    trainer.accelerator.wait_for_everyone()


def videos(recipe: WanRecipe) -> Iterator[LazyVideo]:
    """Every clip of the recipe's data sets."""
    sources = []
    if recipe.re10k:
        tracks, frames = map(Path, recipe.re10k)
        sources.append(read_re10k(tracks, frames, recipe.size, recipe.length))
    if recipe.shards:
        sources.append(read_shards(Path(recipe.shards), recipe.seeds, recipe.length))
    if not sources:
        raise MirageError("The recipe names no clips; give re10k folders, shards, or both.")
    return itertools.chain(*sources)


def _cache(recipe: WanRecipe, folder: Path, accelerator: Accelerator) -> None:
    """Clips are encoded where they are missing; processes share them."""
    settings = {"size": recipe.size, "depth": recipe.depth, "masks": recipe.masks}
    source, device = find_folder(recipe.model), pick_device(recipe.device)
    config = read_config(source, settings)
    if accelerator.is_main_process:
        _check_same(settings | {"model": recipe.model, "length": recipe.length}, folder)

    def load_networks():
        return load_encoder(source, config, device, lambda device: load_model("mini", device))

    share = (accelerator.process_index, accelerator.num_processes)
    build_cache(videos(recipe), load_networks, folder, share)
    accelerator.wait_for_everyone()


def _check_same(made_from: dict, folder: Path) -> None:
    """Notes what a cache is made from; MirageError where it holds clips of something else."""
    made_from = json.loads(json.dumps(made_from))
    path = folder / "made_from.json"
    if not path.exists():
        write_json(path, made_from)
        return
    before = read_json(path)
    different = [name for name, value in made_from.items() if before.get(name) != value]
    if different:
        changes = ", ".join(f"{n} {before.get(n)!r}, not {made_from[n]!r}" for n in different)
        raise MirageError(
            f"The clips in {folder} were made with {changes}; give the same, another run, or remove "
            "the folder."
        )


def _text(recipe: WanRecipe, path: Path, accelerator: Accelerator) -> torch.Tensor:
    """The prompt's and the empty prompt's embeddings, read by the first process for all."""
    if accelerator.is_main_process:
        base = published_folder(find_folder(recipe.model))
        read = encode_prompts(base, [recipe.prompt, ""], pick_device(recipe.device))
        with atomic_path(path) as new:
            save_file({"text": read.cpu().contiguous()}, new)
    accelerator.wait_for_everyone()
    return load_file(path)["text"].to(accelerator.device)


def _start(recipe: WanRecipe, stage: str) -> MemoryDenoiser:
    """The network that a stage begins with: stage two goes on from the branch of stage one.

    Never with adapters merged: stage two brings its own, and what an earlier run of it has
    written to the output is in its checkpoint.
    """
    folder = find_folder(recipe.model)
    if (folder / "lora").is_dir():
        raise MirageError(
            f"The model to train, {folder}, has adapters in lora/, and training begins without; "
            "give the folder that they were trained on."
        )
    folder = folder if stage == STAGES[0] else Path(recipe.output)
    base = published_folder(folder)
    return MemoryDenoiser(*load_denoiser(folder, base, torch.float32, adapters=False))


def _write(recipe: WanRecipe, branch: SideBranch, trained: dict[str, torch.Tensor]) -> None:
    """What a stage has trained, as a folder that `load_model` runs."""
    output = Path(recipe.output)
    of_branch, of_lora = split_trained(trained)
    write_branch(branch, output, of_branch)
    if of_lora:
        write_lora(of_lora, recipe.lora_rank, output, alpha=None)
    base = str(published_folder(find_folder(recipe.model)).resolve())
    settings = {"base": base, "size": list(recipe.size), "depth": recipe.depth,
                "masks": recipe.masks, "prompt": recipe.prompt,
                "reference_frames": recipe.chunks.references}  # fmt: skip
    write_json(output / SETTINGS_FILE, settings)
