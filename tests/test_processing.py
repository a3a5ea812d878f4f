"""The processor: published prompts and token ids, labels, counts, errors."""

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers.processors import TemplateProcessing

from osprey_tp import OspreyTPConfig, OspreyTPProcessor
from osprey_tp.processing import IGNORED_LABEL, _characters_of, add_region_tokens, chat_template

from .golden_recipe import load_json
from .tiny_models import llama_tokenizer, tiny_processor_and_config

GOLDEN = load_json("i_conversation_v1.json")
PICTURE = Image.fromarray(np.zeros((60, 90, 3), np.uint8))
BOX = {"box": [10, 10, 30, 40]}
ASKED = [{"role": "user", "content": "What is it?"}]
ANSWERED = {"role": "assistant", "content": "red"}


@pytest.fixture(scope="module")
def processor() -> OspreyTPProcessor:
    return tiny_processor_and_config()[0]


def as_messages(conversation: list[list[str]]) -> list[dict]:
    """The published two-column form, with pictures and regions as content items."""
    roles = {"human": "user", "gpt": "assistant"}
    marks = sum(text.count("<mask>") for _, text in conversation)
    messages = [{"role": roles[speaker], "content": text} for speaker, text in conversation]
    first = conversation[0][1].replace("<image>", "").strip()
    picture = {"type": "image", "image": PICTURE, "regions": [BOX] * marks}
    messages[0]["content"] = [picture, {"type": "text", "text": first}]
    return messages


def published_view(batch, processor) -> tuple[list[int], list[int] | None]:
    """ids and labels with each picture's run of <image> as one -200."""
    ids, labels = batch["input_ids"][0].tolist(), batch["labels"][0].tolist() if "labels" in batch else None
    image = processor.image_token_id
    kept = [i for i, token in enumerate(ids) if not (token == image and i and ids[i - 1] == image)]
    view = [-200 if ids[i] == image else ids[i] for i in kept]
    return view, [labels[i] for i in kept] if labels else None


@pytest.mark.parametrize("name", list(GOLDEN["conversations"]))
def test_training_prompts_ids_and_labels_equal_the_published(processor, name):
    case = GOLDEN["conversations"][name]
    messages = as_messages(case["conversation"])
    text = processor.apply_chat_template(messages, tokenize=False)
    assert text == "<s>" + case["prompt"]
    ids, labels = published_view(processor.prepare([messages], return_labels=True), processor)
    assert ids == case["small_fast"]["input_ids"]
    assert labels == case["small_fast"]["labels"]


def test_inference_prompt_equals_the_published(processor):
    case = GOLDEN["inference_prompts"]["v1"]
    question = case["prompt"].split("<image>\n")[1].removesuffix(" ASSISTANT:")
    content = [{"type": "image", "image": PICTURE, "regions": [BOX]}, {"type": "text", "text": question}]
    batch = processor.prepare([[{"role": "user", "content": content}]], add_generation_prompt=True)
    assert published_view(batch, processor)[0] == case["small_fast_ids"]


def test_separators_are_those_of_the_published_tokenizer():
    separators = GOLDEN["separators"]["small_fast"]
    published = add_region_tokens(llama_tokenizer(), preset="published")
    assert published["row_separator_token_id"] == separators["newline"]
    assert published["tile_separator_token_id"] == separators["comma"]
    assert published["region_token_id"] == separators["mask"]
    assert add_region_tokens(llama_tokenizer())["row_separator_token_id"] == 13


def test_separators_are_pieces_of_the_text_alone():
    tokenizer = llama_tokenizer()
    expected = add_region_tokens(tokenizer)
    tokenizer._tokenizer.post_processor = TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    assert tokenizer("a")["input_ids"][-1] == 2
    assert add_region_tokens(tokenizer) == expected


