"""Detail for what is imagined, borrowed from what is seen.

A small network that is asked what lies beyond the picture answers with the mean of all that could:
fog in the room's colours. So patches of what memory shows and of an earlier frame are quilted over
the fog, which tells the colours that are wanted (quilting.py).

The widest gap of a chunk is filled first, with the largest pieces; the other frames show the same
fill from where they stand (carrying.py), so that the chunk agrees with itself.

Patches are pixels by the codec's linear part, which is two small matrices (alignment.py): neither
decoder nor encoder runs. Latents of cells that memory shows are handed back as they came.
"""

from __future__ import annotations

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int, UInt8

from mirage_ros.core.camera import Camera
from mirage_ros.core.pictures import upsample
from mirage_ros.models.alignment import BLOCK, Aligner
from mirage_ros.models.carrying import places_in, spread_inverse_depth
from mirage_ros.models.quilting import FILLED, FIXED, OPEN, quilt

#: What is borrowed was blurred by memory once and will be again: left as it is it would fade from
#: one copy to the next. The share of its difference from a blurred self (px) that is added at most,
#: and the root mean square of that difference which is not exceeded, or copies of copies would end
#: as noise (of a range of 2; training clips have 0.05, 0.04 to 0.06).
_SHARPEN, _BLUR_PX, _MOST_DETAIL = 0.8, 1.0, 0.09


@torch.no_grad()
def borrow_detail(
    aligner: Aligner,
    latents: Float[torch.Tensor, "f c h w"],
    unseen: Bool[np.ndarray, "f h w"],
    exemplar: Float[torch.Tensor, "c h w"],
    cameras: Camera,
    depth_m: Float[np.ndarray, "f hc wc"],
) -> Float[torch.Tensor, "f c h w"]:
    """The chunk's latents with detail in the cells that are not seen; all others as they were.

    The same for the same input: nothing is drawn.

    Args:
        latents: as the network predicts them.
        unseen: the cells to fill.
        exemplar: latents of an earlier frame, all of which may be borrowed.
        cameras: f of them.
        depth_m: what memory shows, NaN unseen, on a grid that may be finer than the latents.
    """
    if not unseen.any():
        return latents
    before = _pixels(aligner, latents)
    after = _filled(before, unseen, _pixels(aligner, exemplar[None])[0], cameras, depth_m)
    change = torch.from_numpy(after - before).permute(0, 3, 1, 2).to(aligner.block_mean.device)
    changed = latents + aligner.change(change).to(latents.device)
    return torch.where(torch.from_numpy(unseen)[:, None].to(latents.device), changed, latents)


def _pixels(aligner: Aligner, latents: torch.Tensor) -> Float32[np.ndarray, "f H W 3"]:
    pictures = aligner.pictures(latents.float().to(aligner.block_mean.device))
    return np.ascontiguousarray(pictures.permute(0, 2, 3, 1).cpu().numpy())


def _filled(
    pictures: Float32[np.ndarray, "f H W 3"],
    unseen: Bool[np.ndarray, "f h w"],
    exemplar: Float32[np.ndarray, "H W 3"],
    cameras: Camera,
    depth_m: Float[np.ndarray, "f hc wc"],
) -> Float32[np.ndarray, "f H W 3"]:
    """The pictures with their unseen cells filled, the frame with the most of them first."""
    filled = pictures.copy()
    gaps = upsample(unseen, BLOCK)
    done: list[int] = []
    for i in np.argsort(-unseen.sum((1, 2)), kind="stable"):
        if not unseen[i].any():
            break
        state = np.where(gaps[i], OPEN, FIXED).astype(np.uint8)
        inverse = spread_inverse_depth(depth_m[i])
        for j in done:
            places = places_in(cameras[j], cameras[i], inverse, gaps.shape[1:])
            _carry(filled[j], gaps[j], places, filled[i], state)
        wanted = cv2.resize(pictures[i], unseen.shape[:0:-1], interpolation=cv2.INTER_AREA)
        sources = [(pictures[i], ~gaps[i]), (exemplar, np.ones_like(gaps[i]))]
        quilt(filled[i], state, _inwards(state), wanted, sources)
        _sharpen(filled[i], state == FILLED)
        done.append(i)
    return filled


def _carry(
    source: Float32[np.ndarray, "H W 3"],
    gap: Bool[np.ndarray, "H W"],
    places: Float32[np.ndarray, "H W 2"],
    picture: Float32[np.ndarray, "H W 3"],
    state: UInt8[np.ndarray, "H W"],
) -> None:
    """Takes over, in place, what another frame imagined; what it saw may hide what is open here."""
    imagined = cv2.remap(gap.astype(np.float32), places, None, cv2.INTER_LINEAR)
    taken = (state == OPEN) & (imagined > 0.99)
    if taken.any():
        picture[taken] = cv2.remap(source, places, None, cv2.INTER_CUBIC)[taken]
        state[taken] = FIXED


def _inwards(state: UInt8[np.ndarray, "H W"]) -> Int[np.ndarray, "n 2"]:
    """(row, column) of the cells with open pixels, from the border of what is known inwards."""
    height, width = state.shape
    cells = (state == OPEN).reshape(height // BLOCK, BLOCK, width // BLOCK, BLOCK).any((1, 3))
    away = cv2.distanceTransform(cells.astype(np.uint8), cv2.DIST_L1, 3)
    rows, columns = np.nonzero(cells)
    order = np.argsort(away[rows, columns], kind="stable")
    return np.stack([rows[order], columns[order]], 1).astype(np.int32)


def _sharpen(picture: Float32[np.ndarray, "H W 3"], where: Bool[np.ndarray, "H W"]) -> None:
    """In place, up to the most detail."""
    detail = (picture - cv2.GaussianBlur(picture, (0, 0), _BLUR_PX))[where]
    if detail.any():
        lacking = _MOST_DETAIL / np.sqrt(np.square(detail).mean()) - 1
        picture[where] += np.clip(lacking, 0, _SHARPEN) * detail
