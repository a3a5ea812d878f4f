"""From conversations about pictures and regions to the tensors of a model, and nowhere else.

```
conversation ─► chat template ─► text with <image>, <mask> ─► <image> repeated once a visual token ─► input_ids, labels
pictures ─► image processor ─► pixel_values, tile_grids
regions ─► image processor, same geometry ─► region_coverage, region_image_index
```

Training, evaluation, sessions and the app all go through `OspreyTPProcessor.prepare`.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import (
    AddedToken,
    AutoImageProcessor,
    AutoProcessor,
    BatchEncoding,
    BatchFeature,
    PreTrainedTokenizerBase,
    ProcessorMixin,
)
from transformers.processing_utils import MultiModalData

from osprey_tp.configuration import CHOICES, OspreyTPConfig
from osprey_tp.image_processing import OspreyTPImageProcessor
from osprey_tp.outside import require_unicode
from osprey_tp.prompts import IMAGE_TOKEN, REGION_TOKEN
from osprey_tp.tiling import TilePlan, Tiling

IGNORED_LABEL = -100
"""Label of every token that is not part of an answer."""

_ONE_AT_A_TIME = threading.RLock()
"""Held while a template is rendered or a text is tokenised: a compiled template, of which transformers keeps one for
all processors, writes the places of answers into itself, and a fast tokenizer the padding that it is asked for."""

Conversation = Sequence[dict[str, Any]]
"""Messages `{"role", "content"}`; content is a string, or a list of `{"type": "text", "text"}` and
`{"type": "image", "image", "regions"}` items. `<mask>` in the texts stands for the regions, picture by picture."""


def chat_template(name: str) -> str:
    """The chat template of that name: `vicuna_v1` (published, stages 2 and 3), `plain` (stage 1), `chatml` (Qwen).

    Raises:
        ValueError: listing the names there are.
    """
    folder = Path(__file__).parent / "chat_templates"
    path = folder / f"{name}.jinja"
    if path.parent != folder or not path.is_file():
        names = sorted(file.stem for file in folder.glob("*.jinja"))
        raise ValueError(f"unknown chat template {name!r}; known: {', '.join(names)}")
    return path.read_text(encoding="utf-8")


def add_region_tokens(tokenizer: PreTrainedTokenizerBase, preset: str = "recommended") -> dict[str, int]:
    """Add `<mask>` and `<image>` to a tokenizer and name the ids that a configuration needs.

    Args:
        tokenizer: Changed in place; gets a padding token if it has none.
        preset: `published` takes embedding row 0 as the row separator, `recommended` the newline token.

    Returns:
        The token-id fields of `OspreyTPConfig`.
    """
    tokenizer.add_tokens([AddedToken(mark, special=True) for mark in (REGION_TOKEN, IMAGE_TOKEN)])
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
    vocabulary = tokenizer.get_vocab()
    return {
        "region_token_id": vocabulary[REGION_TOKEN],
        "image_token_id": vocabulary[IMAGE_TOKEN],
        "tile_separator_token_id": _piece_id(tokenizer, ","),
        "row_separator_token_id": 0 if preset == "published" else _piece_id(tokenizer, "\n"),
    }


def _piece_id(tokenizer: PreTrainedTokenizerBase, text: str) -> int:
    """Id of the piece that stands for `text` alone: a piece of that name, else the last piece of encoding it."""
    vocabulary = tokenizer.get_vocab()
    if text in vocabulary:
        return vocabulary[text]
    return tokenizer.encode(text, add_special_tokens=False)[-1]


class OspreyTPProcessor(ProcessorMixin):
    """Image processor and tokenizer behind one door.

    Args:
        image_processor: Cuts pictures and turns regions into coverage.
        tokenizer: A fast tokenizer that knows `<image>` and `<mask>` (see `add_region_tokens`).
        chat_template: Jinja text; without it, the tokenizer's own template is used.
    """

    def __init__(
        self,
        image_processor: OspreyTPImageProcessor | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        chat_template: str | None = None,
    ) -> None:
        if tokenizer is None or image_processor is None:
            raise ValueError("the processor needs an image processor and a tokenizer")
        missing = [mark for mark in (IMAGE_TOKEN, REGION_TOKEN) if mark not in tokenizer.get_vocab()]
        if missing:
            raise ValueError(f"the tokenizer does not know {' and '.join(missing)}; call add_region_tokens(tokenizer)")
        self.image_token, self.region_token = IMAGE_TOKEN, REGION_TOKEN
        self.image_token_id = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
        self.region_token_id = tokenizer.convert_tokens_to_ids(REGION_TOKEN)
        super().__init__(image_processor, tokenizer, chat_template=chat_template or tokenizer.chat_template)

    @classmethod
    def from_config(
        cls,
        config: OspreyTPConfig,
        tokenizer: PreTrainedTokenizerBase,
        template: str | None = "vicuna_v1",
        **image_choices: Any,
    ) -> OspreyTPProcessor:
        """The processor that fits a configuration.

        Args:
            config: Geometry and choices are taken from it.
            tokenizer: See `add_region_tokens`.
            template: Name of a chat template; None for the tokenizer's own.
            image_choices: Further fields of the image processor, such as `image_mean` and `image_std`.
        """
        tiling = config.tiling
        image_processor = OspreyTPImageProcessor(
            tile_size=tiling.tile_size,
            patch_size=tiling.patch_size,
            scale_factor=tiling.scale_factor,
            max_tiles=tiling.max_tiles,
            **{name: getattr(config, name) for name in CHOICES},
            spatial_side=config.spatial_side if config.spatial_token else 0,
            **image_choices,
        )
        return cls(image_processor, tokenizer, chat_template=chat_template(template) if template else None)

    def check_fits(self, config: OspreyTPConfig) -> None:
        """Raise ValueError, naming both values, where this processor and a model's configuration disagree."""
        expected = {
            "tile_size": config.tiling.tile_size,
            "patch_size": config.tiling.patch_size,
            "scale_factor": config.scale_factor,
            **{name: getattr(config, name) for name in CHOICES},
            "spatial_side": config.spatial_side if config.spatial_token else 0,
        }
        found = {name: getattr(self.image_processor, name) for name in expected}
        for name in ("image_token_id", "region_token_id"):
            expected[name], found[name] = getattr(config, name), getattr(self, name)
        for name, value in expected.items():
            if found[name] != value:
                raise ValueError(
                    f"the processor has {name} {found[name]!r} where the model has {value!r}; save both together "
                    "(processor.save_pretrained into the model's folder)"
                )

    def longest_sample(self, config: OspreyTPConfig) -> int:
        """Most tokens that a model takes: positions of its language model, or less if the tokenizer says so."""
        return min(config.text_config.max_position_embeddings, self.tokenizer.model_max_length)

    def __call__(
        self,
        images: Sequence[Any] | Any | None = None,
        text: str | Sequence[str] | None = None,
        regions: Sequence[Sequence[Any]] | None = None,
        return_tensors: str | None = "pt",
        return_text_replacement_offsets: bool = False,
        return_mm_token_type_ids: bool = False,
        **text_options: Any,
    ) -> BatchFeature:
        """Tokenise prompts and prepare their pictures and regions.

        Args:
            images: Pictures (PIL, array, tensor, path), one, flat or nested a prompt, in the order of `<image>` marks;
                or, in place of all of them, the `TilePlan` of pictures that are encoded already.
            text: Prompts with one `<image>` a picture and `tokens_per_region` `<mask>` a region.
            regions: For every picture a list of regions in any form of `osprey_tp.masks`, nested like `images`.
            return_tensors: `pt`, or None for lists.
            return_text_replacement_offsets: Where `<image>` was expanded, for transformers' assistant masks.
            return_mm_token_type_ids: Add `mm_token_type_ids` (B, N), 1 at visual tokens, for serving engines.
            text_options: Passed to the tokenizer (`padding`, `padding_side`, ...).

        Returns:
            input_ids and attention_mask (B, N); with pictures also pixel_values (tiles, 3, S, S), tile_grids
            (pictures, 2), region_coverage (regions, cells of the largest picture), region_image_index (regions,), and
            for models with a spatial token region_shapes (regions, side, side).

        Raises:
            ValueError: if placeholders and pictures or regions differ in number; both numbers are named.
        """
        if text is None:
            raise ValueError("the processor needs text; pass a prompt for every sample")
        prompts = [text] if isinstance(text, str) else list(text)
        pictures, regions_of = _flatten(images, regions)
        self._check_counts(prompts, len(pictures), [len(of_picture) for of_picture in regions_of])
        vision: dict[str, Any] = {}
        expansions: list[str] = []
        if pictures:
            vision = self._process_pictures(pictures, regions_of)
            tiling = self.image_processor.tiling
            expansions = [
                IMAGE_TOKEN * tiling.count_visual_tokens(rows, cols) for rows, cols in vision["tile_grids"].tolist()
            ]
        prompts, offsets = self.get_text_with_replacements(prompts, expansions)
        with _ONE_AT_A_TIME:
            text_inputs = self._tokenise(prompts, return_tensors, text_options)
        self._check_special_mm_tokens(prompts, BatchFeature(text_inputs), modalities=["image"])
        if return_mm_token_type_ids:
            types = self.create_mm_token_type_ids(text_inputs["input_ids"])
            text_inputs["mm_token_type_ids"] = torch.tensor(types) if return_tensors == "pt" else types
        if return_text_replacement_offsets:
            text_inputs["text_replacement_offsets"] = offsets
        return BatchFeature({**text_inputs, **vision})

    def _tokenise(self, prompts: list[str], return_tensors: str | None, options: dict[str, Any]) -> dict[str, Any]:
        """What the tokenizer gives; tensors by way of arrays, since of lists it looks at every number in Python."""
        for index, prompt in enumerate(prompts):
            require_unicode(prompt, f"prompt {index}")
        encoded = self.tokenizer(prompts, **options)
        if return_tensors is None:
            return dict(encoded)
        arrays = {name: [np.asarray(row, dtype=np.int64) for row in rows] for name, rows in encoded.items()}
        return dict(BatchEncoding(arrays, tensor_type=return_tensors))

    def _process_pictures(self, pictures: list[Any], regions_of: list[list[Any]]) -> dict[str, torch.Tensor]:
        """Tensors of the vision side; plans, which stand for encoded pictures, get no pixels."""
        if not all(isinstance(picture, TilePlan) for picture in pictures):
            return dict(self.image_processor.preprocess(pictures, regions=regions_of, return_tensors="pt"))
        grids = torch.tensor([(plan.rows, plan.cols) for plan in pictures])
        return {"tile_grids": grids, **self.image_processor.cover_regions(regions_of, pictures)}

    def _check_counts(self, prompts: list[str], pictures: int, regions_of: list[int]) -> None:
        first = 0
        for index, prompt in enumerate(prompts):
            of_prompt = prompt.count(IMAGE_TOKEN)
            expected = sum(regions_of[first : first + of_prompt])
            found, left_over = divmod(prompt.count(REGION_TOKEN), self.tokens_per_region)
            if (found != expected or left_over) and first + of_prompt <= pictures:
                raise ValueError(
                    f"{found} {REGION_TOKEN} placeholders, {expected} regions (prompt {index}); write {REGION_TOKEN} "
                    "once for every region, in their order"
                )
            first += of_prompt
        if first != pictures:
            raise ValueError(f"{first} {IMAGE_TOKEN} placeholders, {pictures} pictures; write one for every picture")

    def prepare(
        self,
        conversations: Sequence[Conversation],
        *,
        add_generation_prompt: bool = False,
        return_labels: bool = False,
    ) -> BatchFeature:
        """Everything the model needs for a batch of conversations.

        Args:
            conversations: See `Conversation`; with and without pictures and regions, mixed.
            add_generation_prompt: End with the opening of an answer, and pad on the left, for `generate`.
            return_labels: Add `labels` (B, N), -100 everywhere but on answers and their end token.

        Returns:
            As `__call__`, padded on the left for generation and on the right otherwise.

        Raises:
            ValueError: if counts differ, or an answer cannot be labelled, or not exactly.
        """
        texts, pictures, regions = [], [], []
        for conversation in conversations:
            messages, of_conversation, their_regions = _separate(conversation)
            for message in messages:
                message["content"] = message["content"].replace(REGION_TOKEN, REGION_TOKEN * self.tokens_per_region)
            texts.append(messages)
            pictures.append(of_conversation)
            regions.append(their_regions)
        side = "left" if add_generation_prompt else "right"
        with _ONE_AT_A_TIME:
            batch: Any = self.apply_chat_template(
                texts,
                tokenize=True,
                return_dict=True,
                return_tensors="pt",
                add_generation_prompt=add_generation_prompt,
                return_assistant_tokens_mask=return_labels,
                processor_kwargs={"images": pictures, "regions": regions, "padding": True, "padding_side": side},
            )
        if return_labels:
            answers = torch.as_tensor(batch.pop("assistant_masks")).bool()
            unlabelled = [index for index, row in enumerate(answers) if not row.any()]
            if unlabelled:
                raise ValueError(
                    f"no answer to learn from in conversation {unlabelled[0]}: it has no assistant message, or the "
                    "chat template has no {% generation %} marks; use one of osprey_tp's: chat_template('chatml')"
                )
            batch["labels"] = batch["input_ids"].masked_fill(~answers, IGNORED_LABEL)
        return batch

    def _adjust_assistant_masks_indices(
        self, processed_dict: dict[str, Any], generation_indices: list[Any]
    ) -> dict[str, Any]:
        """Mark the tokens of answers, as transformers does it, in arrays in place of a loop over spans and tokens.

        Args:
            processed_dict: As of `__call__`; its `offset_mapping` (B, N, 2) and `text_replacement_offsets` give way to
                `assistant_masks` (B, N).
            generation_indices: For every conversation the (first, end) characters of its answers, in the text whose
                placeholders are not expanded.

        Raises:
            ValueError: if a token holds part of an answer and part of what stands beside it.
        """
        offsets = np.asarray(processed_dict.pop("offset_mapping"))
        replacements = processed_dict.pop("text_replacement_offsets")
        masks = np.zeros(offsets.shape[:2], dtype=np.int64)
        for index, spans in enumerate(generation_indices):
            if not spans:
                continue
            answers = _moved(np.asarray(spans), replacements[index])
            inside = (offsets[index, :, 0] < answers[:, 1:]) & (offsets[index, :, 1] > answers[:, :1])  # (spans, N)
            masks[index] = inside.any(axis=0)
            taught = _characters_of(offsets[index, masks[index] > 0])
            if taught > (answers[:, 1] - answers[:, 0]).sum():
                raise ValueError(
                    f"an answer of conversation {index} cannot be labelled exactly: a token reaches beyond it; "
                    "separate answers from the prompt in the chat template by a space or a special token"
                )
        processed_dict["assistant_masks"] = masks.tolist()
        return processed_dict

    def count_tokens(self, text: str) -> int:
        """Tokens of a text by itself, without a picture, special ones included."""
        require_unicode(text, "the text")
        with _ONE_AT_A_TIME:
            return len(self.tokenizer(text)["input_ids"])

    def decode_answers(self, generated: torch.Tensor, prompt_length: int) -> list[str]:
        """Texts of what `generate` returned (B, prompt + answer), without the prompt and special tokens."""
        return [self.decode_answer(row) for row in generated[:, prompt_length:].tolist()]

    def decode_answer(self, ids: Sequence[int]) -> str:
        """The text of an answer's tokens, without special ones."""
        text: str = self.tokenizer.decode(ids, skip_special_tokens=True)
        return text.strip()

    def _get_num_multimodal_tokens(
        self, image_sizes: Sequence[Sequence[int]] | None = None, **choices: Any
    ) -> MultiModalData:
        """How many visual tokens and tiles pictures take, for serving engines, which ask before they open any.

        Args:
            image_sizes: (height, width) of every picture, in source pixels.
            choices: Settings of the image processor for these pictures, such as `max_tiles`.
        """
        if image_sizes is None:
            return MultiModalData()
        given = {field.name: choices[field.name] for field in fields(Tiling) if field.name in choices}
        tiling = replace(self.image_processor.tiling, **given)
        plans = [tiling.plan(height, width) for height, width in image_sizes]
        return MultiModalData(
            num_image_tokens=[plan.num_visual_tokens for plan in plans],
            num_image_patches=[plan.num_tiles for plan in plans],
        )

    @property
    def model_input_names(self) -> list[str]:
        """Names of the tensors that the model takes."""
        return ["input_ids", "attention_mask", *self.image_processor.model_input_names]

    @property
    def tokens_per_region(self) -> int:
        """Tokens of the prompt that stand for a region; `prepare` writes `<mask>` so often."""
        return self.image_processor.tokens_per_region


