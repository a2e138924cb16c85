"""Fills imagined parts of pictures with detail from what is seen: exemplar-based image quilting.

A small network that imagines what lies beyond the picture answers with the mean of all that could:
a blur in the room's colours. So patches of what memory shows and of an earlier frame are quilted over
the blur, which gives the wanted colours. The widest gap of a chunk is filled first, with the largest
patches; the other frames take over the same fill, warped into their views, so that the chunk is
consistent. Patches are pixels by the codec's linear part, two small matrices (`Aligner`): neither
decoder nor encoder runs. Latents of cells that memory shows come back unchanged.

After Efros and Freeman, "Image quilting for texture synthesis and transfer" (SIGGRAPH 2001): a
patch is taken from where the known pixels around the gap are most alike and where its mean colours
are those wanted in the gap. That neighbouring patches tend to come from neighbouring
positions is from Ashikhmin, "Synthesizing natural textures" (I3D 2001).

A least difference alone prefers smooth patches: they differ from everything by little. So part of a
busy patch's own variance is subtracted, up to that of the pixels around the gap: sky stays calm.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int, Int32, UInt8
from numba import njit

from mirage_ros.geometry.camera import Camera
from mirage_ros.geometry.images import upsample
from mirage_ros.models.mini.codec import BLOCK, Aligner, pixels_in, spread_inverse_depth

#: Pixels to a side of a cell, around it on each side of a patch, and to a side of a patch. Patches
#: are large enough to hold whole things: smaller ones are stirred to a pulp.
CELL = 8
RING = 12
SIDE = CELL + 2 * RING
#: States of a pixel: to be filled, filled by a patch that the next may blend into, not to change.
OPEN, FILLED, FIXED = 0, 1, 2

#: Where patches are sought: rows above and below the gap (cameras are upright), any column.
_REACH_ROWS = 12
_STEP = 4
#: How far a patch's colours may be shifted, of a range of 2: enough for shade, not for new colours.
_MAX_SHIFT = 0.06
#: Costs, of squared colour differences: of a shift, of other colours than wanted, of colours that
#: are quite other, of a row off.
_SHIFT, _WANTED, _FAR, _ROW = 0.5, 0.1, 0.4, 8e-5
#: The share of the cost that is let off a patch which continues its neighbour's.
_COHERENT = 0.2
#: The share of a patch's variance that is let off, and up to which variance of it.
_BUSY, _CALM, _LIVELY = 0.15, 0.02, 2.0
#: Pixels along a patch's edge that belong to no whole cell of it: their colours were not compared.
_UNTOLD = RING % CELL
#: Pixels from a patch's edge from where it is blended in, and over how many.
_BLEND_FROM, _BLEND = 6, 4


def quilt(
    picture: Float32[np.ndarray, "h w 3"],
    state: UInt8[np.ndarray, "h w"],
    cells: Int32[np.ndarray, "n 2"],
    wanted: Float32[np.ndarray, "r c 3"],
    sources: Sequence[tuple[Float32[np.ndarray, "h w 3"], Bool[np.ndarray, "h w"]]],
) -> None:
    """Fills open pixels in place; where no source has a whole patch they stay as they were.

    Args:
        picture: colours in [-1, 1].
        state: `OPEN`, `FILLED` or `FIXED`; what is filled becomes `FILLED`.
        cells: (row, column) of the cells with open pixels, in the order of filling.
        wanted: mean colour of each cell.
        sources: pictures of the same size, and where they may be borrowed from. Their mirror
            images are borrowed from as well: such a patch meets the edge as a corner would.
    """
    pictures = _mirrored([picture for picture, _ in sources])
    usable = _mirrored([_whole_patches(known) for _, known in sources])
    means = _mirrored([_cell_means(picture) for picture, _ in sources])
    busy = _mirrored([_variances(picture) for picture, _ in sources])
    _fill(picture, state, cells, wanted, (pictures, usable, means, busy))


def _mirrored(tables: Sequence[np.ndarray]) -> np.ndarray:
    return np.stack([*tables, *(table[:, ::-1] for table in tables)])


def _whole_patches(known: Bool[np.ndarray, "h w"]) -> UInt8[np.ndarray, "hp wp"]:
    """By first row and column (+ RING), whether all of a patch that is in the picture is known."""
    padded = np.pad(known.astype(np.uint8), RING, constant_values=1)
    window = np.ones((SIDE, SIDE), np.uint8)
    return cv2.erode(padded, window, anchor=(0, 0))[: 1 - SIDE, : 1 - SIDE]


def _cell_means(picture: Float32[np.ndarray, "h w 3"]) -> Float32[np.ndarray, "hp wp 3"]:
    """By first row and column, the mean colour of a cell."""
    return cv2.blur(picture, (CELL, CELL), anchor=(0, 0))[: 1 - CELL, : 1 - CELL]


def _variances(picture: Float32[np.ndarray, "h w 3"]) -> Float32[np.ndarray, "hp wp"]:
    """By first row and column (+ RING), a patch's variance, summed over colours."""
    padded = cv2.copyMakeBorder(picture, RING, RING, RING, RING, cv2.BORDER_REPLICATE)
    mean, square = (
        cv2.blur(values, (SIDE, SIDE), anchor=(0, 0)) for values in (padded, padded * padded)
    )
    return (square - mean * mean).sum(-1)[: 1 - SIDE, : 1 - SIDE]


