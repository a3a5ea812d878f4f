"""Whole models under what transformers, accelerate and torch offer: ways to decode, precisions, devices, export."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from osprey_tp import OspreyTPForConditionalGeneration, OspreyTPProcessor

from .test_modeling import greedy, random_conversation, without_padding
from .tiny_models import save_tiny_model, tiny_model


@pytest.fixture(scope="module")
def model_and_processor() -> tuple[OspreyTPForConditionalGeneration, OspreyTPProcessor]:
    return tiny_model(spatial_token=True, spatial_side=9)


def conversations(seed: int = 5) -> list[list[dict[str, Any]]]:
    rng = np.random.default_rng(seed)
    return [random_conversation(rng, pictures) for pictures in (1, 0, 2, 1)]


def answers(model: Any, processor: Any, asked: list[Any], **options: Any) -> list[str]:
    return [without_padding(text, processor) for text in greedy(model, processor, asked, **options)]


def test_guessed_and_drafted_words_change_no_answer(model_and_processor: Any) -> None:
    """Prompt lookup and assisted generation check guesses by the model itself, one prompt at a time."""
    model, processor = model_and_processor
    assistant = LlamaForCausalLM(model.config.text_config).eval()
    for asked in conversations():
        expected = answers(model, processor, [asked])
        assert answers(model, processor, [asked], prompt_lookup_num_tokens=3) == expected
        assert answers(model, processor, [asked], assistant_model=assistant) == expected


def test_an_assistant_that_needs_pictures_is_refused(model_and_processor: Any) -> None:
    model, processor = model_and_processor
    for options in ({"assistant_model": model}, {"assistant_early_exit": 1}):
        with pytest.raises(ValueError, match="an assistant does not get the pictures; pass a language model alone"):
            greedy(model, processor, conversations()[:1], **options)


def test_a_static_cache_answers_alike(model_and_processor: Any) -> None:
    model, processor = model_and_processor
    expected = answers(model, processor, conversations())
    assert answers(model, processor, conversations(), cache_implementation="static") == expected


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_half_precision_chooses_the_same_words(dtype: torch.dtype) -> None:
    """After the words of a float32 answer it chooses the same next word, wherever two are not nearly as likely."""
    model, processor = tiny_model()
    batch = processor.prepare(conversations(), add_generation_prompt=True)
    told = model.generate(**batch, max_new_tokens=12, do_sample=False, output_logits=True, return_dict_in_generate=True)
    logits = torch.stack(told.logits, dim=1)  # (B, 12, V)
    two = logits.topk(2).values
    clear = two[..., 0] - two[..., 1] > 0.02 * (two[..., 0] - logits.mean(-1))
    clear &= told.sequences[:, -12:] != processor.tokenizer.pad_token_id
    assert clear.sum() > 0.6 * clear.numel()
    whole = {**batch, "input_ids": told.sequences}
    whole["attention_mask"] = torch.nn.functional.pad(batch["attention_mask"], (0, 12), value=1)
    whole["position_ids"] = (whole["attention_mask"].cumsum(1) - 1).clamp_min(0)
    found = model.to(dtype)(**whole).logits[:, -13:-1].argmax(-1)
    assert torch.equal(found[clear], logits.argmax(-1)[clear])


def test_weights_are_placed_where_accelerate_says(tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path / "model")
    model, processor = tiny_model()
    expected = answers(model, processor, conversations())
    for device_map in ("auto", {"": "cpu"}, parts_on_disk(model)):
        loaded = OspreyTPForConditionalGeneration.from_pretrained(
            folder, device_map=device_map, offload_folder=tmp_path / "offload"
        )
        assert answers(loaded.eval(), processor, conversations()) == expected
    assert any(parameter.is_meta for parameter in loaded.parameters())


def parts_on_disk(model: OspreyTPForConditionalGeneration) -> dict[str, str]:
    """A map that leaves the first decoder layer and the tower on disk."""
    layers = {f"model.language_model.layers.{n}": "cpu" for n in range(1, len(model.model.language_model.layers))}
    others = ("embed_tokens", "norm", "rotary_emb")
    return {
        "model.vision_tower": "disk",
        "model.projector": "cpu",
        "model.region_encoder": "cpu",
        "model.language_model.layers.0": "disk",
        **layers,
        **{f"model.language_model.{name}": "cpu" for name in others},
        "lm_head": "cpu",
    }


class TilesToTokens(nn.Module):
    """From the pixels of tiles to their visual tokens."""

    def __init__(self, model: OspreyTPForConditionalGeneration) -> None:
        super().__init__()
        self.model = model.model

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.model.projector(self.model.encode_tiles(pixel_values))


class PromptToLogits(nn.Module):
    """From an embedded prompt to logits."""

    def __init__(self, model: OspreyTPForConditionalGeneration) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs_embeds: Tensor) -> Tensor:
        return self.model(inputs_embeds=inputs_embeds, use_cache=False).logits


@torch.no_grad()
def test_both_halves_are_exported() -> None:
    """How tokens of tiles and separators follow one another depends on the grids, so the two halves are exported.

    Between them stand index operations of `visual_tokens` and `embed_prompt`, whose sizes are data.
    """
    model, _ = tiny_model()
    tiles, prompt = torch.randn(3, 3, 48, 48), torch.randn(2, 17, 64)
    dynamic = torch.export.Dim.DYNAMIC
    for half, example, shapes, other in (
        (TilesToTokens(model), tiles, {0: dynamic}, torch.randn(7, 3, 48, 48)),
        (PromptToLogits(model), prompt, {0: dynamic, 1: dynamic}, torch.randn(3, 23, 64)),
    ):
        exported = torch.export.export(half, (example,), dynamic_shapes=(shapes,)).module()
        torch.testing.assert_close(exported(other), half(other), atol=1e-5, rtol=1e-5)


def test_outputs_without_pictures_need_none(model_and_processor: Any) -> None:
    model, _ = model_and_processor
    words = torch.tensor([[1, 20, 30]])
    with torch.no_grad():
        with_mask = model(input_ids=words, attention_mask=torch.ones_like(words)).logits
        torch.testing.assert_close(model(input_ids=words).logits, with_mask)
        last = model(input_ids=words, logits_to_keep=1).logits
        torch.testing.assert_close(last, with_mask[:, -1:])
    with pytest.raises(ValueError, match="exactly one of input_ids and inputs_embeds"):
        model()