def test_marks_are_whole_wherever_they_stand_and_no_part_of_an_answer():
    tokenizer = llama_tokenizer()
    tokenizer.pad_token = None
    ids = add_region_tokens(tokenizer)
    found = tokenizer("red<mask>s, <image><mask>", add_special_tokens=False)["input_ids"]
    assert [found.count(ids[name]) for name in ("region_token_id", "image_token_id")] == [2, 1]
    assert tokenizer.decode(found, skip_special_tokens=True).split() == ["red", "s,"]
    for mark in ("region_token_id", "image_token_id"):
        added = tokenizer.added_tokens_decoder[ids[mark]]
        assert (added.special, added.normalized) == (True, False)
    assert tokenizer.pad_token == tokenizer.unk_token


def test_a_processor_of_a_configuration_has_its_geometry_and_the_published_template():
    tokenizer = llama_tokenizer()
    ids = add_region_tokens(tokenizer)
    config = OspreyTPConfig.tiny(max_tiles=16, spatial_token=True, spatial_side=7, vocab_size=len(tokenizer), **ids)
    made = OspreyTPProcessor.from_config(config, tokenizer, image_mean=[0.1, 0.2, 0.3])
    assert made.chat_template == chat_template("vicuna_v1")
    assert made.image_processor.tiling == config.tiling
    assert (made.image_processor.spatial_side, list(made.image_processor.image_mean)) == (7, [0.1, 0.2, 0.3])
    made.check_fits(config)
    tokenizer.chat_template = "its own"
    assert OspreyTPProcessor.from_config(config, tokenizer, template=None).chat_template == "its own"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"text": None}, "the processor needs text; pass a prompt for every sample"),
        ({"regions": [[BOX]]}, "regions are given without pictures; pass the pictures they lie in as images"),
        (
            {"images": [PICTURE], "regions": [[BOX], [BOX]]},
            "1 pictures, 2 lists of regions; pass one list for every picture",
        ),
        (
            {"images": [[PICTURE], [PICTURE]], "regions": [[[BOX]], []]},
            "2 pictures, 1 lists of regions; pass one list for every picture",
        ),
    ],
)
def test_a_direct_call_that_does_not_fit_is_refused(processor, given, message):
    with pytest.raises(ValueError) as raised:
        processor(**{"text": "<image> <mask>", **given})
    assert str(raised.value) == message


def test_plain_template_teaches_the_caption_alone(processor):
    plain = OspreyTPProcessor(processor.image_processor, processor.tokenizer, chat_template("plain"))
    messages = [
        {"role": "user", "content": [{"type": "image", "image": PICTURE}, {"type": "text", "text": "Describe it."}]},
        {"role": "assistant", "content": "A red ring."},
    ]
    batch = plain.prepare([messages], return_labels=True)
    ids, labels = published_view(batch, plain)
    caption = plain.tokenizer.decode([token for token in labels if token != IGNORED_LABEL])
    assert ids[:2] == [1, -200]
    assert not (batch["labels"][batch["input_ids"] == plain.image_token_id] != IGNORED_LABEL).any()
    assert caption.strip() == "A red ring."
    assert plain.tokenizer.decode(ids[2:]).strip() == "A red ring."


@pytest.mark.parametrize("language", ["llama", "qwen3"])
def test_batches_mix_pictures_regions_and_text(language):
    processor, config = tiny_processor_and_config(language=language)
    small, large = Image.new("RGB", (40, 40)), Image.new("RGB", (150, 90))
    picture = lambda image, regions: {"type": "image", "image": image, "regions": regions}  # noqa: E731
    conversations = [
        [{"role": "user", "content": "no picture"}, {"role": "assistant", "content": "yes"}],
        [
            {
                "role": "user",
                "content": [picture(large, [BOX]), picture(small, []), {"type": "text", "text": "<mask>"}],
            },
            {"role": "assistant", "content": "two"},
        ],
        [
            {"role": "user", "content": [picture(small, [BOX, BOX]), {"type": "text", "text": "<mask><mask>"}]},
            {"role": "assistant", "content": "one"},
        ],
    ]
    batch = processor.prepare(conversations, return_labels=True)
    plans = [config.tiling.plan(*size) for size in ((90, 150), (40, 40), (40, 40))]
    assert batch["tile_grids"].tolist() == [[plan.rows, plan.cols] for plan in plans]
    assert len(batch["pixel_values"]) == sum(plan.num_tiles for plan in plans)
    assert batch["region_image_index"].tolist() == [0, 2, 2]
    assert batch["region_coverage"].shape == (3, max(plan.num_cells for plan in plans))
    tokens = (batch["input_ids"] == processor.image_token_id).sum(1).tolist()
    assert tokens == [0, plans[0].num_visual_tokens + plans[1].num_visual_tokens, plans[2].num_visual_tokens]
    assert (batch["attention_mask"][:, 0] == 1).all()
    end = processor.tokenizer.eos_token
    answers = [processor.tokenizer.decode(row[row != IGNORED_LABEL]).strip() for row in batch["labels"]]
    assert answers == [text + end for text in ("yes", "two", "one")]


