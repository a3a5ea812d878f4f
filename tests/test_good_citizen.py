"""Combinations of projector, tower, language model and preset behave as transformers' own models do.

The ground is that of transformers' common tests: saving and loading, ties, padding, attention, caches, checkpoints of
activations. Models cover every pair of choices; configurations cover every combination.
"""

from itertools import combinations, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor

from osprey_tp import OspreyTPConfig, OspreyTPForConditionalGeneration, OspreyTPProcessor, RegionDescriber
from osprey_tp.configuration import PRESETS
from osprey_tp.modeling import OspreyTPModel
from osprey_tp.processing import add_region_tokens
from osprey_tp.projectors import PROJECTORS

from .test_modeling import greedy, random_conversation, without_padding
from .tiny_families import LANGUAGE_MODELS, TOWERS, join, language_model, tower
from .tiny_models import llama_tokenizer

CHOICES = {
    "projector": list(PROJECTORS),
    "tower": ["clip", "siglip", "dinov2 with registers"],
    "language": ["llama", "qwen3, tied", "gemma3", "gpt_neox, tied"],
    "preset": list(PRESETS),
}
COMBINATIONS = [
    ("tokenpacker", "clip", "llama", "published"),
    ("stf", "siglip", "llama", "recommended"),
    ("mlp", "dinov2 with registers", "llama", "published"),
    ("stf", "clip", "qwen3, tied", "published"),
    ("mlp", "siglip", "qwen3, tied", "recommended"),
    ("tokenpacker", "dinov2 with registers", "qwen3, tied", "recommended"),
    ("mlp", "clip", "gemma3", "recommended"),
    ("tokenpacker", "siglip", "gemma3", "published"),
    ("stf", "dinov2 with registers", "gemma3", "recommended"),
    ("tokenpacker", "clip", "gpt_neox, tied", "recommended"),
    ("stf", "siglip", "gpt_neox, tied", "published"),
    ("mlp", "dinov2 with registers", "gpt_neox, tied", "published"),
]


def test_combinations_cover_every_pair_of_choices() -> None:
    for (first, second), (some, others) in zip(
        combinations(range(len(CHOICES)), 2), combinations(CHOICES.values(), 2), strict=True
    ):
        covered = {(combination[first], combination[second]) for combination in COMBINATIONS}
        assert covered == set(product(some, others))


@pytest.fixture(scope="module", params=COMBINATIONS, ids=" + ".join)
def describer(request: pytest.FixtureRequest) -> RegionDescriber:
    projector, of_tower, of_language, preset = request.param
    choices = {"projector_type": projector, "preset": preset, "spatial_token": preset == "published"}
    return join(tower(of_tower), language_model(of_language), spatial_side=9, **choices)


@pytest.fixture(scope="module")
def batch(describer: RegionDescriber) -> Any:
    """Prompts of two pictures, of one and of none, padded on the right, with answers."""
    rng = np.random.default_rng(7)
    conversations = [random_conversation(rng, pictures, "a red ring") for pictures in (2, 0, 1)]
    return describer.processor.prepare(conversations, return_labels=True)


def without_dtype(config: dict[str, Any]) -> dict[str, Any]:
    """A configuration without the dtype of its parts, which is written when weights are loaded."""
    parts = {name: {k: v for k, v in config[name].items() if k != "dtype"} for name in ("text_config", "vision_config")}
    return config | parts


@torch.no_grad()
def test_it_is_the_same_after_saving_by_every_class(describer: RegionDescriber, batch: Any, tmp_path: Path) -> None:
    model, processor = describer.model, describer.processor
    model.save_pretrained(tmp_path, max_shard_size="200KB")
    processor.save_pretrained(tmp_path)
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    expected, state = model(**batch).logits, model.state_dict()
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path).eval()
    assert isinstance(loaded, OspreyTPForConditionalGeneration)
    assert loaded.state_dict().keys() == state.keys()
    assert all(torch.equal(weight, state[name]) for name, weight in loaded.state_dict().items())
    torch.testing.assert_close(loaded(**batch).logits, expected, rtol=0, atol=0)
    assert without_dtype(loaded.config.to_dict()) == without_dtype(AutoConfig.from_pretrained(tmp_path).to_dict())
    base = AutoModel.from_pretrained(tmp_path).eval()
    assert isinstance(base, OspreyTPModel)
    vision = {name: value for name, value in batch.items() if name != "labels"}
    states = base(**vision).last_hidden_state
    torch.testing.assert_close(loaded.lm_head(states), expected, rtol=0, atol=0)
    again = AutoProcessor.from_pretrained(tmp_path)
    assert isinstance(again, OspreyTPProcessor)
    again.check_fits(loaded.config)
    rng = np.random.default_rng(7)
    repeated = again.prepare([random_conversation(rng, pictures, "a red ring") for pictures in (2, 0, 1)])
    assert all(torch.equal(repeated[name], value) for name, value in vision.items())


