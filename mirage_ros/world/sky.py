"""The sky of a world, remembered by where in it one looks: it has no place, so it is kept out of the latent memory.

Its tokens lie so far away that nothing moves them, in a memory of their own. A ray meets them where memory shows nothing before them
and a view saw the space along it to be free: where nobody has looked a wall may stand.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Bool

from mirage_ros.geometry.camera import Camera
from mirage_ros.geometry.images import cell_share, upsample
from mirage_ros.memory.free_space import MARGIN, FreeSpaceViews
from mirage_ros.protocol import Readout, SpatialMemory

FAR_M, MOST_BYTES = 10_000.0, 8 * 2**20
#: Where along a ray its space is looked at: nearer ones leave a picture's border at the first step aside.
ALONG_M = 2.0 ** np.arange(1, 7)


def sky_config(config):
    """The MemoryConfig of the sky beside a memory of this one."""
    return replace(config, max_bytes=min(MOST_BYTES, config.max_bytes))


def before_sky(shown: Readout, sky: SpatialMemory, cells: Camera, free_space: FreeSpaceViews, side: int) -> Readout:
    """What memory shows, and the sky where it shows nothing: visible, infinitely far, of no row of the memory.

    Args:
        cells: the cameras, with a pixel for each cell of the readout.
        side: cells of it to a side of each latent cell.
    """
    if not sky.tokens or shown.visible.all():
        return shown
    far = sky.read(cells)
    found = ~shown.visible & far.visible
    wanted = cell_share(found, side) > 0
    found &= upsample(wanted & _free(cells.resized(wanted.shape[1:]), wanted, free_space), side)
    both = torch.from_numpy(found)[:, None]
    return Readout(
        latents=torch.where(both, far.latents, shown.latents), visible=shown.visible | found,
        depth_m=np.where(found, np.float32(np.inf), shown.depth_m), index=shown.index,
        place=np.where(found[:, None], far.place, shown.place), log_scale=np.where(found, far.log_scale, shown.log_scale),
    )  # fmt: skip


def _free(cameras: Camera, wanted: Bool[np.ndarray, "f h w"], free_space: FreeSpaceViews) -> Bool[np.ndarray, "f h w"]:
    """Of the wanted pixels those along whose rays views saw free space, as far as they looked."""
    frame = np.nonzero(wanted)[0]
    points = cameras.position_world[frame][:, None] + cameras.rays_world()[wanted][:, None] * ALONG_M[:, None]
    found = np.zeros(wanted.shape, bool)
    found[wanted] = free_space.seen_free(points.reshape(-1, 3), MARGIN, beyond=True).reshape(-1, len(ALONG_M)).all(1)
    return found