def _moved(characters: np.ndarray, replacements: Sequence[dict[str, Any]]) -> np.ndarray:
    """Places in a text after its placeholders were replaced by longer ones.

    Args:
        characters: Places before, none inside a placeholder.
        replacements: `span` and `new_span`, (first, end) of each placeholder before and after, in order.
    """
    ends = np.array([one["span"][1] for one in replacements], dtype=np.int64)
    gained = np.array([0, *(one["new_span"][1] - one["span"][1] for one in replacements)], dtype=np.int64)
    return characters + gained[np.searchsorted(ends, characters, side="right")]


def _characters_of(offsets: np.ndarray) -> int:
    """Characters that tokens with offsets (N, 2) stand for; several tokens may stand for one."""
    firsts, ends = offsets[:, 0], offsets[:, 1]
    reached = np.maximum.accumulate(np.concatenate([[0], ends]))[:-1]  # by the tokens before each
    return int((ends - np.maximum(firsts, reached)).clip(min=0).sum())


def _separate(conversation: Conversation) -> tuple[list[dict[str, str]], list[Any], list[list[Any]]]:
    """Split a conversation into messages of plain text, pictures, and the regions of each picture."""
    messages, pictures, regions = [], [], []
    for message in conversation:
        content = message["content"]
        if isinstance(content, str):
            messages.append({"role": message["role"], "content": content})
            continue
        marks, texts = "", ""
        for item in content:
            if item["type"] == "image":
                marks += IMAGE_TOKEN + "\n"
                pictures.append(item["image"])
                regions.append(list(item.get("regions", ())))
            elif item["type"] == "text":
                texts += item["text"]
            else:
                raise ValueError(f"content items are of type 'text' or 'image', got {item['type']!r}")
        messages.append({"role": message["role"], "content": marks + texts})
    return messages, pictures, regions


def _flatten(images: Any, regions: Any) -> tuple[list[Any], list[list[Any]]]:
    """Bring pictures (one, flat, or nested a prompt) and their regions, nested alike, to one list over pictures."""
    if images is None:
        if any(regions or ()):
            raise ValueError("regions are given without pictures; pass the pictures they lie in as images")
        return [], []
    if not isinstance(images, (list, tuple)):
        images, regions = [images], None if regions is None else [regions]
    if any(isinstance(of_prompt, (list, tuple)) for of_prompt in images):
        images = [picture for of_prompt in images for picture in of_prompt]
        regions = None if regions is None else [of_picture for of_prompt in regions for of_picture in of_prompt]
    flat = [[] for _ in images] if regions is None else [list(of_picture) for of_picture in regions]
    if len(flat) != len(images):
        raise ValueError(f"{len(images)} pictures, {len(flat)} lists of regions; pass one list for every picture")
    return list(images), flat


AutoImageProcessor.register(OspreyTPConfig, image_processor_classes={"torchvision": OspreyTPImageProcessor})
AutoProcessor.register(OspreyTPConfig, OspreyTPProcessor)
