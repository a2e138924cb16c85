"""The memory against rendered scenes with true depth, and the command that measures it."""

import json

import numpy as np
import pytest
import torch
from analytic import offsets
from fakes import PixelModel

from mirage_ros.cli import main
from mirage_ros.evaluation.bench_common import (
    OTHER_TYPES,
    Grid,
    compare,
    empty_memory,
    fill_region,
    grow,
    linear_patches,
    measure,
    remember_latents,
    remember_pixels,
    render_walk,
    streaming_bytes_per_s,
    view,
)
from mirage_ros.evaluation.bench_memory import BenchConfig, grids
from mirage_ros.evaluation.point_cloud import CloudConfig
from mirage_ros.evaluation.rgb_cache import RgbMemory
from mirage_ros.geometry.depth import cell_depth
from mirage_ros.geometry.images import upsample
from mirage_ros.models import load_model

SEEDS = (2000100, 2000103, 2000104)


def small_grid(channels=16):
    """The shipped codec's grid; what is encoded does not matter to places and bytes."""
    return Grid("patches", (128, 160), 8, channels, linear_patches(channels, 8))


@pytest.fixture(scope="module")
def walks():
    return {seed: render_walk(seed, 12, (128, 160)) for seed in SEEDS}


def remembered(walk, grid):
    memory = empty_memory(grid.channels, 10_000)
    remember_latents(memory, walk, grid, grid.encode(walk.rgb))
    return memory


@pytest.mark.parametrize("seed", SEEDS)
def test_depth_read_at_unseen_cameras_is_right_to_half_a_footprint(walks, seed):
    grid, walk = small_grid(), walks[seed]
    memory, unseen = remembered(walk[::2], grid), walk[1::2]
    cells = unseen.cameras.resized(grid.cells)
    readout = memory.read(cells)
    true = cell_depth(unseen.depth_m, grid.stride)
    footprint = true / cells.intrinsics[:, 0, 0][:, None, None]
    both = readout.visible & np.isfinite(true)
    error = np.abs(readout.depth_m - true)[both] / footprint[both]
    assert both.mean() > 0.7
    assert np.median(error) <= 0.5


@pytest.mark.parametrize("seed", SEEDS)
def test_tokens_reproject_within_a_tenth_of_a_cell(walks, seed):
    """The surface behind a cell's centre, by the renderer, against the token that was made of it;
    both seen from the next camera."""
    from mirage_ros.scenes import Renderer, make_scene

    grid, walk = small_grid(), walks[seed]
    here = walk.cameras[:1].resized(grid.cells)
    with Renderer(make_scene(seed, "room", moving=False), grid.cells) as renderer:
        centres = renderer.render(here).depth_m
    memory = remembered(walk[:1], grid)
    readout = memory.read(here)
    tokens = memory.to_points().xyz[readout.index[readout.visible]].astype(np.float64)
    surface = here.lift(centres)[readout.visible]
    there = walk.cameras[1]
    seen_token, _ = there.project(tokens)
    seen_surface, _ = there.project(surface)
    error = np.linalg.norm(seen_token - seen_surface, axis=-1) / grid.stride
    assert np.median(error) <= 0.1
    # What the readout tells about the winner's place holds in the picture's own pixels.
    u, v = (offsets(memory, here)[0, i][readout.visible[0]] for i in (0, 1))
    row, column = np.nonzero(readout.visible[0])
    shown = (np.stack([column + u, row + v], -1) + 0.5) * grid.stride - 0.5
    pixels, _ = walk.cameras[0].project(tokens)
    assert np.abs(shown - pixels).max() <= 0.1 * grid.stride


def test_a_walk_takes_far_less_room_and_time_than_coloured_points(walks):
    """Margins are wide: about 30 times the bytes and hundreds of times the time are usual."""
    walk = walks[SEEDS[0]]
    model = PixelModel((128, 160))
    grid = Grid("pixels", (128, 160), 8, 16, lambda rgb: model.encode(rgb)[:, :16])
    latent, merged, unmerged, only_new, *others = compare(walk, grid, views=2, repeats=3)
    assert latent["times_slower"] == latent["times_bytes"] == 1
    assert merged["times_slower"] >= 20 and merged["times_bare_bytes"] >= 10
    assert unmerged["times_bytes"] >= 10 and unmerged["things"] > merged["things"]
    assert unmerged["times_bytes"] > only_new["times_bytes"] > 1
    assert all(row["visible"] > 0.7 for row in (latent, merged, unmerged, only_new))
    assert [row["cache"] for row in others] == [f"latent tokens, {t}" for t in OTHER_TYPES]
    assert others[0]["bytes"] > others[1]["bytes"] > latent["bytes"] > others[2]["bytes"]


