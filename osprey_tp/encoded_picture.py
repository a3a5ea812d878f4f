"""A picture that tower and language model have read, and prompts about it that go on from there.

A prompt is `[prefix: system text, <image> tokens][suffix: question with <mask>, opening of the answer]`. The prefix is
the same for every question about the picture, so it is read once. Greedy answers and scores are computed against the
one copy of it (`osprey_tp.shared_prefix`); what needs all of `generate`, such as beams, sampling and streaming, works
on copies of it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence

from osprey_tp.answer_tree import AnswerTree, can_pack, tree_log_likelihoods
from osprey_tp.encoded_tiles import EncodedTiles
from osprey_tp.modeling import OspreyTPFeatures, OspreyTPForConditionalGeneration
from osprey_tp.processing import IGNORED_LABEL, Conversation, OspreyTPProcessor
from osprey_tp.shared_prefix import Continuation, SharedPrefix
from osprey_tp.tiling import TilePlan

MOST_PREFIXES = 8
"""Of a picture whose prompts show different tiles, that are kept at a time."""

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


@dataclass(frozen=True)
class PicturePrompt:
    """A conversation about a picture, with what it is shown of it.

    Attributes:
        picture: That it is about.
        conversation: Its first message as `EncodedPicture.message` makes it; the last is the user's.
        tiles: Of the picture's grid that it shows, ascending.
        region_tokens: (r, D), of its regions; None for none.
    """

    picture: EncodedPicture
    conversation: Conversation
    tiles: tuple[int, ...]
    region_tokens: Tensor | None


class EncodedPicture:
    """One picture whose tiles the vision tower reads; the language model reads it when it is first asked about.

    With `near-regions`, a prompt shows the tiles that its regions touch and the thumbnail; nothing stands for the other
    tiles (`osprey_tp.tiling.visual_token_layout`). Prompts that show the same tiles share a prefix, and the prefixes
    used last are kept.

    Args:
        model: In evaluation mode.
        processor: Fits the model.
        tiles: Of the picture.
        near_regions: Show a prompt only tiles that its regions touch.
    """

    def __init__(
        self,
        model: OspreyTPForConditionalGeneration,
        processor: OspreyTPProcessor,
        tiles: EncodedTiles,
        near_regions: bool = False,
    ) -> None:
        self._model, self._processor = model, processor
        self._image_token = model.config.image_token_id
        self.plan = tiles.plan
        self._tiles = tiles
        self._near_regions = near_regions and self.plan.has_thumbnail
        self._grid = torch.tensor([[self.plan.rows, self.plan.cols]])
        self._prefixes: OrderedDict[tuple[int, ...], SharedPrefix] = OrderedDict()

    @property
    def _all_tiles(self) -> tuple[int, ...]:
        return tuple(range(self.plan.rows * self.plan.cols))

    def message(self, regions: Sequence[Any], text: str) -> dict[str, Any]:
        """A user's message that shows the picture and regions of it, and says `text`."""
        picture = {"type": "image", "image": self.plan, "regions": list(regions)}
        return {"role": "user", "content": [picture, {"type": "text", "text": text}]}

    @torch.no_grad()
    def prompts(self, conversations: Sequence[Conversation]) -> list[PicturePrompt]:
        """Conversations about the picture with what they show of it; the tower reads what it has not yet.

        Args:
            conversations: The first message of each as `message` makes it; the last is the user's.

        Raises:
            ValueError: naming the region, if one cannot be used.
        """
        regions = [_regions_of(conversation) for conversation in conversations]
        counts = [len(of_one) for of_one in regions]
        if not any(counts):
            return [PicturePrompt(self, one, self._shown(None), None) for one in conversations]
        flat = [region for of_one in regions for region in of_one]
        covered = self._processor.image_processor.cover_regions([flat], [self.plan])
        touched = (covered["region_coverage"].unflatten(1, (len(self._all_tiles), -1)) > 0).any(-1)  # (regions, tiles)
        tokens = self._region_tokens(covered, touched.any(0))
        of_each = zip(
            conversations,
            counts,
            touched.split(counts),
            tokens.split([self._per_region * n for n in counts]),
            strict=True,
        )
        return [
            PicturePrompt(self, conversation, self._shown(tiles), own if count else None)
            for conversation, count, tiles, own in of_each
        ]

    def continuations(self, prompts: Sequence[PicturePrompt]) -> list[Continuation]:
        """Prompts about the picture as what goes on from its prefixes."""
        suffixes = self._suffixes([prompt.conversation for prompt in prompts])
        return [
            Continuation(self._prefix(prompt.tiles), suffix, prompt.region_tokens)
            for prompt, suffix in zip(prompts, suffixes, strict=True)
        ]

    def features(self, conversations: Sequence[Conversation]) -> tuple[Tensor, Tensor | None]:
        """Visual tokens (v, D) of all tiles, and tokens (regions·r, D) of the regions of all conversations."""
        found = [prompt.region_tokens for prompt in self.prompts(conversations) if prompt.region_tokens is not None]
        return self.visual_tokens(self._all_tiles), torch.cat(found) if found else None

    def generation_inputs(self, prompts: Sequence[PicturePrompt], options: Mapping[str, Any]) -> dict[str, Any]:
        """Arguments of `generate` for prompts that show the same tiles, on copies of their prefix.

        Args:
            prompts: Of `prompts`.
            options: As of `generate`, `max_new_tokens` among them; greedy unless they say otherwise.

        Raises:
            ValueError: if a region is to get several answers.
        """
        if options.get("num_return_sequences", 1) != 1:
            raise ValueError("a region gets one answer: num_return_sequences must be 1; ask several times to sample")
        suffixes = self._suffixes([prompt.conversation for prompt in prompts])
        prefix = self._prefix(prompts[0].tiles)
        input_ids, attention_mask = self._behind(prefix, suffixes, padding_side="left")
        return {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "past_key_values": prefix.copies(len(prompts) * options.get("num_beams", 1)),
            "mm_encoder_outputs": {"image": _region_features(prompts)},
            "pad_token_id": self._processor.tokenizer.pad_token_id,
            "eos_token_id": end_ids(self._model, self._processor),
            "do_sample": False,
        } | dict(options)

    def generated(self, prompts: Sequence[PicturePrompt], options: Mapping[str, Any], at_a_time: int) -> list[str]:
        """Answers by `generate`, at most so many at a time; raises as `generation_inputs`."""
        answers = [""] * len(prompts)
        for places in _with_same_tiles(prompts):
            for first in range(0, len(places), at_a_time):
                chunk = places[first : first + at_a_time]
                inputs = self.generation_inputs([prompts[place] for place in chunk], options)
                ids: Any = self._model.generate(**inputs)  # type: ignore[misc]
                found = self._processor.decode_answers(ids, inputs["input_ids"].shape[1])
                for place, answer in zip(chunk, found, strict=True):
                    answers[place] = answer
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
        prompts = self.prompts(questions)
        scores = np.zeros((len(questions), len(texts)))
        for places in _with_same_tiles(prompts):
            alike = [prompts[place] for place in places]
            prefix = self._prefix(alike[0].tiles)
            if can_pack(self._model):
                tokens = _region_features(alike).region_tokens
                assert tokens is not None
                scores[places] = tree_log_likelihoods(self._model, prefix, tree, tokens)
            else:
                scores[places] = self._pairwise_log_likelihoods(prefix, alike, texts, batch_size)
        return scores

    def _pairwise_log_likelihoods(
        self, prefix: SharedPrefix, prompts: Sequence[PicturePrompt], texts: Sequence[str], batch_size: int
    ) -> np.ndarray:
        pairs = [
            replace(prompt, conversation=[*prompt.conversation, {"role": "assistant", "content": text}])
            for prompt in prompts
            for text in texts
        ]
        order = sorted(range(len(pairs)), key=lambda pair: len(texts[pair % len(texts)]))
        scores = np.zeros(len(pairs))
        for first in range(0, len(order), batch_size):
            batch = order[first : first + batch_size]
            scores[batch] = self._paired_log_likelihoods(prefix, [pairs[pair] for pair in batch])
        return scores.reshape(len(prompts), len(texts))

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors that are kept of the picture: its tiles as read, and the prefixes once they are read."""
        return self._tiles.nbytes + sum(prefix.nbytes for prefix in self._prefixes.values())

    def _shown(self, touched: Tensor | None) -> tuple[int, ...]:
        """Tiles of the grid that a prompt shows whose regions touch `touched` (regions, tiles); None for no regions."""
        if not self._near_regions:
            return self._all_tiles
        return () if touched is None else tuple(touched.any(0).nonzero()[:, 0].tolist())

    @torch.no_grad()
    def _prefix(self, tiles: tuple[int, ...]) -> SharedPrefix:
        """The prompt up to the last visual token, for prompts that show these tiles."""
        if tiles not in self._prefixes:
            visual_tokens = self.visual_tokens(tiles)
            placeholders = torch.full((len(visual_tokens),), self._image_token)
            self._prefixes[tiles] = SharedPrefix(
                self._model, torch.cat([self._before_picture, placeholders]), [visual_tokens]
            )
        self._prefixes.move_to_end(tiles)
        if len(self._prefixes) > MOST_PREFIXES:
            self._prefixes.popitem(last=False)
        return self._prefixes[tiles]

    def visual_tokens(self, tiles: tuple[int, ...]) -> Tensor:
        """(v, D), what a prompt shows that shows these tiles, with separators and thumbnail."""
        thumbnail = [self.plan.num_tiles - 1] if self.plan.has_thumbnail else []
        tokens = self._tiles.tokens([*tiles, *thumbnail])
        return self._model.model.lay_out(tokens, self._grid, [tiles])[0]

    @cached_property
    def _before_picture(self) -> Tensor:
        """Token ids of a prompt before its first visual token."""
        message = self._with_stand_ins([self.message((), "")])
        ids = self._processor.prepare([message], add_generation_prompt=True)["input_ids"][0]
        return ids[: int(torch.eq(ids, self._image_token).nonzero()[0])]

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

    @property
    def _per_region(self) -> int:
        return self._processor.tokens_per_region

    def _region_tokens(self, covered: Mapping[str, Tensor], touched: Tensor) -> Tensor:
        """(regions·r, D), pooled from the tiles (tiles of the grid,) that the regions touch."""
        coverage = covered["region_coverage"].unflatten(1, (len(touched), -1))[:, touched].flatten(1)
        tiles = touched.nonzero()[:, 0].tolist()
        if not tiles:  # regions that cover nothing pool to zero, whatever they are pooled from
            tiles = self._tiles.read[:1]
            coverage = torch.zeros(len(coverage), self.plan.tiling.cells_per_tile)
        cells = self._tiles.cells(tiles)
        device = cells.device
        shapes = covered.get("region_shapes")
        first_cells = torch.zeros(len(coverage), dtype=torch.long, device=device)
        return self._model.model.require_region_encoder()(
            cells, coverage.to(device), first_cells, None if shapes is None else shapes.to(device)
        )

    def _behind(self, prefix: SharedPrefix, suffixes: Sequence[Tensor], padding_side: str) -> tuple[Tensor, Tensor]:
        """input_ids and attention_mask (B, prefix + suffix), padded between the two or at the end."""
        padding = self._processor.tokenizer.pad_token_id
        padded = pad_sequence(list(suffixes), batch_first=True, padding_value=padding, padding_side=padding_side)
        seen = [torch.ones_like(suffix) for suffix in suffixes]
        kept = pad_sequence(seen, batch_first=True, padding_side=padding_side)
        read = prefix.ids.expand(len(suffixes), -1)
        input_ids = torch.cat([read, padded], dim=1)
        attention_mask = torch.cat([torch.ones_like(read), kept], dim=1)
        return input_ids.to(self._model.device), attention_mask.to(self._model.device)

    def _paired_log_likelihoods(self, prefix: SharedPrefix, prompts: Sequence[PicturePrompt]) -> list[float]:
        """Log-likelihood of the last answer of each conversation, every one a row over a copy of the prefix."""
        conversations = [self._with_stand_ins(prompt.conversation) for prompt in prompts]
        batch = self._processor.prepare(conversations, return_labels=True)
        rows, answers = [], []
        for ids, seen, labels in zip(batch["input_ids"], batch["attention_mask"].bool(), batch["labels"], strict=True):
            end = self._end_of_picture(ids)
            rows.append(ids[seen][end:])
            answers.append(labels[seen][end:])
        input_ids, attention_mask = self._behind(prefix, rows, padding_side="right")
        logits = self._model(
            input_ids=input_ids[:, prefix.length :],
            attention_mask=attention_mask,
            past_key_values=prefix.copies(len(rows)),
            mm_encoder_outputs={"image": _region_features(prompts)},
            use_cache=True,
        ).logits
        labels = pad_sequence(answers, batch_first=True, padding_value=IGNORED_LABEL).to(logits.device)[:, 1:]
        losses = cross_entropy(logits[:, :-1].double().transpose(1, 2), labels, reduction="none")
        return (-losses.sum(-1)).tolist()


def _regions_of(conversation: Conversation) -> list[Any]:
    """Regions of the picture that its first message shows."""
    shown = [item for item in conversation[0]["content"] if item["type"] == "image"]
    return [region for item in shown for region in item["regions"]]


def _region_features(prompts: Sequence[PicturePrompt]) -> OspreyTPFeatures:
    """Tokens of the regions of all prompts, in order; the picture itself is in the prefix."""
    tokens = [prompt.region_tokens for prompt in prompts if prompt.region_tokens is not None]
    return OspreyTPFeatures(pooler_output=[], region_tokens=torch.cat(tokens) if tokens else None)


def _with_same_tiles(prompts: Sequence[PicturePrompt]) -> list[list[int]]:
    """Places of prompts, those together that show the same tiles."""
    places: dict[tuple[int, ...], list[int]] = {}
    for place, prompt in enumerate(prompts):
        places.setdefault(prompt.tiles, []).append(place)
    return list(places.values())