@njit(cache=True, nogil=True)
def _fill(picture, state, cells, wanted, sources):
    shifts = np.full((*wanted.shape[:2], 3), -1, np.int32)
    for i in range(len(cells)):
        r, c = cells[i]
        top, left = r * CELL - RING, c * CELL - RING
        own = state[r * CELL : (r + 1) * CELL, c * CELL : (c + 1) * CELL]
        if (own != OPEN).all():
            continue
        gap = _wanted(wanted, state, top, left)
        around = _known(picture, state, top, left, 8)
        limit = _CALM + _LIVELY * _spread(around)
        k, y, x = _search(sources, top, left, around, gap, limit)
        if k < 0:
            continue
        around = _known(picture, state, top, left, 2)
        k, y, x = _refine(sources, top, left, around, gap, limit, k, y, x, shifts, r, c)
        _, red, green, blue = _cost(sources, k, y, x, around, gap, limit)
        _paste(picture, state, top, left, sources[0][k], y, x, (red, green, blue))
        shifts[r, c, 0], shifts[r, c, 1], shifts[r, c, 2] = k, y - top, x - left


@njit(cache=True, nogil=True)
def _known(picture, state, top, left, step):
    """Positions in the patch and colours of every step-th pixel that is not open."""
    positions, values = np.empty((SIDE * SIDE, 2), np.int32), np.empty((SIDE * SIDE, 3), np.float32)
    n = 0
    for y in range(max(0, -top), min(SIDE, state.shape[0] - top)):
        for x in range(y % step, SIDE, step):
            if 0 <= left + x < state.shape[1] and state[top + y, left + x] != OPEN:
                positions[n, 0], positions[n, 1] = y, x
                values[n] = picture[top + y, left + x]
                n += 1
    return positions[:n], values[:n]


@njit(cache=True, nogil=True)
def _wanted(wanted, state, top, left):
    """Positions in the patch and mean colours of its cells that are open in the middle."""
    positions, values = np.empty((SIDE, 2), np.int32), np.empty((SIDE, 3), np.float32)
    n, half = 0, CELL // 2
    for r in range(len(wanted)):
        for c in range(wanted.shape[1]):
            y, x = r * CELL - top, c * CELL - left
            inside = 0 <= y <= SIDE - CELL and 0 <= x <= SIDE - CELL
            if inside and state[r * CELL + half, c * CELL + half] == OPEN:
                positions[n, 0], positions[n, 1] = y, x
                values[n] = wanted[r, c]
                n += 1
    return positions[:n], values[:n]


@njit(cache=True, nogil=True)
def _spread(around):
    values, total = around[1], 0.0
    for colour in range(3):
        if len(values):
            total += np.var(values[:, colour])
    return total


@njit(cache=True, nogil=True)
def _differences(picture, y, x, samples, far):
    """Mean differences from the picture by colour, and the mean of their squares (and fourths)."""
    positions, values = samples
    red = green = blue = squares = np.float32(0)
    for i in range(len(positions)):
        v, u = y + positions[i, 0], x + positions[i, 1]
        a = values[i, 0] - picture[v, u, 0]
        b = values[i, 1] - picture[v, u, 1]
        c = values[i, 2] - picture[v, u, 2]
        square = a * a + b * b + c * c
        red, green, blue = red + a, green + b, blue + c
        squares += square + np.float32(far) * square * square
    n = np.float32(max(len(positions), 1))
    return red / n, green / n, blue / n, squares / n


@njit(cache=True, nogil=True)
def _cost(sources, k, y, x, around, gap, limit):
    """What the patch at (y, x) of source k costs, and the shift of its three colours."""
    pictures, _, means, busy = sources
    near = _differences(pictures[k], y, x, around, 0.0)
    off = _differences(means[k], y, x, gap, _FAR / _WANTED)
    share = len(around[0]) / (len(around[0]) + len(gap[0]) + 1.0)
    red = _shift(share * near[0] + (1 - share) * off[0])
    green = _shift(share * near[1] + (1 - share) * off[1])
    blue = _shift(share * near[2] + (1 - share) * off[2])
    squares = red * red + green * green + blue * blue
    cost = near[3] + _WANTED * off[3] + (_SHIFT + _WANTED) * squares
    if len(around[0]):
        cost += squares - 2 * (red * near[0] + green * near[1] + blue * near[2])
    cost -= 2 * _WANTED * (red * off[0] + green * off[1] + blue * off[2])
    cost -= _BUSY * min(busy[k, y + RING, x + RING], limit)
    return cost, red, green, blue


