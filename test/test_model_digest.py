"""A model's digest: it follows the files, names and revisions, so that no model is served another's rollouts."""

import hashlib
import json
from dataclasses import replace

import huggingface_hub
import numpy as np
import pytest
from fakes import PixelModel
from judged_worlds import SIZE

from mirage_ros.errors import MirageError
from mirage_ros.evaluation import evaluate as evaluating
from mirage_ros.models import model_digest


def test_a_models_digest_follows_its_files(tmp_path):
    (tmp_path / "codec").mkdir()
    (tmp_path / "codec" / "config.json").write_text("{}")
    before = model_digest(str(tmp_path))
    assert model_digest(str(tmp_path)) == before
    (tmp_path / "README.md").write_text("words")
    assert model_digest(str(tmp_path)) == before
    (tmp_path / "codec" / "config.json").write_text("{ }")
    assert model_digest(str(tmp_path)) != before
    linked = tmp_path.with_name("linked")
    linked.mkdir()
    (linked / "codec").symlink_to(tmp_path / "codec")
    assert model_digest(str(linked)) == model_digest(str(tmp_path))
    with pytest.raises(MirageError, match="no model"):
        model_digest(str(tmp_path / "nowhere"))


def test_a_digest_counts_what_a_folder_only_names(tmp_path):
    base, folder = tmp_path / "base", tmp_path / "own"
    for path in (base, folder):
        path.mkdir()
    index = {"_class_name": "WanPipeline", "expand_timesteps": True}
    (base / "model_index.json").write_text(json.dumps(index))
    (folder / "mirage.json").write_text(json.dumps({"base": "../base"}))
    before = model_digest(str(folder))
    (base / "vae.safetensors").write_bytes(b"other weights")
    assert model_digest(str(folder)) != before


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A function that puts a revision of a model into a local cache of the hub, out of reach."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)

    def put(name: str, revision: str, content: str) -> None:
        commit = hashlib.sha1(f"{name} {content}".encode()).hexdigest()
        folder = tmp_path / "hub" / f"models--{name.replace('/', '--')}"
        (folder / "refs").mkdir(parents=True, exist_ok=True)
        (folder / "refs" / revision).write_text(commit)
        (folder / "snapshots" / commit).mkdir(parents=True)
        (folder / "snapshots" / commit / "model_index.json").write_text(content)

    return put


def test_hub_ids_and_revisions_are_models_of_their_own(hub):
    hub("OrgA/y", "main", '{"a": 1}')
    hub("OrgB/x", "main", '{"a": 2}')
    hub("OrgA/y", "v2", '{"a": 3}')
    digests = [model_digest(name) for name in ("OrgA/y", "OrgB/x", "OrgA/y@v2", "OrgA/y@main")]
    assert len(set(digests)) == 3 and digests[0] == digests[3]
    with pytest.raises(MirageError, match="OrgA/y@v3"):
        model_digest("OrgA/y@v3")


class Inverted(PixelModel):
    def decode(self, latents):
        return 255 - super().decode(latents)


def test_no_model_is_served_the_rollouts_of_another(hub, tmp_path, monkeypatch):
    models = {"OrgA/y": PixelModel(SIZE), "OrgB/x": Inverted(SIZE)}
    for name in models:
        hub(name, "main", json.dumps({"name": name}))
    monkeypatch.setattr(evaluating, "load_model", models.__getitem__)
    config = evaluating.EvaluationConfig(
        seeds=(2000101,), frames=5, memories=("latent",), store=tmp_path / "rollouts"
    )
    first, second = (
        evaluating.evaluate(replace(config, model=name)).rolled["latent"][0].rgb[0] for name in models
    )
    assert np.abs(first.astype(int) - (255 - second)).max() <= 1
