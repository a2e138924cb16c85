"""The cycle: read memory, generate, decode, perceive, write memory. It maps states to states and
keeps none.

What keeps the world in place: a cell that memory already shows at an equal or finer
resolution is never written again, so a generated copy cannot drift over its original. Only
what was not visible, or was seen by much coarser tokens (REWRITE_LOG_SCALE), is new.
What a real picture showed is never written again. And what is new never comes to stand in space that
an earlier view saw to be free (memory/free_space.py).

A rollout may generate a chunk while the one before it is decoded, perceived and written
(`overlapped`):

    read 1, generate 1 | read 2, generate 2           | read 3, generate 3           |
                       | decode 1, perceive 1, write 1 | decode 2, perceive 2, write 2 |

The price: chunk 2 is read before chunk 1 is written, so what memory shows lags by one chunk.
What chunk 1 has imagined reaches chunk 2 through the latents that precede it alone. Where that
is not enough chunk 2 imagines anew; memory keeps what was written first. Depth is aligned to
all that has been written, without lag.

The generating thread is given copies and touches no state, so the frames are those of the
same order of work on one thread, bit by bit.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8

from mirage_ros.errors import MirageError, report
from mirage_ros.geometry.camera import Camera
from mirage_ros.geometry.depth import cell_depth
from mirage_ros.geometry.images import fit_seed, upsample, warn_of_cropping
from mirage_ros.memory.free_space import FreeSpaceViews, carved
from mirage_ros.protocol import (
    STAGES,
    Chunk,
    DecoderState,
    Frame,
    Perception,
    Readout,
    Views,
    WorldModel,
    imagines,
    readout_cells,
    readout_side,
)
from mirage_ros.world.imagining import Imagination, behind_bodies, joined, put_together, stacked, surfaces_of
from mirage_ros.world.sky import before_sky
from mirage_ros.world.state import (
    FORGET_MOVING,
    KEPT_LATENTS,
    MAX_DEPTH_M,
    Draft,
    MakeBackend,
    Pictures,
    WorldConfig,
    WorldState,
    anchor_frames,
    check_latents,
    check_perception,
    check_pictures,
    check_plan,
    decode_next,
    frames_per_latent,
    in_range,
    latent_size,
    moving_in_real,
    perceive_seed,
    readout_size,
    rows,
)

Plan = tuple[Camera, np.ndarray]
Decoded = Callable[[UInt8[np.ndarray, "f h w 3"]], None]


class Cycle:
    """A model and a config, and what they make of a world's state.

    Args:
        backend: makes what gives a state its memory, from model and config.
    """

    def __init__(
        self,
        model: WorldModel,
        config: WorldConfig,
        backend: MakeBackend,
    ) -> None:
        if config.seed < 0:
            raise MirageError(f"The world got seed {config.seed}; give a seed of at least 0.")
        if config.forget_moving not in FORGET_MOVING or not 0 <= config.max_dynamic_share < 1:
            raise MirageError(
                f"The world got forget_moving {config.forget_moving!r} and max_dynamic_share "
                f"{config.max_dynamic_share}; give one of {', '.join(FORGET_MOVING)} and a share from "
                "0 to below 1."
            )
        self.model, self.config = model, config
        self.backend = backend(model, config)

    def first(
        self, rgb: np.ndarray, camera: Camera, depth_m: np.ndarray | None, stamp_ns: int
    ) -> tuple[WorldState, Chunk]:
        """The state of a new world around one picture, and its first frame; see World.reset."""
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
            perception = self._perceive_seed(rgb[None], cameras, depth_m)
        kept = {0: latents[0].to("cpu", torch.float16)}
        free_space = FreeSpaceViews.none().with_real(cameras[0], perception.depth_m[0], readout_side(model))
        state = WorldState(
            self.backend.new(), kept, 1, cameras[0], int(stamp_ns), decoder, 0, free_space, cameras={0: cameras[0]}, sky=self.backend.sky()
        )
        with _timed(seconds, "write"):
            measured = depth_m is not None
            pictures = Pictures(latents, 0, cameras, perception, decoded, stamps, rgb[None], measured)
            self._remember(state, pictures)
        if self.config.use_memory and not state.memory.tokens:
            near = float(np.mean(np.isfinite(perception.depth_m)))
            raise MirageError(
                f"Nothing of the seed can be remembered: {near:.0%} of it lies within "
                f"{MAX_DEPTH_M:g} m, and no part of that keeps still; give another picture "
                "or its depth."
            )
        taken = np.ones((1, *latent_size(model)), bool)
        return state, self._chunk(state, decoded, cameras, perception, taken, stamps, seconds)

    def stepped(
        self, state: WorldState, cameras: Camera, stamps_ns: Int[np.ndarray, "f"], decoded: Decoded | None = None
    ) -> tuple[WorldState, Chunk]:
        """A state after the next chunk, and the chunk; the state itself stays as it is.

        Args:
            decoded: given the pictures as soon as they are there, before their depth is and before they are remembered.
        """
        stamps = check_plan(cameras, stamps_ns, state.stamp_ns, self.model.chunk_frames)
        # What is imagined for one frame is there for the next one, so its chunks are of one frame.
        once, chunks = 1 if imagines(self.model) else len(stamps), []
        fork = state.forked()
        for start in range(0, len(stamps), once):
            part = slice(start, start + once)
            draft = self.read(fork, cameras[part], stamps[part])
            fork, chunk = self.finish(fork, draft, self.generate(draft), decoded)
            chunks.append(chunk)
        return fork, joined(chunks)

    def pictures(self, state: WorldState, cameras: Camera, stamps_ns: Int[np.ndarray, "f"]) -> UInt8[np.ndarray, "f h w 3"]:
        """The pictures of the next chunk alone: nothing is perceived or written, and the state stays as it is."""
        fork = state.forked()
        latents = self.generate(self.read(fork, cameras, stamps_ns))
        return decode_next(self.model, latents, fork.decoder, len(stamps_ns))[0]

    def read(self, state: WorldState, cameras: Camera, stamps_ns: Int[np.ndarray, "f"]) -> Draft:
        """What memory shows to the planned cameras, and the latents that go before them."""
        model, seconds = self.model, dict.fromkeys(STAGES, 0.0)
        stamps = check_plan(cameras, stamps_ns, state.stamp_ns, model.chunk_frames)
        cameras = cameras.resized(model.size)
        cells, anchors = self.readout_cameras(cameras), anchor_frames(len(stamps), frames_per_latent(model))
        with _timed(seconds, "read"):
            shown = self._shown(state, cells)
            taken, imagined, free_space = shown.known(readout_cells(model)), None, None
        if imagines(model) and not taken.all():
            with _timed(seconds, "generate"):
                imagined, free_space = self._imagined(state, cells, stamps)
                shown = self._shown(replace(state, free_space=free_space), cells)
        with _timed(seconds, "read"):
            readout = rows(shown, anchors)
            preceding, references = self._context(state, readout)
        noise = _noise_seed(self.config.seed, state.frames_seen)
        return Draft(
            cameras, stamps, shown, readout, cells[anchors], preceding, references, noise, seconds, taken, imagined, free_space
        )

    def _imagined(self, state: WorldState, cells: Camera, stamps_ns: Int[np.ndarray, "f"]) -> tuple[Views, FreeSpaceViews]:
        """The views of cameras, once what memory did not show of them is remembered; and what is seen to be free then."""
        free_space = state.free_space

        def remember(view: Views) -> None:
            nonlocal free_space
            cameras, perception = view.cameras.resized(self.model.size), in_range(surfaces_of(self.model, view), MAX_DEPTH_M)
            sound, free_space = carved(free_space, cameras, perception, self.model.stride, readout_side(self.model))
            rgb = self.model.decode(view.latents)
            self._remember(state, Pictures(view.latents, state.latents_seen, cameras, sound, rgb, stamps_ns[:1]))

        def placed(view: Views) -> Views:
            cameras = view.cameras.resized(view.depth_m.shape[1:])
            depth = behind_bodies(cameras, view.depth_m, state.entities, int(stamps_ns[0]))
            return replace(view, depth_m=free_space.behind_free(cameras, depth))

        imagine = Imagination(self.model, lambda camera: self._shown(replace(state, free_space=free_space), camera), placed, remember)
        style, seeds = self._style(state), [_noise_seed(self.config.seed, state.frames_seen + i) for i in range(len(cells))]
        return stacked([imagine(cells[i : i + 1], style, seed) for i, seed in enumerate(seeds)]), free_space

    def _style(self, state: WorldState) -> Views:
        """The last frame and the seed, for how the world looks."""
        ids = list(dict.fromkeys((state.latents_seen - 1, 0)))
        cells = self.readout_cameras(Camera.stack([state.cameras[i] for i in ids]))
        depth = cell_depth(self._shown(state, cells).depth_m, readout_cells(self.model))
        return Views(self._bank(state, ids), depth, cells)

    def generate(self, draft: Draft) -> Float[torch.Tensor, "n c lh lw"]:
        """The draft's latents. Knows no state and changes none."""
        with _timed(draft.seconds, "generate"):
            if imagines(self.model):
                return check_latents(put_together(self.model, draft.readout, draft.imagined), self.model, len(draft.cells))
            latents = self.model.generate(
                draft.readout, draft.cells, draft.preceding, draft.references, draft.noise
            )
            return check_latents(latents, self.model, len(draft.cells))

    def finish(
        self, state: WorldState, draft: Draft, latents: Float[torch.Tensor, "n c lh lw"], decoded: Decoded | None = None
    ) -> tuple[WorldState, Chunk]:
        """Decodes, perceives and writes into the memory of a state that is nobody else's.

        Returns the state after the chunk, and the chunk.
        """
        model, seconds = self.model, draft.seconds
        cameras, stamps = draft.cameras, draft.stamps_ns
        with _timed(seconds, "decode"):
            rgb, decoder = decode_next(model, latents, state.decoder, len(stamps))
            check_pictures(rgb, model, len(stamps))
        if decoded is not None:
            decoded(rgb)
        with _timed(seconds, "perceive"):
            if imagines(model):
                perception = in_range(surfaces_of(model, draft.imagined, draft.shown), MAX_DEPTH_M)
            else:
                anchor = draft.shown.depth_m if np.isfinite(draft.shown.depth_m).any() else None
                perception = self._perceive(rgb, cameras, anchor)
        with _timed(seconds, "write"):
            if self.config.forget_moving == "none":
                perception = replace(perception, dynamic=np.zeros_like(perception.dynamic))
            seen_free = draft.free_space or state.free_space
            sound, free_space = carved(seen_free, cameras, perception, model.stride, readout_side(model))
            pictures = Pictures(latents, state.latents_seen, cameras, sound, rgb, stamps)
            self._remember(state, pictures)
        after = self.advanced(replace(state, free_space=free_space), draft, latents, decoder)
        return after, self._chunk(after, rgb, cameras, perception, draft.taken, stamps, seconds)

    def advanced(
        self,
        state: WorldState,
        draft: Draft,
        latents: Float[torch.Tensor, "n c lh lw"],
        decoder: DecoderState | None,
    ) -> WorldState:
        """The state with a chunk's latents, time and camera behind it; its memory is the same."""
        seen = state.frames_seen + len(draft.stamps_ns)
        kept, cameras = dict(state.latents), dict(state.cameras)
        anchors = anchor_frames(len(draft.stamps_ns), frames_per_latent(self.model))
        for i, (latent, frame) in enumerate(zip(latents.to("cpu", torch.float16), anchors, strict=True), state.latents_seen):
            kept[i], cameras[i] = latent, draft.cameras[int(frame)]
        grouped = state.grouped + len(draft.stamps_ns) - len(latents)
        oldest = seen - grouped - KEPT_LATENTS
        kept = {i: latent for i, latent in kept.items() if i == 0 or i >= oldest}
        return replace(
            state,
            latents=kept,
            cameras={i: camera for i, camera in cameras.items() if i in kept},
            frames_seen=seen,
            camera=draft.cameras[-1],
            stamp_ns=int(draft.stamps_ns[-1]),
            decoder=decoder,
            grouped=grouped,
        )

    def readout_cameras(self, cameras: Camera) -> Camera:
        """Cameras with a pixel for each cell of a readout."""
        return cameras.resized(readout_size(self.model))

    def _context(self, state: WorldState, readout: Readout) -> tuple[torch.Tensor, torch.Tensor]:
        """The latents of the last frames, and of the frames that memory shows most; none for an Imaginer."""
        if imagines(self.model):
            return self._bank(state, ()), self._bank(state, ())
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
        return in_range(check_perception(perception, self.model, len(rgb)), MAX_DEPTH_M)

    def _perceive_seed(self, rgb, cameras: Camera, depth_m: np.ndarray | None) -> Perception:
        """Perception of the seed; without measured depth the perceiver gives all of it."""
        model, forget = self.model, self.config.forget_moving
        if depth_m is None:
            perception = self._perceive(rgb, cameras, None)
        else:
            perception = perceive_seed(model, rgb, cameras, depth_m)
            perception = in_range(perception, MAX_DEPTH_M)
        moving = moving_in_real(model, rgb, forget, lambda: perception.dynamic)
        return replace(perception, dynamic=moving)

    def _shown(self, state: WorldState, cells: Camera) -> Readout:
        """What is remembered, surfaces and sky."""
        shown = state.memory.read(cells)
        if state.sky is None:
            return shown
        return before_sky(shown, state.sky, cells, state.free_space, readout_cells(self.model))

    def _remember(self, state: WorldState, pictures: Pictures) -> None:
        if self.config.use_memory:
            self.backend.write(state.memory, pictures, state.sky)

    def _chunk(self, state, rgb, cameras, perception, taken, stamps, seconds) -> Chunk:
        observed = upsample(taken, self.model.stride)
        frames = tuple(
            Frame(int(stamps[i]), cameras[i], rgb[i], perception.depth_m[i], observed[i])
            for i in range(len(stamps))
        )
        share = float(taken.mean())
        return Chunk(frames, seconds, share, state.memory.tokens, state.memory.nbytes)


