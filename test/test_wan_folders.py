"""Folders of the large model that are damaged, incomplete or of something else: one clear line."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from wan_tiny import TOLD

from mirage_ros.errors import MirageError
from mirage_ros.models import load_model
from mirage_ros.models.wan.config import read_config, write_tiny_checkpoint

SHARD = "transformer/diffusion_pytorch_model-00002-of-00007.safetensors"


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    return write_tiny_checkpoint(tmp_path_factory.mktemp("wan") / "tiny")


@pytest.fixture
def folder(published, tmp_path):
    return shutil.copytree(published, tmp_path / "copy")


def refusal(folder, **settings):
    with pytest.raises(MirageError) as caught:
        load_model(str(folder), "cpu", {"size": [64, 96], "steps": 1} | settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def change(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    "part",
    ["transformer/config.json", "vae/config.json", "text_encoder/config.json",
     "scheduler/scheduler_config.json", "tokenizer", "model_index.json", SHARD],
)  # fmt: skip
def test_a_part_that_is_missing_is_named(folder, part):
    path = folder / part
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    message = refusal(folder)
    assert path.name in message and part.split("/")[0] in message


@pytest.mark.parametrize(
    "part",
    ["transformer/config.json", SHARD, "vae/diffusion_pytorch_model.safetensors",
     "text_encoder/model.safetensors", "scheduler/scheduler_config.json", "model_index.json",
     "transformer/diffusion_pytorch_model.safetensors.index.json"],
)  # fmt: skip
def test_a_part_that_is_cut_off_is_refused(folder, part):
    cut(folder / part)
    message = refusal(folder)
    assert "again" in message and part.split("/")[0] in message


@pytest.mark.parametrize(
    ("name", "mentioned"),
    [("shared.weight", "embed_tokens"), ("encoder.final_layer_norm.weight", "final_layer_norm")],
)
def test_a_text_encoder_that_lacks_a_tensor_is_refused(folder, name, mentioned):
    path = folder / "text_encoder" / "model.safetensors"
    tensors = load_file(path)
    del tensors[name]
    save_file(tensors, path, metadata={"format": "pt"})
    message = refusal(folder)
    assert "text_encoder" in message and mentioned in message


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ({"_class_name": "StableDiffusionPipeline"}, "a StableDiffusionPipeline"),
        ({"_class_name": "WanAnimatePipeline"}, "a WanAnimatePipeline"),
        ({"transformer_2": ["diffusers", "WanTransformer3DModel"]}, "another Wan"),
        ({"expand_timesteps": False}, "another Wan"),
        ({"_class_name": "MiniModel", "format_version": 9}, "format version 9"),
    ],
)
def test_another_pipeline_or_version_is_told_apart(folder, values, word):
    change(folder / "model_index.json", **values)
    assert word in refusal(folder)


@pytest.mark.parametrize(
    ("written", "meant"),
    [("on", "on"), ("off", "off"), ("true", "on"), ("'on'", "on"), ("auto", "auto")],
)
def test_on_and_off_are_words_however_yaml_reads_them(tmp_path, written, meant):
    settings = yaml.safe_load(f"{{compile: {written}}}")
    assert read_config(tmp_path, settings).compile == meant


@pytest.mark.parametrize("base", ["/nowhere", 3])
def test_a_base_that_cannot_be_is_refused(folder, base):
    (folder / "mirage.json").write_text(json.dumps({"base": base}))
    assert "base" in refusal(folder) or "/nowhere" in refusal(folder)


@pytest.mark.parametrize("part", ["branch", "lora"])
def test_an_empty_folder_of_ours_is_refused(folder, part):
    (folder / part).mkdir()
    assert f"/{part}" in refusal(folder)


#: What the published configs hold beside what writing a folder with today's libraries leaves.
PUBLISHED = {
    "transformer/config.json": {
        "_diffusers_version": "0.35.0.dev0", "added_kv_proj_dim": None, "image_dim": None,
        "pos_embed_seq_len": None,
    },
    "vae/config.json": {
        "_diffusers_version": "0.35.0.dev0", "clip_output": False, "dropout": 0.0,
    },
    "text_encoder/config.json": {
        "dense_act_fn": "gelu_new", "is_encoder_decoder": True, "is_gated_act": True,
        "output_past": True, "scalable_attention": True, "tie_word_embeddings": False,
        "tokenizer_class": "T5Tokenizer", "torch_dtype": "bfloat16",
        "transformers_version": "4.48.0.dev0",
    },
    "scheduler/scheduler_config.json": {
        "_diffusers_version": "0.35.0.dev0", "beta_end": 0.02, "beta_schedule": "linear",
        "beta_start": 0.0001, "disable_corrector": [], "dynamic_thresholding_ratio": 0.995,
        "final_sigmas_type": "zero", "lower_order_final": True, "predict_x0": True,
        "rescale_betas_zero_snr": False, "sample_max_value": 1.0, "solver_p": None,
        "steps_offset": 0, "thresholding": False, "time_shift_type": "exponential",
        "timestep_spacing": "linspace", "trained_betas": None, "use_beta_sigmas": False,
        "use_dynamic_shifting": False, "use_exponential_sigmas": False, "use_karras_sigmas": False,
    },
}  # fmt: skip


def test_configs_are_taken_with_every_key_that_is_published(published, folder):
    def chunk(of):
        model = load_model(str(of), "cpu", {"size": [64, 96], "steps": 2, "prompt": "a red room"})
        context = torch.ones(1, model.channels, 1, 4, 6)
        return model.sample(2 * context, context, torch.zeros(1, TOLD, 2, 4, 6))

    before = chunk(published)
    for name, values in PUBLISHED.items():
        change(folder / name, **values)
    head = json.loads((folder / "text_encoder/config.json").read_text())
    assert not head["tie_word_embeddings"], "and the embedding is stored once, as published"
    assert torch.equal(chunk(folder), before)
