"""Depth and masks for the large model, on small random networks of the published classes."""

from __future__ import annotations

import sys
import types
from dataclasses import replace

import numpy as np
import pytest
import torch
from fakes import PixelModel

from mirage_ros.errors import MirageError
from mirage_ros.geometry.camera import Camera
from mirage_ros.geometry.depth import cell_depth
from mirage_ros.models.depth_estimators import (
    ESTIMATORS,
    DepthEstimator,
    align_depth,
    disagreeing,
    fit_line,
    load_depth_estimator,
)
from mirage_ros.models.parts import InputRule, block_means
from mirage_ros.models.perceivers import MiniPerceiver, load_perceiver, load_segmenter
from mirage_ros.models.wan import WanModel
from mirage_ros.protocol import Perception

SIZE = (96, 160)
STRIDE = 16


def depth_anything(folder, kind):
    from transformers import (
        DepthAnythingConfig,
        DepthAnythingForDepthEstimation,
        Dinov2Config,
    )

    backbone = Dinov2Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, mlp_ratio=2, image_size=56,
        patch_size=14, out_features=["stage1", "stage2"], reshape_hidden_states=False,
    )  # fmt: skip
    config = DepthAnythingConfig(
        backbone_config=backbone, reassemble_hidden_size=32, neck_hidden_sizes=[16, 16],
        reassemble_factors=[2, 1], fusion_hidden_size=16, head_hidden_size=8,
        depth_estimation_type=kind, max_depth=20,
    )  # fmt: skip
    DepthAnythingForDepthEstimation(config).save_pretrained(folder)


def depth_pro(folder):
    from transformers import DepthProConfig, DepthProForDepthEstimation, Dinov2Config

    vit = Dinov2Config(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, mlp_ratio=2, image_size=32,
        patch_size=8,
    ).to_dict()  # fmt: skip
    config = DepthProConfig(
        image_model_config=vit, patch_model_config=vit, fov_model_config=vit, patch_size=32,
        fusion_hidden_size=8, intermediate_hook_ids=[1, 0], intermediate_feature_dims=[8, 8],
        scaled_images_ratios=[0.25, 0.5, 1], scaled_images_overlap_ratios=[0.0, 0.5, 0.25],
        scaled_images_feature_dims=[8, 8, 8], merge_padding_value=1, use_fov_model=False,
        num_fov_head_layers=0,
    )  # fmt: skip
    DepthProForDepthEstimation(config).save_pretrained(folder)


def clip_tokenizer(folder):
    from transformers import CLIPTokenizer

    letters = [chr(code) for code in range(97, 123)]
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{x}</w>" for x in letters)]
    CLIPTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[]).save_pretrained(
        folder
    )


def sam3(folder):
    from transformers import Sam3Config
    from transformers.models.sam3.modeling_sam3 import Sam3Model

    layers = {"hidden_size": 32, "num_layers": 1, "num_attention_heads": 4, "intermediate_size": 32}
    vit = {
        "model_type": "sam3_vit_model", "hidden_size": 32, "intermediate_size": 64,
        "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 112,
        "pretrain_image_size": 56, "window_size": 4, "global_attn_indexes": [1],
    }  # fmt: skip
    text = {
        "model_type": "clip_text_model", "vocab_size": 64, "hidden_size": 32,
        "intermediate_size": 32, "projection_dim": 32, "num_hidden_layers": 1,
        "num_attention_heads": 4, "max_position_embeddings": 16, "bos_token_id": 0,
        "eos_token_id": 1, "pad_token_id": 1,
    }  # fmt: skip
    config = Sam3Config(
        vision_config={"backbone_config": vit, "fpn_hidden_size": 32,
                       "backbone_feature_sizes": [[32, 32], [16, 16], [8, 8]]},
        text_config=text, geometry_encoder_config=layers, detr_encoder_config=layers,
        detr_decoder_config=layers | {"num_queries": 5},
        mask_decoder_config={"hidden_size": 32, "num_attention_heads": 4},
    )  # fmt: skip
    Sam3Model(config).save_pretrained(folder)
    clip_tokenizer(folder)


def clipseg(folder):
    from transformers import CLIPSegConfig, CLIPSegForImageSegmentation

    text = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2,
            "num_attention_heads": 2, "max_position_embeddings": 16, "bos_token_id": 0,
            "eos_token_id": 1, "pad_token_id": 1}  # fmt: skip
    vision = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 3,
              "num_attention_heads": 2, "image_size": 64, "patch_size": 16}  # fmt: skip
    config = CLIPSegConfig(
        text_config=text, vision_config=vision, projection_dim=32, extract_layers=[0, 1],
        reduce_dim=16, decoder_num_attention_heads=2, decoder_intermediate_size=32,
    )  # fmt: skip
    CLIPSegForImageSegmentation(config).save_pretrained(folder)
    clip_tokenizer(folder)