@njit(cache=True, nogil=True)
def _shift(value):
    return np.float32(min(max(value, -_MAX_SHIFT), _MAX_SHIFT))


@njit(cache=True, nogil=True)
def _usable(usable, k, y, x, top, left):
    """Whether the patch is known, and in its picture wherever the gap's patch is in its own."""
    height, width = usable.shape[1] + CELL - 1, usable.shape[2] + CELL - 1
    if y < min(0, top) or y + SIDE > max(height, top + SIDE):
        return False
    if x < min(0, left) or x + SIDE > max(width, left + SIDE):
        return False
    return usable[k, y + RING, x + RING] > 0


@njit(cache=True, nogil=True)
def _search(sources, top, left, around, gap, limit):
    """Source, row and column of the best patch of a coarse grid; -1 where there is none."""
    best, found = np.inf, (-1, 0, 0)
    for k in range(len(sources[0])):
        for y in range(top - _REACH_ROWS, top + _REACH_ROWS + 1, _STEP):
            for x in range(-RING, sources[0].shape[2] - SIDE + RING + 1, _STEP):
                if _usable(sources[1], k, y, x, top, left):
                    cost = _cost(sources, k, y, x, around, gap, limit)[0] + _ROW * (y - top) ** 2
                    if cost < best:
                        best, found = cost, (k, y, x)
    return found


@njit(cache=True, nogil=True)
def _refine(sources, top, left, around, gap, limit, k, y, x, shifts, r, c):
    """The best patch close to (y, x), or one that continues a neighbour's if about as good."""
    best, found = np.inf, (k, y, x)
    for v in range(y - _STEP + 1, y + _STEP):
        for u in range(x - _STEP + 1, x + _STEP):
            if _usable(sources[1], k, v, u, top, left):
                cost = _cost(sources, k, v, u, around, gap, limit)[0] + _ROW * (v - top) ** 2
                if cost < best:
                    best, found = cost, (k, v, u)
    for dr, dc in ((-1, 0), (1, 0), (0, -1), (0, 1)):
        row, column = r + dr, c + dc
        if not (0 <= row < shifts.shape[0] and 0 <= column < shifts.shape[1]):
            continue
        j, v, u = shifts[row, column]
        v, u = top + v, left + u
        if j >= 0 and _usable(sources[1], j, v, u, top, left):
            cost = _cost(sources, j, v, u, around, gap, limit)[0]
            cost += _ROW * (v - top) ** 2 - _COHERENT * abs(cost)
            if cost < best:
                best, found = cost, (j, v, u)
    return found


@njit(cache=True, nogil=True)
def _paste(picture, state, top, left, source, y, x, shift):
    """Copies a patch: as it is where open, blended in where filled, not where fixed."""
    for dy in range(max(0, -top), min(SIDE, state.shape[0] - top)):
        for dx in range(max(0, -left), min(SIDE, state.shape[1] - left)):
            v, u = top + dy, left + dx
            if state[v, u] == FIXED:
                continue
            weight, inside = 1.0, min(min(dy, SIDE - 1 - dy), min(dx, SIDE - 1 - dx)) + 0.5
            if state[v, u] == FILLED:
                weight = min(max((inside - _BLEND_FROM) / _BLEND, 0.0), 1.0)
            elif inside < _UNTOLD:
                continue
            for colour in range(3):
                new = source[y + dy, x + dx, colour] + shift[colour]
                picture[v, u, colour] += np.float32(weight) * (new - picture[v, u, colour])
            state[v, u] = FILLED


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
            positions = pixels_in(cameras[j], cameras[i], inverse, gaps.shape[1:])
            _carry(filled[j], gaps[j], positions, filled[i], state)
        wanted = cv2.resize(pictures[i], unseen.shape[:0:-1], interpolation=cv2.INTER_AREA)
        sources = [(pictures[i], ~gaps[i]), (exemplar, np.ones_like(gaps[i]))]
        quilt(filled[i], state, _inwards(state), wanted, sources)
        _sharpen(filled[i], state == FILLED)
        done.append(i)
    return filled


def _carry(
    source: Float32[np.ndarray, "H W 3"],
    gap: Bool[np.ndarray, "H W"],
    positions: Float32[np.ndarray, "H W 2"],
    picture: Float32[np.ndarray, "H W 3"],
    state: UInt8[np.ndarray, "H W"],
) -> None:
    """Takes over, in place, what another frame imagined; what it saw may hide what is open here."""
    imagined = cv2.remap(gap.astype(np.float32), positions, None, cv2.INTER_LINEAR)
    taken = (state == OPEN) & (imagined > 0.99)
    if taken.any():
        picture[taken] = cv2.remap(source, positions, None, cv2.INTER_CUBIC)[taken]
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
