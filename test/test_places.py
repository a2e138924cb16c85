"""Where a cell's centre lies in its token's own cell: exact for planes, however slanted."""

import numpy as np
import pytest
from analytic import cameras, look, offsets, raycast, remember, room

from mirage_ros.memory import LatentMemory, MemoryConfig

SOURCE = cameras([look((0, -2, 1.2), (0, 4, 1.0))])
LATER = [
    look((0.1, -1.2, 1.2), (0.2, 4, 1.0)),  # on towards the wall: the floor is stretched
    look((0.4, -2.2, 1.5), (-0.5, 4, 0.8), roll_deg=10),
    look((-0.6, -1.8, 0.9), (0.5, 4, 1.2)),
]


def truth_of(later, readout):
    """(du, dv) by ray casting, and where cell and token show the same rectangle."""
    depth, number, _ = raycast(later, room())
    points = later.lift(depth)[0]
    seen = SOURCE[0].project(points.reshape(-1, 3))[0].reshape(*number.shape[1:], 2)
    tokens, shown = _token_cells(readout)
    same = readout.visible[0] & (shown == number[0])
    return (seen - tokens).transpose(2, 0, 1), same


def _token_cells(readout):
    """The birth cell (u, v) of each cell's token, and the rectangle that it shows."""
    number = np.rint(readout.latents[0, 0].numpy()).astype(int)
    quads = room()
    point = np.zeros((*number.shape, 3))
    for i, quad in enumerate(quads):
        s, t = (readout.latents[0, k].numpy()[..., None] for k in (1, 2))
        here = np.asarray(quad.corner) + s * np.asarray(quad.a) + t * np.asarray(quad.b)
        point[number == i] = here[number == i]
    cells = SOURCE[0].project(point.reshape(-1, 3))[0].reshape(*number.shape, 2)
    return np.rint(cells), number


@pytest.mark.parametrize("pose", LATER, ids=["on", "aside", "rolled"])
@pytest.mark.parametrize("finer", [1, 4])
def test_a_cell_knows_its_place_in_the_token_that_it_shows(pose, finer):
    memory = LatentMemory(MemoryConfig(channels=4, dtype="float16"))
    remember(memory, SOURCE, room())
    later = cameras([pose], (44 * finer, 80 * finer))
    readout = memory.read(later)
    true, same = truth_of(later, readout)
    guess = -offsets(memory, later)[0] / np.exp(readout.log_scale[0])
    error, guessed = (np.abs(x - true).max(0)[same] for x in (readout.place[0], guess))
    assert same.mean() > 0.75
    assert np.median(error) < 0.01 and np.quantile(error, 0.9) < 0.1
    assert error.mean() < 0.6 * guessed.mean()
    assert not readout.place[0][:, ~readout.visible[0]].any()


def test_a_camera_at_home_finds_every_centre_in_the_middle():
    memory = LatentMemory(MemoryConfig(channels=4))
    remember(memory, SOURCE, room())
    readout = memory.read(SOURCE)
    assert np.abs(readout.place).max() < 1e-4