def test_direct_call_takes_flat_and_nested_pictures(processor):
    text = ["<image> <mask>", "<image><image> <mask><mask>"]
    regions = [[BOX], [BOX], [BOX]]
    flat = processor(images=[PICTURE] * 3, text=text, regions=regions, padding=True)
    nested = processor(images=[[PICTURE], [PICTURE] * 2], text=text, regions=[[[BOX]], [[BOX], [BOX]]], padding=True)
    for name, tensor in flat.items():
        torch.testing.assert_close(nested[name], tensor)
    unasked = processor(images=[[PICTURE], [PICTURE] * 2], text=["<image>", "<image><image>"], padding=True)
    assert len(unasked["tile_grids"]) == 3 and not len(unasked["region_coverage"])
    one = processor(images=PICTURE, text="<image><mask>", regions=[BOX])
    assert one["region_coverage"].shape[0] == 1


def test_a_plan_stands_for_a_picture_already_encoded(processor):
    plan = processor.image_processor.tiling.plan(60, 90)
    of_picture = processor(images=PICTURE, text="<image><mask>", regions=[BOX])
    of_plan = processor(images=plan, text="<image><mask>", regions=[BOX])
    assert "pixel_values" not in of_plan
    for name, tensor in of_plan.items():
        torch.testing.assert_close(of_picture[name], tensor)


def test_a_region_with_a_spatial_token_takes_two_places_of_the_prompt():
    processor, _ = tiny_processor_and_config(spatial_token=True, spatial_side=7)
    batch = processor.prepare([conversation("<mask> and <mask>", [BOX, BOX])])
    places = (batch["input_ids"][0] == processor.region_token_id).nonzero()[:, 0].diff().tolist()
    assert (places[0], places[2], len(places)) == (1, 1, 3)
    assert places[1] > 1
    assert batch["region_shapes"].shape == (2, 7, 7)
    with pytest.raises(ValueError, match=r"1 <mask> placeholders, 2 regions"):
        processor.prepare([conversation("<mask>", [BOX, BOX])])


def conversation(text: str, regions: list, picture=PICTURE) -> list[dict]:
    return [
        {
            "role": "user",
            "content": [{"type": "image", "image": picture, "regions": regions}, {"type": "text", "text": text}],
        }
    ]


@pytest.mark.parametrize(
    ("text", "regions", "message"),
    [
        ("<mask> <mask>", [BOX], r"2 <mask> placeholders, 1 regions \(prompt 0\)"),
        ("<mask>", [BOX, BOX, BOX], r"1 <mask> placeholders, 3 regions \(prompt 0\)"),
        ("what is it?", [BOX], r"0 <mask> placeholders, 1 regions \(prompt 0\)"),
        ("<image> again <mask>", [BOX], r"2 <image> placeholders, 1 pictures"),
        ("<image> again <mask> <mask>", [BOX], r"2 <image> placeholders, 1 pictures"),
        ("what is <mask> \ud83d?", [BOX], "prompt 0 is not Unicode: it holds half a character"),
        ("<mask>", [np.ones((10, 10), bool)], r"10.*10.*60.*90"),
        ("<mask>", [np.zeros((60, 90), bool)], "empty"),
        ("<mask>", [{"box": [5, 5, 5, 20]}], "box"),
    ],
)
def test_what_does_not_fit_is_named(processor, text, regions, message):
    with pytest.raises(ValueError, match=message):
        processor.prepare([conversation(text, regions)])


