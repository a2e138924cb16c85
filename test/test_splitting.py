"""Cells that show two surfaces are remembered by parts, each with a depth of its own."""

import numpy as np
import pytest
import torch

from mirage_ros.geometry.camera import Camera
from mirage_ros.memory import LatentMemory, MemoryConfig
from mirage_ros.memory.lifting import PARTS, shows_two_surfaces

SIZE, SIDE = (6, 8), 8
HOME = Camera.from_hfov(70.0, SIZE, np.eye(4)[None])
NEAR_M, FAR_M = 2.0, 4.0
EDGE = 4 * SIDE + 4
"""The column of pixels from which the far surface shows: the middle of cell 4."""


def stepped(edge=EDGE):
    """Depth of pixels: near to the left of a column, far from there on."""
    height, width = (side * SIDE for side in SIZE)
    row = np.where(np.arange(width) < edge, NEAR_M, FAR_M)
    return np.tile(row, (1, height, 1)).astype(np.float32)


def remembered(depth_m):
    """A memory of one view; latents tell their cell's column and row."""
    memory = LatentMemory(MemoryConfig(channels=2, dtype="float16"))
    rows, columns = np.indices(SIZE)
    latents = torch.from_numpy(np.stack([columns, rows])[None].astype(np.float32))
    grey, all_cells = np.full((1, *SIZE, 3), 90, np.uint8), np.ones((1, *SIZE), bool)
    zero = np.zeros(1, np.int64)
    memory.write_new(latents, HOME, depth_m, all_cells, zero, grey, zero)
    return memory


def finely(memory, pose=None):
    """What a camera sees of it, four cells to a side of each latent cell."""
    camera = HOME if pose is None else Camera(HOME.intrinsics, pose[None], SIZE)
    return memory.read(camera.resized((SIZE[0] * 4, SIZE[1] * 4)))


def test_only_cells_with_an_edge_are_split():
    memory = remembered(stepped())
    # The edge runs down the middle of six cells: each is four quarters of one surface.
    assert memory.tokens == SIZE[0] * SIZE[1] + 3 * SIZE[0]
    assert remembered(stepped(4 * SIDE)).tokens == SIZE[0] * SIZE[1]


def test_an_edge_through_quarters_is_followed_to_the_smallest_parts():
    memory = remembered(stepped(EDGE - 2))
    # Of each cell with the edge two quarters are whole and two are four parts each.
    assert memory.tokens == SIZE[0] * (SIZE[1] - 1 + 2 + 2 * 4)


def test_of_a_cell_that_is_known_in_part_the_known_parts_are_kept():
    depth = stepped(0)
    depth[:, :, 3 * SIDE + 3 :] = np.nan
    memory = remembered(depth)
    # Whole cells to column 2; of cell 3 the first three columns: by parts of two pixels one column
    # is known, and one by half.
    points = memory.to_points().xyz
    assert memory.tokens > 3 * SIZE[0]
    left = HOME.intrinsics[0, 0, 2]
    columns = points[:, 0] / points[:, 2] * HOME.intrinsics[0, 0, 0] + left
    assert columns.max() < 3.1


def test_every_part_lies_on_its_own_surface():
    points = remembered(stepped()).to_points().xyz
    depth = np.sort(points[:, 2])
    assert set(np.round(depth, 4)) == {NEAR_M, FAR_M}
    assert (depth == NEAR_M).sum() == SIZE[0] * (4 + 2)


@pytest.mark.parametrize("slant", [0.0, 0.03, -0.06])
def test_a_slanted_wall_is_one_surface(slant):
    rows, columns = np.indices((1, 4 * PARTS, 5 * PARTS))[1:]
    depth = 1 / (1 - slant * columns * 0.4 + 0.01 * rows)
    assert not shows_two_surfaces(depth, PARTS).any()


def test_the_sky_beside_a_wall_is_another_surface():
    depth = np.full((1, PARTS, 2 * PARTS), 3.0)
    depth[:, 0], depth[:, :, PARTS:] = np.inf, np.inf
    assert shows_two_surfaces(depth, PARTS).tolist() == [[[True, False]]]


def test_what_is_not_known_is_no_surface():
    depth = np.full((1, PARTS, 2 * PARTS), 3.0)
    depth[:, 0], depth[:, :, PARTS:] = np.nan, np.nan
    assert not shows_two_surfaces(depth, PARTS).any()


def test_a_part_is_told_as_its_place_in_the_whole_cell():
    readout = finely(remembered(stepped()))
    assert readout.visible.all()
    centres = (np.arange(4) + 0.5) / 4 - 0.5
    du = np.tile(centres, SIZE[1])
    assert np.allclose(readout.place[0, 0], du, atol=1e-4)
    assert np.allclose(readout.log_scale, np.log(4), atol=1e-4)
    column = readout.latents[0, 0].numpy()
    assert (column == np.repeat(np.arange(SIZE[1]), 4)).all()


def test_the_parts_of_a_cell_move_apart_with_their_surfaces():
    pose = np.eye(4)
    pose[0, 3] = -0.25
    readout = finely(remembered(stepped()), pose)
    focal = HOME.intrinsics[0, 0, 0] * 4
    near, far = (focal * 0.25 / z for z in (NEAR_M, FAR_M))
    split = readout.visible[0] & (readout.latents[0, 0].numpy() == 4)
    depth, place = readout.depth_m[0], readout.place[0, 0]
    column = np.broadcast_to(np.arange(depth.shape[1]), depth.shape)
    for z, shift in ((NEAR_M, near), (FAR_M, far)):
        here = split & np.isclose(depth, z, atol=1e-3)
        assert here.any()
        # The cell's centre is 17.5 finer cells from the left; parallax has moved it.
        there = (column[here] - (4 * 4 + 1.5) - shift) / 4
        assert np.abs(place[here] - there).max() < 1e-3


def test_parts_outlive_saving(tmp_path):
    memory = remembered(stepped())
    memory.save(tmp_path / "memory.safetensors")
    twin = LatentMemory.load(tmp_path / "memory.safetensors")
    assert (finely(twin).place == finely(memory).place).all()


def test_depth_of_cells_splits_none():
    depth = np.where(np.indices(SIZE)[1] < 4, NEAR_M, FAR_M).astype(np.float32)[None]
    assert remembered(depth).tokens == SIZE[0] * SIZE[1]
