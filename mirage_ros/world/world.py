"""The cycle: read memory, generate, decode, perceive, write memory.

    world = World(model)
    first = world.reset(picture, camera)
    for chunk in world.rollout(cameras, stamps_ns): ...

What keeps the world in place: a cell that memory already shows at an equal or finer
resolution is never written again, so a generated copy cannot drift over its original. Only
what was not visible, or was seen by much coarser tokens (`WorldConfig.rewrite_log_scale`), is new.
What a real picture showed is never written again. And what is new never comes to stand in space that
an earlier view saw to be free (carving.py).
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Int

from mirage_ros.errors import MirageError
from mirage_ros.geometry.camera import Camera
from mirage_ros.geometry.depth import cell_depth
from mirage_ros.geometry.images import (
    cell_colours,
    cell_share,
    fit_seed,
    upsample,
    warn_of_cropping,
)
from mirage_ros.memory.free_space import Sights, carved
from mirage_ros.memory.memory import LatentMemory, MemoryConfig
from mirage_ros.progress import report
from mirage_ros.protocol import Chunk, Frame, Perception, Readout, SpatialMemory, WorldModel
from mirage_ros.world.chunking import (
    FORGET_MOVING,
    anchor_frames,
    any_in_group,
    check_latents,
    check_perception,
    check_pictures,
    check_plan,
    decode_next,
    frames_per_latent,
    from_memory,
    in_range,
    latent_size,
    moving_in_real,
    perceive_seed,
    readout_cells,
    readout_side,
    readout_size,
    rows,
)
from mirage_ros.world.files import load_world, save_world
from mirage_ros.world.overlap import overlapped
from mirage_ros.world.state import Draft, WorldState

STAGES = ("read", "generate", "decode", "perceive", "write")


@dataclass(frozen=True)
class WorldConfig:
    """How a world runs.

    Attributes:
        seed: of all noise; the same seed, picture and plan give the same frames. At least 0.
        use_memory: False never writes to memory: the baseline that forgets.
        max_memory_bytes: hard cap of the latent memory, of which there are two for as long as a
            call writes.
        max_depth_m: what lies farther is beyond range (+inf) and not remembered.
        rewrite_log_scale: visible cells are rewritten when the natural log of the token's
            footprint over the cell's width exceeds this (0.35: tokens 1.4 times too coarse).
        forget_moving: in which pictures the perceiver's guess of what moves is not remembered:
            "imagined", "all" (the seed and observed ones too) or "none". A segmenter that was asked
            for counts in all, but with "none".
        max_dynamic_share: cells with a larger share of moving pixels are not remembered, below 1.
        kept_latents: latents of past frames kept for reference, besides the seed's.
        overlap_decode: a rollout generates each chunk while the one before it is decoded,
            perceived and written; what memory shows it lags by that chunk (overlap.py).
    """

    seed: int = 0
    use_memory: bool = True
    max_memory_bytes: int = 512 * 2**20
    max_depth_m: float = 100.0
    rewrite_log_scale: float = 0.35
    forget_moving: str = "imagined"
    max_dynamic_share: float = 0.25
    kept_latents: int = 512
    overlap_decode: bool = False


class World:
    """A generated world: one picture in, frames for any planned cameras out.

    A call that fails leaves the world as it was, whatever failed: a state is never changed, each
    call works on a fork and takes it over as its last act. So memory is there twice while a call
    writes to it.

    Attributes:
        state: what there is now, None before the first reset. An older one brings that back.
    """

    def __init__(self, model: WorldModel, config: WorldConfig = WorldConfig()) -> None:
        if config.seed < 0 or config.kept_latents < model.preceding_frames:
            raise MirageError(
                f"The world got seed {config.seed} and kept_latents {config.kept_latents}; give a "
                f"seed of at least 0 and kept_latents of at least {model.preceding_frames}."
            )
        if config.forget_moving not in FORGET_MOVING or not 0 <= config.max_dynamic_share < 1:
            raise MirageError(
                f"The world got forget_moving {config.forget_moving!r} and max_dynamic_share "
                f"{config.max_dynamic_share}; give one of {', '.join(FORGET_MOVING)} and a share from "
                "0 to below 1."
            )
        self.model, self.config = model, config
        self.state: WorldState | None = None

    @property
    def memory(self) -> SpatialMemory:
        return self._seeded().memory

    @property
    def frames_seen(self) -> int:
        return 0 if self.state is None else self.state.frames_seen

    @property
    def camera(self) -> Camera:
        """The last frame's camera."""
        return self._seeded().camera

    @property
    def stamp_ns(self) -> int:
        """The last frame's stamp."""
        return self._seeded().stamp_ns

    def reset(
        self,
        rgb: np.ndarray,
        camera: Camera,
        depth_m: np.ndarray | None = None,
        stamp_ns: int = 0,
    ) -> Chunk:
        """A new world around one uint8 (H, W, 3) picture and, if there is one, its (H, W) depth.

        Returns one frame, the seed as the model decodes it.
        The picture's middle is cropped to the model's aspect and resized, the intrinsics
        follow; a SeedWarning says so where much of it is lost. Depth is metric and may hold NaN:
        such holes are completed from what was measured around them, or stay open until they are
        imagined. Without depth perception gives all of it. Nothing that is imagined later replaces
        what this picture shows. Bad input raises MirageError.
        """
        model, seconds = self.model, dict.fromkeys(STAGES, 0.0)
        given, (rgb, camera, depth_m) = camera.size, fit_seed(rgb, camera, depth_m, model.size)
        warn_of_cropping(given, model.size)
        cameras, stamps = Camera.stack([camera]), np.array([stamp_ns], np.int64)
        with _timed(seconds, "generate"):
            latents = check_latents(model.encode(rgb[None]), model, 1)
        with _timed(seconds, "decode"):
            decoded, decoder = decode_next(model, latents, None, 1)
            check_pictures(decoded, model, 1)
        with _timed(seconds, "perceive"):
            if depth_m is None:
                perception = self._perceive(rgb[None], cameras, None)
            else:
                perception = perceive_seed(model, rgb[None], cameras, depth_m)
                perception = in_range(perception, self.config.max_depth_m)
            guess, forget = perception.dynamic, self.config.forget_moving
            moving = moving_in_real(model, rgb[None], forget, lambda: guess)
            perception = replace(perception, dynamic=moving)
        memory = self._new_memory()
        with _timed(seconds, "write"):
            told = latents, cameras, perception, decoded, stamps
            self._write(memory, *told, first_id=0, real=True, measured=depth_m is not None)
        if self.config.use_memory and not memory.tokens:
            near = float(np.mean(np.isfinite(perception.depth_m)))
            raise MirageError(
                f"Nothing of the seed can be remembered: {near:.0%} of it lies within "
                f"{self.config.max_depth_m:g} m, and no part of that keeps still; give another picture "
                "or its depth."
            )
        kept = {0: latents[0].to("cpu", torch.float16)}
        sights = Sights.none().with_real(cameras[0], perception.depth_m[0], readout_side(model))
        last = cameras[0], int(stamp_ns)
        state = WorldState(memory, kept, 1, *last, decoder, sights=sights)
        taken = np.ones((1, *latent_size(model)), bool)
        chunk = self._chunk(state, decoded, cameras, perception, taken, stamps, seconds)
        self.state = state
        return chunk

    def step(self, cameras: Camera, stamps_ns: Int[np.ndarray, "f"]) -> Chunk:
        """The next chunk: at most `model.chunk_frames` cameras at increasing stamps.

        Frames seen before come back, the rest is imagined. Bad plans raise MirageError.
        """
        self.state, chunk = self.stepped(self._seeded(), cameras, stamps_ns)
        return chunk

    def stepped(
        self, state: WorldState, cameras: Camera, stamps_ns: Int[np.ndarray, "f"]
    ) -> tuple[WorldState, Chunk]:
        """A state after the next chunk, and the chunk; the state itself stays as it is."""
        fork = state.forked()
        draft = self._read(fork, cameras, stamps_ns)
        return self._finish(fork, draft, self._generate(draft))

    def rollout(self, cameras: Camera, stamps_ns: Int[np.ndarray, "f"]) -> Iterator[Chunk]:
        """Steps through a plan of any length, yielding chunk after chunk."""
        stamps = check_plan(cameras, stamps_ns, self._seeded().stamp_ns, None)
        starts = range(0, len(stamps), self.model.chunk_frames)
        parts = [slice(start, start + self.model.chunk_frames) for start in starts]
        plans = [(cameras[part], stamps[part]) for part in parts]
        if self.config.overlap_decode:
            yield from overlapped(self, plans)
        else:
            yield from (self.step(*plan) for plan in plans)

    def erase(self, box_min: Float[np.ndarray, "3"], box_max: Float[np.ndarray, "3"]) -> int:
        """Forgets what memory holds in an axis-aligned box; returns how many tokens went."""
        fork = self._seeded().forked()
        erased = fork.memory.erase(box_min, box_max)
        self.state = fork
        return erased

    def snapshot(self) -> WorldState:
        """The world as it is now; cheap, memory is shared until one side changes."""
        return self._seeded().forked()

    def restore(self, state: WorldState) -> None:
        """Back to a snapshot, which stays good for further restores."""
        self.state = state.forked()

    def save(self, folder: str | os.PathLike) -> None:
        """Writes the whole world to a folder, all or nothing."""
        save_world(self._seeded(), self.model, folder)

    def load(self, folder: str | os.PathLike) -> None:
        """Takes over a saved world of the same model; a bad folder raises MirageError."""
        self.state = load_world(folder, self.model, self._memory_config())

    def _seeded(self) -> WorldState:
        if self.state is None:
            raise MirageError("The world has no seed yet; call reset with a picture first.")
        return self.state

    def _new_memory(self) -> SpatialMemory:
        """An empty memory; a world that remembers otherwise overrides this and `_write`."""
        return LatentMemory(self._memory_config())

    def _memory_config(self) -> MemoryConfig:
        return MemoryConfig(self.model.channels, self.config.max_memory_bytes)

    def _read(self, state: WorldState, cameras: Camera, stamps_ns) -> Draft:
        """What memory shows to the planned cameras, and the latents that go before them."""
        model, seconds = self.model, dict.fromkeys(STAGES, 0.0)
        stamps = check_plan(cameras, stamps_ns, state.stamp_ns, model.chunk_frames)
        cameras = cameras.resized(model.size)
        cells, anchors = self._shown(cameras), self._anchors(len(stamps))
        with _timed(seconds, "read"):
            shown = state.memory.read(cells, stamps)
            readout = rows(shown, anchors)
            context = self._context(state, readout)
        noise = _noise_seed(self.config.seed, state.frames_seen)
        return Draft(cameras, stamps, shown, readout, cells[anchors], *context, noise, seconds)

    def _generate(self, draft: Draft) -> torch.Tensor:
        """The draft's latents. Knows no world and changes none."""
        told = (draft.readout, draft.cells, draft.preceding, draft.references, draft.noise)
        with _timed(draft.seconds, "generate"):
            return check_latents(self.model.generate(*told), self.model, len(draft.cells))

    def _finish(
        self, state: WorldState, draft: Draft, latents: torch.Tensor
    ) -> tuple[WorldState, Chunk]:
        """Decodes, perceives and writes into a state that is nobody else's: the state after the
        chunk, and the chunk's pictures."""
        model, seconds = self.model, draft.seconds
        cameras, stamps, shown = draft.cameras, draft.stamps_ns, draft.shown
        with _timed(seconds, "decode"):
            rgb, decoder = decode_next(model, latents, state.decoder, len(stamps))
            check_pictures(rgb, model, len(stamps))
        with _timed(seconds, "perceive"):
            anchor = shown.depth_m if np.isfinite(shown.depth_m).any() else None
            perception = self._perceive(rgb, cameras, anchor)
        with _timed(seconds, "write"):
            first_id = state.latents_seen
            cells = model.stride, readout_side(model)
            if self.config.forget_moving == "none":
                perception = replace(perception, dynamic=np.zeros_like(perception.dynamic))
            sound, sights = carved(state.sights, cameras, perception, *cells)
            self._write(state.memory, latents, cameras, sound, rgb, stamps, first_id)
        state = replace(state, sights=sights)
        after = self._advanced(state, latents, cameras, stamps, decoder)
        taken = from_memory(model, shown)
        return after, self._chunk(after, rgb, cameras, perception, taken, stamps, seconds)

    def _latent(self, cameras: Camera) -> Camera:
        return cameras.resized(latent_size(self.model))

    def _shown(self, cameras: Camera) -> Camera:
        return cameras.resized(readout_size(self.model))

    def _anchors(self, frames: int) -> Int[np.ndarray, "n"]:
        return anchor_frames(frames, frames_per_latent(self.model))

    def _context(self, state: WorldState, readout: Readout) -> tuple[torch.Tensor, torch.Tensor]:
        """The latents of the last frames, and of the frames that memory shows most."""
        last = state.latents_seen
        near = range(max(0, last - self.model.preceding_frames), last)
        seen = state.memory.references(readout, last)
        far = [i for i in seen if i in state.latents and i not in near]
        return self._bank(state, near), self._bank(state, far[: self.model.reference_frames])

    def _bank(self, state: WorldState, ids) -> torch.Tensor:
        if not ids:
            return torch.zeros(0, *state.latents[0].shape)
        return torch.stack([state.latents[i] for i in ids]).float()

    def _perceive(self, rgb, cameras: Camera, anchor: np.ndarray | None) -> Perception:
        perception = self.model.perceive(rgb, cameras, anchor)
        return in_range(check_perception(perception, self.model, len(rgb)), self.config.max_depth_m)

    def _write(
        self, memory, latents, cameras, perception, rgb, stamps, first_id: int, *, real=False,
        measured=False,
    ) -> None:  # fmt: skip
        """Remembers the static cells that memory does not show finely enough yet.

        Args:
            real: whether the pictures were given, rather than imagined.
            measured: whether depth is, rather than perceived.
        """
        if not self.config.use_memory:
            return
        stride, config, at = self.model.stride, self.config, self._anchors(len(stamps))
        dynamic = any_in_group(perception.dynamic, frames_per_latent(self.model))
        # A guess of where one surface ends is too vague to split cells by. And a model that is told
        # one token a cell can tell no part from a whole.
        by_parts = measured and readout_cells(self.model) > 1
        depth = perception.depth_m[at]
        memory.write_new(
            latents,
            self._latent(cameras[at]),
            depth if by_parts else cell_depth(depth, stride),
            cell_share(dynamic, stride) <= config.max_dynamic_share,
            stamps[at],
            cell_colours(rgb[at], stride),
            np.arange(first_id, first_id + len(at)),
            config.rewrite_log_scale,
            real=real,
        )

    def _advanced(self, state, latents, cameras: Camera, stamps, decoder) -> WorldState:
        seen = state.frames_seen + len(stamps)
        kept = dict(state.latents)
        for i, latent in enumerate(latents.to("cpu", torch.float16), state.latents_seen):
            kept[i] = latent
        grouped = state.grouped + len(stamps) - len(latents)
        oldest = seen - grouped - self.config.kept_latents
        kept = {i: latent for i, latent in kept.items() if i == 0 or i >= oldest}
        last = cameras[-1], int(stamps[-1])
        return WorldState(state.memory, kept, seen, *last, decoder, grouped, state.sights)

    def _chunk(self, state, rgb, cameras, perception, taken, stamps, seconds) -> Chunk:
        observed = upsample(taken, self.model.stride)
        frames = tuple(
            Frame(int(stamps[i]), cameras[i], rgb[i], perception.depth_m[i], observed[i])
            for i in range(len(stamps))
        )
        share = float(taken.mean())
        return Chunk(frames, seconds, share, state.memory.tokens, state.memory.nbytes)


def _noise_seed(seed: int, frame: int) -> int:
    return int(np.random.SeedSequence([seed, frame]).generate_state(1)[0])


@contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    report()
    start = time.perf_counter()
    yield
    seconds[stage] += time.perf_counter() - start
