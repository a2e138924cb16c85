"""Triangles made fewer, shaded, fitted to a size, and searched for tops that things can stand on."""

from __future__ import annotations

import numpy as np

CREASE_DEG = 40.0
CELLS, FLAT_M, LEAST_TOP_M, LEAST_CLEAR_M, OPEN_M = 26, 0.008, 0.09, 0.12, 2.0


class TooIntricate(Exception):
    """A shape that falls apart before it has few enough triangles."""


class Piece:
    """Triangles of one material: (m, 3, 3) corners, (m, 3, 2) texture coordinates or None."""

    def __init__(self, corners, texcoords, picture, rgb) -> None:
        self.corners, self.texcoords, self.picture, self.rgb = corners, texcoords, picture, rgb

    @property
    def area(self) -> float:
        return float(areas_of(self.corners).sum())


def areas_of(corners: np.ndarray) -> np.ndarray:
    a, b, c = corners[:, 0], corners[:, 1], corners[:, 2]
    return np.linalg.norm(np.cross(b - a, c - a), axis=1) / 2


def fit(pieces: list[Piece], size_m: np.ndarray) -> None:
    """Scales all pieces together to the stated box, centred over the origin, standing on z = 0."""
    every = np.concatenate([piece.corners.reshape(-1, 3) for piece in pieces])
    low, high = every.min(0), every.max(0)
    scale = size_m / np.maximum(high - low, 1e-9)
    middle = np.array([(low[0] + high[0]) / 2, (low[1] + high[1]) / 2, low[2]])
    for piece in pieces:
        piece.corners = (piece.corners - middle) * scale


def can_simplify() -> bool:
    try:
        import fast_simplification  # noqa: F401
    except ImportError:
        return False
    return True


def simplified(pieces: list[Piece], target: int) -> list[Piece]:
    """With about `target` triangles, more where fewer would eat the surface.

    Raises:
        TooIntricate: more than three times as many would be needed.
    """
    count, area = sum(len(piece.corners) for piece in pieces), sum(piece.area for piece in pieces)
    if count <= 1.3 * target:
        return pieces
    if not can_simplify():
        return pieces
    counts, wide = np.array([len(p.corners) for p in pieces]), np.sqrt([p.area for p in pieces])
    shares = (counts / count + wide / max(wide.sum(), 1e-9)) / 2
    for more in (1, 1.8, 3):
        wanted = np.maximum(8, np.round(more * target * shares)).astype(int)
        made = [_decimated(piece, most) for piece, most in zip(pieces, wanted, strict=True)]
        # Beads and threads that cannot be simplified and are hardly seen.
        made = [
            p for p, most in zip(made, wanted, strict=True)
            if len(p.corners) < 3 * most + 40 or p.area > 0.05 * area
        ]  # fmt: skip
        kept = sum(piece.area for piece in made) > 0.8 * area
        if kept and sum(len(piece.corners) for piece in made) < 1.5 * more * target + 100:
            return made
    for bits in (6, 2.2):
        thin = [_thinned(piece, int(max(8, bits * target * share))) for piece, share in zip(pieces, shares, strict=True)]
        made = [_decimated(piece, int(max(8, 2.2 * target * share))) for piece, share in zip(thin, shares, strict=True)]
        made = [piece for piece in made if len(piece.corners)]
        if sum(p.area for p in made) > 0.25 * area and sum(len(p.corners) for p in made) < 3 * target + 200:
            return made
    raise TooIntricate


def _thinned(piece: Piece, target: int) -> Piece:
    """Some of its separate bits (leaves, books, spokes), the largest first and of those alike every few."""
    if len(piece.corners) <= target:
        return piece
    points = np.unique(np.round(piece.corners.reshape(-1, 3) * 1e4).astype(np.int64), axis=0, return_inverse=True)[1]
    faces = points.reshape(-1, 3)
    label = np.arange(points.max() + 1)
    while True:  # the lowest number of a bit spreads over it
        lowest = label[faces].min(1)
        before = label.copy()
        np.minimum.at(label, faces.ravel(), np.repeat(lowest, 3))
        label = label[label]
        if (label == before).all():
            break
    bit = np.unique(label[faces[:, 0]], return_inverse=True)[1].ravel()
    areas, sizes = np.bincount(bit, areas_of(piece.corners)), np.bincount(bit)
    order = np.argsort(-areas * np.random.default_rng(0).uniform(0.3, 1, len(areas)) / sizes)
    kept = np.zeros(len(areas), bool)
    kept[order[np.cumsum(sizes[order]) <= target]] = True
    keep = kept[bit]
    texcoords = None if piece.texcoords is None else piece.texcoords[keep]
    return Piece(piece.corners[keep], texcoords, piece.picture, piece.rgb)