def test_pictures_that_cannot_be_used_are_named(processor, tmp_path):
    with pytest.raises(ValueError, match="NaN"):
        processor.prepare([conversation("hello", [], np.full((20, 20, 3), np.nan))])
    with pytest.raises((ValueError, OSError), match=r"missing\.png"):
        processor.prepare([conversation("hello", [], tmp_path / "missing.png")])


def test_half_a_character_is_no_text_to_count(processor):
    with pytest.raises(ValueError, match="the text is not Unicode"):
        processor.count_tokens("\udc00")


def test_labels_need_an_answer(processor):
    with pytest.raises(ValueError, match=r"no answer to learn from in conversation 0.*, or the chat template has no"):
        processor.prepare([conversation("<mask>", [BOX])], return_labels=True)
    batch = processor.apply_chat_template(
        [ASKED, [*ASKED, ANSWERED]],
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        return_assistant_tokens_mask=True,
        processor_kwargs={"padding": True, "padding_side": "right"},
    )
    masks = torch.as_tensor(batch["assistant_masks"])
    assert not masks[0].any()
    assert processor.tokenizer.decode(batch["input_ids"][1][masks[1].bool()]) == "red</s>"


def test_answers_that_share_a_token_with_the_prompt_are_refused():
    processor, _ = tiny_processor_and_config()
    exact = (
        "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ ' ' + m.content }}{% endgeneration %}"
        "{% else %}{{ m.content }}{% endif %}{% endfor %}"
    )
    processor.chat_template = exact
    processor.prepare([[*ASKED, ANSWERED]], return_labels=True)
    processor.chat_template = exact.replace(
        "{% generation %}{{ ' ' + m.content }}", "{{ ' ' }}{% generation %}{{ m.content }}"
    )
    with pytest.raises(
        ValueError,
        match=r"^an answer of conversation 0 cannot be labelled exactly: .* separate answers from the prompt",
    ):
        processor.prepare([[*ASKED, ANSWERED]], return_labels=True)


@pytest.mark.parametrize(
    ("offsets", "characters"),
    [([], 0), ([[3, 5], [5, 8]], 5), ([[3, 4], [3, 4], [4, 6]], 3), ([[5, 8], [5, 6]], 3), ([[3, 5], [7, 8]], 3)],
)
def test_characters_that_tokens_share_are_counted_once(offsets, characters):
    assert _characters_of(np.array(offsets, dtype=np.int64).reshape(-1, 2)) == characters


def test_batches_are_padded_on_the_side_of_their_purpose(processor):
    longer = [{"role": "user", "content": "What is it, and where does it lie?"}]
    to_generate = processor.prepare([ASKED, longer], add_generation_prompt=True)["attention_mask"]
    to_learn = processor.prepare([[*ASKED, ANSWERED], [*longer, ANSWERED]], return_labels=True)["attention_mask"]
    assert to_generate.all(dim=1).tolist() == to_learn.all(dim=1).tolist() == [False, True]
    assert (to_generate[0, 0], to_generate[0, -1]) == (0, 1)
    assert (to_learn[0, 0], to_learn[0, -1]) == (1, 0)


def test_texts_of_a_message_follow_each_other_and_other_items_are_named(processor):
    parts = [{"type": "text", "text": "What is "}, {"type": "text", "text": "it?"}]
    joined, whole = (processor.prepare([[{"role": "user", "content": said}]]) for said in (parts, "What is it?"))
    assert torch.equal(joined["input_ids"], whole["input_ids"])
    with pytest.raises(ValueError, match=r"^content items are of type 'text' or 'image', got 'audio'$"):
        processor.prepare([[{"role": "user", "content": [{"type": "audio", "audio": b""}]}]])


def test_a_prompt_that_is_cut_off_within_its_picture_is_refused(processor):
    asked = {"images": PICTURE, "text": "<image> <mask>", "regions": [BOX]}
    whole = processor(**asked)["input_ids"].shape[1]
    assert processor(**asked, truncation=True, max_length=whole)["input_ids"].shape[1] == whole
    with pytest.raises(ValueError, match="Mismatch in `image` token count"):
        processor(**asked, truncation=True, max_length=10)


