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
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from transformers import AutoProcessor

from osprey_tp.answer_tree import answer_tree
from osprey_tp.encoded_picture import EncodedPicture, encode_pictures, end_ids, is_plainly_greedy
from osprey_tp.images import load_image
from osprey_tp.model_folder import require_merged
from osprey_tp.modeling import OspreyTPForConditionalGeneration
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

    Raises:
        ValueError: if model and processor disagree.
    """

    def __init__(self, model: OspreyTPForConditionalGeneration, processor: OspreyTPProcessor) -> None:
        processor.check_fits(model.config)
        self.model = model.eval()
        self.processor = processor
        self.answer_tree = lru_cache(maxsize=32)(partial(answer_tree, processor))
        self.shares_prefix = use_shared_attention(model)

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, device: str | torch.device | None = None, dtype: str | torch.dtype | None = None
    ) -> RegionDescriber:
        """Load the model folder that training or conversion wrote.

        Args:
            folder: Holds config.json, safetensors weights and the processor.
            device: By default a GPU if there is one.
            dtype: By default the dtype of the weights.

        Raises:
            FileNotFoundError: if the folder or a part of it is missing.
            ValueError: if it holds adapters that have not been merged.
        """
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
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        model = OspreyTPForConditionalGeneration.from_pretrained(folder, dtype=dtype or "auto")
        model.to(device=device)  # type: ignore[call-arg]
        return cls(model, AutoProcessor.from_pretrained(folder))

    def open(self, image: Any, overview: str = OVERVIEW) -> ImageSession:
        """Encode a picture (PIL, array, tensor, path) and return the session about it.

        Args:
            image: The picture.
            overview: The sentence between the picture and every question; the default is what region models learn.
        """
        return self.open_many([image], overview)[0]

    def open_many(self, images: Sequence[Any], overview: str = OVERVIEW) -> list[ImageSession]:
        """Encode several pictures in one batch of tiles; as `open` otherwise."""
        pictures = [load_image(image) for image in images]
        if not pictures:
            return []
        encoded = encode_pictures(self.model, self.processor, pictures)
        return [ImageSession(self, image, own, overview) for image, own in zip(pictures, encoded, strict=True)]

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
        cells = plan.num_tiles * plan.tiling.cells_per_tile
        states = len(config.feature_layers or ()) * cells * config.vision_config.hidden_size
        of_token = decoder.hidden_size + decoder.num_hidden_layers * 2 * key_heads * head_width
        return (states + plan.num_visual_tokens * of_token) * self.model.dtype.itemsize

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
        together = self.shares_prefix and is_plainly_greedy(self.model, options)
        found: list[Any] = [None] * len(conversations)
        for picture in dict.fromkeys(pictures):
            places = [place for place, shown in enumerate(pictures) if shown is picture]
            own = [conversations[place] for place in places]
            made: Sequence[Any] = (
                picture.continuations(own)
                if together
                else picture.generated(own, options, min(batch_size, MOST_COPIES))
            )
            for place, one in zip(places, made, strict=True):
                found[place] = one
        if not together:
            return found
        ends = end_ids(self.model, self.processor)
        ids = continue_greedily(self.model, found, options["max_new_tokens"], ends, batch_size)
        return [self.processor.decode_answer(answer) for answer in ids]
