"""The large model's training from one YAML: stages, several processes, runs that are killed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import weakref
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from diffusers import WanTransformer3DModel
from safetensors.torch import load_file
from wan_clips import write_re10k, write_recipe

from mirage_ros.errors import MirageError
from mirage_ros.models import load_model
from mirage_ros.models.parts import load_part
from mirage_ros.models.wan.config import write_tiny_checkpoint
from mirage_ros.training import wan_recipe
from mirage_ros.training.wan_recipe import read_wan_recipe, train_wan
from mirage_ros.training.wan_trainer import prepare_stage

CONFIGS = Path(__file__).parents[1] / "config" / "train"
TRAINEE = Path(__file__).with_name("wan_trainee.py")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny_checkpoint(tmp_path_factory.mktemp("wan") / "tiny")


def logged(run, stage):
    lines = (run / stage / "log.jsonl").read_text().splitlines()
    return [(line["step"], line["loss"]) for line in map(json.loads, lines)]


def trainee(path, killed_at=0, **environment):
    return subprocess.Popen(
        [sys.executable, str(TRAINEE), str(path), str(killed_at)],
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def two_trainees(path, killed_at=0, **environment):
    """Runs two processes that train together; their exit codes, outputs and errors."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    both = [
        trainee(path, killed_at, RANK=rank, LOCAL_RANK=rank, WORLD_SIZE="2", LOCAL_WORLD_SIZE="2",
                MASTER_ADDR="127.0.0.1", MASTER_PORT=port, ACCELERATE_USE_CPU="true", **environment)
        for rank in "01"
    ]  # fmt: skip
    try:
        outputs = [process.communicate(timeout=150) for process in both]
    finally:
        for process in both:
            process.kill()
    return [(process.returncode, *texts) for process, texts in zip(both, outputs, strict=True)]


def test_the_whole_recipe_makes_a_folder_that_runs(folder, tmp_path):
    write_re10k(tmp_path, 14)
    path = write_recipe(tmp_path, folder)
    train_wan(read_wan_recipe(path))
    log = [json.loads(line) for line in (tmp_path / "run/lora/log.jsonl").open()]
    assert [line["step"] for line in log] == [1, 2]
    model = load_model(str(tmp_path / "run-model"), "cpu", {"steps": 1})
    assert model.size == (32, 64) and model.config.prompt == "a wall"
    assert model.reference_frames == 2, "as many as it was trained with"
    names = load_file(tmp_path / "run-model/lora/adapter_model.safetensors")
    assert len(names) == 4 * 4 * 2
    assert model.network.branch.zero[0].weight.abs().max() > 0
    train_wan(read_wan_recipe(path))  # nothing is left to do
    assert len((tmp_path / "run/lora/log.jsonl").read_text().splitlines()) == 2
    with pytest.raises(MirageError, match=r"made with size \[32, 64\], not \[64, 64\]"):
        train_wan(replace(read_wan_recipe(path), size=(64, 64)))


@pytest.mark.parametrize(
    ("wrong", "word"),
    [("length: 12", "length"), ("nonsense: 1", "nonsense"), ("re10k: [a]", "re10k")],
)
def test_recipes_that_cannot_be_are_refused(tmp_path, wrong, word):
    path = tmp_path / "wan.yaml"
    name = wrong.split(":")[0]
    kept = [ln for ln in write_recipe(tmp_path, tmp_path).read_text().splitlines()
            if not ln.startswith(f"{name}:")]  # fmt: skip
    path.write_text("\n".join([*kept, wrong]) + "\n")
    with pytest.raises(MirageError, match=word):
        read_wan_recipe(path)


def test_stage_two_begins_with_the_base_after_stage_one_is_gone(folder, tmp_path, monkeypatch):
    """Also where the output holds adapters of an earlier run, which went on to more steps."""
    write_re10k(tmp_path, 13)
    train_wan(read_wan_recipe(write_recipe(tmp_path, folder, steps=1)))
    base = load_part(folder / "transformer", WanTransformer3DModel).state_dict()
    alive, frozen, load = [], [], wan_recipe.load_denoiser

    def prepared(network, stage, rank):
        mine = network.transformer.state_dict()
        frozen.append(all(torch.equal(mine[name], value) for name, value in base.items()))
        alive.append(weakref.ref(network))
        return prepare_stage(network, stage, rank)

    def loaded(*inputs, **settings):
        assert all(ref() is None for ref in alive), "both stages' networks would be held at once"
        return load(*inputs, **settings)

    monkeypatch.setattr(wan_recipe, "prepare_stage", prepared)
    monkeypatch.setattr(wan_recipe, "load_denoiser", loaded)
    train_wan(read_wan_recipe(write_recipe(tmp_path, folder, steps=2)))
    assert frozen == [True, True]
    assert [step for step, _ in logged(tmp_path / "run", "lora")] == [1, 2]
    with pytest.raises(MirageError, match="has adapters in lora/"):
        path = write_recipe(tmp_path, tmp_path / "run-model", "other")
        train_wan(read_wan_recipe(path))