def test_lists_are_given_where_no_tensors_are_asked_for(processor):
    given = {"images": PICTURE, "text": "<image> a <mask>", "regions": [BOX], "return_mm_token_type_ids": True}
    lists, tensors = (processor(**given, return_tensors=kind) for kind in (None, "pt"))
    for name in ("input_ids", "attention_mask", "mm_token_type_ids"):
        assert lists[name] == tensors[name].tolist()


def test_a_tokenizer_without_region_tokens_is_refused(processor):
    tokenizer = tiny_processor_and_config(language="qwen3")[0].tokenizer
    bare = type(tokenizer)(tokenizer_object=llama_tokenizer()._tokenizer)
    with pytest.raises(ValueError, match=r"^the tokenizer does not know <image>; call add_region_tokens"):
        OspreyTPProcessor(processor.image_processor, bare)


def test_half_a_processor_is_refused(processor):
    for halves in ((processor.image_processor, None), (None, processor.tokenizer)):
        with pytest.raises(ValueError, match=r"^the processor needs an image processor and a tokenizer$"):
            OspreyTPProcessor(*halves)


def test_disagreement_of_processor_and_model_is_named(processor):
    config = OspreyTPConfig.tiny(scale_factor=3, region_token_id=560, image_token_id=561, vocab_size=562)
    with pytest.raises(ValueError, match="the processor has scale_factor 2 where the model has 3"):
        processor.check_fits(config)
    sides = {"image_token_id": processor.image_token_id, "region_token_id": processor.region_token_id}
    with_token = OspreyTPConfig.tiny(spatial_token=True, spatial_side=7, **sides)
    with pytest.raises(ValueError, match=r"spatial_side 0 where the model has 7; .* \(processor.save_pretrained into"):
        processor.check_fits(with_token)
    processor.check_fits(OspreyTPConfig.tiny(spatial_side=7, **sides))


def test_the_longest_sample_is_what_positions_and_tokenizer_allow(processor, monkeypatch):
    config = OspreyTPConfig.tiny()
    positions = config.text_config.max_position_embeddings
    for stated, longest in ((positions - 1, positions - 1), (positions + 1, positions), (int(1e30), positions)):
        monkeypatch.setattr(processor.tokenizer, "model_max_length", stated)
        assert processor.longest_sample(config) == longest


def test_answers_are_read_behind_their_prompts(processor):
    said = [processor.tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("a red", "it is")]
    end = processor.tokenizer.eos_token_id
    generated = torch.tensor([[7, 8, 9, *tokens, end, end] for tokens in said])
    assert processor.decode_answers(generated, 3) == ["a red", "it is"]


@pytest.mark.parametrize("name", ["llama", "../chat_templates/vicuna_v1", ""])
def test_unknown_template_lists_the_known(name):
    with pytest.raises(ValueError, match="known: chatml, plain, vicuna_v1"):
        chat_template(name)


@pytest.mark.parametrize("choices", [{}, {"thumbnail_source": "none"}, {"projector_type": "mlp"}], ids=str)
def test_serving_engines_are_told_the_tokens_and_tiles_of_pictures(choices):
    processor, _ = tiny_processor_and_config(**choices)
    sizes = [(40, 40), (90, 150), (30, 200)]
    told = processor._get_num_multimodal_tokens(image_sizes=sizes)
    for (height, width), tokens, tiles in zip(sizes, told["num_image_tokens"], told["num_image_patches"], strict=True):
        picture = Image.new("RGB", (width, height))
        batch = processor(picture, "<image> what is this", return_mm_token_type_ids=True)
        assert int((batch["input_ids"] == processor.image_token_id).sum()) == tokens
        assert torch.equal(batch["mm_token_type_ids"], (batch["input_ids"] == processor.image_token_id).long())
        assert len(batch["pixel_values"]) == tiles
    more = processor._get_num_multimodal_tokens(image_sizes=[(300, 500)], max_tiles=25)
    assert (
        more["num_image_patches"] > processor._get_num_multimodal_tokens(image_sizes=[(300, 500)])["num_image_patches"]
    )
    assert processor._get_num_multimodal_tokens()["num_image_tokens"] is None
