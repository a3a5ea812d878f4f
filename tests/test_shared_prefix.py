"""Attention to shared keys against attention over all keys at once, and the fast path against plain `generate`."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from osprey_tp import RegionDescriber, shared_attention
from osprey_tp.prompts import CATEGORY_QUESTION, OVERVIEW
from osprey_tp.shared_attention import SharedKeys, attend_with_shared_keys
from osprey_tp.shared_prefix import use_shared_attention

from .tiny_models import tiny_describer, tiny_model

LAYER = SimpleNamespace(layer_idx=0)


def all_at_once(query, levels, key, value, mask, scaling):
    """One softmax over every key that a row sees, row by row and head by head, in double precision."""
    rows, heads, queries, width = query.shape
    per_key_head = heads // key.shape[1]
    output = torch.zeros(rows, queries, heads, width, dtype=torch.double)
    for row in range(rows):
        for head in range(heads):
            key_head = head // per_key_head
            shared = []
            for level in levels:
                group = int(np.searchsorted(np.cumsum(level.rows), row, side="right"))
                keys, values = level.layers[0]
                shared.append((keys[group, key_head], values[group, key_head], level.lengths[group]))
            for place in range(queries):
                own = mask[row, 0, place]
                keys = torch.cat([*(k[:n] for k, _, n in shared), key[row, key_head][own]]).double()
                values = torch.cat([*(v[:n] for _, v, n in shared), value[row, key_head][own]]).double()
                weights = (keys @ query[row, head, place].double() * scaling).softmax(0)
                output[row, place, head] = weights @ values
    return output


@settings(deadline=None, max_examples=40)
@given(
    groups=st.lists(st.tuples(st.integers(1, 5), st.integers(1, 3)), min_size=1, max_size=3),
    queries=st.integers(1, 4),
    key_heads=st.sampled_from([1, 2]),
    seed=st.integers(0, 2**16),
    most_scores=st.sampled_from([1, 40, 1 << 25]),
)
def test_parts_add_up_to_attention_over_all_keys(groups, queries, key_heads, seed, most_scores):
    generator = torch.Generator().manual_seed(seed)

    def random(*shape):
        return torch.randn(*shape, generator=generator) * 3

    rows, heads, width = sum(count for _, count in groups), 4, 8
    longest = max(length for length, _ in groups)
    picture = SharedKeys([(random(1, key_heads, 7, width), random(1, key_heads, 7, width))], (7,), (rows,))
    questions = SharedKeys(
        [(random(len(groups), key_heads, longest, width), random(len(groups), key_heads, longest, width))],
        tuple(length for length, _ in groups),
        tuple(count for _, count in groups),
    )
    query = random(rows, heads, queries, width)
    key, value = random(rows, key_heads, queries, width), random(rows, key_heads, queries, width)
    mask = torch.ones(queries, queries, dtype=torch.bool).tril().expand(rows, 1, -1, -1)
    levels = [picture, questions]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shared_attention, "MOST_SCORES", most_scores)
        output, weights = attend_with_shared_keys(LAYER, query, key, value, mask, 0.3, levels)
    assert weights is None
    expected = all_at_once(query, levels, key, value, mask, 0.3)
    torch.testing.assert_close(output.double(), expected, rtol=1e-4, atol=1e-5)


def without_sharing(describer: RegionDescriber) -> RegionDescriber:
    """The same model on copies of the prefix, by `generate`."""
    plain = RegionDescriber(describer.model, describer.processor)
    plain.shares_prefix = False
    return plain


def random_scene(seed: int) -> tuple[Image.Image, list[dict[str, list[float]]]]:
    rng = np.random.default_rng(seed)
    height, width = (int(side) for side in rng.integers(20, 200, 2))
    image = Image.fromarray(rng.integers(0, 255, (height, width, 3), dtype=np.uint8))
    boxes = []
    for _ in range(int(rng.integers(1, 8))):
        x, y = int(rng.integers(0, width - 2)), int(rng.integers(0, height - 2))
        boxes.append({"box": [x, y, int(rng.integers(x + 1, width)), int(rng.integers(y + 1, height))]})
    return image, boxes


@pytest.mark.parametrize("seed", range(6))
def test_answers_are_those_of_generate_over_random_pictures_questions_and_batches(seed):
    describer = tiny_describer("clip", "qwen3" if seed % 2 else "llama", seed=seed)
    rng = np.random.default_rng(seed)
    image, regions = random_scene(seed)
    questions = [f"what {'large ' * int(rng.integers(0, 30))}region <mask>" for _ in regions]
    batch_size, new_tokens = int(rng.integers(1, 9)), int(rng.integers(1, 20))
    options = {"batch_size": batch_size, "max_new_tokens": new_tokens}
    expected = without_sharing(describer).open(image).ask(regions, questions, **options)
    assert describer.open(image).ask(regions, questions, **options) == expected


def test_answers_end_where_the_model_ends_them_and_the_others_go_on():
    describer = tiny_describer()
    image, regions = random_scene(3)
    free = describer.open(image).ask(regions, max_new_tokens=12)
    picture = describer.open(image).picture
    message = picture.message(regions[:1], OVERVIEW + CATEGORY_QUESTION)
    inputs = picture.generation_inputs(picture.prompts([[message]]), {"max_new_tokens": 12})
    sixth = describer.model.generate(**inputs)[0, inputs["input_ids"].shape[1] + 5].item()
    describer.model.generation_config.eos_token_id = [describer.processor.tokenizer.eos_token_id, sixth]
    expected = without_sharing(describer).open(image).ask(regions, max_new_tokens=12)
    assert describer.open(image).ask(regions, max_new_tokens=12) == expected
    assert expected != free


@pytest.mark.parametrize("setting", [{"repetition_penalty": 1.5}, {"no_repeat_ngram_size": 1}])
def test_criteria_of_the_model_are_kept(setting):
    describer = tiny_describer()
    image, regions = random_scene(4)
    free = describer.open(image).ask(regions, max_new_tokens=16)
    for name, value in setting.items():
        setattr(describer.model.generation_config, name, value)
    expected = without_sharing(describer).open(image).ask(regions, max_new_tokens=16)
    assert describer.open(image).ask(regions, max_new_tokens=16) == expected
    assert expected != free


def test_scores_are_those_on_copies_whatever_texts_have_in_common():
    describer = tiny_describer("clip", "qwen3")
    image, regions = random_scene(5)
    texts = ["a", "a red ring", "a red cross", "the picture of a region", "a red ring"]
    expected = without_sharing(describer).open(image).score(texts, regions, batch_size=3)
    for batch_size in (1, 3, 16):
        found = describer.open(image).score(texts, regions, batch_size=batch_size)
        np.testing.assert_allclose(found, expected, rtol=1e-5)
    np.testing.assert_array_equal(found[:, 1], found[:, 4])


def test_the_prefix_is_held_once(monkeypatch):
    describer = tiny_describer()
    image, regions = random_scene(6)
    session = describer.open(image)
    session.ask(regions[:1], max_new_tokens=2)
    (prefix,) = session.picture._prefixes.values()
    places = {tensor.data_ptr() for layer in prefix.keys.layers for tensor in layer}
    monkeypatch.setattr(type(prefix), "copies", lambda *_: pytest.fail("the prefix is copied"))
    session.ask(regions * 8, max_new_tokens=4)
    session.score(["a", "b"], regions)
    assert places == {tensor.data_ptr() for layer in prefix.keys.layers for tensor in layer}


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_a_model_that_cannot_share_answers_on_copies(attention):
    model, processor = tiny_model()
    image, regions = random_scene(7)
    expected = RegionDescriber(model, processor).open(image).ask(regions, max_new_tokens=8)
    model.model.language_model.set_attn_implementation(attention)
    if attention == "sdpa":
        model.config.text_config.sliding_window = 4096
    other = RegionDescriber(model, processor)
    assert not other.shares_prefix
    assert not use_shared_attention(model)
    assert other.open(image).ask(regions, max_new_tokens=8) == expected
