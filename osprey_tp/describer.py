"""Open pictures, ask about many regions of many of them.

```
RegionDescriber(model, processor)
  ├─ open(image) ─► ImageSession                 the picture is encoded once
  ├─ open_many(images) ─► ImageSession, ...      in one batch of tiles
  └─ ask_many(questions) ─► answers              about any pictures, in one batch that answers leave and questions enter
```
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from transformers import AutoProcessor

from osprey_tp.answer_tree import answer_tree
from osprey_tp.compiled_tower import compile_tower
from osprey_tp.encoded_picture import MOST_PREFIXES, EncodedPicture, PicturePrompt, end_ids, is_plainly_greedy
from osprey_tp.encoded_tiles import TileBudget, open_tiles
from osprey_tp.images import load_image
from osprey_tp.loading_options import LoadingOptions
from osprey_tp.model_folder import load_model, naming, require_merged
from osprey_tp.modeling import OspreyTPForConditionalGeneration
from osprey_tp.outside import OWN_FILES_ALONE
from osprey_tp.processing import Conversation, OspreyTPProcessor
from osprey_tp.prompts import OVERVIEW
from osprey_tp.sessions import DEFAULT_NEW_TOKENS, ImageSession, RegionQuestion
from osprey_tp.shared_prefix import MOST_ROWS, continue_greedily, use_shared_attention

MOST_COPIES = 16
"""Copies of a picture's keys and values at a time, for answers that `generate` makes."""


