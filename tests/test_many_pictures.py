"""Questions about many pictures in one batch: token by token as one prompt after the other; memory of own tokens."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from osprey_tp import shared_prefix
from osprey_tp.encoded_picture import end_ids
from osprey_tp.encoded_tiles import without_unread_layers
from osprey_tp.modeling import OspreyTPModel
from osprey_tp.sessions import RegionQuestion
from osprey_tp.shared_attention import KeyGroup, SharedKeys, attend_with_shared_keys, attention_part, plain_attention
from osprey_tp.shared_prefix import continue_greedily

from .plain_decoding import answer_token_by_token
from .test_shared_prefix import LAYER, random_scene
from .tiny_models import tiny_describer

QUESTIONS = ("what is <mask>?", "what region is <mask>", "name this", "is the large <mask> or the red <mask> a ring")


def random_questions(describer, rng: np.random.Generator, pictures: int, count: int):
    """(image, regions, text) of each question, and the questions about sessions."""
    scenes = [random_scene(int(rng.integers(0, 1000))) for _ in range(pictures)]
    sessions = describer.open_many([image for image, _ in scenes])
    asked, questions = [], []
    for _ in range(count):
        place = int(rng.integers(0, pictures))
        image, regions = scenes[place]
        text = QUESTIONS[int(rng.integers(0, len(QUESTIONS)))] + " or not" * int(rng.integers(0, 12))
        chosen = [regions[int(rng.integers(0, len(regions)))] for _ in range(text.count("<mask>"))]
        asked.append((image, chosen, text))
        questions.append(RegionQuestion(sessions[place], chosen, text))
    return asked, questions


@pytest.mark.parametrize("seed", range(4))
def test_a_batch_of_many_pictures_gives_every_prompts_own_tokens(seed, monkeypatch):
    rng = np.random.default_rng(seed)
    describer = tiny_describer(("clip", "siglip")[seed // 2], ("llama", "qwen3")[seed % 2], seed=seed)
    describer.model.double()
    asked, questions = random_questions(describer, rng, pictures=3, count=9)
    ends = set(end_ids(describer.model, describer.processor))
    free = answer_token_by_token(describer, *asked[0], 7, ends)
    ends |= {free[3]}  # some answers end early, so that others enter while the rest goes on
    expected = [answer_token_by_token(describer, *one, 7, ends) for one in asked]
    assert len({len(answer) for answer in expected}) > 1
    monkeypatch.setattr(shared_prefix, "MOST_LIVE_TOKENS", int(rng.integers(30, 400)))
    for most_rows in (1, 3, 64):
        rows = []
        for question in questions:
            picture, asked = question.session.picture, question.session.conversation(question.regions, question.text)
            rows += picture.continuations(picture.prompts([asked]))
        assert continue_greedily(describer.model, rows, 7, list(ends), most_rows) == expected


def test_many_pictures_are_asked_in_one_call_as_one_by_one():
    describer = tiny_describer()
    asked, questions = random_questions(describer, np.random.default_rng(7), pictures=3, count=8)
    expected = [
        describer.open(image).ask_groups([regions], [text], max_new_tokens=6)[0] for image, regions, text in asked
    ]
    assert describer.ask_many(questions, batch_size=3, max_new_tokens=6) == expected
    describer.shares_prefix = False
    assert describer.ask_many(questions, batch_size=3, max_new_tokens=6) == expected
    assert describer.ask_many([]) == []
    assert describer.open_many([]) == []


def test_pictures_opened_together_are_those_opened_alone():
    describer = tiny_describer(seed=2)
    images = [random_scene(seed)[0] for seed in range(3)]
    for image, together in zip(images, describer.open_many(images), strict=True):
        alone = describer.open(image)
        torch.testing.assert_close(together.picture.features([])[0], alone.picture.features([])[0])
        assert (together.height, together.width) == (image.height, image.width)


def test_tiles_are_read_in_parts_where_their_activations_are_large(monkeypatch):
    describer = tiny_describer(seed=2)
    image = random_scene(1)[0]
    together = describer.open(image).picture
    sizes, encode = [], OspreyTPModel.encode_tiles
    monkeypatch.setattr(
        OspreyTPModel, "encode_tiles", lambda model, pixels: sizes.append(len(pixels)) or encode(model, pixels)
    )
    vision, tiling = describer.model.config.vision_config, describer.model.config.tiling
    of_tile = 4 * tiling.cells_per_tile * vision.intermediate_size
    count = together.plan.num_tiles
    assert count > 2
    for most_bytes, expected in ((1, [1] * count), ((count - 1) * of_tile, [-(-count // 2), count // 2])):
        monkeypatch.setattr("osprey_tp.encoded_tiles.MOST_ACTIVATION_BYTES", most_bytes)
        sizes.clear()
        in_parts = describer.open(image).picture
        assert sizes == expected
        torch.testing.assert_close(in_parts.features([])[0], together.features([])[0])


@pytest.mark.parametrize("language", ["llama", "qwen3"])
def test_what_a_picture_will_hold_is_known_from_its_size(language):
    describer = tiny_describer(language=language)
    for height, width in ((300, 300), (200, 600)):
        session = describer.open(Image.new("RGB", (width, height)))
        session.ask([{"box": [0, 0, 9, 9]}], max_new_tokens=1)
        (prefix,), plan = session.picture._prefixes.values(), session.picture.plan
        words = (prefix.length - plan.num_visual_tokens) * prefix.nbytes // prefix.length
        assert describer.bytes_of(height, width) + words == session.nbytes


@pytest.mark.parametrize("tower", ["clip", "siglip"])
def test_a_tower_without_its_last_layers_gives_the_same_cells_and_leaves_the_model_alone(tower):
    model = tiny_describer(tower, feature_layers=[1, 2]).model.model
    side = model.config.tiling.tile_size
    pixels, layers = torch.randn(2, 3, side, side), len(model.vision_tower.encoder.layers)
    shorter = without_unread_layers(model)
    assert len(shorter.vision_tower.encoder.layers) == 2 < layers == len(model.vision_tower.encoder.layers)
    with torch.no_grad():
        for _ in range(2):
            torch.testing.assert_close(shorter.encode_tiles(pixels), model.encode_tiles(pixels), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_fused_part_is_the_plain_one(dtype):
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, 3, n, 8, generator=generator).to(dtype) for n in (5, 9, 9))
    mask = torch.rand(2, 1, 5, 9, generator=generator) < 0.5
    mask[..., 0] = True
    for seen in (None, mask):
        fused, plain = (part(query, key, value, seen, 0.3) for part in (attention_part, plain_attention))
        tolerance = 1e-2 if dtype == torch.bfloat16 else 1e-5
        torch.testing.assert_close(fused, plain, rtol=tolerance, atol=tolerance)


def test_a_group_without_keys_adds_nothing():
    query, key, value = (torch.randn(2, 4, n, 8) for n in (3, 3, 3))
    mask = torch.ones(2, 1, 3, 3, dtype=torch.bool).tril()
    keys = KeyGroup([(torch.randn(2, 6, 8), torch.randn(2, 6, 8))])
    levels = [SharedKeys.of([keys], [2]), SharedKeys.of([keys.last(0)], [2])]
    output, _ = attend_with_shared_keys(LAYER, query, key[:, :2], value[:, :2], mask, 0.3, levels)
    expected, _ = attend_with_shared_keys(LAYER, query, key[:, :2], value[:, :2], mask, 0.3, levels[:1])
    torch.testing.assert_close(output, expected)


class LargestTensor(TorchDispatchMode):
    """Elements of the largest tensor that an operation returns, on the meta device as on any other."""

    most = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        sizes = [leaf.untyped_storage().nbytes() for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        self.most = max([self.most, *sizes])
        return result


def test_big_pictures_and_many_regions_need_no_scores_of_all_pairs():
    """Shapes of the 13B model at 25 tiles and a thumbnail (3,770 tokens): 128 questions of 24 tokens, 40 heads."""
    heads, width, regions, tokens, prefix = 40, 128, 128, 24, 3770
    with torch.device("meta"):
        query, key, value = (torch.empty(regions, tokens, heads, width).transpose(1, 2) for _ in range(3))
        mask = torch.ones(regions, 1, tokens, tokens, dtype=torch.bool)
        keys = KeyGroup([(torch.empty(heads, prefix, width), torch.empty(heads, prefix, width))])
    with LargestTensor() as largest:
        output, _ = attend_with_shared_keys(LAYER, query, key, value, mask, 0.1, [SharedKeys.of([keys], [regions])])
    assert output.shape == (regions, tokens, heads, width)
    most = max(query.untyped_storage().nbytes(), keys.layers[0][0].untyped_storage().nbytes())
    assert largest.most <= most  # queries, or the keys that are there anyway
    assert largest.most < 4 * heads * regions * tokens * prefix / 16


def test_one_more_region_costs_its_own_tokens_whatever_the_picture():
    """The most that any tensor of the batch holds does not depend on the length of the prefix."""
    describer = tiny_describer()
    most = {}
    for side in (40, 200):
        image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (side, side, 3), dtype=np.uint8))
        session = describer.open(image)
        box = {"box": [1, 1, side - 1, side - 1]}
        session.ask([box] * 2, max_new_tokens=1)
        prompts = session.picture.prompts([session.conversation([box], "what is <mask>")] * 32)
        rows = session.picture.continuations(prompts)
        with LargestTensor() as largest:
            continue_greedily(describer.model, rows, 4, [])
        most[side] = largest.most
    assert most[40] == most[200]