def test_a_training_that_is_killed_goes_on_to_the_same_losses(folder, tmp_path):
    write_re10k(tmp_path, 13)
    train_wan(read_wan_recipe(write_recipe(tmp_path, folder, "whole", 3)))
    path = write_recipe(tmp_path, folder, "cut", 3, checkpoint_s=0.0)
    killed = trainee(path, killed_at=6)  # in the last step of stage two
    assert killed.wait(120) == -signal.SIGKILL, killed.communicate()[1]
    assert [step for step, _ in logged(tmp_path / "cut", "lora")] == [1, 2]
    train_wan(read_wan_recipe(path))
    for stage in ("branch", "lora"):
        whole, again = (logged(tmp_path / run, stage) for run in ("whole", "cut"))
        assert [step for step, _ in again] == [1, 2, 3]
        for (_, loss), (_, same) in zip(whole, again, strict=True):
            assert same == pytest.approx(loss, rel=1e-5)


def fsdp_environment(precision):
    """What `accelerate launch` makes of config/train/fsdp.yaml, but for the precision."""
    settings = yaml.safe_load((CONFIGS / "fsdp.yaml").read_text())["fsdp_config"]
    settings["fsdp_transformer_cls_to_wrap"] = settings.pop("fsdp_transformer_layer_cls_to_wrap")
    environment = {name.upper(): str(value).lower() for name, value in settings.items()}
    for name in ("FSDP_TRANSFORMER_CLS_TO_WRAP", "FSDP_AUTO_WRAP_POLICY", "FSDP_STATE_DICT_TYPE"):
        environment[name] = settings[name.lower()]
    return environment | {"ACCELERATE_USE_FSDP": "true", "ACCELERATE_MIXED_PRECISION": precision}


@pytest.fixture(scope="module")
def together(folder, tmp_path_factory):
    """Two processes, the network whole in each: (root, what they printed)."""
    root = tmp_path_factory.mktemp("together")
    write_re10k(root, 26)
    return root, two_trainees(write_recipe(root, folder, "plain", 3))


def test_two_processes_share_the_clips_and_save_together(together):
    root, outputs = together
    assert [code for code, *_ in outputs] == [0, 0], outputs
    read = [json.loads(out.splitlines()[-1])["read"] for _, out, _ in outputs]
    assert read == [["abc_000"], ["abc_001"]]
    for stage in ("branch", "lora"):
        assert [step for step, _ in logged(root / "plain", stage)] == [1, 2, 3]
    assert not list(root.rglob("*.tmp"))
    load_model(str(root / "plain-model"), "cpu", {"steps": 1})


def test_two_processes_that_hold_half_of_the_weights_train_and_go_on_alike(folder, together):
    """Sharded as in config/train/fsdp.yaml, killed in stage two and begun again."""
    root, _ = together
    path = write_recipe(root, folder, "shards", 3, checkpoint_s=0.0)
    shutil.copytree(root / "plain/cache", root / "shards/cache")
    killed = two_trainees(path, killed_at=6, **fsdp_environment("no"))
    assert [code for code, *_ in killed] == [-signal.SIGKILL] * 2, killed
    again = two_trainees(path, **fsdp_environment("no"))
    assert [code for code, *_ in again] == [0, 0], again
    for _, out, _ in again:
        assert json.loads(out.splitlines()[-1])["sharded"] == [1.0], "one step was left"
    for stage in ("branch", "lora"):
        whole, parts = (logged(root / run, stage) for run in ("plain", "shards"))
        assert [step for step, _ in parts] == [1, 2, 3]
        assert [loss for _, loss in parts] == pytest.approx([loss for _, loss in whole], rel=1e-4)
    for name in ("branch/diffusion_pytorch_model.safetensors", "lora/adapter_model.safetensors"):
        whole, parts = (load_file(root / f"{run}-model" / name) for run in ("plain", "shards"))
        assert whole.keys() == parts.keys()
        assert all(torch.allclose(whole[key], parts[key], atol=1e-3) for key in whole)
