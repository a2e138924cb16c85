"""The large model on small random checkpoints in the published layout."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLWan, WanPipeline, WanTransformer3DModel
from wan_tiny import CHANNELS, TOLD, denoiser_inputs

from mirage_ros.errors import MirageError
from mirage_ros.geometry.camera import Camera
from mirage_ros.models import load_model
from mirage_ros.models.wan.denoiser import MemoryDenoiser, SideBranch
from mirage_ros.models.parts import add_lora
from mirage_ros.models.wan import loading as wan_loading
from mirage_ros.models.wan.config import (
    WanCodec,
    TINY_TRANSFORMER,
    TINY_VAE,
    TRANSFORMER,
    write_tiny_checkpoint,
)
from mirage_ros.models.wan.loading import encode_prompts
from mirage_ros.models.wan.weights import write_branch
from mirage_ros.world.world import World

SIZE = (64, 96)
SETTINGS = {"size": list(SIZE), "steps": 2, "prompt": "a red room"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny_checkpoint(tmp_path_factory.mktemp("wan") / "tiny")


@pytest.fixture(scope="module")
def model(folder):
    return load_model(str(folder), "cpu", SETTINGS)


def seed_and_camera(size=SIZE):
    rng = np.random.default_rng(0)
    rgb = rng.integers(0, 255, (*size, 3), np.uint8)
    return rgb, Camera.from_hfov(60.0, size), np.full(size, 2.0, np.float32)


def walk(camera, first, frames):
    """Cameras that go sideways 1 cm a frame, and their stamps, 0.1 s a frame."""
    count = np.arange(first, first + frames)
    poses = np.tile(np.eye(4), (frames, 1, 1))
    poses[:, 0, 3] = 0.01 * count
    return Camera(camera.intrinsics, poses, camera.size), count * 100_000_000


# Wan2.2's own widths and heads, with fewer blocks and a narrower text.
WIDE = TRANSFORMER | {"num_layers": 2, "ffn_dim": 512, "text_dim": 64}


@pytest.mark.parametrize("config", [TINY_TRANSFORMER, WIDE], ids=["tiny", "wan2.2-shaped"])
def test_a_zero_branch_leaves_the_published_backbone_as_it_is(config):
    torch.manual_seed(0)
    transformer = WanTransformer3DModel(**config).eval()
    denoiser = MemoryDenoiser(transformer, SideBranch.from_transformer(transformer))
    latents, timestep, condition, text = denoiser_inputs(config)
    per_token = timestep.repeat_interleave(latents.shape[3] * latents.shape[4] // 4, 1)
    with torch.no_grad():
        ours = denoiser(latents, timestep, condition, text)
        theirs = transformer(latents, per_token, text).sample
    assert (ours - theirs).abs().max() < 1e-5


def test_a_stream_decoded_in_pieces_is_the_stream_decoded_at_once():
    torch.manual_seed(0)
    vae = AutoencoderKLWan(**TINY_VAE).eval()
    codec, latents = WanCodec(vae), torch.randn(1, CHANNELS, 10, 2, 3)
    with torch.no_grad():
        published = vae.decode(latents).sample
    whole, _ = codec.decode_stream(latents)
    state, pieces = None, []
    for piece in latents.split([1, 4, 2, 3], 2):
        pictures, state = codec.decode_stream(piece, state)
        pieces.append(pictures)
    assert [piece.shape[2] for piece in pieces] == [1, 16, 8, 12]
    assert torch.equal(torch.cat(pieces, 2), whole)
    assert (whole - published).abs().max() < 1e-4
    seam, _ = codec.decode_stream(latents[:, :, 5:])
    assert (seam[:, :, 1:] - whole[:, :, 21:]).abs().max() > 1e-2, "the cache matters"


def test_a_decoder_state_is_not_changed_by_decoding_on(model):
    latents = torch.randn(3, model.channels, 4, 6)
    _, state = model.decode_stream(latents[:1], None)
    before = {name: tensor.clone() for name, tensor in state.items()}
    first, _ = model.decode_stream(latents[1:], state)
    second, _ = model.decode_stream(latents[1:], state)
    assert np.array_equal(first, second)
    assert all(torch.equal(state[name], before[name]) for name in before)


def test_a_walk_has_33_then_32_frames_at_the_plans_times(model):
    rgb, camera, depth = seed_and_camera()
    world = World(model)
    frames = list(world.reset(rgb, camera, depth).frames)
    for chunk in world.rollout(*walk(camera, 1, 96)):
        assert len(chunk.frames) == 32
        frames += chunk.frames
    assert [frame.stamp_ns for frame in frames] == [k * 100_000_000 for k in range(97)]
    assert world.frames_seen == 97
    assert world.snapshot().latents_seen == 1 + 3 * 8


def test_chunk_borders_neither_flicker_nor_shift_time(model):
    """The pictures of three chunks are the stream of all their latents decoded at once."""
    rgb, camera, depth = seed_and_camera()
    world = World(model)
    frames = list(world.reset(rgb, camera, depth).frames)
    for chunk in world.rollout(*walk(camera, 1, 96)):
        frames += chunk.frames
    kept = world.snapshot().latents
    latents = torch.stack([kept[i] for i in range(25)]).float()
    whole, _ = model.decode_stream(latents, None)
    shown = np.stack([frame.rgb for frame in frames]).astype(int)
    # Latents are kept in half precision.
    assert np.abs(whole - shown).max() <= 2


@pytest.mark.parametrize("frames", [1, 2, 4, 5, 31])
def test_a_chunk_may_be_shorter_and_the_next_follows_on_it(model, frames):
    rgb, camera, depth = seed_and_camera()
    world = World(model)
    world.reset(rgb, camera, depth)
    short = world.step(*walk(camera, 1, frames))
    after = world.step(*walk(camera, 1 + frames, 8))
    assert (len(short.frames), len(after.frames)) == (frames, 8)
    assert world.snapshot().latents_seen == 1 + -(-frames // 4) + 2


def test_forks_and_saved_worlds_go_on_alike(model, tmp_path):
    rgb, camera, depth = seed_and_camera()
    world = World(model)
    world.reset(rgb, camera, depth)
    world.step(*walk(camera, 1, 32))
    fork = world.snapshot()
    world.save(tmp_path / "saved")
    first = [frame.rgb for frame in world.step(*walk(camera, 33, 32)).frames]
    world.restore(fork)
    second = [frame.rgb for frame in world.step(*walk(camera, 33, 32)).frames]
    world.load(tmp_path / "saved")
    third = [frame.rgb for frame in world.step(*walk(camera, 33, 32)).frames]
    assert np.array_equal(first, second) and np.array_equal(first, third)


def test_prompts_are_read_as_the_published_pipeline_reads_them(folder):
    prompts = ["a red   room", "", "x" * 900]
    ours = encode_prompts(folder, prompts)
    pipeline = WanPipeline.from_pretrained(str(folder))
    theirs, _ = pipeline.encode_prompt(
        [" ".join(prompt.split()) for prompt in prompts],
        do_classifier_free_guidance=False,
        max_sequence_length=512,
    )
    assert torch.allclose(ours, theirs, atol=1e-4)


def test_what_was_read_is_not_read_again_and_does_not_pile_up(monkeypatch, tmp_path):
    read = []

    def encode(folder, prompts, device, dtype):
        read.extend(prompts)
        return torch.tensor([float(len(prompt)) for prompt in prompts]).view(-1, 1, 1)

    monkeypatch.setattr(wan_loading, "encode_prompts", encode)
    reader = wan_loading.PromptReader(tmp_path, "cpu", torch.float32)
    for number in range(50):
        assert reader(["x" * number, "-1"]).flatten().tolist() == [number, 2]
    assert read.count("-1") == 1 and len(read) == 51 and len(reader._known) <= 16


def test_the_prompt_and_the_guidance_matter(folder):
    """With a guidance of 1 the negative prompt is never read."""
    plain = load_model(str(folder), "cpu", SETTINGS)
    context, noise = torch.randn(1, CHANNELS, 1, 4, 6), torch.randn(1, CHANNELS, 2, 4, 6)
    condition = torch.zeros(1, TOLD, 3, 4, 6)
    with torch.no_grad():
        red = plain.sample(noise, context, condition)
        plain.set_prompt("a blue room")
        blue = plain.sample(noise, context, condition)
    assert (red - blue).abs().max() > 1e-5
    guided = load_model(str(folder), "cpu", SETTINGS | {"guidance": 3.0, "negative_prompt": "fog"})
    with torch.no_grad():
        assert (guided.sample(noise, context, condition) - red).abs().max() > 1e-5


def test_the_schedule_is_unipc_with_20_steps_and_shift_5(folder):
    scheduler = load_model(str(folder), "cpu", {"size": list(SIZE)}).scheduler
    assert type(scheduler).__name__ == "UniPCMultistepScheduler"
    assert scheduler.config.flow_shift == 5.0
    scheduler.set_timesteps(20)
    assert len(scheduler.timesteps) == 20 and scheduler.timesteps[0] > 990


def test_a_folder_of_ours_names_its_base_and_brings_branch_and_lora(folder, tmp_path):
    transformer = WanTransformer3DModel.from_pretrained(str(folder / "transformer"))
    branch = SideBranch.from_transformer(transformer)
    for layer in branch.zero:
        torch.nn.init.normal_(layer.weight, std=0.2)
    write_branch(branch, tmp_path)
    adapted = add_lora(transformer, rank=2)
    for parameter_name, value in adapted.named_parameters():
        if "lora_B" in parameter_name:
            torch.nn.init.normal_(value, std=0.2)
    adapted.save_pretrained(str(tmp_path / "lora"))
    settings = {"base": str(folder), "size": list(SIZE), "steps": 4}
    (tmp_path / "mirage.json").write_text(json.dumps(settings))
    ours = load_model(str(tmp_path), "cpu", {"prompt": "a red room", "steps": 2})
    assert ours.config.steps == 2 and ours.size == SIZE
    plain = load_model(str(folder), "cpu", SETTINGS)
    noise, context = torch.randn(1, CHANNELS, 2, 4, 6), torch.randn(1, CHANNELS, 1, 4, 6)
    condition = torch.randn(1, TOLD, 3, 4, 6)
    with torch.no_grad():
        latents = ours.sample(noise, context, condition)
        told_else = ours.sample(noise, context, condition + 1)
        bare = plain.sample(noise, context, condition)
    assert (latents - bare).abs().max() > 1e-3 and (latents - told_else).abs().max() > 1e-4


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"stepz": 3}, "stepz"),
        ({"size": [60, 96]}, "multiples of 32"),
        ({"steps": 0}, "steps is 0"),
        ({"dtype": "int4"}, "int4"),
        ({"guidance": 0.5}, "guidance"),
        ({"dynamic_prompts": "person"}, "dynamic_prompts"),
        ({"depth": "nonsense"}, "nonsense"),
        ({"masks": "nonsense:x"}, "nonsense"),
        ({"attention": "nonsense"}, "nonsense"),
    ],
)
def test_settings_that_cannot_be_are_refused_in_one_line(folder, settings, word):
    with pytest.raises(MirageError, match=word) as caught:
        load_model(str(folder), "cpu", {"size": list(SIZE)} | settings)
    assert "\n" not in str(caught.value)


def test_hub_ids_out_of_reach_and_settings_for_mini_are_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(MirageError, match="hub"):
        load_model("nobody/no-such-model-of-ours", "cpu")
    with pytest.raises(MirageError, match="steps"):
        load_model("mini", "cpu", {"steps": 3})
