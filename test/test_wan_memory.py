"""What the large model needs of a device, and what makes it faster."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch
from wan_tiny import CHANNELS, denoiser_inputs

from mirage_ros.cli import main
from mirage_ros.errors import MirageError
from mirage_ros.models import load_model
from mirage_ros.models.wan.denoiser import MemoryDenoiser, SideBranch
from mirage_ros.models.perceivers import perceiver_bytes
from mirage_ros.models.wan import GIB, Parts, check_fits, measure, plan_memory
from mirage_ros.models.wan.config import (
    WanCodec,
    TINY_TRANSFORMER,
    TINY_VAE,
    TRANSFORMER,
    VAE,
    WanConfig,
    random_transformer,
    random_vae,
    write_tiny_checkpoint,
)
from mirage_ros.models.wan.loading import channels_last, compile_blocks, set_attention

SIZE = (64, 96)


PARTS = Parts(TRANSFORMER, VAE)
MEASURED = measure(PARTS)


def test_the_published_architecture_has_its_published_size():
    counts = MEASURED.counts
    assert counts["transformer"] == pytest.approx(5.0e9, rel=0.001)
    assert counts["branch"] == pytest.approx(2.597e9, rel=0.001)
    assert counts["vae"] == pytest.approx(0.705e9, rel=0.002)


def test_the_plan_counts_what_is_there_and_refuses_with_what_would_fit():
    plan = plan_memory(PARTS, WanConfig(), torch.bfloat16, MEASURED)
    assert plan.weights["transformer"] == 2 * MEASURED.counts["transformer"]
    assert set(plan.stages) == {"prompt", "generate", "decode", "perceive"}
    assert plan.peak >= sum(plan.weights.values())
    for word in ("704x1280", "32 frames", "transformer", "decode", "peak"):
        assert word in plan.describe()
    check_fits(plan, PARTS, torch.bfloat16, 80 * GIB)
    with pytest.raises(MirageError, match=r"would fit with size \[\d+, \d+\]") as caught:
        check_fits(plan, PARTS, torch.bfloat16, 24 * GIB)
    fitting = re.search(r"size \[(\d+), (\d+)\] and chunk_latents (\d+)", str(caught.value))
    height, width, latents = map(int, fitting.groups())
    smaller = WanConfig(size=(height, width), chunk_latents=latents)
    assert plan_memory(PARTS, smaller, torch.bfloat16, MEASURED).peak <= 24 * GIB
    with pytest.raises(MirageError, match="no size fits"):
        check_fits(plan, PARTS, torch.bfloat16, 12 * GIB)


def test_the_plan_counts_who_perceives(tmp_path):
    for name, size in (("depth", 3000), ("masks", 500)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(bytes(size))
    named = f"depth-pro:{tmp_path / 'depth'}", f"sam3:{tmp_path / 'masks'}"
    assert perceiver_bytes(*named) == 3500
    assert perceiver_bytes("mini", "") == perceiver_bytes("depth-pro:/nowhere", "") == 0
    with_them = replace(PARTS, perceiver=3500)
    plans = [plan_memory(p, WanConfig(), torch.bfloat16, MEASURED) for p in (PARTS, with_them)]
    more = {name: plans[1].stages[name] - size for name, size in plans[0].stages.items()}
    assert more == {"prompt": 0, "generate": 3500, "decode": 3500, "perceive": 3500}


def test_a_decoder_cache_is_measured_as_it_will_be():
    codec, state = WanCodec(random_vae()), None
    for _ in range(3):
        _, state = codec.decode_stream(torch.randn(1, CHANNELS, 1, 4, 6), state)
    held = sum(tensor.numel() * tensor.itemsize for tensor in state.values())
    parts, config = Parts(TINY_TRANSFORMER, TINY_VAE), WanConfig(size=SIZE)
    assert plan_memory(parts, config, torch.float32).decoder_cache == held
    assert plan_memory(parts, config, torch.bfloat16).decoder_cache == held // 2


def test_a_device_that_is_too_small_is_told_before_loading(tmp_path, monkeypatch, capsys):
    folder = write_tiny_checkpoint(tmp_path / "tiny")
    monkeypatch.setattr("mirage_ros.models.wan.loading.available_bytes", lambda device: GIB // 2)
    with pytest.raises(MirageError, match="device has 0.5 GiB"):
        load_model(str(folder), "cpu", {"size": list(SIZE)})
    assert "Memory plan at 64x96" in capsys.readouterr().err


def test_random_weights_are_planned_before_they_are_refused(monkeypatch, capsys):
    monkeypatch.setattr("mirage_ros.models.wan.weights.available_bytes", lambda device: GIB // 2)
    words = ["bench", "generate", "--tiny", "--random-weights", "--device", "cpu"]
    assert main([*words, "--size", "64x96"]) == 2
    printed = capsys.readouterr().err
    assert printed.index("Memory plan at 64x96") < printed.index("device has 0.5 GiB")


@pytest.mark.parametrize("speed", ["channels_last", "compile_blocks", "attention"])
def test_speed_switches_change_nothing_but_speed(speed):
    torch.manual_seed(0)
    vae, transformer = random_vae().eval(), random_transformer().eval()
    denoiser = MemoryDenoiser(transformer, SideBranch.from_transformer(transformer)).eval()
    inputs, latents = denoiser_inputs(TINY_TRANSFORMER), torch.randn(1, CHANNELS, 3, 2, 3)
    with torch.no_grad():
        before = denoiser(*inputs), WanCodec(vae).decode_stream(latents)[0]
        if speed == "channels_last":
            channels_last(vae)
        elif speed == "compile_blocks":
            compile_blocks(denoiser, "eager")  # captured as for the compiler, which takes minutes
        else:
            set_attention(denoiser, "_native_math")
        after = denoiser(*inputs), WanCodec(vae).decode_stream(latents)[0]
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(before, after, strict=True))