@pytest.fixture(scope="module")
def adapters(tmp_path_factory):
    """One of each kind, loaded by name from a folder."""
    root = tmp_path_factory.mktemp("adapters")
    torch.manual_seed(0)
    depth_anything(root / "metric", "metric")
    depth_anything(root / "relative", "relative")
    depth_pro(root / "pro")
    sam3(root / "sam3")
    clipseg(root / "clipseg")
    return {
        "metric": load_depth_estimator(f"depth-anything:{root / 'metric'}"),
        "relative": load_depth_estimator(f"depth-anything:{root / 'relative'}"),
        "pro": load_depth_estimator(f"depth-pro:{root / 'pro'}"),
        "sam3": load_segmenter(f"sam3:{root / 'sam3'}", ["person", "car"]),
        "clipseg": load_segmenter(f"clipseg:{root / 'clipseg'}", ["person"]),
        "root": root,
    }


def pictures(frames=2, size=SIZE):
    rng = np.random.default_rng(0)
    return rng.integers(0, 255, (frames, *size, 3), np.uint8)


def cameras(frames=2, size=SIZE):
    return Camera.from_hfov(70.0, size, np.tile(np.eye(4), (frames, 1, 1)))


@pytest.mark.parametrize(
    ("name", "inverse", "metric"),
    [("metric", False, True), ("relative", True, False), ("pro", True, True)],
)
def test_a_depth_model_answers_at_picture_size(adapters, name, inverse, metric):
    estimator = adapters[name]
    assert (estimator.inverse, estimator.metric) == (inverse, metric)
    answer = estimator(pictures(), cameras())
    assert answer.shape == (2, *SIZE) and np.isfinite(answer).all()


def test_depth_pro_takes_the_cameras_own_focal_length(adapters):
    wide, narrow = (
        Camera.from_hfov(angle, SIZE, np.tile(np.eye(4), (2, 1, 1))) for angle in (90.0, 45.0)
    )
    bright, dim = (adapters["pro"](pictures(), camera) for camera in (wide, narrow))
    focal = wide.intrinsics[0, 0, 0] / narrow.intrinsics[0, 0, 0]
    assert bright.max() > 0 and np.allclose(bright * focal, dim, rtol=1e-4)


@pytest.mark.parametrize("name", ["sam3", "clipseg"])
def test_a_segmenter_answers_each_prompt_at_picture_size(adapters, name):
    dynamic, sky = adapters[name](pictures())
    assert dynamic.shape == sky.shape == (2, *SIZE)
    assert not (dynamic & sky).any()
    sure = replace(adapters[name], network=lambda p, prompt: torch.ones(len(p), 8, 8))
    dynamic, sky = sure(pictures())
    assert sky.all() and not dynamic.any()
    some = replace(
        adapters[name], prompts=("car",), network=lambda p, prompt: torch.full(
            (len(p), 8, 8), float(prompt == "car"))
    )  # fmt: skip
    assert some(pictures())[0].all()


RULES = {
    "da3": InputRule(504, 14, longest=True),
    "map-anything": InputRule(518, 14, longest=True),
    "sam3 published": InputRule(1008, 1, square=True),
    "depth-pro published": InputRule(1536, 1, square=True),
    "depth-anything published": InputRule(518, 14),
}