def test_a_large_picture_takes_a_17th_of_the_bytes_of_merged_points():
    """48 channels at stride 16, 44x80 cells, against all that a cloud merged in 1 cm voxels needs
    to merge and be drawn: position, colour, footprint, frame, voxel index; each as dense."""
    grid = Grid("patches", (704, 1280), 16, 48, linear_patches(48, 16))
    walk = render_walk(SEEDS[0], 6, grid.size)[::2]
    memory, merged = empty_memory(48, 20_000), RgbMemory(grid.encode, 16, CloudConfig(0.01))
    latents = torch.cat([grid.encode(walk.rgb[i : i + 1]) for i in range(len(walk))])
    remember_latents(memory, walk, grid, latents)
    remember_pixels(merged, walk, only_new=False)
    assert grid.cells == (44, 80) and memory.tokens > 3520
    assert merged.nbytes < 16.5 * merged.tokens
    assert merged.nbytes >= 17 * memory.nbytes


def test_latents_of_six_bits_decode_as_well_as_those_of_sixteen():
    """The shipped codec, lifted, read at unseen cameras and decoded: at most 0.05 dB of PSNR."""
    model, walk = load_model("mini"), render_walk(SEEDS[1], 12, (128, 160))
    grid = Grid("mini", model.size, model.stride, model.channels, model.encode)
    latents, unseen, scores = model.encode(walk.rgb[::2]), walk[1::2], {}
    cells = unseen.cameras.resized(grid.cells)
    for dtype in ("float16", "int8", "int6", "int4"):
        memory = empty_memory(grid.channels, 10_000, dtype=dtype)
        remember_latents(memory, walk[::2], grid, latents)
        readout = memory.read(cells)
        shown = upsample(readout.visible, grid.stride)
        error = (model.decode(readout.latents).astype(float) - unseen.rgb)[shown]
        scores[dtype] = 10 * np.log10(255**2 / np.mean(error**2))
    assert scores["float16"] > 20
    assert scores["int8"] >= scores["float16"] - 0.01
    assert scores["int6"] >= scores["float16"] - 0.05
    assert scores["int6"] >= scores["int4"]


def test_rounds_of_one_walk_add_next_to_nothing():
    same = grow(SEEDS[0], 6, small_grid(), 3, shaken=False)
    assert same[-1]["tokens"] <= 1.05 * same[0]["tokens"]
    assert same[-1]["visible"] >= same[0]["visible"] - 1e-9
    assert same[-1]["all_bytes"] == 3 * same[0]["all_bytes"]
    shaken = grow(SEEDS[0], 6, small_grid(), 3, shaken=True)
    assert shaken[-1]["tokens"] <= 1.2 * shaken[0]["tokens"]


def test_clouds_have_the_size_asked_for_and_lie_in_view():
    memory = empty_memory(8, 5_000)
    fill_region(memory, 0, 3_000, (11, 20))
    inside = memory.tokens
    fill_region(memory, 1, 2_000, (11, 20))
    assert abs(inside - 3_000) < 100 and abs(memory.tokens - 5_000) < 100
    points = memory.to_points().xyz.astype(np.float64)
    pixels, depth = view(0, (11, 20))[0].project(points)
    seen = (depth > 0) & (np.abs(pixels - (9.5, 5)) < (11, 6.5)).all(-1)
    assert seen[:inside].mean() > 0.95 and not seen[inside:].any()


def test_patches_are_projected_orthogonally():
    encode = linear_patches(48, 16)
    rgb = np.random.default_rng(0).integers(0, 256, (1, 16, 16, 3)).astype(np.uint8)
    assert encode(rgb).shape == (1, 48, 1, 1)
    assert float(encode(rgb).norm()) <= float(torch.from_numpy(rgb / 127.5 - 1).norm()) + 1e-4


def test_clocks_measure():
    calls = []
    timing = measure(lambda: calls.append(0), 3, warm_up=2)
    assert len(calls) == 5 and timing.repeats == 3
    assert 0 <= timing.fastest_s <= timing.median_s <= timing.slowest_s
    assert streaming_bytes_per_s(2**20, 1) > 1e7


def test_the_large_grid_is_the_one_of_the_large_codec():
    small, same, large = grids(PixelModel(), BenchConfig())
    assert small.cells == (8, 10) and same.cells == (4, 5) and same.channels == 48
    assert large.cells == (44, 80) and large.channels == 48


def test_the_command_writes_table_plot_and_figures(tmp_path, capsys):
    plot, figures = tmp_path / "a" / "bench.png", tmp_path / "b" / "bench.json"
    assert main(["bench", "memory", "--quick", "--plot", str(plot), "--json", str(figures)]) == 0
    table = capsys.readouterr().out
    report = json.loads(figures.read_text())
    assert set(report) == {"machine", "config", "stored", "view", "files", "walk", "loops"}
    assert [row["views"] for row in report["view"]] == [1, 2, 1, 2]
    assert [row["step"] for row in report["files"]] == ["save", "load", "fork"]
    assert report["files"][2]["ms"] < report["files"][0]["ms"]
    assert "GB/s" in table and "merged in 1 cm voxels" in table and "shaken" in table
    assert plot.read_bytes()[:4] == b"\x89PNG"


def test_the_command_refuses_nonsense(tmp_path, capsys):
    assert main(["bench", "memory", "--repeats", "0"]) == 2
    assert "at least 1" in capsys.readouterr().err
