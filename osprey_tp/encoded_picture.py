"""A picture that tower and language model have read, and prompts about it that go on from there.

A prompt is `[prefix: system text, <image> tokens][suffix: question with <mask>, opening of the answer]`. The prefix is
the same for every question about the picture, so it is read once. Greedy answers and scores are computed against the
one copy of it (`osprey_tp.shared_prefix`); what needs all of `generate`, such as beams, sampling and streaming, works
on copies of it.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence
from transformers.utils.output_capturing import maybe_install_capturing_hooks

from osprey_tp.answer_tree import AnswerTree, can_pack, tree_log_likelihoods
from osprey_tp.modeling import OspreyTPFeatures, OspreyTPForConditionalGeneration, OspreyTPModel
from osprey_tp.processing import IGNORED_LABEL, Conversation, OspreyTPProcessor
from osprey_tp.shared_prefix import Continuation, SharedPrefix
from osprey_tp.tiling import TilePlan

_GREEDY: Mapping[str, Any] = {"do_sample": False, "num_beams": 1, "max_new_tokens": None}
_OF_NO_MATTER_WHEN_GREEDY = {
    *("bos_token_id", "eos_token_id", "pad_token_id", "max_length", "max_new_tokens", "do_sample", "num_beams"),
    *("temperature", "top_p", "top_k", "min_p", "typical_p", "use_cache", "output_attentions", "output_hidden_states"),
    *("output_scores", "output_logits", "transformers_version", "_from_model_config"),
}


def is_plainly_greedy(model: OspreyTPForConditionalGeneration, options: Mapping[str, Any]) -> bool:
    """Whether the most likely token is all that counts: no beams, sampling, penalties or other criteria."""
    asked = {name for name, value in options.items() if name not in _GREEDY or _GREEDY[name] not in (None, value)}
    settings = model.generation_config.to_diff_dict()
    return not asked and not settings.keys() - _OF_NO_MATTER_WHEN_GREEDY


def end_ids(model: OspreyTPForConditionalGeneration, processor: OspreyTPProcessor) -> list[int]:
    """What ends an answer."""
    ids = model.generation_config.eos_token_id
    ids = processor.tokenizer.eos_token_id if ids is None else ids
    return list(ids) if isinstance(ids, list | tuple) else [ids]


def without_unread_layers(model: OspreyTPModel) -> OspreyTPModel:
    """The model, sharing all its weights, with a tower that ends at the last layer whose states are read.

    A tower whose layers are not in `encoder.layers` stays as it is.
    """
    tower, read = model.vision_tower, max(model.config.feature_layers or ())
    layers = getattr(getattr(tower, "encoder", None), "layers", None)
    if not isinstance(layers, nn.ModuleList) or read >= len(layers):
        return model
    maybe_install_capturing_hooks(tower)  # the layers are shared, and a copy must know that they have hooks
    encoder = _with_part(tower.encoder, "layers", layers[:read])
    return _with_part(model, "vision_tower", _with_part(tower, "encoder", encoder))


def _with_part(module: Any, name: str, part: nn.Module) -> Any:
    """The same module, but for one part."""
    other = copy.copy(module)
    other._modules = {**module._modules, name: part}
    return other


@torch.no_grad()
def encode_pictures(
    model: OspreyTPForConditionalGeneration, processor: OspreyTPProcessor, images: Sequence[Image.Image]
) -> list[EncodedPicture]:
    """Run the vision tower at once on all tiles of all pictures.

    Args:
        model: In evaluation mode.
        processor: Fits the model.
        images: PIL RGB.
    """
    pictures = processor.image_processor.preprocess(list(images), return_tensors="pt")
    grids = pictures["tile_grids"]
    cells = without_unread_layers(model.model).encode_tiles(pictures["pixel_values"].to(model.device))
    tokens = model.model.visual_tokens(cells, grids)
    tiling, encoded, first = processor.image_processor.tiling, [], 0
    for image, grid, of_picture in zip(images, grids.split(1), tokens, strict=True):
        plan = tiling.plan(image.height, image.width)
        own = cells if len(images) == 1 else cells[:, first : first + plan.num_tiles].clone()
        encoded.append(EncodedPicture(model, processor, plan, grid, own, of_picture))
        first += plan.num_tiles
    return encoded


class EncodedPicture:
    """One picture that the vision tower has read; the language model reads it when it is first asked about.

    Args:
        model: In evaluation mode.
        processor: Fits the model.
        plan: Geometry of the picture.
        tile_grid: (1, 2), rows and columns of its tiles.
        cells: (levels, tiles, n·n, C), hidden states of the tower.
        visual_tokens: (v, D), the picture in the prompt.
    """

    def __init__(
        self,
        model: OspreyTPForConditionalGeneration,
        processor: OspreyTPProcessor,
        plan: TilePlan,
        tile_grid: Tensor,
        cells: Tensor,
        visual_tokens: Tensor,
    ) -> None:
        self._model, self._processor = model, processor
        self._image_token = model.config.image_token_id
        self.plan = plan
        self._tile_grid, self._cells, self._visual_tokens = tile_grid, cells, visual_tokens

    def message(self, regions: Sequence[Any], text: str) -> dict[str, Any]:
        """A user's message that shows the picture and regions of it, and says `text`."""
        picture = {"type": "image", "image": self.plan, "regions": list(regions)}
        return {"role": "user", "content": [picture, {"type": "text", "text": text}]}

    @torch.no_grad()
    def continuations(self, conversations: Sequence[Conversation]) -> list[Continuation]:
        """Conversations about the picture as prompts that go on from its prefix.

        Args:
            conversations: The first message of each as `message` makes it; the last is the user's.

        Raises:
            ValueError: naming the region, if one cannot be used.
        """
        suffixes = self._suffixes(conversations)
        tokens = self._region_features(conversations).region_tokens
        if tokens is None:
            return [Continuation(self._prefix, suffix) for suffix in suffixes]
        counts = [int((suffix == self._model.config.region_token_id).sum()) for suffix in suffixes]
        of_each = zip(suffixes, tokens.split(counts), strict=True)
        return [Continuation(self._prefix, suffix, regions) for suffix, regions in of_each]

    def features(self, conversations: Sequence[Conversation]) -> tuple[Tensor, Tensor | None]:
        """Visual tokens (v, D) of the picture, and tokens (regions·r, D) of the regions of all conversations."""
        return self._visual_tokens, self._region_features(conversations).region_tokens

    @torch.no_grad()
    def generation_inputs(self, conversations: Sequence[Conversation], options: Mapping[str, Any]) -> dict[str, Any]:
        """Arguments of `generate` for `conversations`, on copies of the prefix.

        Args:
            conversations: As of `continuations`.
            options: As of `generate`, `max_new_tokens` among them; greedy unless they say otherwise.

        Raises:
            ValueError: naming the region, if one cannot be used; if a region is to get several answers.
        """
        if options.get("num_return_sequences", 1) != 1:
            raise ValueError("a region gets one answer: num_return_sequences must be 1; ask several times to sample")
        input_ids, attention_mask = self._behind_prefix(self._suffixes(conversations), padding_side="left")
        return {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "past_key_values": self._prefix.copies(len(conversations) * options.get("num_beams", 1)),
            "mm_encoder_outputs": {"image": self._region_features(conversations)},
            "pad_token_id": self._processor.tokenizer.pad_token_id,
            "eos_token_id": end_ids(self._model, self._processor),
            "do_sample": False,
        } | dict(options)

    def generated(self, conversations: Sequence[Conversation], options: Mapping[str, Any], at_a_time: int) -> list[str]:
        """Answers by `generate`, so many at a time; raises as `generation_inputs`."""
        answers: list[str] = []
        for first in range(0, len(conversations), at_a_time):
            inputs = self.generation_inputs(conversations[first : first + at_a_time], options)
            ids: Any = self._model.generate(**inputs)  # type: ignore[misc]
            answers += self._processor.decode_answers(ids, inputs["input_ids"].shape[1])
        return answers

    @torch.no_grad()
    def log_likelihoods(
        self, tree: AnswerTree, questions: Sequence[Conversation], texts: Sequence[str], batch_size: int
    ) -> np.ndarray:
        """Log-likelihood of every text as the answer to every question.

        Args:
            tree: Of the texts.
            questions: One a region, about it alone.
            texts: Answers; language models that cannot read the tree read them pair by pair.
            batch_size: Pairs read at a time.

        Returns:
            (questions, texts) float64, natural logarithm, summed over the tokens of the answer.
        """
        if can_pack(self._model):
            tokens = self._region_features(questions).region_tokens
            assert tokens is not None
            return tree_log_likelihoods(self._model, self._prefix, tree, tokens)
        pairs = [[*asked, {"role": "assistant", "content": text}] for asked in questions for text in texts]
        order = sorted(range(len(pairs)), key=lambda pair: len(texts[pair % len(texts)]))
        scores = np.zeros(len(pairs))
        for first in range(0, len(order), batch_size):
            batch = order[first : first + batch_size]
            scores[batch] = self._paired_log_likelihoods([pairs[pair] for pair in batch])
        return scores.reshape(len(questions), len(texts))

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors that are kept of the picture: cells, visual tokens, and the prefix once it is read."""
        prefix = vars(self).get("_prefix")
        return sum(tensor.nbytes for tensor in (self._cells, *self._visual_tokens)) + (prefix.nbytes if prefix else 0)

    @cached_property
    def _prefix(self) -> SharedPrefix:
        """The prompt up to the last visual token."""
        ids = self._processor.prepare([[self.message((), "")]], add_generation_prompt=True)["input_ids"][0]
        return SharedPrefix(self._model, ids[: self._end_of_picture(ids)], [self._visual_tokens])

    def _end_of_picture(self, ids: Tensor) -> int:
        places = torch.eq(ids, self._image_token).nonzero()
        return int(places[-1]) + 1

    def _suffixes(self, conversations: Sequence[Conversation]) -> list[Tensor]:
        """Token ids of every prompt behind its last visual token."""
        stood_in = [self._with_stand_ins(conversation) for conversation in conversations]
        batch = self._processor.prepare(stood_in, add_generation_prompt=True)
        rows = [ids[seen] for ids, seen in zip(batch["input_ids"], batch["attention_mask"].bool(), strict=True)]
        return [ids[self._end_of_picture(ids) :] for ids in rows]

    def _with_stand_ins(self, conversation: Conversation) -> list[dict[str, Any]]:
        """The conversation about a picture of one pixel: its text behind the picture is the same."""
        pixel = TilePlan(self.plan.tiling, 1, 1, 1, 1)
        region = np.ones((1, 1), dtype=bool)

        def stand_in(item: dict[str, Any]) -> dict[str, Any]:
            if item["type"] != "image":
                return item
            return {"type": "image", "image": pixel, "regions": [region] * len(item["regions"])}

        opening = conversation[0]
        return [{**opening, "content": [stand_in(item) for item in opening["content"]]}, *conversation[1:]]

    def _region_features(self, conversations: Sequence[Conversation]) -> OspreyTPFeatures:
        """Tokens of the regions of all conversations, in order; the picture itself is in the prefix."""
        shown = [item for conversation in conversations for item in conversation[0]["content"]]
        regions = [region for item in shown if item["type"] == "image" for region in item["regions"]]
        if not regions:
            return OspreyTPFeatures(pooler_output=[])
        covered = self._processor.image_processor.cover_regions([regions], [self.plan])
        inputs = {name: value.to(self._model.device) for name, value in covered.items()}
        tokens = self._model.model.region_tokens(self._cells, self._tile_grid, **inputs)
        return OspreyTPFeatures(pooler_output=[], region_tokens=tokens)

    def _behind_prefix(self, suffixes: Sequence[Tensor], padding_side: str) -> tuple[Tensor, Tensor]:
        """input_ids and attention_mask (B, prefix + suffix), padded between the two or at the end."""
        padding = self._processor.tokenizer.pad_token_id
        padded = pad_sequence(list(suffixes), batch_first=True, padding_value=padding, padding_side=padding_side)
        seen = [torch.ones_like(suffix) for suffix in suffixes]
        kept = pad_sequence(seen, batch_first=True, padding_side=padding_side)
        prefix = self._prefix.ids.expand(len(suffixes), -1)
        input_ids = torch.cat([prefix, padded], dim=1)
        attention_mask = torch.cat([torch.ones_like(prefix), kept], dim=1)
        return input_ids.to(self._model.device), attention_mask.to(self._model.device)

    def _paired_log_likelihoods(self, conversations: Sequence[Conversation]) -> list[float]:
        """Log-likelihood of the last answer of each conversation, every one a row over a copy of the prefix."""
        batch = self._processor.prepare([self._with_stand_ins(one) for one in conversations], return_labels=True)
        rows, answers = [], []
        for ids, seen, labels in zip(batch["input_ids"], batch["attention_mask"].bool(), batch["labels"], strict=True):
            end = self._end_of_picture(ids)
            rows.append(ids[seen][end:])
            answers.append(labels[seen][end:])
        input_ids, attention_mask = self._behind_prefix(rows, padding_side="right")
        logits = self._model(
            input_ids=input_ids[:, self._prefix.length :],
            attention_mask=attention_mask,
            past_key_values=self._prefix.copies(len(rows)),
            mm_encoder_outputs={"image": self._region_features(conversations)},
            use_cache=True,
        ).logits
        labels = pad_sequence(answers, batch_first=True, padding_value=IGNORED_LABEL).to(logits.device)[:, 1:]
        losses = cross_entropy(logits[:, :-1].double().transpose(1, 2), labels, reduction="none")
        return (-losses.sum(-1)).tolist()