def test_loss_padding_attention_and_checkpoints_agree(describer: RegionDescriber, batch: Any) -> None:
    model = describer.model
    kept = batch["attention_mask"].bool()
    with torch.no_grad():
        expected = model(**batch).logits
        order = kept.int().argsort(dim=1, stable=True)  # padding first
        left = {**batch, "attention_mask": batch["attention_mask"].gather(1, order)}
        left["input_ids"] = batch["input_ids"].gather(1, order)
        left["position_ids"] = (left["attention_mask"].cumsum(1) - 1).clamp_min(0)
        of_left = model(**left).logits[left["attention_mask"].bool()]
        torch.testing.assert_close(of_left, expected[kept], atol=2e-4, rtol=1e-4)
        model.set_attn_implementation("eager")
        of_eager = model(**batch, output_attentions=True, output_hidden_states=True)
        torch.testing.assert_close(of_eager.logits[kept], expected[kept], atol=2e-4, rtol=1e-4)
        layers = model.config.text_config.num_hidden_layers
        assert (len(of_eager.hidden_states), len(of_eager.attentions)) == (layers + 1, layers)
        model.set_attn_implementation("sdpa")
        assert torch.equal(model(**batch, return_dict=False)[1], expected)
    gradients = []
    model.train()
    for enabled in (False, True):
        if enabled:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        model.zero_grad()
        model(**batch).loss.backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    model.gradient_checkpointing_disable()
    model.zero_grad()
    model.eval()
    assert gradients[0].keys() == gradients[1].keys()
    assert {"vision_tower", "projector", "region_encoder"} < {name.split(".")[1] for name in gradients[0]}
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)


@torch.no_grad()
def test_batches_caches_and_embedded_prompts_answer_alike(describer: RegionDescriber) -> None:
    model, processor = describer.model, describer.processor
    rng = np.random.default_rng(3)
    conversations = [random_conversation(rng, pictures) for pictures in (1, 0, 2)]
    batched = [without_padding(text, processor) for text in greedy(model, processor, conversations)]
    single = [without_padding(greedy(model, processor, [one])[0], processor) for one in conversations]
    uncached = [without_padding(text, processor) for text in greedy(model, processor, conversations, use_cache=False)]
    assert batched == single == uncached
    inputs = processor.prepare(conversations, add_generation_prompt=True)
    vision = {name: inputs[name] for name in processor.image_processor.model_input_names if name in inputs}
    embedded = model.model.embed_prompt(inputs["input_ids"], model.get_image_features(**vision))
    options = {"attention_mask": inputs["attention_mask"], "max_new_tokens": 12, "do_sample": False}
    generated = model.generate(inputs_embeds=embedded, **options)
    answers = processor.tokenizer.batch_decode(generated)
    assert [without_padding(text, processor) for text in answers] == batched


def test_every_combination_of_configurations_is_saved_whole() -> None:
    tokens = add_region_tokens(llama_tokenizer()) | {"row_separator_token_id": None}
    towers, languages = (
        [AutoConfig.for_model(**settings) for settings in kind.values()] for kind in (TOWERS, LANGUAGE_MODELS)
    )
    for projector, vision, language, preset in product(PROJECTORS, towers, languages, PRESETS):
        choices = {"projector_type": projector, "preset": preset, "feature_layers": [1, 2, -2]}
        config = OspreyTPConfig(vision_config=vision, text_config=language, **(tokens | choices))
        saved = config.to_dict()
        again = OspreyTPConfig.from_dict(saved)
        assert again.to_dict() == saved
        assert again.tiling == config.tiling
        assert config.tie_word_embeddings == language.tie_word_embeddings
