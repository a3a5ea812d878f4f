"""The square layout: one padded square a picture, as LLaVA-1.5 and TokenPacker without HD see it.

Pixels are compared with transformers' CLIPImageProcessor after an expand2square of Pillow's own, logits with its
LlavaForConditionalGeneration.
"""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import CLIPImageProcessorPil, LlavaConfig, LlavaForConditionalGeneration

from osprey_tp import OspreyTPConfig, OspreyTPImageProcessor, RegionDescriber, TilePlan, Tiling
from osprey_tp import image_processing as image_processing_module
from osprey_tp.prompts import CATEGORY_QUESTION

from .golden_recipe import image
from .mask_coverage import area_coverage, published_coverage
from .tiny_models import tiny_model

SQUARE = {"picture_layout": "square", "max_tiles": 1}


def expand2square(picture: Image.Image, mean: list[float]) -> Image.Image:
    """The picture pasted into the middle of a square of the mean colour."""
    side = max(picture.size)
    square = Image.new("RGB", (side, side), tuple(int(255 * channel) for channel in mean))
    square.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    return square


def as_clip_sees(picture: Image.Image, side: int, **scale: list[float]) -> torch.Tensor:
    """(1, 3, side, side), normalised."""
    size = {"size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}}
    clip = CLIPImageProcessorPil(**size, **scale)
    return clip(expand2square(picture, clip.image_mean), return_tensors="pt").pixel_values


@pytest.mark.parametrize("size", [(480, 641), (90, 37), (336, 336), (1, 200), (700, 33), (20, 20)])
@pytest.mark.parametrize("scale", [{}, {"image_mean": [0.5, 0.4, 0.2], "image_std": [0.5, 0.25, 0.5]}], ids=str)
def test_pixels_equal_those_of_clips_own_processor(size, scale, monkeypatch):
    monkeypatch.setattr(image_processing_module, "_PIXELS_AT_A_TIME", 9000)  # several bands of rows
    picture = Image.fromarray(image(*size))
    found = OspreyTPImageProcessor(**SQUARE, **scale)(picture, return_tensors="pt")
    assert found.tile_grids.tolist() == [[1, 1]]
    torch.testing.assert_close(found.pixel_values, as_clip_sees(picture, 336, **scale), rtol=0, atol=1e-6)


@given(st.tuples(st.integers(1, 90), st.integers(1, 90)), st.sampled_from([(64, 8), (48, 12)]), st.data())
@settings(max_examples=60, deadline=None)
def test_regions_lie_where_the_square_shows_them(size, tile, data):
    """Coverage of a picture is that of the square that holds it, which is a picture without padding of its own."""
    (height, width), (tile_size, patch) = size, tile
    plan = Tiling(tile_size, patch, max_tiles=1, square=True).plan(height, width)
    mask = np.random.default_rng(data.draw(st.integers(0, 99))).random(size) < 0.3
    mask[data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))] = True
    side = max(size)
    whole = np.zeros((side, side), dtype=bool)
    top, left = (side - height) // 2, (side - width) // 2
    whole[top : top + height, left : left + width] = mask
    of_square = TilePlan(Tiling(tile_size, patch), side, side, 1, 1)
    for coverage in (area_coverage, published_coverage):
        np.testing.assert_array_equal(coverage(mask, plan), coverage(whole, of_square))
    assert area_coverage(mask, plan).sum() == pytest.approx(mask.sum() * plan.cells_per_source_pixel, rel=1e-5)
    y, x = (int(places[0]) for places in mask.nonzero())
    cell = plan.cell_of_source_pixel(y, x)
    assert cell == of_square.cell_of_source_pixel(top + y, left + x)
    x0, y0, x1, y1 = plan.source_box_of_cell(cell)
    assert x0 <= x + 0.5 <= x1 and y0 <= y + 0.5 <= y1
    boxes = np.array([plan.source_box_of_cell(index) for index in range(plan.num_cells)])
    assert ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).sum() == pytest.approx(height * width)


