"""Rollouts that generate a chunk while the one before it is decoded, perceived and written.

    read 1, generate 1 | read 2, generate 2           | read 3, generate 3           |
                       | decode 1, perceive 1, write 1 | decode 2, perceive 2, write 2 |

The price: chunk 2 is read before chunk 1 is written, so what memory shows lags by one chunk.
What chunk 1 has imagined reaches chunk 2 through the latents that precede it alone. Where that
is not enough chunk 2 imagines anew; memory keeps what was written first. Depth is aligned to
all that has been written, without lag.

The generating thread is given copies and touches no world, so the frames are those of the
same order of work on one thread, bit by bit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from mirage_ros.errors import MirageError
from mirage_ros.geometry.camera import Camera
from mirage_ros.protocol import Chunk
from mirage_ros.world.state import Draft, WorldState

if TYPE_CHECKING:
    from mirage_ros.world.world import World


Plan = tuple[Camera, np.ndarray]


def overlapped(world: World, plans: Sequence[Plan]) -> Iterator[Chunk]:
    """The chunks of `plans`, each at most a chunk long.

    Between two chunks the world may be looked at and saved but not changed, else the next one
    raises MirageError. A rollout that fails or is left early leaves the world after the last
    chunk that it gave.
    """
    with ThreadPoolExecutor(1, initializer=_take_own_stream) as thread:
        yield from lagged(world, plans, thread)


def lagged(world: World, plans: Sequence[Plan], thread: Executor) -> Iterator[Chunk]:
    """The order of work itself; `thread` generates."""
    fork = world._seeded().forked()
    draft = world._read(fork, *plans[0])
    latents = thread.submit(world._generate, draft).result()
    for index in range(len(plans)):
        if index + 1 < len(plans):
            after = _read_ahead(world, fork, draft, latents, plans[index + 1])
            coming = thread.submit(world._generate, after)
        left, chunk = world._finish(fork, draft, latents)
        world.state = left
        yield chunk
        if world.state is not left:
            raise MirageError(
                "The world was changed between two chunks of a rollout with overlap_decode, whose "
                "next chunk was begun already; end the rollout first, or set it to false."
            )
        if index + 1 < len(plans):
            fork = left.forked()
            draft, latents = _anchored_anew(world, fork, after), coming.result()


def _read_ahead(
    world: World, state: WorldState, draft: Draft, latents: torch.Tensor, plan: Plan
) -> Draft:
    """The next chunk's draft, with this one's latents before it and not yet its memory."""
    ahead = world._advanced(state, latents, draft.cameras, draft.stamps_ns, state.decoder)
    return world._read(ahead, *plan)


def _anchored_anew(world: World, state: WorldState, draft: Draft) -> Draft:
    """The draft with what memory shows by now, which its depth is aligned to.

    What came from memory is still what the network was shown.
    """
    cells = world._shown(draft.cameras)
    fresh = state.memory.read(cells, draft.stamps_ns)
    return replace(draft, shown=replace(draft.shown, depth_m=fresh.depth_m))


def _take_own_stream() -> None:
    """On CUDA a thread's kernels queue behind all others of its stream, so it takes its own."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
        torch.cuda.set_stream(torch.cuda.Stream())