def _decimated(piece: Piece, target: int) -> Piece:
    if len(piece.corners) <= target:
        return piece
    import fast_simplification

    points, faces = _welded(piece.corners)
    if len(faces) <= target:
        return Piece(points[faces], _carried(piece, points[faces]), piece.picture, piece.rgb)
    points, faces = fast_simplification.simplify(
        points.astype(np.float32), faces, target_count=target, agg=5
    )
    corners = points.astype(float)[faces]
    corners = corners[areas_of(corners) > 1e-9]
    if not len(corners):
        return piece
    return Piece(corners, _carried(piece, corners), piece.picture, piece.rgb)


def _welded(corners: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Points (to a tenth of a millimetre) and the faces between them without those of no area."""
    flat = corners.reshape(-1, 3)
    _, first, back = np.unique(
        np.round(flat * 1e4).astype(np.int64), axis=0, return_index=True, return_inverse=True
    )
    faces = back.reshape(-1, 3)
    whole = (faces[:, 0] != faces[:, 1]) & (faces[:, 1] != faces[:, 2]) & (faces[:, 2] != faces[:, 0])
    return flat[first], faces[whole].astype(np.int32)


def _carried(piece: Piece, corners: np.ndarray) -> np.ndarray | None:
    """Texture coordinates for new corners: of the nearest old triangle, a little inside the face."""
    if piece.texcoords is None:
        return None
    middle = corners.mean(1, keepdims=True)
    wanted = (0.9 * corners + 0.1 * middle).reshape(-1, 3)
    samples, owner = _samples(piece.corners)
    nearest = np.empty(len(wanted), int)
    for start in range(0, len(wanted), 256):
        block = wanted[start : start + 256]
        far = (samples**2).sum(1)[None] - 2 * block @ samples.T
        nearest[start : start + 256] = owner[far.argmin(1)]
    weights = _barycentric(corners.reshape(-1, 3), piece.corners[nearest])
    return np.einsum("nk,nkc->nc", weights, piece.texcoords[nearest]).reshape(-1, 3, 2)


def _samples(corners: np.ndarray, most: int = 6000) -> tuple[np.ndarray, np.ndarray]:
    """Points on triangles, more on big ones, and whose they are."""
    rng, areas = np.random.default_rng(0), areas_of(corners) + 1e-12
    count = int(np.clip(2 * len(corners), 500, most))
    owner = np.concatenate([
        rng.choice(len(corners), count, p=areas / areas.sum()),
        np.arange(len(corners)) if len(corners) < most else rng.integers(len(corners), size=most),
    ])  # fmt: skip
    weights = rng.dirichlet((1, 1, 1), len(owner))
    return np.einsum("nk,nkc->nc", weights, corners[owner]), owner


def _barycentric(points: np.ndarray, triangles: np.ndarray) -> np.ndarray:
    """(n, 3) weights of points near their triangles' planes, kept near the triangles."""
    a, b, c = triangles[:, 0], triangles[:, 1], triangles[:, 2]
    u, v, w = b - a, c - a, points - a
    uu, uv, vv = ((p * q).sum(1) for p, q in ((u, u), (u, v), (v, v)))
    wu, wv = (w * u).sum(1), (w * v).sum(1)
    scale = np.maximum(uu * vv - uv * uv, 1e-14)
    second, third = (vv * wu - uv * wv) / scale, (uu * wv - uv * wu) / scale
    weights = np.clip(np.stack([1 - second - third, second, third], 1), -0.5, 1.5)
    return weights / weights.sum(1, keepdims=True)


def smooth_normals(corners: np.ndarray) -> np.ndarray:
    """(m, 3, 3): for each corner the mean normal of the faces there that lie within the crease."""
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    areas = np.linalg.norm(normals, axis=1, keepdims=True)
    unit = normals / np.maximum(areas, 1e-12)
    flat = np.round(corners.reshape(-1, 3) * 1e4).astype(np.int64)
    point = np.unique(flat, axis=0, return_inverse=True)[1].ravel()
    order = np.argsort(point, kind="stable")
    face = order // 3
    starts = np.flatnonzero(np.r_[True, np.diff(point[order]) > 0])
    sizes = np.diff(np.r_[starts, len(order)])
    smooth = np.repeat(unit[:, None], 3, 1).reshape(-1, 3)
    for start, size in zip(starts, sizes, strict=True):
        around = face[start : start + size]
        if 1 < size < 400:
            close = unit[around] @ unit[around].T > np.cos(np.radians(CREASE_DEG))
            smooth[order[start : start + size]] = close @ normals[around]
    smooth /= np.maximum(np.linalg.norm(smooth, axis=1, keepdims=True), 1e-12)
    return smooth.reshape(-1, 3, 3)



def find_tops(corners: np.ndarray) -> np.ndarray:
    """Rectangles of a model's (m, 3, 3) triangles on which other things can stand and be seen.

    Returns: (k, 6) x0, x1, y0, y1, z and the clear height above; the widest of each height.
    """
    points = corners.reshape(-1, 3)
    low, high = points.min(0), points.max(0)
    grid = [low[k] + (np.arange(CELLS) + 0.5) / CELLS * (high[k] - low[k]) for k in (0, 1)]
    cell, level, up = _pierced(corners, grid, (0, 1, 2))
    order = np.lexsort((level, cell))
    cell, level, up = cell[order], level[order], up[order]
    last = np.r_[cell[1:] != cell[:-1], True]
    clear = np.where(last, OPEN_M, np.r_[level[1:], 0] - level)
    free = (up > 0.9) & (clear > LEAST_CLEAR_M)
    cell, level, clear = cell[free], level[free], clear[free]
    tops, left = [], np.ones(len(cell), bool)
    while left.sum() > 4 and len(tops) < 6:
        bins = np.round(level[left] / FLAT_M).astype(int)
        common = np.bincount(bins - bins.min()).argmax() + bins.min()
        near = np.abs(level - common * FLAT_M) < FLAT_M
        left &= ~near
        mask = np.zeros((CELLS, CELLS), bool)
        mask.flat[cell[near]] = True
        x0, x1, y0, y1 = _largest_rectangle(mask)
        inside = near & (cell // CELLS >= x0) & (cell // CELLS < x1)
        inside &= (cell % CELLS >= y0) & (cell % CELLS < y1)
        if not inside.any():
            continue
        rect = (grid[0][x0], grid[0][x1 - 1], grid[1][y0], grid[1][y1 - 1])
        room = float(clear[inside].min())
        if min(rect[1] - rect[0], rect[3] - rect[2]) >= LEAST_TOP_M:
            top = np.array([*rect, level[inside].max(), room])
            if room >= OPEN_M or _open_in_front(corners, top):
                tops.append(top)
    return np.array(sorted(tops, key=lambda t: t[4]), np.float32).reshape(-1, 6)


def _pierced(corners, grid, axes) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where lines along the last of `axes`, through a grid over the others, meet triangles.

    Returns: line number, place along the line and the unit normal's part along it, of every hit.
    """
    first, second, along = (corners[..., k] for k in axes)
    a, b = np.meshgrid(*grid, indexing="ij")
    a, b = a.reshape(-1, 1), b.reshape(-1, 1)
    weights = []
    for k in range(3):
        i, j = (k + 1) % 3, (k + 2) % 3
        weights.append((first[:, j] - first[:, i]) * (b - second[:, i])
                       - (second[:, j] - second[:, i]) * (a - first[:, i]))  # fmt: skip
    weights = np.stack(weights)
    whole = weights.sum(0)
    hit = ((weights >= 0).all(0) | (weights <= 0).all(0)) & (np.abs(whole) > 1e-12)
    line, face = np.nonzero(hit)
    place = (weights[:, line, face] * along[face].T).sum(0) / whole[line, face]
    normal = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    normal /= np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-12)
    return line, place, normal[face, axes[2]]


def _largest_rectangle(mask: np.ndarray) -> tuple[int, int, int, int]:
    """The all-true rectangle of most cells: rows from, to and columns from, to."""
    best, most, heights = (0, 0, 0, 0), 0, np.zeros(mask.shape[1], int)
    for row in range(mask.shape[0]):
        heights = np.where(mask[row], heights + 1, 0)
        for start in np.flatnonzero(heights):
            lowest = np.minimum.accumulate(heights[start:])
            areas = lowest * np.arange(1, len(lowest) + 1)
            stop = int(areas.argmax())
            if areas[stop] > most:
                most = int(areas[stop])
                best = (row + 1 - int(lowest[stop]), row + 1, int(start), int(start) + stop + 1)
    return best


def _open_in_front(corners: np.ndarray, top: np.ndarray) -> bool:
    """Whether what stands on a board shows: from the front nothing comes before the back."""
    grid = (np.linspace(top[0], top[1], 9), top[4] + min(top[5], 0.3) * np.array([0.3, 0.6]))
    line, place, _ = _pierced(corners, grid, (0, 2, 1))
    nearest = np.full(18, -np.inf)
    np.maximum.at(nearest, line, place)
    return (nearest < top[2] + 0.3 * (top[3] - top[2])).mean() > 0.7