@pytest.mark.parametrize("name", ["metric", "relative", "pro", "sam3", "clipseg", *RULES])
@pytest.mark.parametrize("size", [(96, 160), (180, 130)])
def test_what_is_at_a_pixel_comes_back_at_that_pixel(adapters, name, size):
    """A network that answers with brightness: a spot's centre moves by at most 0.5 px."""
    rule = RULES[name] if name in RULES else adapters[name].rule
    rule = replace(rule, mean=(0.0,) * 3, std=(1.0,) * 3)
    seeing = DepthEstimator(lambda picture: picture.mean(1), rule)
    for row, column in [(20, 20), (size[0] // 2, size[1] // 2 + 3), (size[0] - 21, size[1] - 21)]:
        rgb = np.zeros((1, *size, 3), np.uint8)
        rgb[0, row - 8 : row + 9, column - 8 : column + 9] = 255
        answer = seeing(rgb, cameras(1, size))[0].astype(np.float64)
        answer[answer < 0.1] = 0
        rows, columns = np.mgrid[: size[0], : size[1]]
        place = (answer * rows).sum() / answer.sum(), (answer * columns).sum() / answer.sum()
        assert np.hypot(place[0] - row, place[1] - column) <= 0.5


class Brightness(PixelModel):
    """A mini perceiver, of stride 8, that takes brightness for depth and red for moving."""

    def perceive(self, rgb, cameras, anchor_depth_m):
        assert rgb.shape[1:3] == cameras.size
        self.seen, self.anchors = cameras.size, anchor_depth_m
        nothing = np.zeros(rgb.shape[:3], bool)
        return Perception(rgb.mean(-1).astype(np.float32), rgb[..., 0] > 250, nothing)


@pytest.mark.parametrize("stride", [8, 16, 32])
def test_the_shipped_perceiver_sees_its_own_cells_and_answers_at_picture_size(stride):
    mini, rgb = Brightness(), np.zeros((1, *SIZE, 3), np.uint8)
    rgb[0, 32:64, 64:128] = 255
    anchor = np.ones((1, SIZE[0] // stride, SIZE[1] // stride), np.float32)
    found = MiniPerceiver(mini, stride)(rgb, cameras(1), anchor)
    assert mini.seen == (SIZE[0] * 8 // stride, SIZE[1] * 8 // stride)
    assert mini.anchors is anchor
    assert np.array_equal(found.depth_m[0] > 100, rgb[0, ..., 0] > 100)
    assert np.array_equal(found.dynamic[0], rgb[0, ..., 0] > 100) and not found.sky.any()


@pytest.mark.parametrize("times", [1, 2, 4])
def test_blocks_become_their_means(times):
    means = block_means(pictures(), times)
    split = pictures().reshape(2, SIZE[0] // times, times, SIZE[1] // times, times, 3)
    assert means.dtype == np.uint8
    assert np.abs(means - split.mean((2, 4))).max() <= 0.5


@pytest.fixture(scope="module")
def true_depth():
    scenes = pytest.importorskip("mirage_ros.scenes", reason="MuJoCo cannot draw here")
    clip = scenes.make_clip(2000017, 4, (96, 160), kind="room")
    return np.where(clip.depth_m < 50, clip.depth_m, np.nan).astype(np.float32)


@pytest.mark.parametrize("inverse", [False, True], ids=["depth", "inverse depth"])
@pytest.mark.parametrize("seed", range(5))
def test_distorted_depth_is_metric_again_after_alignment(true_depth, inverse, seed):
    """Random scale, shift and noise; memory knows 40 % of the cells, a tenth of them wrongly."""
    rng = np.random.default_rng(seed)
    anchor = cell_depth(true_depth, STRIDE)
    anchor = anchor * np.exp(rng.normal(0, 0.01, anchor.shape))
    anchor[rng.random(anchor.shape) < 0.1] *= rng.choice([0.4, 1.8])
    anchor[rng.random(anchor.shape) > 0.4] = np.nan
    said = 1 / true_depth if inverse else true_depth
    middle = float(np.nanmedian(said))
    scale, shift = rng.uniform(0.2, 5), rng.uniform(-0.25, 0.5) * middle
    raw = (said - shift) / scale
    raw = np.maximum(raw, 1e-3) * np.exp(rng.normal(0, 0.01, said.shape))
    depth = align_depth(raw.astype(np.float32), anchor.astype(np.float32), STRIDE, inverse)
    sound = np.isfinite(true_depth) & (said > shift)
    error = np.abs(depth[sound] / true_depth[sound] - 1)
    assert error.mean() <= 0.02


def test_a_model_without_a_scale_needs_one(true_depth):
    with pytest.raises(MirageError, match="no metric scale"):
        align_depth(true_depth, None, STRIDE, inverse=True, metric=False)
    assert np.array_equal(
        align_depth(true_depth, None, STRIDE), true_depth.astype(np.float32), equal_nan=True
    )


def test_a_line_is_found_through_a_third_of_nonsense():
    rng = np.random.default_rng(0)
    x = rng.uniform(1, 9, 300)
    y = 1.7 * x + 0.4
    y[:90] = rng.uniform(0.5, 30, 90)
    a, b = fit_line(x, y)
    assert a == pytest.approx(1.7, rel=0.01) and b == pytest.approx(0.4, abs=0.05)


def test_memory_votes_against_what_stands_before_it():
    depth = np.full((1, 96, 160), 4.0, np.float32)
    depth[0, :32, :32] = 2.0
    anchor = np.full((1, 6, 10), 4.0, np.float32)
    anchor[0, 0, 0] = np.nan
    vote = disagreeing(depth, anchor, STRIDE)
    assert vote[0, :32, :32].sum() == 3 * STRIDE**2, "what memory has not seen is not judged"
    assert not vote[0, 32:].any()


def test_depth_model_and_segmenter_make_a_perceiver(adapters):
    root = adapters["root"]
    perceiver = load_perceiver(
        f"depth-anything:{root / 'relative'}", f"sam3:{root / 'sam3'}", ["person"],
        lambda device: None, STRIDE, "cpu",
    )  # fmt: skip
    anchor = np.full((2, 6, 10), np.nan, np.float32)
    anchor[:, :4] = 3.0
    found = perceiver(pictures(), cameras(), anchor)
    assert found.depth_m.shape == found.dynamic.shape == found.sky.shape == (2, *SIZE)
    assert not (found.dynamic & found.sky).any()
    known = np.isfinite(found.depth_m)
    assert 0.5 < np.median(found.depth_m[known]) < 20
    # Of a real picture only the segmenter's word counts, not where depth and anchor disagree.
    segmented = WanModel.segmented(types.SimpleNamespace(perceiver=perceiver), pictures())
    np.testing.assert_array_equal(segmented, perceiver.masks(pictures())[0])


def test_a_perceiver_without_a_segmenter_has_no_say_about_real_pictures():
    for perceiver in (MiniPerceiver(PixelModel(), 8), types.SimpleNamespace(masks=None)):
        assert WanModel.segmented(types.SimpleNamespace(perceiver=perceiver), pictures()) is None


@pytest.mark.parametrize("kind", ["da3", "map-anything"])
def test_packages_that_are_not_installed_are_named(kind):
    package = {"da3": "depth_anything_3", "map-anything": "mapanything"}[kind]
    try:
        __import__(package)
    except ImportError:
        with pytest.raises(MirageError, match="not installed"):
            ESTIMATORS[kind]("somewhere", "cpu")


def test_a_depth_model_of_an_unknown_kind_is_refused(tmp_path):
    from transformers import DPTConfig, DPTForDepthEstimation

    config = DPTConfig(
        hidden_size=32, num_hidden_layers=4, num_attention_heads=2, intermediate_size=32,
        image_size=32, patch_size=16, backbone_out_indices=[0, 1, 2, 3],
        neck_hidden_sizes=[8, 8, 8, 8], fusion_hidden_size=8,
    )  # fmt: skip
    DPTForDepthEstimation(config).save_pretrained(tmp_path)
    with pytest.raises(MirageError, match="of the type dpt"):
        load_depth_estimator(f"transformers:{tmp_path}")


@pytest.mark.parametrize(
    ("source", "named", "metric", "by_focal"),
    [
        ("depth-anything/DA3METRIC-LARGE", "da3metric-large", True, True),
        ("depth-anything/DA3NESTED-GIANT-LARGE", "da3nested-giant-large", True, False),
        ("depth-anything/DA3-LARGE", "da3-large", False, False),
        ("/metric/copies/mine", "da3mono-large", False, False),
        ("/copies/DA3METRIC-LARGE", None, True, True),
    ],
)
def test_depth_anything_3_has_metres_where_its_checkpoint_has(
    monkeypatch, source, named, metric, by_focal
):
    """The package is not installed where tests run; only what is read of it stands here."""

    class Net(torch.nn.Module):
        model_name = named

        @classmethod
        def from_pretrained(cls, source):
            return cls()

    package = types.ModuleType("depth_anything_3.api")
    package.DepthAnything3 = Net
    monkeypatch.setitem(sys.modules, "depth_anything_3", types.ModuleType("depth_anything_3"))
    monkeypatch.setitem(sys.modules, "depth_anything_3.api", package)
    estimator = load_depth_estimator(f"da3:{source}")
    assert (estimator.metric, estimator.scale is not None) == (metric, by_focal)


@pytest.mark.parametrize("name", ["depth-anything:/nowhere", "depth-pro:/nowhere", "what:ever"])
def test_depth_models_that_are_not_there_are_refused_in_one_line(name):
    with pytest.raises(MirageError) as caught:
        load_depth_estimator(name)
    assert "\n" not in str(caught.value)
