"""Towers and language models of many families: made of parts, trained, asked by every way, saved; or refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM, Gemma3Config, Gemma3ForConditionalGeneration

from osprey_tp import OspreyTPConfig, OspreyTPForConditionalGeneration
from osprey_tp.processing import add_region_tokens
from osprey_tp.prompts import OVERVIEW
from osprey_tp.tiny_tower import TinyTowerConfig, TinyTowerModel

from .test_sessions import QUESTION, plain_answer, random_picture
from .tiny_families import LANGUAGE_MODELS, TOWERS, join, language_model, make, tower
from .tiny_models import llama_tokenizer

ANSWERS = ["red", "a large ring", "a large red ring"]


def taught(image: Any, masks: list[Any], answers: list[str]) -> list[list[dict[str, Any]]]:
    """One conversation for each region: the question of sessions, and an answer."""
    conversations = []
    for mask, answer in zip(masks, answers, strict=True):
        picture = {"type": "image", "image": image, "regions": [mask]}
        question = {"role": "user", "content": [picture, {"type": "text", "text": OVERVIEW + QUESTION}]}
        conversations.append([question, {"role": "assistant", "content": answer}])
    return conversations


@torch.no_grad()
def summed_log_likelihoods(model: OspreyTPForConditionalGeneration, batch: Any) -> list[float]:
    """Of the answers of a batch, from all its logits."""
    labels = batch["labels"][:, 1:]
    chosen = model(**batch).logits[:, :-1].double().log_softmax(-1).gather(2, labels.clamp_min(0)[..., None])[..., 0]
    return chosen.masked_fill(labels < 0, 0).sum(1).tolist()


@pytest.mark.parametrize("name", list(LANGUAGE_MODELS))
def test_a_language_model_of_the_family_is_itself_and_reads_regions(name: str, tmp_path: Path) -> None:
    language = language_model(name)
    describer = join(tower("clip"), language)
    model, processor = describer.model, describer.processor
    words = torch.tensor([[5, 20, 30, 40, 9, 7], [0, 0, 11, 12, 13, 14]])
    given = {"input_ids": words, "attention_mask": (words > 0).long()}
    with torch.no_grad():
        seen = given["attention_mask"].bool()
        torch.testing.assert_close(model(**given).logits[seen], language(**given).logits[seen], atol=1e-5, rtol=1e-5)
    options = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    assert model.generate(**given, **options).tolist() == language.generate(**given, **options).tolist()

    image, masks = random_picture(0, 60, 100)
    session = describer.open(image)
    expected = [plain_answer(describer, image, [mask], QUESTION) for mask in masks[:3]]
    assert session.ask(masks[:3], QUESTION, max_new_tokens=12) == expected
    beams = [plain_answer(describer, image, [mask], QUESTION, num_beams=2) for mask in masks[:2]]
    assert session.ask(masks[:2], QUESTION, max_new_tokens=12, num_beams=2) == beams
    batch = processor.prepare(taught(image, masks[:3], ANSWERS), return_labels=True)
    alone = [processor.prepare([one], return_labels=True) for one in taught(image, masks[:3], ANSWERS)]
    assert summed_log_likelihoods(model, batch) == pytest.approx(
        [summed_log_likelihoods(model, one)[0] for one in alone], rel=1e-4
    )
    pairs = [taught(image, [mask] * 3, ANSWERS) for mask in masks[:2]]
    by_pair = [summed_log_likelihoods(model, processor.prepare(pair, return_labels=True)) for pair in pairs]
    assert by_pair[0] != pytest.approx(by_pair[1], rel=5e-5)
    for found, paired in zip(session.score(ANSWERS, masks[:2], QUESTION), by_pair, strict=True):
        assert found.tolist() == pytest.approx(paired, rel=1e-5)

    model.save_pretrained(tmp_path)
    loaded, told = OspreyTPForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert not (told["missing_keys"] or told["unexpected_keys"] or told["mismatched_keys"])
    with torch.no_grad():
        torch.testing.assert_close(loaded.eval()(**batch).logits, model(**batch).logits, atol=0, rtol=0)
    tied = LANGUAGE_MODELS[name].get("tie_word_embeddings", loaded.config.text_config.tie_word_embeddings)
    assert (loaded.lm_head.weight is loaded.get_input_embeddings().weight) == tied

    words = len(processor.tokenizer)
    loaded.resize_token_embeddings(words)
    assert loaded.lm_head.weight.shape[0] == loaded.config.text_config.vocab_size == words
    with torch.no_grad():
        logits = loaded(**batch).logits
        torch.testing.assert_close(logits[..., :560], model(**batch).logits, atol=1e-5, rtol=1e-5)
    loaded.train()
    optimizer = torch.optim.AdamW(loaded.parameters(), lr=1e-3)
    losses = []
    for _ in range(3):
        loss = loaded(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("name", list(TOWERS))
def test_a_tower_of_the_family_gives_its_cells_and_reads_regions(name: str, tmp_path: Path) -> None:
    language = language_model("llama")
    describer = join(tower(name), language)
    model = describer.model
    tiling = model.config.tiling
    pixels = torch.randn(3, 3, tiling.tile_size, tiling.tile_size)
    with torch.no_grad():
        whole = torch.randn(3, 3, *[TOWERS[name]["image_size"]] * 2)
        whole[..., : tiling.tile_size, : tiling.tile_size] = pixels
        states = model.model.vision_tower(whole, output_hidden_states=True).hidden_states
        cells = model.model.encode_tiles(pixels)
    extra = states[1].shape[1] - tiling.cells_per_tile
    torch.testing.assert_close(cells, torch.stack([states[layer][:, extra:] for layer in (1, 2, 3)]))
    image, masks = random_picture(0, 60, 100)
    expected = [plain_answer(describer, image, [mask], QUESTION) for mask in masks[:2]]
    assert describer.open(image).ask(masks[:2], QUESTION, max_new_tokens=12) == expected
    batch = describer.processor.prepare(taught(image, masks[:1], ["red"]), return_labels=True)
    model(**batch).loss.backward()
    trained = [parameter.grad for parameter in model.model.vision_tower.parameters()]
    assert sum(gradient is not None and gradient.abs().sum() > 0 for gradient in trained) > len(trained) // 3
    model.save_pretrained(tmp_path)
    loaded = OspreyTPForConditionalGeneration.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        torch.testing.assert_close(loaded(**batch).logits, model(**batch).logits, atol=0, rtol=0)


@pytest.mark.parametrize("name", ["clip", "siglip", "dinov2 with registers", "dinov3"])
@torch.no_grad()
def test_tiles_of_another_size_than_the_tower_s(name: str) -> None:
    describer = join(tower(name), language_model("llama"), tile_size=64, scale_factor=4)
    assert describer.model.config.tiling.cells_per_side == 8
    image, masks = random_picture(0, 60, 100)
    expected = [plain_answer(describer, image, [mask], QUESTION) for mask in masks[:2]]
    assert describer.open(image).ask(masks[:2], QUESTION, max_new_tokens=12) == expected


UNFIT_TOWERS = {
    "siglip2_vision_model": "takes patches of any number in place of pictures",
    "pixtral": "puts the patches of all pictures into one row",
    "vit_mae": "drops patches at random",
    "convnext": "has no hidden_size; choose one of fixed patches",
}


@pytest.mark.parametrize("family", list(UNFIT_TOWERS))
def test_a_tower_that_keeps_no_grid_is_refused(family: str) -> None:
    with pytest.raises(ValueError, match=UNFIT_TOWERS[family]) as raised:
        OspreyTPConfig(vision_config={"model_type": family})
    assert "\n" not in str(raised.value)


def test_a_tower_whose_grid_shrinks_is_refused_where_it_is_joined() -> None:
    settings = {"model_type": "swin", "image_size": 64, "patch_size": 2, "embed_dim": 8, "depths": [1, 1, 1]}
    swin = make(AutoModel, settings | {"num_heads": [1, 1, 1], "window_size": 4})
    with pytest.raises(ValueError, match=r"hidden state 1 of the vision tower \(swin\) has the shape .* choose one of"):
        join(swin, language_model("llama"))


UNFIT_LANGUAGE_MODELS: dict[str, tuple[dict[str, Any], str]] = {
    "mamba": ({"hidden_size": 32, "num_hidden_layers": 1}, "keep a running state in some layers"),
    "bart": ({"d_model": 32, "encoder_layers": 1, "decoder_layers": 1}, "has no decoder apart from its head"),
    "opt": (
        {"word_embed_proj_dim": 16, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "ffn_dim": 32},
        "embed words in 16 channels and compute in 32",
    ),
    "bert": (
        {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "is_decoder": True},
        "have a head that is not known here",
    ),
    "hyperclovax": (
        {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "logits_scaling": 2.0},
        "make their logits in a way that is not known here",
    ),
    "openai-gpt": ({"n_embd": 32, "n_layer": 1, "n_head": 2}, "or keep no keys and values"),
}


@pytest.mark.parametrize("family", list(UNFIT_LANGUAGE_MODELS))
def test_a_language_model_that_cannot_be_used_is_refused(family: str) -> None:
    settings, message = UNFIT_LANGUAGE_MODELS[family]
    unfit = make(AutoModelForCausalLM, {"model_type": family, "vocab_size": 560} | settings)
    with pytest.raises(ValueError, match=message) as raised:
        join(tower("clip"), unfit)
    assert "choose a decoder with attention in all layers, such as llama" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_joining_leaves_no_trace() -> None:
    """Running statistics stay as they are, and every module in its mode."""
    pixels, words = TinyTowerModel(TinyTowerConfig(image_size=32)).train(), language_model("llama").train()
    words.lm_head.eval()
    before = {name: value.clone() for name, value in pixels.state_dict().items()}
    tokens = add_region_tokens(llama_tokenizer())
    OspreyTPForConditionalGeneration.from_parts(pixels, words, feature_layers=[1, 2], **tokens)
    assert all(torch.equal(value, before[name]) for name, value in pixels.state_dict().items())
    assert all(module.training for module in pixels.modules())
    assert [name for name, module in words.named_modules() if not module.training] == ["lm_head"]


def test_the_text_part_of_a_model_with_pictures_of_its_own_is_taken() -> None:
    text = LANGUAGE_MODELS["gemma3"]
    pictures = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    whole = Gemma3ForConditionalGeneration(Gemma3Config(text_config=text, vision_config=pictures)).eval()
    model = join(tower("siglip"), whole).model
    assert model.model.language_model is whole.model.language_model
    assert model.config.text_config.model_type == "gemma3_text"
    words = torch.tensor([[5, 20, 30]])
    with torch.no_grad():
        torch.testing.assert_close(model(input_ids=words).logits, whole(input_ids=words).logits)
