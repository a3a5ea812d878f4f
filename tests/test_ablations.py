"""Ablations are configuration: how regions are pooled and from which levels, the spatial token, the thumbnail."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data_pipelines.lengths import FIRST_WORDING, sample_length
from data_pipelines.records import Region, RegionRecord
from data_pipelines.rendering import prompt_of
from osprey_tp import OspreyTPConfig, OspreyTPForConditionalGeneration, OspreyTPProcessor, RegionDescriber
from osprey_tp.modeling import OspreyTPModel
from osprey_tp.processing import add_region_tokens
from osprey_tp.region_encoder import RegionEncoder, SpatialEncoder
from osprey_tp.tiling import count_tiles, count_visual_tokens, visual_token_layout

from .annotation_files import box_mask, compressed
from .golden_recipe import GOLDEN, golden_canvas_masks, load_json, param
from .mask_coverage import area_shape, published_shape
from .test_sessions import QUESTION, plain_answer, random_picture
from .tiny_models import llama_tokenizer, save_tiny_model, tiny_describer, tiny_model, tiny_processor_and_config

ABLATIONS = {
    "centre pixels": {"region_pooling": "published"},
    "one level": {"region_feature_layers": [2]},
    "two levels": {"region_feature_layers": [3, 1]},
    "levels by an MLP": {"region_fusion": "mlp"},
    "spatial token": {"spatial_token": True, "spatial_side": 12},
    "spatial token, centre pixels": {"spatial_token": True, "spatial_side": 12, "region_pooling": "published"},
    "no thumbnail": {"thumbnail_source": "none"},
    "squeezed thumbnail": {"thumbnail_source": "canvas"},
    "all": {
        "region_pooling": "published",
        "region_feature_layers": [2],
        "spatial_token": True,
        "spatial_side": 5,
        "thumbnail_source": "none",
    },
}
every_ablation = pytest.mark.parametrize("choices", ABLATIONS.values(), ids=list(ABLATIONS))


def conversation(image, masks, answer=None):
    picture = {"type": "image", "image": image, "regions": masks}
    text = " and ".join(["<mask>"] * len(masks))
    question = {"role": "user", "content": [picture, {"type": "text", "text": f"What is {text}?"}]}
    return [question] if answer is None else [question, {"role": "assistant", "content": answer}]


@every_ablation
def test_a_model_with_it_learns_and_answers_the_same_by_every_way(choices: dict, tmp_path: Path) -> None:
    describer = RegionDescriber.from_pretrained(save_tiny_model(tmp_path / "model", **choices), device="cpu")
    model, processor = describer.model, describer.processor
    assert {name: getattr(model.config, name) for name in choices} == choices
    image, masks = random_picture(0)
    batch = processor.prepare(
        [conversation(image, masks[:2], "A cat."), conversation(image, [masks[2]], "Two.")], return_labels=True
    )
    assert int((batch["input_ids"] == processor.region_token_id).sum()) == 3 * model.config.tokens_per_region

    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(3):
        loss = model(**batch).loss
        loss.backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.model.region_encoder.parameters())
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]

    session = describer.open(image)
    expected = [plain_answer(describer, image, [mask], QUESTION) for mask in masks]
    assert session.ask(masks, QUESTION, max_new_tokens=12) == expected
    beams = [plain_answer(describer, image, [mask], QUESTION, num_beams=2) for mask in masks[:2]]
    assert session.ask(masks[:2], QUESTION, max_new_tokens=12, num_beams=2) == beams


def test_every_choice_changes_what_the_model_says() -> None:
    image, masks = random_picture(0)
    picture = conversation(image, masks, "A cat.")

    @torch.no_grad()
    def loss(**choices) -> float:
        model, processor = tiny_model(**choices)
        return float(model(**processor.prepare([picture], return_labels=True)).loss)

    losses = [loss(), *(loss(**choices) for choices in ABLATIONS.values())]
    assert len(set(losses)) == len(losses)


@every_ablation
def test_lengths_and_shown_prompts_count_its_tokens(choices: dict) -> None:
    processor, config = tiny_processor_and_config(**choices)
    regions = tuple(Region(compressed(box_mask(x, 2, x + 5, 20, 40, 160)), f"cat {x}") for x in (0, 10, 20))
    record = RegionRecord("coco:1", "coco", "1.png", 40, 160, regions)
    picture = Image.new("RGB", (160, 40))
    taught = FIRST_WORDING.conversation(record, picture)
    batch = processor.prepare([taught], return_labels=True)
    counts = sample_length(record, processor)
    assert counts.total == batch["input_ids"].shape[1]
    assert counts.visual == int((batch["input_ids"] == config.image_token_id).sum())
    assert counts.regions == int((batch["input_ids"] == config.region_token_id).sum())
    assert counts.regions == config.tokens_per_region * len(batch["region_coverage"])
    assert counts.answers == int((batch["labels"] != -100).sum())
    shown = [piece for piece in prompt_of(record, processor, FIRST_WORDING).pieces if piece.kind == "region"]
    assert [piece.tokens for piece in shown] == [config.tokens_per_region] * len(shown)
    assert len({piece.region for piece in shown}) == len(shown) > 1


CASE = load_json("e_osprey_mask_extractor.json")


@torch.no_grad()
def test_the_spatial_token_is_that_of_osprey() -> None:
    config = OspreyTPConfig.vicuna_7b(spatial_token=True)
    weights = {
        name.removeprefix("mask_extractor.mask_linear."): torch.from_numpy(param(name, tuple(shape)))
        for name, shape in CASE["state_dict"].items()
        if ".mask_linear." in name
    }
    encoder = SpatialEncoder(config)
    encoder.load_state_dict(weights)
    outputs = np.load(GOLDEN / "e_osprey_mask_extractor.npz")
    for image, (height, width) in enumerate(CASE["mask_sizes_hw"]):
        shapes = np.stack([published_shape(m, config.spatial_side) for m in golden_canvas_masks(height, width)])
        tokens = encoder(torch.from_numpy(shapes)).numpy()
        np.testing.assert_allclose(tokens[:, :64], outputs[f"img{image}_pos"], atol=2e-5, rtol=0)


@torch.no_grad()
def test_the_processor_and_the_model_make_the_spatial_token_of_osprey() -> None:
    """From a picture and its masks, by the processor, to the second token of every region."""
    tokenizer = llama_tokenizer()
    config = OspreyTPConfig.vicuna_7b(preset="published", spatial_token=True, feature_layers=[0])
    config.vision_config.num_hidden_layers = config.text_config.num_hidden_layers = 1
    with torch.device("meta"):
        model = OspreyTPModel(config)
    weights = {name: param(name, tuple(shape)) for name, shape in CASE["state_dict"].items() if ".mask_linear." in name}
    model.region_encoder = RegionEncoder(config)
    model.region_encoder.spatial.load_state_dict(
        {name.removeprefix("mask_extractor.mask_linear."): torch.from_numpy(weight) for name, weight in weights.items()}
    )
    add_region_tokens(tokenizer, "published")
    processor = OspreyTPProcessor.from_config(config, tokenizer)
    outputs = np.load(GOLDEN / "e_osprey_mask_extractor.npz")
    for image, (height, width) in enumerate(CASE["mask_sizes_hw"]):
        masks = [mask for mask in golden_canvas_masks(height, width) if mask.any()]
        kept = [index for index, mask in enumerate(golden_canvas_masks(height, width)) if mask.any()]
        batch = processor.prepare([conversation(Image.new("RGB", (width, height)), masks, "A cat.")])
        cells = torch.randn(1, len(batch["pixel_values"]), 576, 1024)
        inputs = {name: batch[name] for name in ("region_coverage", "region_image_index", "region_shapes")}
        tokens = model.region_tokens(cells, batch["tile_grids"], **inputs)
        assert tokens.shape == (2 * len(masks), 4096)
        found = tokens.unflatten(0, (-1, 2))[:, 1, :64].numpy()
        np.testing.assert_allclose(found, outputs[f"img{image}_pos"][kept], atol=2e-5, rtol=0)


@pytest.mark.parametrize("size", [(90, 150), (7, 300), (12, 12), (5, 4)], ids=str)
def test_shapes_keep_the_share_of_the_area(size: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    for _ in range(5):
        mask = rng.random(size) < rng.random()
        shape = area_shape(mask, 12)
        assert shape.dtype == np.float32 and shape.shape == (12, 12)
        assert shape.min() >= 0 and shape.max() <= 1 + 1e-6
        assert shape.mean() == pytest.approx(mask.mean(), abs=1e-6)
    pixel = np.zeros(size, bool)
    pixel[size[0] // 2, size[1] // 3] = True
    assert area_shape(pixel, 12).sum() > 0
    resized = torch.nn.functional.interpolate(torch.from_numpy(mask)[None, None].float(), (12, 12), mode="bilinear")
    np.testing.assert_allclose(published_shape(mask, 12), resized[0, 0].numpy(), atol=1e-6)


@torch.no_grad()
def test_levels_that_are_not_read_do_not_matter() -> None:
    encoder = RegionEncoder(OspreyTPConfig.tiny(region_feature_layers=[3, 1]))
    features, coverage, first = torch.randn(3, 1, 36, 32), torch.rand(2, 36), torch.zeros(2, dtype=torch.long)
    tokens = encoder(features, coverage, first)
    of_unread = features * torch.tensor([1, 9, 1])[:, None, None, None]
    torch.testing.assert_close(encoder(of_unread, coverage, first), tokens)
    swapped = encoder(features[[2, 1, 0]], coverage, first)
    assert not torch.allclose(swapped, tokens)


@pytest.mark.parametrize("grid", [(1, 1), (1, 2), (3, 2)], ids=str)
def test_without_a_thumbnail_only_it_and_its_separator_are_gone(grid: tuple[int, int]) -> None:
    with_it, without = (visual_token_layout(*grid, 4, thumbnail) for thumbnail in (True, False))
    assert len(without) == count_visual_tokens(*grid, 4, False)
    np.testing.assert_array_equal(with_it[: len(without)], without)
    assert len(with_it) - len(without) == (5 if grid != (1, 1) else 0)
    assert count_tiles(*grid, False) == grid[0] * grid[1]


def test_tiles_are_the_same_without_the_thumbnail() -> None:
    image, _ = random_picture(1)
    (with_it, _), (without, _) = tiny_processor_and_config(), tiny_processor_and_config(thumbnail_source="none")
    tiles = with_it.image_processor.preprocess([image])["pixel_values"]
    assert torch.equal(without.image_processor.preprocess([image])["pixel_values"], tiles[:-1])


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"region_feature_layers": [0]}, r"region_feature_layers \[0\] must be some of feature_layers \[1, 2, 3\]"),
        ({"region_feature_layers": []}, r"region_feature_layers \[\] must be some of"),
        ({"region_fusion": "max"}, "region_fusion"),
        ({"spatial_side": 0}, "spatial_side must be at least 1 pixel, got 0"),
        ({"thumbnail_source": "tile"}, r"thumbnail_source must be one of \('image', 'canvas', 'none'\), not 'tile'"),
        ({"region_pooling": "max"}, "region_pooling must be one of"),
    ],
)
def test_what_cannot_be_is_refused(choices: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        OspreyTPConfig.tiny(**choices)


def test_processor_and_model_must_agree() -> None:
    describer = tiny_describer(spatial_token=True)
    plain, _ = tiny_processor_and_config()
    with pytest.raises(ValueError, match="the processor has spatial_side 0 where the model has 112"):
        plain.check_fits(describer.model.config)
    image, masks = random_picture(0)
    batch = plain.prepare([conversation(image, masks[:1], "A cat.")])
    with pytest.raises(ValueError, match="regions come without region_shapes; pass all that the processor made"):
        describer.model(**batch)


def test_models_saved_before_the_switches_load(tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path / "model")
    for file in ("config.json", "processor_config.json"):
        text = (folder / file).read_text()
        kept = [line for line in text.splitlines() if not any(name in line for name in ("spatial_", "region_feature"))]
        (folder / file).write_text("\n".join(kept).replace(",\n}", "\n}"))
    config = OspreyTPForConditionalGeneration.from_pretrained(folder).config
    OspreyTPProcessor.from_pretrained(folder).check_fits(config)
    assert config.tokens_per_region == 1
