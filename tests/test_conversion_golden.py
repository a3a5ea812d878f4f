"""Golden data through converted checkpoints: the published layout written from the recipe, converted, compared."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from osprey_tp import OspreyTPForConditionalGeneration, OspreyTPProcessor
from osprey_tp.region_encoder import pool
from osprey_tp.tiling import TilePlan
from scripts import convert

from . import published_checkpoints as published
from .golden_recipe import GOLDEN, golden_canvas_masks, load_json, normal, param
from .mask_coverage import published_coverage, published_shape
from .test_processing import as_messages, published_view

CASES = {letter: load_json(f"{letter}_{name}.json") for letter, name in (
    ("c", "tokenpacker"), ("d", "mask_extractor"), ("e", "osprey_mask_extractor"), ("h", "llava_stf"),
    ("i", "conversation_v1"),
)}  # fmt: skip
OUTPUTS = {
    letter: np.load(GOLDEN / f"{letter}_{name}.npz")
    for letter, name in (
        ("c", "tokenpacker"),
        ("d", "mask_extractor"),
        ("e", "osprey_mask_extractor"),
        ("h", "llava_stf"),
    )
}
LEVELS = (12, 16, 22, 23)
HIDDEN = 256
"""Width of the language model; weights of the recipe are drawn row by row, so the first rows are those of 4096."""

TOWER = {"width": 1024, "layers": 3, "intermediate": 16, "image": 336, "patch": 14}
"""Published width and grid; what it computes is not part of these cases."""

LANGUAGE = {"hidden_size": HIDDEN, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 4}
LANGUAGE |= {"num_key_value_heads": 4}
OWN = {"osprey_tp": {"feature_layers": [0, 1, 2, 3]}}
STF_TOWER = {"width": 64, "layers": 24, "intermediate": 16, "image": 192, "patch": 8}
WIDE_STF_TOWER = TOWER | {"layers": 7}
SHALLOW_STF = {"feature_layers": [7, 6, 5, 4, 3, 2, 1, 0]}


def load(folder: Path) -> OspreyTPForConditionalGeneration:
    return OspreyTPForConditionalGeneration.from_pretrained(folder).eval()


def converted(folder: Path, *options: str) -> Path:
    assert convert.main([str(folder / "published"), str(folder / "model"), *options]) == 0
    return folder / "model"


@pytest.fixture(scope="module")
def with_osprey(tmp_path_factory: pytest.TempPathFactory) -> OspreyTPForConditionalGeneration:
    """TokenPacker-HD with Osprey at its published width, in float32, with the spatial branch of the original Osprey."""
    folder = tmp_path_factory.mktemp("with_osprey")
    shapes = published.shapes_of("tokenpacker", tower=TOWER, **LANGUAGE) | published.spatial_shapes(HIDDEN, 1024)
    published.write_weights(folder / "published", published.weights_of(shapes), shards=3)
    published.write_tokenizer(folder / "published")
    config = published.published_config("tokenpacker", 1024, **LANGUAGE, **OWN)
    (folder / "published" / "config.json").write_text(json.dumps(config))
    return load(converted(folder))


def assert_projects_as_published(model: OspreyTPForConditionalGeneration, scale_factor: int) -> None:
    features = torch.stack([torch.from_numpy(normal(f"c.feat.level{level}", (2, 576, 1024))) for level in LEVELS])
    name = f"h{HIDDEN}_s{scale_factor}"
    with torch.no_grad():
        output = model.model.projector(features)
    assert list(output.shape) == CASES["c"]["cases"][name]["out_shape"]
    np.testing.assert_allclose(output[:, ::7, :64].numpy(), OUTPUTS["c"][f"{name}_out"], atol=2e-5, rtol=0)


def test_case_c_through_a_whole_checkpoint(with_osprey: OspreyTPForConditionalGeneration) -> None:
    assert_projects_as_published(with_osprey, 2)


def test_case_c_at_other_scales_through_a_projector_alone(tmp_path: Path) -> None:
    """Stage 1: the projector's file, a plain Llama and CLIP in folders of their own."""
    shapes = published.shapes_of("tokenpacker", regions=False, tower=TOWER, **LANGUAGE)
    weights = published.weights_of(shapes)
    tower = "model.vision_tower.vision_tower."
    for folder, kept in (
        ("published", {name: w for name, w in weights.items() if "mm_projector" in name}),
        ("clip", {name.removeprefix(tower): w for name, w in weights.items() if name.startswith(tower)}),
        ("llama", {name: w for name, w in weights.items() if "mm_projector" not in name and tower not in name}),
    ):
        published.write_weights(tmp_path / folder, kept, ".bin" if folder == "published" else ".safetensors")
    (tmp_path / "published" / "pytorch_model.bin").rename(tmp_path / "published" / "mm_projector.bin")
    published.write_tokenizer(tmp_path / "llama", "tokenizer.model")
    llama = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", **published.LANGUAGE, **LANGUAGE}
    (tmp_path / "llama" / "config.json").write_text(json.dumps(llama))
    clip = {"model_type": "clip_vision_model", "hidden_size": 1024, "intermediate_size": 16, "num_hidden_layers": 3}
    clip |= {"num_attention_heads": 16, "image_size": 336, "patch_size": 14}
    (tmp_path / "clip" / "config.json").write_text(json.dumps(clip))
    beside = published.published_config("tokenpacker", 1024, **OWN) | {"scale_factor": 4}
    (tmp_path / "published" / "config.json").write_text(json.dumps(beside))
    parts = ["--language-model", str(tmp_path / "llama"), "--vision-tower", str(tmp_path / "clip")]
    model = load(converted(tmp_path, *parts))
    assert_projects_as_published(model, 4)
    assert torch.equal(model.lm_head.weight, weights["lm_head.weight"])
    model = None  # the files below replace those that are mapped
    source = str(tmp_path / "published" / "mm_projector.bin")
    assert convert.main([source, str(tmp_path / "other"), *parts, "--scale-factor", "3"]) == 0
    assert_projects_as_published(load(tmp_path / "other"), 3)


