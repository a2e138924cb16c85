"""Folders of the large model that are damaged, incomplete or of something else: one clear line."""

from __future__ import annotations

import json
import shutil

import pytest
import yaml
from safetensors.torch import load_file, save_file

from mirage_ros.core.errors import MirageError
from mirage_ros.models.pretrained import load_model
from mirage_ros.models.wan_config import read_config
from mirage_ros.models.wan_layout import write_tiny_checkpoint

SHARD = "transformer/diffusion_pytorch_model-00002-of-00006.safetensors"


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
    told = refusal(folder)
    assert path.name in told and part.split("/")[0] in told


@pytest.mark.parametrize(
    "part",
    ["transformer/config.json", SHARD, "vae/diffusion_pytorch_model.safetensors",
     "text_encoder/model.safetensors", "scheduler/scheduler_config.json", "model_index.json",
     "transformer/diffusion_pytorch_model.safetensors.index.json"],
)  # fmt: skip
def test_a_part_that_is_cut_off_is_refused(folder, part):
    cut(folder / part)
    told = refusal(folder)
    assert "again" in told and part.split("/")[0] in told


@pytest.mark.parametrize(
    ("name", "told_of"),
    [("shared.weight", "embed_tokens"), ("encoder.final_layer_norm.weight", "final_layer_norm")],
)
def test_a_text_encoder_that_lacks_a_tensor_is_refused(folder, name, told_of):
    path = folder / "text_encoder" / "model.safetensors"
    tensors = load_file(path)
    del tensors[name]
    save_file(tensors, path, metadata={"format": "pt"})
    told = refusal(folder)
    assert "text_encoder" in told and told_of in told


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
