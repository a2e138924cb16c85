"""What latents are kept as: 16 bits a number, or whole steps of the token's own scale."""

import numpy as np
import pytest
import torch
from analytic import cameras, look, loop, raycast, room

from mirage_ros.errors import MirageError
from mirage_ros.memory import LatentMemory, MemoryConfig
from mirage_ros.memory.rows import (
    BITS,
    FEATURE_TYPES,
    feature_fields,
    latents_of_rows,
    rows_of_latents,
)

EVERYWHERE = np.ones((2, 6, 8), bool)


def there_and_back(latents, dtype):
    """As rows, and read again in the cells that they came from."""
    shape = (len(latents), *latents.shape[2:])
    rows = rows_of_latents(latents, np.ones(shape, bool), dtype)
    index = np.arange(np.prod(shape)).reshape(shape)
    return rows, latents_of_rows(rows, index, latents.shape[1], dtype)


def random_latents(channels, spread=1.0):
    generator = torch.Generator().manual_seed(channels)
    return torch.randn(2, channels, 6, 8, generator=generator) * spread


@pytest.mark.parametrize("dtype", BITS)
@pytest.mark.parametrize("channels", [1, 3, 5, 16, 48])
def test_steps_are_off_by_half_a_step_at_most(dtype, channels):
    latents = random_latents(channels) * torch.logspace(-3, 3, 8)
    rows, again = there_and_back(latents, dtype)
    largest = latents.abs().amax(1, keepdim=True)
    step = largest * 1.125 / (2 ** (BITS[dtype] - 1) - 1)
    assert ((again - latents).abs() <= 0.5001 * step).all()
    assert (again.abs() <= 1.1251 * largest).all()
    assert rows["features"].nbytes == 96 * -(-channels * BITS[dtype] // 8)
    assert feature_fields(channels, dtype).keys() == rows.keys()


@pytest.mark.parametrize("dtype", BITS)
def test_steps_that_fit_come_back_to_the_bit(dtype):
    """Every whole number of steps, at every scale."""
    most = 2 ** (BITS[dtype] - 1) - 1
    steps = torch.arange(-most, most + 1).float().repeat(3)[: 2 * most + 5]
    for exponent in (-14, -1, 0, 7, 14):
        latents = (steps * (2.0**exponent / most)).float().view(1, -1, 1, 1)
        latents = latents.expand(2, -1, 6, 8)
        assert torch.equal(there_and_back(latents, dtype)[1], latents)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_sixteen_bits_round_as_torch_does(dtype):
    latents = random_latents(5, 1e9 if dtype == "bfloat16" else 100)
    wanted = latents.to(getattr(torch, dtype)).float()
    assert torch.equal(there_and_back(latents, dtype)[1], wanted)


@pytest.mark.parametrize("dtype", FEATURE_TYPES)
def test_nothing_comes_back_as_nothing_and_unseen_cells_are_zero(dtype):
    rows, again = there_and_back(torch.zeros(2, 5, 6, 8), dtype)
    assert (again == 0).all()
    rows, _ = there_and_back(random_latents(5), dtype)
    assert (latents_of_rows(rows, np.full((1, 2, 3), -1), 5, dtype) == 0).all()


@pytest.mark.parametrize("dtype", FEATURE_TYPES)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e39])
def test_what_no_row_can_hold_is_refused(dtype, value):
    latents = random_latents(5).double()
    latents[1, 2, 3, 4] = value
    assert rows_of_latents(latents, EVERYWHERE, dtype) is None
    elsewhere = EVERYWHERE.copy()
    elsewhere[1, 3, 4] = False
    assert len(rows_of_latents(latents, elsewhere, dtype)["features"]) == 95


@pytest.mark.parametrize("dtype", FEATURE_TYPES)
def test_latents_come_back_as_the_chosen_type_rounds_them(dtype, tmp_path):
    """And are rounded once: neither saving, loading, forking nor what merges around them moves
    a bit."""
    memory = LatentMemory(MemoryConfig(4, dtype=dtype))
    batch = cameras([look((0, 0, 0), (0, 1, 0))], (6, 8))
    latents, zero = random_latents(4, 3.0)[:1], np.zeros(len(batch), np.int64)
    depth, static = np.full((1, 6, 8), 2.0), np.ones((1, 6, 8), bool)
    rest = (depth, static, zero, np.zeros((1, 6, 8, 3), np.uint8), zero)
    memory.write(latents, batch, *rest)
    wanted = there_and_back(latents, dtype)[1]
    assert torch.equal(memory.read(batch).latents, wanted)
    for turn in range(5):
        memory.save(tmp_path / "memory")
        memory = LatentMemory.load(tmp_path / "memory").fork()
        farther = (depth * (2 + turn), *rest[1:])
        assert memory.write(-latents, batch, *farther) > 0
        assert memory.config.dtype == dtype
        assert torch.equal(memory.read(batch).latents, wanted)
    with pytest.raises(MirageError, match=f"keeps latents as {dtype}"):
        other = "int8" if dtype == "float16" else "float16"
        LatentMemory.load(tmp_path / "memory", MemoryConfig(4, dtype=other))
    with pytest.raises(MirageError, match=dtype):
        memory.write(torch.full((1, 4, 6, 8), torch.inf), batch, *rest)


def test_an_unknown_type_is_refused():
    with pytest.raises(MirageError, match="float16, bfloat16, int8, int6, int4"):
        LatentMemory(MemoryConfig(4, dtype="float8"))


@pytest.mark.parametrize(("dtype", "most"), [("float16", 120), ("int8", 72), ("int6", 60)])
def test_a_token_of_48_channels_takes_few_bytes(dtype, most):
    """Table, bounds and views counted."""
    memory = LatentMemory(MemoryConfig(48, dtype=dtype))
    batch = loop(6)
    depth, _, _ = raycast(batch, room())
    static, ids = np.ones(depth.shape, bool), np.arange(6)
    latents = torch.zeros(6, 48, *depth.shape[1:])
    memory.write(latents, batch, depth, static, ids, np.zeros((*depth.shape, 3), np.uint8), ids)
    assert memory.nbytes <= most * memory.tokens