def overlapped(
    cycle: Cycle, state: WorldState, plans: Sequence[Plan]
) -> Iterator[tuple[WorldState, Chunk]]:
    """After each of `plans`, at most a chunk long, the state and the chunk.

    A state that was given is looked at until the next one is asked for, and never changed.
    """
    with ThreadPoolExecutor(1, initializer=_take_own_stream) as thread:
        yield from in_order(cycle, state, plans, thread)


def in_order(
    cycle: Cycle, state: WorldState, plans: Sequence[Plan], thread: Executor
) -> Iterator[tuple[WorldState, Chunk]]:
    """The order of work itself; `thread` generates."""
    fork = state.forked()
    draft = cycle.read(fork, *plans[0])
    latents = thread.submit(cycle.generate, draft).result()
    for index in range(len(plans)):
        if index + 1 < len(plans):
            following = _read_early(cycle, fork, draft, latents, plans[index + 1])
            coming = thread.submit(cycle.generate, following)
        state, chunk = cycle.finish(fork, draft, latents)
        yield state, chunk
        if index + 1 < len(plans):
            fork = state.forked()
            draft, latents = _anchored_anew(cycle, fork, following), coming.result()


def _read_early(
    cycle: Cycle, state: WorldState, draft: Draft, latents: torch.Tensor, plan: Plan
) -> Draft:
    """The next chunk's draft, with this one's latents before it and not yet its memory."""
    return cycle.read(cycle.advanced(state, draft, latents, state.decoder), *plan)


def _anchored_anew(cycle: Cycle, state: WorldState, draft: Draft) -> Draft:
    """The draft with what memory shows by now, which its depth is aligned to.

    What came from memory is still what the network was shown.
    """
    fresh = state.memory.read(cycle.readout_cameras(draft.cameras))
    return replace(draft, shown=replace(draft.shown, depth_m=fresh.depth_m))


def _take_own_stream() -> None:
    """On CUDA a thread's kernels queue behind all others of its stream, so it takes its own."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
        torch.cuda.set_stream(torch.cuda.Stream())


def _noise_seed(seed: int, frame: int) -> int:
    return int(np.random.SeedSequence([seed, frame]).generate_state(1)[0])


@contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    report()
    start = time.perf_counter()
    yield
    seconds[stage] += time.perf_counter() - start