@torch.no_grad()
def test_cases_d_and_e_through_a_whole_checkpoint(with_osprey: OspreyTPForConditionalGeneration) -> None:
    config, encoder = with_osprey.config, with_osprey.model.region_encoder
    assert (config.spatial_token, config.spatial_side, config.preset) == (True, 112, "published")
    levels = [torch.from_numpy(normal(f"d.feat.level{level}", (13, 576, 1024))) for level in LEVELS]
    first = 0
    for image, (rows, cols) in enumerate(CASES["d"]["grids_rows_cols"]):
        plan = TilePlan(config.tiling, rows * 336, cols * 336, rows, cols)
        masks = golden_canvas_masks(plan.height, plan.width)
        coverage = torch.stack([torch.from_numpy(published_coverage(mask, plan)) for mask in masks])
        first_cells = torch.full((len(masks),), first * 576)
        tokens = encoder(torch.stack(levels), coverage, first_cells, torch.zeros(len(masks), 112, 112))[::2]
        np.testing.assert_allclose(tokens[:, :64].numpy(), OUTPUTS["d"][f"img{image}_query"], atol=2e-5, rtol=0)
        first += plan.num_tiles
        for index in (CASES["d"]["mask_names"].index(name) for name in CASES["d"]["images"][image]["all_zero_pooled"]):
            vanished = OUTPUTS["d"]["vanished_query_full"][:HIDDEN]
            np.testing.assert_allclose(tokens[index].numpy(), vanished, atol=2e-5, rtol=0)
    for image, (height, width) in enumerate(CASES["e"]["mask_sizes_hw"]):
        shapes = torch.from_numpy(np.stack([published_shape(m, 112) for m in golden_canvas_masks(height, width)]))
        tokens = encoder(torch.stack(levels), torch.zeros(14, 576), torch.zeros(14, dtype=torch.long), shapes)[1::2]
        np.testing.assert_allclose(tokens[:, :64].numpy(), OUTPUTS["e"][f"img{image}_pos"], atol=2e-5, rtol=0)


