"""The whole model: layout against the published code, batching, padding, caching, labels, saving."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModel, AutoModelForImageTextToText, AutoProcessor, CLIPVisionModel, LlamaForCausalLM

from osprey_tp import OspreyTPConfig, OspreyTPForConditionalGeneration
from osprey_tp.modeling import OspreyTPFeatures, OspreyTPModel
from osprey_tp.processing import IGNORED_LABEL, add_region_tokens
from osprey_tp.tiling import count_tiles

from .golden_recipe import load_json
from .tiny_models import LANGUAGES, TOWERS, llama_tokenizer, tiny_model

LAYOUT = load_json("f_sequence_layout.json")
WORDS = ["red", "blue", "what", "is", "this", "region", "of", "the", "picture", "near", "a", "large", "ring", "and"]

families = pytest.mark.parametrize(
    ("tower", "language"), [(tower, language) for tower in TOWERS for language in LANGUAGES]
)


def random_conversation(rng: np.random.Generator, pictures: int | None = None, answer: str | None = None) -> list[dict]:
    """One random prompt: pictures of random sizes with random regions, or text alone."""
    pictures = int(rng.integers(0, 3)) if pictures is None else pictures
    content, marks = [], 0
    for _ in range(pictures):
        height, width = (int(side) for side in rng.integers(20, 160, size=2))
        regions = []
        for _ in range(int(rng.integers(0, 4))):
            mask = np.zeros((height, width), bool)
            top, left = int(rng.integers(0, height)), int(rng.integers(0, width))
            mask[top : top + 1 + int(rng.integers(0, 40)), left : left + 1 + int(rng.integers(0, 40))] = True
            regions.append(mask)
        image = Image.fromarray(rng.integers(0, 255, size=(height, width, 3), dtype=np.uint8))
        content.append({"type": "image", "image": image, "regions": regions})
        marks += len(regions)
    words = list(rng.choice(WORDS, size=int(rng.integers(2, 12)))) + ["<mask>"] * marks
    rng.shuffle(words)
    content.append({"type": "text", "text": " ".join(words)})
    messages = [{"role": "user", "content": content}]
    return messages if answer is None else [*messages, {"role": "assistant", "content": answer}]


@torch.no_grad()
def greedy(model, processor, conversations, **options) -> list[str]:
    batch = processor.prepare(conversations, add_generation_prompt=True)
    generated = model.generate(**batch, max_new_tokens=12, do_sample=False, **options)
    return processor.tokenizer.batch_decode(generated[:, batch["input_ids"].shape[1] :])


def without_padding(text: str, processor) -> str:
    tokenizer = processor.tokenizer
    return text.split(tokenizer.eos_token)[0].replace(tokenizer.pad_token, "")


@families
def test_batched_equals_single_and_cached_equals_uncached(tower, language):
    model, processor = tiny_model(tower, language)
    rng = np.random.default_rng(7)
    for _ in range(3):
        conversations = [random_conversation(rng) for _ in range(4)]
        batched = [without_padding(text, processor) for text in greedy(model, processor, conversations)]
        single = [without_padding(greedy(model, processor, [one])[0], processor) for one in conversations]
        uncached = [
            without_padding(greedy(model, processor, [one], use_cache=False)[0], processor) for one in conversations
        ]
        assert batched == single == uncached
        assert len(set(batched)) > 1


@families
@torch.no_grad()
def test_logits_do_not_depend_on_the_padding_side(tower, language):
    model, processor = tiny_model(tower, language)
    rng = np.random.default_rng(3)
    conversations = [random_conversation(rng, answer="a red ring") for _ in range(4)]
    right = processor.prepare(conversations)
    left = {**right}
    kept = right["attention_mask"].bool()
    order = kept.int().argsort(dim=1, stable=True)  # padding first, the rest in its order
    left["input_ids"], left["attention_mask"] = (
        right["input_ids"].gather(1, order),
        right["attention_mask"].gather(1, order),
    )
    left["position_ids"] = (left["attention_mask"].cumsum(1) - 1).clamp_min(0)
    from_right = model(**right).logits[kept]
    from_left = model(**left).logits[left["attention_mask"].bool()]
    torch.testing.assert_close(from_left, from_right, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("options", [{"num_beams": 3}, {"num_beams": 2, "num_return_sequences": 2}])
def test_beams_of_a_mixed_batch_equal_those_of_each_prompt_alone(options):
    model, processor = tiny_model()
    rng = np.random.default_rng(11)
    conversations = [random_conversation(rng, pictures) for pictures in (2, 0, 1)]
    batched = [without_padding(text, processor) for text in greedy(model, processor, conversations, **options)]
    single = [
        without_padding(text, processor) for one in conversations for text in greedy(model, processor, [one], **options)
    ]
    assert batched == single


def test_sampling_with_a_seed_is_reproducible():
    model, processor = tiny_model()
    conversation = random_conversation(np.random.default_rng(0), pictures=1)
    batch = processor.prepare([conversation], add_generation_prompt=True)
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        drawn.append(model.generate(**batch, max_new_tokens=20, do_sample=True).tolist())
    assert drawn[0] == drawn[1] != drawn[2]


@torch.no_grad()
def test_sequence_layout_equals_the_published_batch():
    example = LAYOUT["batch_example"]
    config = OspreyTPConfig.tiny(row_separator_token_id=0, tile_separator_token_id=29892, region_token_id=32000,
                                 image_token_id=32001, vocab_size=32000)  # fmt: skip
    model = OspreyTPModel(config)
    tiles = sum(count_tiles(*grid) for grid in example["grids"])
    crops = torch.randn(tiles, 4, 64)
    model.projector = torch.nn.Identity()
    pictures = model.visual_tokens(crops, torch.tensor(example["grids"]))
    regions = torch.randn(2, 64)
    for row, (ids, expected) in enumerate(zip(example["input_ids"], example["embeds"], strict=True)):
        expanded = [i for token in ids for i in ([32001] * len(pictures[row]) if token == -200 else [token])]
        of_row = regions if row == 0 else regions[:1]
        embedded = model.embed_prompt(
            torch.tensor([expanded]), OspreyTPFeatures(pooler_output=[pictures[row]], region_tokens=of_row)
        )[0]
        names = [name for name in expected if name != "zero"]
        assert len(embedded) == len(names)
        for vector, name in zip(embedded, names, strict=True):
            torch.testing.assert_close(vector, named_embedding(name, model, crops, regions))


def named_embedding(name: str, model: OspreyTPModel, crops: torch.Tensor, regions: torch.Tensor) -> torch.Tensor:
    if name.startswith("id"):
        return model.get_input_embeddings().weight[int(name[2:])]
    if name.startswith("mask"):
        return regions[int(name[4:])]
    crop, token = name.removeprefix("crop").split(".")
    return crops[int(crop), int(token)]


def test_loss_depends_on_answers_alone():
    model, processor = tiny_model()
    rng = np.random.default_rng(5)
    conversations = [
        random_conversation(rng, pictures, answer) for pictures, answer in ((1, "a red ring"), (0, "blue"))
    ]
    batch = processor.prepare(conversations, return_labels=True)
    answers = batch["labels"] != IGNORED_LABEL
    logits = model(**batch).logits[:, :-1][answers[:, 1:]]
    expected = torch.nn.functional.cross_entropy(logits, batch["labels"][:, 1:][answers[:, 1:]])
    torch.testing.assert_close(model(**batch).loss, expected)
    supervised = [
        processor.tokenizer.decode(row[mask]).strip() for row, mask in zip(batch["input_ids"], answers, strict=True)
    ]
    assert supervised == ["a red ring</s>", "blue</s>"]


def test_loss_of_a_prompt_does_not_see_another_prompt_or_padding():
    model, processor = tiny_model()
    rng = np.random.default_rng(5)
    conversations = [random_conversation(rng, 1, "a red ring"), random_conversation(rng, 2, "blue")]
    batch = processor.prepare(conversations, return_labels=True)
    batch["labels"][1] = IGNORED_LABEL
    batch["pixel_values"].requires_grad_(True)
    loss = model(**batch).loss
    loss.backward()
    of_first = count_tiles(*batch["tile_grids"][0].tolist())
    assert batch["pixel_values"].grad[:of_first].abs().sum() > 0
    assert batch["pixel_values"].grad[of_first:].abs().sum() == 0
    padding = batch["attention_mask"] == 0
    assert padding.any()
    batch["input_ids"][padding] = 77
    torch.testing.assert_close(model(**batch).loss, loss)


def test_labels_of_questions_are_ignored_whatever_the_question():
    """Another word in a question changes what the model sees, never which tokens are scored."""
    _, processor = tiny_model()
    picture = random_conversation(np.random.default_rng(5), 1)[0]["content"][0]
    marks = "<mask>" * len(picture["regions"])
    batches = [
        processor.prepare(
            [
                [
                    {"role": "user", "content": [picture, {"type": "text", "text": f"{word} {marks}"}]},
                    {"role": "assistant", "content": "a red ring"},
                ]
            ],
            return_labels=True,
        )
        for word in ("red", "blue and large")
    ]
    scored = [batch["labels"][batch["labels"] != IGNORED_LABEL].tolist() for batch in batches]
    assert scored[0] == scored[1]
    assert processor.tokenizer.decode(scored[0]).strip() == "a red ring</s>"


def test_activation_checkpointing_gives_the_same_gradients():
    model, processor = tiny_model()
    batch = processor.prepare([random_conversation(np.random.default_rng(2), 1, "a red ring")], return_labels=True)
    gradients = []
    for enabled in (False, True):
        model.train()
        if enabled:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        model.zero_grad()
        model(**batch).loss.backward()
        gradients.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)


@families
@torch.no_grad()
def test_attention_implementations_agree(tower, language):
    model, processor = tiny_model(tower, language)
    batch = processor.prepare([random_conversation(np.random.default_rng(2), 1)])
    logits = []
    for implementation in ("sdpa", "eager"):
        model.set_attn_implementation(implementation)
        assert model.model.language_model.config._attn_implementation == implementation
        assert model.model.vision_tower.config._attn_implementation == implementation
        logits.append(model(**batch).logits)
    torch.testing.assert_close(logits[0], logits[1], atol=2e-4, rtol=1e-4)


@families
@torch.no_grad()
def test_save_load_and_auto_classes(tower, language, tmp_path):
    model, processor = tiny_model(tower, language, preset="published")
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    batch = processor.prepare([random_conversation(np.random.default_rng(2), 1)])
    expected = model(**batch).logits
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(loaded(**batch).logits, expected)
    for name in OspreyTPConfig.__annotations__.keys() - {"text_config", "vision_config"}:
        assert getattr(loaded.config, name) == getattr(model.config, name), name
    assert isinstance(AutoModel.from_pretrained(tmp_path), OspreyTPModel)
    again = AutoProcessor.from_pretrained(tmp_path).prepare([random_conversation(np.random.default_rng(2), 1)])
    for name, tensor in batch.items():
        torch.testing.assert_close(again[name], tensor, msg=name)


@torch.no_grad()
def test_from_parts_keeps_the_parts():
    config = OspreyTPConfig.tiny()
    tower, language_model = CLIPVisionModel(config.vision_config), LlamaForCausalLM(config.text_config)
    tokenizer = llama_tokenizer()
    language_model.resize_token_embeddings(len(tokenizer))
    model = OspreyTPForConditionalGeneration.from_parts(
        tower, language_model, feature_layers=[1, 2, 3], **add_region_tokens(tokenizer)
    ).eval()
    assert model.model.vision_tower is tower
    assert not any(parameter.is_meta for parameter in model.parameters())
    ids = torch.tensor([[1, 20, 30, 40]])
    torch.testing.assert_close(model(input_ids=ids).logits, language_model.eval()(input_ids=ids).logits)


def test_parameters_of_every_part_equal_the_published_sizes():
    with torch.device("meta"):
        model = OspreyTPForConditionalGeneration(OspreyTPConfig.vicuna_7b(preset="published"))

    def count(module: torch.nn.Module) -> int:
        return sum(parameter.numel() for parameter in module.parameters())

    golden_projector = load_json("c_tokenpacker.json")["state_dict_h4096"]
    golden_regions = load_json("d_mask_extractor.json")["state_dict"]
    assert count(model.model.projector) == sum(int(np.prod(shape)) for shape in golden_projector.values())
    assert count(model.model.region_encoder) == sum(int(np.prod(shape)) for shape in golden_regions.values())
    assert count(model.model.language_model) + count(model.lm_head) == 6_738_415_616  # Llama-7B
    assert count(model.model.vision_tower) == 303_507_456  # CLIP ViT-L/14-336, vision part


def test_counts_are_named_when_they_disagree():
    model, processor = tiny_model()
    batch = processor.prepare([random_conversation(np.random.default_rng(4), 1)])
    fewer = {**batch, "pixel_values": batch["pixel_values"][:-1]}
    with pytest.raises(ValueError, match=r"\d+ tiles in pixel_values, but the grids .* need \d+"):
        model(**fewer)
    with pytest.raises(ValueError, match=r"\d+ <image> placeholders in input_ids, but 0 tokens"):
        model(input_ids=batch["input_ids"])
