"""Branch and LoRA files: ours, peft's, and the reference implementation's made ours."""

from __future__ import annotations

import pytest
import torch
from diffusers import WanTransformer3DModel
from peft import PeftModel
from safetensors.torch import load_file, save_file
from wan_tiny import CHANNELS, TOLD, denoiser_inputs

from mirage_ros.cli import main
from mirage_ros.errors import MirageError
from mirage_ros.models import load_model
from mirage_ros.models.wan.denoiser import MemoryDenoiser, SideBranch
from mirage_ros.models.parts import add_lora, merge_lora
from mirage_ros.models.wan.config import TINY_TRANSFORMER, random_transformer, write_tiny_checkpoint
from mirage_ros.models.wan.weights import (
    BLOCK_NAMES,
    convert_branch,
    convert_lora,
    write_branch,
    write_lora,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny_checkpoint(tmp_path_factory.mktemp("wan") / "tiny")


def test_a_branch_is_one_file_and_comes_back(folder, tmp_path):
    transformer = WanTransformer3DModel.from_pretrained(str(folder / "transformer"))
    branch = SideBranch.from_transformer(transformer)
    torch.nn.init.normal_(branch.zero[0].weight, std=0.1)
    write_branch(branch, tmp_path)
    files = sorted(path.name for path in (tmp_path / "branch").iterdir())
    assert files == ["config.json", "diffusion_pytorch_model.safetensors"]
    again = SideBranch.from_pretrained(str(tmp_path / "branch"))
    state = again.state_dict()
    assert all(torch.equal(state[name], value) for name, value in branch.state_dict().items())


def test_lora_is_in_pefts_own_layout(folder, tmp_path):
    def fresh():
        return WanTransformer3DModel.from_pretrained(str(folder / "transformer")).eval()

    adapted = add_lora(fresh(), rank=4)
    for name, value in adapted.named_parameters():
        assert value.requires_grad == ("lora_" in name)
        if "lora_B" in name:
            torch.nn.init.normal_(value, std=0.1)
    adapted.save_pretrained(str(tmp_path / "lora"))
    names = load_file(tmp_path / "lora" / "adapter_model.safetensors").keys()
    assert len(names) == 4 * 4 * 2
    assert "base_model.model.blocks.0.attn1.to_out.0.lora_A.weight" in names
    merged = merge_lora(fresh(), tmp_path / "lora")
    wrapped = PeftModel.from_pretrained(fresh(), str(tmp_path / "lora"))
    latents, timestep, _, text = denoiser_inputs(TINY_TRANSFORMER)
    per_token = timestep.repeat_interleave(6, 1)
    with torch.no_grad():
        outputs = [net(latents, per_token, text)[0] for net in (merged, wrapped, fresh())]
    assert torch.allclose(outputs[0], outputs[1], atol=1e-5)
    assert (outputs[0] - outputs[2]).abs().max() > 1e-3


def reference_checkpoint(transformer, prefix="", seed=0):
    """Random tensors with the names and shapes of the reference implementation's."""
    torch.manual_seed(seed)
    dim, blocks = transformer.proj_out.in_features, len(transformer.blocks[::2])
    tensors = {
        "vace_patch_embedding.weight": torch.randn(dim, CHANNELS, 1, 2, 2) / 6,
        "vace_patch_embedding.bias": torch.randn(dim),
        "vace_blocks.0.before_proj.weight": torch.randn(dim, dim) / 7,
        "vace_blocks.0.before_proj.bias": torch.randn(dim),
    }
    theirs = {ours: name for name, ours in BLOCK_NAMES.items()}
    for block in range(blocks):
        for name, value in transformer.blocks[0].state_dict().items():
            module, _, kind = name.rpartition(".")
            named = f"{theirs[module]}.{kind}" if module else "modulation"
            tensors[f"vace_blocks.{block}.{named}"] = torch.randn(value.shape) / 7
        tensors[f"vace_blocks.{block}.after_proj.weight"] = torch.randn(dim, dim) / 7
        tensors[f"vace_blocks.{block}.after_proj.bias"] = torch.randn(dim) / 7
    return {prefix + name: value for name, value in tensors.items()}


@pytest.mark.parametrize("prefix", ["", "model.", "pipe.vace."])
def test_a_reference_branch_is_converted_and_computes_what_it_computed(prefix, tmp_path):
    transformer = WanTransformer3DModel(**TINY_TRANSFORMER).eval()
    tensors = reference_checkpoint(transformer, prefix)
    branch = convert_branch(tensors, transformer).eval()
    latents, timestep, condition, text = denoiser_inputs(TINY_TRANSFORMER)
    hidden = transformer.patch_embedding(latents).flatten(2).transpose(1, 2)
    denoiser = MemoryDenoiser(transformer, branch)
    with torch.no_grad():
        _, temb, words = denoiser._embed(timestep, text, hidden.shape[1])
        rotary = transformer.rope(latents)
        ours = branch(hidden, condition, words, temb, rotary)
        # VACE: c = before_proj(embed(context)) + x; then block after block, a hint from each.
        embedded = torch.nn.functional.conv3d(
            condition[:, :CHANNELS],
            tensors[prefix + "vace_patch_embedding.weight"],
            tensors[prefix + "vace_patch_embedding.bias"],
            stride=(1, 2, 2),
        )
        block = f"{prefix}vace_blocks.0.before_proj"
        first = [tensors[f"{block}.{kind}"] for kind in ("weight", "bias")]
        stream = hidden + torch.nn.functional.linear(embedded.flatten(2).transpose(1, 2), *first)
        for index, block in enumerate(branch.blocks):
            stream = block(stream, words, temb, rotary)
            last = [
                tensors[f"{prefix}vace_blocks.{index}.after_proj.{kind}"]
                for kind in ("weight", "bias")
            ]
            assert torch.allclose(ours[index], torch.nn.functional.linear(stream, *last), atol=1e-4)
    write_branch(branch, tmp_path)
    again = SideBranch.from_pretrained(str(tmp_path / "branch"))
    assert torch.equal(again.zero[1].weight, branch.zero[1].weight)


def test_a_branch_that_does_not_fit_is_refused_with_every_tensor():
    transformer = WanTransformer3DModel(**TINY_TRANSFORMER)
    tensors = reference_checkpoint(transformer)
    del tensors["vace_blocks.1.ffn.0.weight"]
    tensors["vace_blocks.1.self_attn.q.weight"] = torch.zeros(3, 3)
    tensors["vace_blocks.2.norm3.weight"] = torch.zeros(48)
    tensors["head.head.weight"] = torch.zeros(2)
    with pytest.raises(MirageError) as caught:
        convert_branch(tensors, transformer)
    text = str(caught.value)
    for name in ("ffn.net.0.proj", "attn1.to_q", "blocks.2.norm2", "head.head", "4 tensors differ"):
        assert name in text
    wide = reference_checkpoint(transformer)
    wide["vace_patch_embedding.weight"] = torch.zeros(48, 29, 1, 2, 2)
    with pytest.raises(MirageError, match=rf"\(48, 29, 1, 2, 2\) where \(48, {TOLD}, 1, 2, 2\)"):
        convert_branch(wide, transformer)


def test_every_tensor_is_listed_at_full_size_too():
    with torch.device("meta"):
        transformer = random_transformer(tiny=False)
    wanted = SideBranch.from_transformer(transformer).state_dict()
    with pytest.raises(MirageError) as caught:
        convert_branch({}, transformer)
    assert len(wanted) > 400
    assert all(f"missing {name} (" in str(caught.value) for name in wanted)


@pytest.mark.parametrize(
    "name",
    [
        "blocks.{}.self_attn.{}.lora_{}.weight",
        "base_model.model.blocks.{}.self_attn.{}.lora_{}.default.weight",
        "pipe.dit.blocks.{}.self_attn.{}.lora_{}.weight",
    ],
)
def test_reference_lora_is_converted_to_pefts_layout(name, tmp_path):
    def fresh():
        torch.manual_seed(0)
        return WanTransformer3DModel(**TINY_TRANSFORMER).eval()

    tensors = {}
    for block in range(4):
        for layer in "qkvo":
            tensors[name.format(block, layer, "A")] = torch.randn(3, 48)
            tensors[name.format(block, layer, "B")] = torch.randn(48, 3) / 20
    found, rank = convert_lora(tensors, fresh())
    write_lora(found, rank, tmp_path, alpha=None)
    merged = merge_lora(fresh(), tmp_path / "lora")
    plain = fresh()
    down, up = tensors[name.format(2, "k", "A")], tensors[name.format(2, "k", "B")]
    expected = plain.blocks[2].attn1.to_k.weight + up @ down
    assert torch.allclose(merged.blocks[2].attn1.to_k.weight, expected, atol=1e-5)
    assert torch.equal(merged.blocks[2].attn2.to_k.weight, plain.blocks[2].attn2.to_k.weight)


def test_lora_that_does_not_fit_is_refused_with_every_tensor():
    transformer = WanTransformer3DModel(**TINY_TRANSFORMER)
    tensors = {
        "blocks.0.self_attn.q.lora_A.weight": torch.zeros(3, 48),
        "blocks.0.self_attn.q.lora_B.weight": torch.zeros(40, 3),
        "blocks.0.self_attn.k.lora_A.weight": torch.zeros(3, 48),
        "blocks.9.self_attn.v.lora_A.weight": torch.zeros(3, 48),
        "vace_blocks.0.self_attn.q.lora_A.weight": torch.zeros(3, 48),
        "lora_embedding": torch.zeros(2),
        "blocks.0.self_attn.q.alpha": torch.tensor(8.0),
        "blocks.0.self_attn.q.diff_b": torch.zeros(48),
    }
    unknown = list(tensors)[-4:]
    tensors |= reference_checkpoint(transformer)
    with pytest.raises(MirageError) as caught:
        convert_lora(tensors, transformer)
    for word in ("(40, 3)", "missing base_model.model.blocks.0.attn1.to_k.lora_B", "blocks.9",
                 *(f"unknown {name} (" for name in unknown)):  # fmt: skip
        assert word in str(caught.value)
    assert "before_proj" not in str(caught.value), "a branch in the same file is left alone"


def test_the_command_converts_both_into_a_folder_that_runs(folder, tmp_path, capsys):
    transformer = WanTransformer3DModel.from_pretrained(str(folder / "transformer"))
    save_file(reference_checkpoint(transformer), tmp_path / "vace.safetensors")
    lora = {
        f"blocks.0.self_attn.q.lora_{half}.weight": torch.randn(shape)
        for half, shape in (("A", (2, 48)), ("B", (48, 2)))
    }
    save_file(lora, tmp_path / "lora.safetensors")
    words = ["convert", "--base", str(folder), "--branch", str(tmp_path / "vace.safetensors"),
             "--lora", str(tmp_path / "lora.safetensors"), "--out", str(tmp_path / "ours")]
    assert main(words) == 0
    model = load_model(str(tmp_path / "ours"), "cpu", {"size": [32, 64]})
    assert model.network.branch.zero[0].weight.abs().max() > 0
    torch.save(lora, tmp_path / "lora.pt")
    pickled = ["--lora", str(tmp_path / "lora.pt"), "--out", str(tmp_path / "other")]
    assert main([*words[:3], *pickled]) == 2
    assert "pickled" in capsys.readouterr().err