@torch.no_grad()
def test_case_e_pools_levels_of_any_grid(with_osprey: OspreyTPForConditionalGeneration) -> None:
    """The levels of Osprey's own convolutional tower: grids and widths that differ, under masks that do not fit them.

    Its one projection a level is Osprey's alone; the projection after them is that of the converted checkpoint.
    """
    encoder, shapes = with_osprey.model.region_encoder, CASES["e"]["state_dict"]
    features = {"res2": (2, 192, 128, 128), "res3": (2, 384, 64, 64), "res4": (2, 768, 32, 32)}
    features["res5"] = (2, 1536, 16, 16)
    for image, (height, width) in enumerate(CASES["e"]["mask_sizes_hw"]):
        masks = torch.from_numpy(np.stack(golden_canvas_masks(height, width))).float()
        projected = torch.zeros(len(masks), 1024)
        for name, shape in features.items():
            level = torch.from_numpy(normal(f"e.feat.{name}", shape))[image].flatten(1).T
            covered = functional.interpolate(masks[:, None], shape[2:], mode="bilinear").flatten(1) > 0
            pooled = pool(level[None], covered, torch.zeros(len(masks), dtype=torch.long))[0]
            np.testing.assert_allclose(
                pooled[:, :32].numpy(), OUTPUTS["e"][f"img{image}_pooled_{name}"], atol=2e-5, rtol=0
            )
            zero = [CASES["e"]["mask_names"][index] for index in (pooled == 0).all(dim=1).nonzero().flatten()]
            assert zero == CASES["e"]["images"][image]["all_zero_pooled_by_level"][name]
            weight, bias = (f"mask_extractor.{name}.{part}" for part in ("weight", "bias"))
            projected += pooled @ torch.from_numpy(param(weight, tuple(shapes[weight]))).T
            projected += torch.from_numpy(param(bias, tuple(shapes[bias])))
        queries = encoder.output(projected)
        np.testing.assert_allclose(queries[:, :64].numpy(), OUTPUTS["e"][f"img{image}_query"], atol=2e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize(
    ("case", "tower", "language", "own", "tolerance"),
    [
        ("small", STF_TOWER, {"hidden_size": 128}, {}, 2e-5),
        ("published", WIDE_STF_TOWER, {"hidden_size": 4096, "head_dim": 4}, {"osprey_tp": SHALLOW_STF}, 1e-3),
    ],
)
def test_case_h_through_a_whole_checkpoint(
    tmp_path: Path,
    case: str,
    tower: dict[str, int],
    language: dict[str, int],
    own: dict[str, Any],
    tolerance: float,
) -> None:
    sizes = LANGUAGE | language
    shapes = published.shapes_of("stf", regions=False, tower=tower, **sizes)
    published_names = CASES["h"]["cases"][case]["state_dict"]
    assert {name: list(shape) for name, shape in shapes.items() if "mm_projector" in name} == published_names
    published.write_weights(tmp_path / "published", published.weights_of(shapes), ".safetensors", shards=2)
    published.write_tokenizer(tmp_path / "published")
    config = published.published_config("stf", tower["width"], **sizes, **own) | {"model_type": "llava_llama"}
    (tmp_path / "published" / "config.json").write_text(json.dumps(config))
    model = load(converted(tmp_path))
    names = list(CASES["h"]["level_order"])
    assert model.config.feature_layers == own.get("osprey_tp", {"feature_layers": names})["feature_layers"]
    expected = CASES["h"]["cases"][case]
    features = [
        torch.from_numpy(normal(f"h.{case}.feat.level{level}", (expected["batch"], 576, tower["width"])))
        for level in names
    ]
    output = model.model.projector(torch.stack(features))
    assert list(output.shape) == expected["out_shape"]
    np.testing.assert_allclose(output[:, ::7, :64].numpy(), OUTPUTS["h"][f"{case}_out"], atol=tolerance, rtol=0)
    mean, deviation = expected["out_stats"][:2]
    np.testing.assert_allclose([output.mean(), output.std(correction=0)], [mean, deviation], atol=1e-4)


@pytest.mark.parametrize("file", ["tokenizer.json", "tokenizer.model"])
def test_case_i_through_a_whole_checkpoint(tmp_path: Path, file: str) -> None:
    published.write_checkpoint(tmp_path / "published", tokenizer=file)
    processor = OspreyTPProcessor.from_pretrained(converted(tmp_path))
    for case in CASES["i"]["conversations"].values():
        messages = as_messages(case["conversation"])
        assert processor.apply_chat_template(messages, tokenize=False) == "<s>" + case["prompt"]
        ids, labels = published_view(processor.prepare([messages], return_labels=True), processor)
        assert (ids, labels) == (case["small_fast"]["input_ids"], case["small_fast"]["labels"])
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    separators = CASES["i"]["separators"]["small_fast"]
    assert config["row_separator_token_id"] == separators["newline"]
    assert config["tile_separator_token_id"] == separators["comma"]
    assert config["region_token_id"] == separators["mask"] == config["text_config"]["vocab_size"]