class RegionDescriber:
    """A loaded model and its processor.

    Args:
        model: Put into evaluation mode.
        processor: Must fit the model's configuration.
        budget: How much of a picture is read, unless `open` says otherwise.

    Raises:
        ValueError: if model and processor disagree, or the budget does not fit them.
    """

    def __init__(
        self,
        model: OspreyTPForConditionalGeneration,
        processor: OspreyTPProcessor,
        budget: TileBudget = TileBudget(),  # noqa: B008 - it is frozen
    ) -> None:
        processor.check_fits(model.config)
        budget.of(processor.image_processor.tiling)
        self.budget = budget
        self.model = model.eval()
        self.processor = processor
        self.answer_tree = lru_cache(maxsize=32)(partial(answer_tree, processor))
        self.shares_prefix = use_shared_attention(model)

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        **choices: Any,
    ) -> RegionDescriber:
        """Load the model folder that training or conversion wrote.

        A folder without a region encoder answers questions about whole pictures and refuses regions.

        Args:
            folder: Holds config.json, safetensors weights and the processor.
            device: By default a GPU if there is one.
            dtype: By default the dtype of the weights.
            choices: The other fields of `LoadingOptions`: `quantization`, `device_map`, `max_tiles`, `tiles`,
                `compile`.

        Raises:
            FileNotFoundError: if the folder or a part of it is missing.
            ValueError: if it holds adapters that have not been merged, lacks weights, or the choices contradict each
                other.
            ImportError: if a choice needs a package, or `compile` a compiler, that is missing.
        """
        loading = LoadingOptions(device, dtype, **choices)
        budget = TileBudget(loading.max_tiles, loading.tiles)
        folder = Path(folder)
        needed = {
            "config.json": "a model folder has one",
            "processor_config.json": "save the processor beside the model: processor.save_pretrained(folder)",
        }
        if not folder.is_dir():
            raise FileNotFoundError(f"no model folder {folder}")
        require_merged(folder)
        for name, remedy in needed.items():
            if not (folder / name).is_file():
                raise FileNotFoundError(f"{folder} holds no {name}; {remedy}")
        arguments = loading.arguments()
        with naming(folder):
            processor = AutoProcessor.from_pretrained(folder, **OWN_FILES_ALONE)
            model = load_model(folder, **arguments, **OWN_FILES_ALONE)
        if "device_map" not in arguments:
            model.to(device=loading.place)  # type: ignore[call-arg]
        describer = cls(model, processor, budget)
        if loading.compile:
            compile_tower(model)
        return describer

    def open(
        self, image: Any, overview: str = OVERVIEW, *, max_tiles: int | None = None, tiles: str | None = None
    ) -> ImageSession:
        """Encode a picture (PIL, array, tensor, path) and return the session about it.

        Args:
            image: The picture.
            overview: The sentence between the picture and every question; the default is what region models learn.
            max_tiles: Most tiles that the picture is cut into, fewer than the model's; by default as `budget` says.
            tiles: `all`, or `near-regions`: a question is shown the tiles that its regions touch, and the thumbnail in
                place of all others; by default as `budget` says.

        Raises:
            ValueError: if the picture cannot be read, or the model cannot keep within that budget.
        """
        return self.open_many([image], overview, max_tiles=max_tiles, tiles=tiles)[0]

    def open_many(
        self,
        images: Sequence[Any],
        overview: str = OVERVIEW,
        *,
        max_tiles: int | None = None,
        tiles: str | None = None,
    ) -> list[ImageSession]:
        """Encode several pictures in one batch of tiles; as `open` otherwise."""
        pictures = [load_image(image) for image in images]
        if not pictures:
            return []
        given: dict[str, Any] = {"max_tiles": max_tiles, "tiles": tiles}
        budget = replace(self.budget, **{name: value for name, value in given.items() if value is not None})
        return [
            ImageSession(self, image, EncodedPicture(self.model, self.processor, opened, budget.near_regions), overview)
            for image, opened in zip(pictures, open_tiles(self.model, self.processor, pictures, budget), strict=True)
        ]

    def bytes_of(self, height: int, width: int) -> int:
        """What the session about a picture of this size holds once it has been asked, but for a few words.

        Args:
            height: In source pixels.
            width: In source pixels.
        """
        plan, config = self.processor.image_processor.tiling.plan(height, width), self.model.config
        decoder = config.text_config
        key_heads = getattr(decoder, "num_key_value_heads", None) or decoder.num_attention_heads
        head_width = getattr(decoder, "head_dim", None) or decoder.hidden_size // decoder.num_attention_heads
        states = len(config.feature_layers or ()) * plan.tiling.cells_per_tile * config.vision_config.hidden_size
        tokens = plan.tiling.tokens_per_tile * decoder.hidden_size
        keys_and_values = decoder.num_hidden_layers * 2 * key_heads * head_width
        numbers = plan.num_tiles * (states + tokens) + plan.num_visual_tokens * keys_and_values
        return numbers * self.model.dtype.itemsize

    def ask_many(
        self,
        questions: Sequence[RegionQuestion],
        *,
        batch_size: int = MOST_ROWS,
        max_new_tokens: int = DEFAULT_NEW_TOKENS,
        **generate_options: Any,
    ) -> list[str]:
        """Ask about regions of any number of pictures in one batch, which questions enter as answers leave it.

        Args:
            questions: In any order; those about one picture share what has been read of it.
            batch_size: Questions answered at a time.
            max_new_tokens: Limit of an answer.
            generate_options: As in `ImageSession.ask`.

        Returns:
            One answer a question, in order.

        Raises:
            ValueError: if placeholders and regions do not fit, or a region cannot be used.
        """
        conversations = [question.session.conversation(question.regions, question.text) for question in questions]
        pictures = [question.session.picture for question in questions]
        options = {"max_new_tokens": max_new_tokens} | generate_options
        return self.answers(pictures, conversations, options, batch_size)

    @torch.no_grad()
    def answers(
        self,
        pictures: Sequence[EncodedPicture],
        conversations: Sequence[Conversation],
        options: dict[str, Any],
        batch_size: int = MOST_ROWS,
    ) -> list[str]:
        """The answer to every conversation.

        Args:
            pictures: Of each conversation.
            conversations: The first message of each as `EncodedPicture.message` makes it; the last is the user's.
            options: As of `generate`, `max_new_tokens` among them; greedy unless they say otherwise.
            batch_size: Answered at a time.
        """
        prompts: list[Any] = [None] * len(conversations)
        for picture in dict.fromkeys(pictures):
            places = [place for place, shown in enumerate(pictures) if shown is picture]
            for place, prompt in zip(places, picture.prompts([conversations[place] for place in places]), strict=True):
                prompts[place] = prompt
        found = [""] * len(prompts)
        for part in _in_parts(prompts):
            answers = self._answered([prompts[place] for place in part], options, batch_size)
            for place, answer in zip(part, answers, strict=True):
                found[place] = answer
        return found

    def _answered(self, prompts: Sequence[PicturePrompt], options: dict[str, Any], batch_size: int) -> list[str]:
        together = self.shares_prefix and is_plainly_greedy(self.model, options)
        made: list[Any] = [None] * len(prompts)
        for picture in dict.fromkeys(prompt.picture for prompt in prompts):
            places = [place for place, prompt in enumerate(prompts) if prompt.picture is picture]
            own = [prompts[place] for place in places]
            of_picture: Sequence[Any] = (
                picture.continuations(own)
                if together
                else picture.generated(own, options, min(batch_size, MOST_COPIES))
            )
            for place, one in zip(places, of_picture, strict=True):
                made[place] = one
        if not together:
            return made
        ends = end_ids(self.model, self.processor)
        ids = continue_greedily(self.model, made, options["max_new_tokens"], ends, batch_size)
        return [self.processor.decode_answer(answer) for answer in ids]


def _in_parts(prompts: Sequence[PicturePrompt]) -> list[list[int]]:
    """Places of prompts in parts that need at most `MOST_PREFIXES` prefixes of a picture."""
    known: dict[EncodedPicture, dict[tuple[int, ...], int]] = {}
    parts: dict[int, list[int]] = {}
    for place, prompt in enumerate(prompts):
        of_picture = known.setdefault(prompt.picture, {})
        number = of_picture.setdefault(prompt.tiles, len(of_picture))
        parts.setdefault(number // MOST_PREFIXES, []).append(place)
    return [parts[number] for number in sorted(parts)]
