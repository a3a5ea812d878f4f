"""One encoded picture, asked about any number of its regions.

```
ImageSession: cells of every tile, visual tokens, cache of the prompt up to the last visual token
  ├─ ask(regions, question)     one answer a region, all against one copy of that cache
  ├─ stream(regions, question)  one answer, piece by piece
  ├─ chat(message, regions)     turns and region names are kept
  ├─ converse(turns, regions)   the next turn of a conversation that the caller keeps, piece by piece
  └─ score(texts, regions)      log-likelihood of every text as the answer about every region
```

`osprey_tp.encoded_picture` holds what has been read of the picture.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from osprey_tp.answer_tree import AnswerTree
from osprey_tp.encoded_picture import EncodedPicture
from osprey_tp.processing import Conversation
from osprey_tp.prompts import (
    CATEGORY_QUESTION,
    OVERVIEW,
    REGION_TOKEN,
    region_introduction,
    region_name,
    require_one_region,
)
from osprey_tp.shared_prefix import MOST_ROWS
from osprey_tp.streaming import stream_answer

if TYPE_CHECKING:
    from osprey_tp.describer import RegionDescriber

DEFAULT_NEW_TOKENS = 64
_REGION_NAME = re.compile(r"\b(region(\d+))\b")


@dataclass(frozen=True)
class RegionQuestion:
    """A question about one picture.

    Attributes:
        session: About the picture.
        regions: Of the picture; none asks about all of it.
        text: Holds a `<mask>` for every region.
    """

    session: ImageSession
    regions: Sequence[Any]
    text: str


class ImageSession:
    """One encoded picture that can be asked about its regions; made by `RegionDescriber.open`.

    Attributes:
        image: The picture, PIL RGB.
        picture: What has been read of it.
        height, width: Its size in source pixels.
        turns: The chat so far, (role, text) pairs.
        region_names: Names of the regions that the chat knows, in order.
    """

    def __init__(
        self, describer: RegionDescriber, image: Image.Image, picture: EncodedPicture, overview: str = OVERVIEW
    ) -> None:
        self._describer, self._model, self._processor = describer, describer.model, describer.processor
        self._overview = overview
        self.image, self.picture = image, picture
        self.width, self.height = image.size
        self._chat_regions: list[Any] = []
        self.turns: list[tuple[str, str]] = []

    @property
    def nbytes(self) -> int:
        """Bytes that the encoded picture holds, the pixels of `image` not counted."""
        return self.picture.nbytes

    @property
    def region_names(self) -> list[str]:
        """Names of the regions that the chat knows: region1, region2, ..."""
        return [region_name(index) for index in range(len(self._chat_regions))]

    def ask(
        self,
        regions: Sequence[Any],
        question: str | Sequence[str] = CATEGORY_QUESTION,
        *,
        together: bool = False,
        batch_size: int = MOST_ROWS,
        max_new_tokens: int = DEFAULT_NEW_TOKENS,
        **generate_options: Any,
    ) -> list[str]:
        """Ask about regions; greedy unless `generate_options` say otherwise.

        Args:
            regions: Regions in any form of `osprey_tp.masks`.
            question: Holds one `<mask>`; or one question a region.
            together: Ask one question about all regions at once; it holds a `<mask>` for each.
            batch_size: Regions answered at a time.
            max_new_tokens: Limit of an answer.
            generate_options: Passed to `generate` (`do_sample`, `temperature`, `num_beams`, ...).

        Returns:
            One answer a region, in order (one in all if `together`).

        Raises:
            ValueError: if questions, placeholders and regions do not fit, or a region cannot be used.
        """
        groups, questions = self._pair(regions, question, together)
        return self.ask_groups(
            groups, questions, batch_size=batch_size, max_new_tokens=max_new_tokens, **generate_options
        )

    def ask_groups(
        self,
        groups: Sequence[Sequence[Any]],
        questions: Sequence[str],
        *,
        batch_size: int = MOST_ROWS,
        max_new_tokens: int = DEFAULT_NEW_TOKENS,
        **generate_options: Any,
    ) -> list[str]:
        """Ask several questions, each about its own group of regions; an empty group asks about the whole picture.

        Args:
            groups: Regions of each question.
            questions: One a group; each holds a `<mask>` for every region of its group.
            batch_size: Questions answered at a time.
            max_new_tokens: Limit of an answer.
            generate_options: As in `ask`.

        Returns:
            One answer a question, in order.

        Raises:
            ValueError: as `ask`.
        """
        if len(groups) != len(questions):
            raise ValueError(f"{len(questions)} questions, {len(groups)} groups of regions; pass one group a question")
        asked = [RegionQuestion(self, regions, text) for regions, text in zip(groups, questions, strict=True)]
        return self._describer.ask_many(asked, batch_size=batch_size, max_new_tokens=max_new_tokens, **generate_options)

    def stream(
        self,
        regions: Sequence[Any],
        question: str,
        *,
        max_new_tokens: int = DEFAULT_NEW_TOKENS,
        **generate_options: Any,
    ) -> Iterator[str]:
        """Ask one question about `regions` (a `<mask>` for each) and yield the answer piece by piece.

        Closing the iterator ends the generation. Raises as `ask`, before the first piece.
        """
        prompts = self.picture.prompts([self.conversation(regions, question)])
        inputs = self.picture.generation_inputs(prompts, {"max_new_tokens": max_new_tokens} | generate_options)
        return stream_answer(self._model, self._processor.tokenizer, inputs)

    def chat(
        self,
        message: str,
        regions: Sequence[Any] = (),
        *,
        max_new_tokens: int = DEFAULT_NEW_TOKENS,
        **generate_options: Any,
    ) -> str:
        """Take one turn of a conversation about the picture.

        Args:
            message: May name regions of earlier turns (`region1`). With new `regions` it either holds a `<mask>` for
                each, or none, and then they are introduced by name.
            regions: Regions that this turn adds.
            max_new_tokens: Limit of the answer.
            generate_options: Passed to `generate`.

        Returns:
            The answer; it and the message are appended to `turns`.
        """
        regions = list(regions)
        self._check_names(message, len(self._chat_regions) + len(regions))
        if regions and REGION_TOKEN not in message:
            message = region_introduction(len(regions), first=len(self._chat_regions)) + message
        self._check_together(regions, message)
        turns = [*self.turns, ("user", message)]
        known = [*self._chat_regions, *regions]
        messages = self._messages(turns, known)
        answer = self._describer.answers(
            [self.picture], [messages], {"max_new_tokens": max_new_tokens} | generate_options
        )[0]
        self.turns, self._chat_regions = [*turns, ("assistant", answer)], known
        return answer

    def converse(
        self,
        turns: Sequence[tuple[str, str]],
        regions: Sequence[Any] = (),
        *,
        max_new_tokens: int = DEFAULT_NEW_TOKENS,
        **generate_options: Any,
    ) -> Iterator[str]:
        """Answer the last turn of a conversation and yield the answer piece by piece; nothing of it is kept.

        Args:
            turns: (role, text) pairs, "user" and "assistant" by turns; the first and the last are the user's.
            regions: Of the whole conversation, in the order of their `<mask>`, whichever turns hold those.
            max_new_tokens: Limit of the answer.
            generate_options: Passed to `generate`.

        Closing the iterator ends the generation.

        Raises:
            ValueError: before the first piece, if turns, placeholders and regions do not fit.
        """
        messages = self._messages(self._check_turns(turns, regions), list(regions))
        prompts = self.picture.prompts([messages])
        inputs = self.picture.generation_inputs(prompts, {"max_new_tokens": max_new_tokens} | generate_options)
        return stream_answer(self._model, self._processor.tokenizer, inputs)

    def reset_chat(self) -> None:
        """Forget turns and regions of the chat; the encoded picture stays."""
        self.turns, self._chat_regions = [], []

    def score(
        self,
        texts: Sequence[str],
        regions: Sequence[Any],
        question: str = CATEGORY_QUESTION,
        *,
        batch_size: int = 16,
        per_token: bool = False,
    ) -> np.ndarray:
        """Log-likelihood of every text as the answer about every region.

        The texts are one tree (`osprey_tp.answer_tree`): what they share is read once. Language models that take no
        mask for every token (flash attention, sliding windows) read pair by pair instead, with the same result.

        Args:
            texts: Candidate answers.
            regions: Regions in any form of `osprey_tp.masks`.
            question: Holds one `<mask>`.
            batch_size: Pairs scored at a time, where they are read one by one.
            per_token: Divide by the number of tokens of the text and its end token.

        Returns:
            (regions, texts) float64, the sum over the tokens of the text and its end token, natural logarithm.
        """
        require_one_region(question)
        if not regions or not texts:
            return np.zeros((len(regions), len(texts)))
        tree: AnswerTree = self._describer.answer_tree(self._overview, question, tuple(texts))
        questions = [self.conversation([region], question) for region in regions]
        scores = self.picture.log_likelihoods(tree, questions, texts, batch_size)
        return scores / tree.lengths if per_token else scores

    def conversation(self, regions: Sequence[Any], question: str) -> Conversation:
        """One question about regions of the picture, a `<mask>` for each.

        Raises:
            ValueError: if placeholders and regions differ in number.
        """
        return self._opening(list(regions), self._check_together(regions, question))

    def _opening(self, regions: list[Any], question: str) -> list[dict[str, Any]]:
        """The first user message: the picture with the regions of the whole conversation, and the question."""
        return [self.picture.message(regions, self._overview + question)]

    def _pair(
        self, regions: Sequence[Any], question: str | Sequence[str], together: bool
    ) -> tuple[list[list[Any]], list[str]]:
        """One group of regions and one question for every answer."""
        regions = list(regions)
        if together:
            if not isinstance(question, str):
                raise ValueError(f"together=True takes one question about all regions, got {len(question)}")
            return [regions], [self._check_together(regions, question)]
        questions = [question] * len(regions) if isinstance(question, str) else list(question)
        if len(questions) != len(regions):
            raise ValueError(f"{len(questions)} questions, {len(regions)} regions; pass one question for each region")
        return [[region] for region in regions], [require_one_region(text) for text in questions]

    @staticmethod
    def _check_together(regions: Sequence[Any], question: str) -> str:
        placeholders = question.count(REGION_TOKEN)
        if placeholders != len(regions):
            raise ValueError(
                f"{placeholders} {REGION_TOKEN} placeholders, {len(regions)} regions; write {REGION_TOKEN} once for "
                f"every region: {question!r}"
            )
        return question

    def _check_turns(self, turns: Sequence[tuple[str, str]], regions: Sequence[Any]) -> Sequence[tuple[str, str]]:
        roles = [role for role, _ in turns]
        expected = ["assistant" if index % 2 else "user" for index in range(len(roles))]
        if len(roles) % 2 == 0 or roles != expected:
            raise ValueError(
                f"turns alternate and both begin and end with the user's, got {', '.join(roles) or 'none'}"
            )
        self._check_together(regions, "\n".join(text for _, text in turns))
        return turns

    @staticmethod
    def _check_names(message: str, known: int) -> None:
        unknown = [name for name, number in _REGION_NAME.findall(message) if not 1 <= int(number) <= known]
        if unknown:
            names = ", ".join(region_name(index) for index in range(known)) or "none"
            raise ValueError(f"the message names {unknown[0]}, but the regions of this chat are: {names}")

    def _messages(self, turns: Sequence[tuple[str, str]], regions: list[Any]) -> list[dict[str, Any]]:
        """The conversation as messages, the picture with all its regions in the first of them."""
        later: list[dict[str, Any]] = [{"role": role, "content": text} for role, text in turns[1:]]
        return [*self._opening(regions, turns[0][1]), *later]
