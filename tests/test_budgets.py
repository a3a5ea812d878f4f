"""Budgets: fewer tiles, and tiles near regions alone, against a plain run of the model on the prompt made by hand."""

from contextlib import contextmanager

import numpy as np
import pytest
import torch
from PIL import Image

from osprey_tp import encoded_picture
from osprey_tp.describer import RegionDescriber
from osprey_tp.encoded_tiles import TileBudget
from osprey_tp.modeling_base import OspreyTPFeatures
from osprey_tp.prompts import OVERVIEW
from osprey_tp.tiling import visual_token_layout

from .tiny_models import tiny_describer, tiny_model

QUESTION = "what is the region <mask> of the picture"
TEXTS = ["a", "a red ring", "the picture"]


def picture_of(seed: int, height: int, width: int) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 255, size=(height, width, 3), dtype=np.uint8))


def box(x0: float, y0: float, x1: float, y1: float) -> dict[str, list[float]]:
    return {"box": [x0, y0, x1, y1]}


def box_in_tile(plan, tile: int, across: int = 1) -> dict[str, list[float]]:
    """A box inside a tile, or over `across` tiles of its row."""
    height, width = plan.height / plan.rows, plan.width / plan.cols
    top, left = (tile // plan.cols) * height, (tile % plan.cols) * width
    return box(left + 0.2 * width, top + 0.2 * height, left + (across - 0.2) * width, top + 0.8 * height)


@contextmanager
def tiles_read(describer: RegionDescriber):
    counts: list[int] = []
    hook = describer.model.model.projector.register_forward_hook(lambda _, __, tokens: counts.append(len(tokens)))
    yield counts
    hook.remove()


class Reference:
    """The plain model on the whole picture, and prompts put together by hand from some of its tiles."""

    @torch.no_grad()
    def __init__(self, describer: RegionDescriber, image: Image.Image) -> None:
        self.model, self.processor, self.image = describer.model, describer.processor, image
        pictures = self.processor.image_processor.preprocess([image], return_tensors="pt")
        self.rows, self.cols = pictures["tile_grids"][0].tolist()
        cells = self.model.model.encode_tiles(pictures["pixel_values"])
        self.tokens = self.model.model.projector(cells)
        words = self.model.get_input_embeddings().weight
        config = self.model.config
        self.comma, self.newline = words[config.tile_separator_token_id], words[config.row_separator_token_id]

    def visual_tokens(self, shown: set[int]) -> torch.Tensor:
        parts: list[torch.Tensor] = []
        for row in range(self.rows):
            of_row = [col for col in range(self.cols) if row * self.cols + col in shown]
            for col in of_row:
                parts += [*self.tokens[row * self.cols + col], self.newline if col == of_row[-1] else self.comma]
        return torch.stack([*parts, *self.tokens[-1], self.newline])

    def inputs(self, regions: list, shown: set[int], text: str = QUESTION, answer: str | None = None) -> dict:
        picture = {"type": "image", "image": self.image, "regions": regions}
        messages = [{"role": "user", "content": [picture, {"type": "text", "text": OVERVIEW + text}]}]
        if answer is not None:
            messages.append({"role": "assistant", "content": answer})
        prepare = {"add_generation_prompt": True} if answer is None else {"return_labels": True}
        batch = self.processor.prepare([messages], **prepare)
        vision = {
            name: batch.pop(name) for name in list(batch) if name not in ("input_ids", "attention_mask", "labels")
        }
        tokens = self.model.get_image_features(**vision).region_tokens
        visual = self.visual_tokens(shown)
        is_image = batch["input_ids"][0] == self.model.config.image_token_id
        kept = ~is_image
        kept[is_image.nonzero()[: len(visual)]] = True
        features = OspreyTPFeatures(pooler_output=[visual], region_tokens=tokens)
        return {name: value[:, kept] for name, value in batch.items()} | {"mm_encoder_outputs": {"image": features}}

    @torch.no_grad()
    def answer(self, regions: list, shown: set[int], text: str = QUESTION, **options) -> str:
        inputs = self.inputs(regions, shown, text)
        ids = self.model.generate(**inputs, max_new_tokens=10, do_sample=False, **options)
        return self.processor.decode_answers(ids, inputs["input_ids"].shape[1])[0]

    @torch.no_grad()
    def score(self, region, shown: set[int], answer: str) -> float:
        inputs = self.inputs([region], shown, answer=answer)
        labels = inputs.pop("labels")[0, 1:]
        likelihoods = self.model(**inputs).logits[0, :-1].double().log_softmax(-1)
        return float(likelihoods[labels != -100].gather(1, labels[labels != -100, None]).sum())


@pytest.mark.parametrize(("rows", "cols"), [(1, 1), (1, 5), (4, 1), (2, 3), (3, 3)])
@pytest.mark.parametrize("thumbnail", [True, False])
def test_some_tiles_are_laid_out_as_all_are_without_the_others(rows, cols, thumbnail):
    rng = np.random.default_rng(rows * cols)
    thumbnail = thumbnail and rows * cols > 1
    everything = list(range(rows * cols))
    np.testing.assert_array_equal(
        visual_token_layout(rows, cols, 2, thumbnail, everything), visual_token_layout(rows, cols, 2, thumbnail)
    )
    for _ in range(8):
        shown = [tile for tile in everything if rng.random() < 0.5]
        found, expected, first = visual_token_layout(rows, cols, 2, thumbnail, shown), [], 2
        for row in range(rows):
            of_row = sum(tile // cols == row for tile in shown)
            for place in range(of_row):
                expected += [first, first + 1, 0 if place + 1 < of_row else 1]
                first += 2
        expected += [first, first + 1, 1] * thumbnail
        assert len(shown) == len(everything) or found.tolist() == expected


def test_answers_near_regions_are_those_of_the_plain_model_on_the_same_prompt():
    describer = tiny_describer(seed=3)
    image = picture_of(0, 120, 200)
    session, reference = describer.open(image, tiles="near-regions"), Reference(describer, image)
    plan = session.picture.plan
    assert plan.rows >= 2 and plan.cols >= 3
    asked = [
        (box_in_tile(plan, 0), {0}),
        (box_in_tile(plan, plan.cols, across=2), {plan.cols, plan.cols + 1}),
        (box_in_tile(plan, 1), {1}),
        (box_in_tile(plan, 0), {0}),
        (box(0, 0, 200, 120), set(range(plan.rows * plan.cols))),
        (box_in_tile(plan, 0, across=2), {0, 1}),
    ]
    regions = [region for region, _ in asked]
    expected = [reference.answer([region], shown) for region, shown in asked]
    assert session.ask(regions, QUESTION, max_new_tokens=10) == expected
    assert len(set(expected)) > 2
    beams = [reference.answer([region], shown, num_beams=2) for region, shown in asked[:3]]
    assert session.ask(regions[:3], QUESTION, max_new_tokens=10, num_beams=2) == beams
    together = reference.answer(regions[:2], asked[0][1] | asked[1][1], "near <mask> the <mask>")
    assert session.ask(regions[:2], "near <mask> the <mask>", together=True, max_new_tokens=10) == [together]
    assert "".join(session.stream(regions[:1], QUESTION, max_new_tokens=10)).strip() == expected[0]
    assert session.ask_groups([[]], ["what is it"], max_new_tokens=10) == [reference.answer([], set(), "what is it")]
    scores = [[reference.score(region, shown, text) for text in TEXTS] for region, shown in asked]
    np.testing.assert_allclose(session.score(TEXTS, regions, QUESTION), scores, rtol=1e-4)
    without = RegionDescriber(describer.model, describer.processor)
    without.shares_prefix = False
    opened = without.open(image, tiles="near-regions")
    assert opened.ask(regions, QUESTION, max_new_tokens=10) == expected


def test_the_tower_reads_a_tile_when_a_region_first_touches_it_and_once():
    describer = tiny_describer()
    image = picture_of(1, 120, 200)
    with tiles_read(describer) as counts:
        session = describer.open(image, tiles="near-regions")
        plan = session.picture.plan
        for region in (box_in_tile(plan, 1), box_in_tile(plan, 1), box_in_tile(plan, 0, across=2), box(0, 0, 200, 120)):
            session.ask([region] * 2, max_new_tokens=1)
            session.score(["a"], [region])
    assert counts == [1, 1, 1, plan.rows * plan.cols - 2]


def test_regions_that_touch_all_tiles_are_answered_as_by_default():
    describer = tiny_describer(seed=1)
    image = picture_of(2, 90, 150)
    regions = [box(0, 0, 150, 90), box(20, 10, 140, 88)]
    everything, near = describer.open(image), describer.open(image, tiles="near-regions")
    inner = box_in_tile(near.picture.plan, 0)
    tokens = [
        [prompt.region_tokens for prompt in session.picture.prompts([session.conversation([inner], QUESTION)])]
        for session in (everything, near)
    ]
    torch.testing.assert_close(tokens[1], tokens[0], rtol=0, atol=1e-6)
    assert near.ask(regions, QUESTION, max_new_tokens=10) == everything.ask(regions, QUESTION, max_new_tokens=10)
    np.testing.assert_allclose(near.score(TEXTS, regions), everything.score(TEXTS, regions), rtol=1e-6)
    torch.testing.assert_close(near.picture.features([])[0], everything.picture.features([])[0], rtol=0, atol=1e-6)


def test_prefixes_are_bounded_and_answers_keep_their_order(monkeypatch):
    describer = tiny_describer(seed=2)
    image = picture_of(3, 120, 120)
    plan = describer.open(image, tiles="near-regions").picture.plan
    regions = [box_in_tile(plan, tile) for tile in range(plan.rows * plan.cols)] * 2
    expected = [describer.open(image, tiles="near-regions").ask([region], max_new_tokens=6)[0] for region in regions]
    monkeypatch.setattr(encoded_picture, "MOST_PREFIXES", 2)
    monkeypatch.setattr("osprey_tp.describer.MOST_PREFIXES", 2)
    session = describer.open(image, tiles="near-regions")
    before = session.nbytes
    assert session.ask(regions, max_new_tokens=6) == expected
    assert len(session.picture._prefixes) == 2
    assert session.nbytes != before


def test_a_chat_shows_the_tiles_of_all_its_regions():
    describer = tiny_describer(seed=1)
    image = picture_of(4, 60, 200)
    session, reference = describer.open(image, tiles="near-regions"), Reference(describer, image)
    plan = session.picture.plan
    first, second = box_in_tile(plan, 0), box_in_tile(plan, plan.cols - 1)
    assert session.chat(QUESTION, [first], max_new_tokens=10) == reference.answer([first], {0})
    turns = [*session.turns, ("user", "and <mask>")]
    answer = session.chat("and <mask>", [second], max_new_tokens=10)
    assert answer == "".join(session.converse(turns, [first, second], max_new_tokens=10)).strip()
    assert sorted(session.picture._prefixes) == [(0,), (0, plan.cols - 1)]


def test_a_picture_of_one_tile_is_shown_as_it_is():
    describer = tiny_describer()
    image = picture_of(5, 30, 30)
    near = describer.open(image, tiles="near-regions")
    assert near.picture.plan.num_tiles == 1
    region = [box(1, 1, 9, 9)]
    assert near.ask(region, max_new_tokens=6) == describer.open(image).ask(region, max_new_tokens=6)
    np.testing.assert_array_equal(near.score(TEXTS, region), describer.open(image).score(TEXTS, region))


def test_fewer_tiles_are_those_of_a_model_that_has_no_more():
    model, processor = tiny_model(seed=4)
    image, region = picture_of(6, 120, 200), [box(30, 20, 90, 100)]
    describer = RegionDescriber(model, processor)
    limited = describer.open(image, max_tiles=4)
    assert limited.picture.plan.rows * limited.picture.plan.cols <= 4 < describer.open(image).picture.plan.num_tiles
    found, scores = limited.ask(region, max_new_tokens=10), limited.score(TEXTS, region)
    by_default = RegionDescriber(model, processor, TileBudget(max_tiles=4)).open_many([image, image])[1]
    assert by_default.ask(region, max_new_tokens=10) == found
    processor.image_processor.max_tiles = 4
    fewer = RegionDescriber(model, processor).open(image)
    assert fewer.ask(region, max_new_tokens=10) == found
    np.testing.assert_allclose(fewer.score(TEXTS, region), scores, rtol=1e-6)
    one = RegionDescriber(model, processor, TileBudget(max_tiles=1, tiles="near-regions")).open(image)
    assert one.picture.plan.num_tiles == 1 and one.ask(region, max_new_tokens=2)


@pytest.mark.parametrize(
    ("budget", "choices", "message"),
    [
        ({"max_tiles": 16}, {}, r"max_tiles can be lowered to 1 to 9 tiles, not set to 16"),
        ({"max_tiles": 0}, {}, r"max_tiles can be lowered to 1 to 9 tiles, not set to 0"),
        ({"tiles": "some"}, {}, r"tiles must be one of all, near-regions, not 'some'"),
        ({"tiles": "near-regions"}, {"thumbnail_source": "none"}, r"this model has none .*; take tiles='all'"),
    ],
)
def test_a_budget_that_the_model_cannot_keep_is_refused(budget, choices, message):
    model, processor = tiny_model(**choices)
    with pytest.raises(ValueError, match=message):
        RegionDescriber(model, processor).open(picture_of(7, 40, 90), **budget)
    with pytest.raises(ValueError, match=message):
        RegionDescriber(model, processor, TileBudget(**budget))


def test_regions_that_vanish_need_no_tile():
    describer = tiny_describer(preset="published")
    image = picture_of(8, 400, 600)
    session = describer.open(image, tiles="near-regions")
    dot = np.zeros((400, 600), bool)
    dot[0, 0] = True
    with tiles_read(describer) as counts:
        answer = session.ask([dot], QUESTION, max_new_tokens=10)
    assert counts == []
    assert answer == [Reference(describer, image).answer([dot], set())]