@torch.no_grad()
def test_logits_equal_those_of_llava_in_transformers():
    """LLaVA-1.5 end to end: the same pictures, tokens and weights, the picture prepared by CLIP's own processor."""
    layers = {"feature_layers": [3], "max_tiles": 1}  # of 4: the last hidden state but one, as published
    model, processor = tiny_model(preset="published", projector_type="mlp", picture_layout="square", **layers)
    for name, weight in model.named_parameters():
        if weight.ndim > 1 and "embed" not in name:
            weight.mul_(0.25)  # weights that are spread as far as in `tiny_model` magnify the rounding of pixels
    vision, text = model.config.vision_config, model.config.text_config
    of_llava = {"vision_feature_layer": -2, "vision_feature_select_strategy": "default"}
    image_token = model.config.image_token_id
    text.vocab_size = image_token + 1  # transformers' LLaVA embeds placeholders before it replaces them
    llava = LlavaForConditionalGeneration(
        LlavaConfig(vision_config=vision, text_config=text, image_token_id=image_token, **of_llava)
    )
    llava.eval()
    state = model.state_dict()
    for name, weight in llava.state_dict().items():
        ours = name.replace("multi_modal_projector.linear_1", "projector.mlp.0")
        saved = state[ours.replace("multi_modal_projector.linear_2", "projector.mlp.2")]
        weight[: len(saved)] = saved
    pictures = [Image.fromarray(image(*size)) for size in ((90, 140), (200, 61))]
    batch = processor.prepare(
        [
            [{"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": "Tell me."}]}]
            for picture in pictures
        ],
        add_generation_prompt=True,
    )
    counted = (batch["input_ids"] == image_token).sum(1).tolist()
    assert counted == [36, 36] == [processor.image_processor.num_visual_tokens(p.height, p.width) for p in pictures]
    expected = llava(
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"],
        pixel_values=torch.cat([as_clip_sees(picture, 48) for picture in pictures]),
    ).logits
    found = model(**batch).logits
    assert expected.std() > 0.1 and (found[0] - found[1]).abs().max() > 0.1
    torch.testing.assert_close(found, expected[..., : found.shape[-1]], rtol=1e-5, atol=1e-5)


def test_squares_are_a_saved_choice_of_both_presets(tmp_path):
    for preset in ("published", "recommended"):
        config = OspreyTPConfig.vicuna_7b(preset=preset, picture_layout="square", scale_factor=3)
        config.save_pretrained(tmp_path)
        loaded = OspreyTPConfig.from_pretrained(tmp_path)
        assert (loaded.picture_layout, loaded.max_tiles, loaded.resize_mode) == ("square", 1, "antialiased")
        assert loaded.tiling == config.tiling
        assert loaded.tiling.plan(900, 60).num_visual_tokens == loaded.tiling.plan(60, 900).num_visual_tokens == 64


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"max_tiles": 9}, "max_tiles must be 1 where every picture is one square, not 9"),
        ({"resize_mode": "published"}, "resize_mode of squares must be 'antialiased', as in CLIP, not 'published'"),
        ({"picture_layout": "circle"}, r"picture_layout must be one of \('tiles', 'square'\), not 'circle'"),
    ],
)
def test_choices_that_do_not_fit_are_refused(choices, message):
    with pytest.raises(ValueError, match=message):
        OspreyTPConfig.tiny(**(SQUARE | choices))
    with pytest.raises(ValueError, match=message):
        OspreyTPImageProcessor(**(SQUARE | choices))


def test_one_tile_of_a_table_is_no_square():
    with pytest.raises(ValueError, match=r"max_tiles must be one of \(9, 16, 25\), not 1"):
        OspreyTPConfig.tiny(max_tiles=1)


def test_a_picture_too_long_for_a_square_is_named():
    with pytest.raises(ValueError, match=r"picture 1: 300000 x 1 pixels \(height x width\) are too long for a square"):
        OspreyTPImageProcessor(**SQUARE)([image(9, 9), np.zeros((300_000, 1, 3), np.uint8)])


def test_sessions_and_training_are_as_with_tiles():
    """Answers by the shared prefix are those of plain `generate`, and every part that squares touch has a gradient."""
    model, processor = tiny_model(picture_layout="square", thumbnail_source="none")
    picture, regions = image(90, 140), [{"box": [100, 5, 139, 60]}, {"box": [2, 40, 30, 89]}]
    session = RegionDescriber(model, processor).open(picture)
    message = [session.conversation([region], CATEGORY_QUESTION) for region in regions]
    content = [{"type": "image", "image": picture, "regions": regions[:1]}, *message[0][0]["content"][1:]]
    batch = processor.prepare([[{"role": "user", "content": content}]], add_generation_prompt=True)
    plain = model.generate(**batch, max_new_tokens=6, do_sample=False)
    answers = session.ask(regions, max_new_tokens=6)
    assert answers[0] == processor.decode_answers(plain, batch["input_ids"].shape[1])[0] != answers[1]

    taught = [{"role": "user", "content": content}, {"role": "assistant", "content": "a pond"}]
    batch = processor.prepare([taught], return_labels=True)
    assert int((batch["input_ids"] == model.config.image_token_id).sum()) == model.config.tiling.tokens_per_tile
    model.train()(**batch).loss.backward()
    parts = (*model.model.projector.parameters(), *model.model.region_encoder.parameters())
    assert all(parameter.grad.abs().sum() > 0 for parameter in parts)
