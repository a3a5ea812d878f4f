"""Sampled answers that depend on the seed and the question alone, not on batches, processes or other questions.

`generate` draws from one generator for the whole batch. Here each question has its own, seeded with the hash of seed
and question: one number a token is put through the inverse of the distribution function, so that sampled questions are
asked in batches like greedy ones. A batch of another size moves the model's numbers by rounding errors and, very
rarely, a draw across the border between two words.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Generator, Tensor


@dataclass(frozen=True)
class Sampling:
    """How answers are drawn; by default as published scripts do.

    Attributes:
        temperature: Osprey's evaluation scripts set 0.2.
        seed: with the question's key, what an answer depends on.
        top_k: words to draw from; 50 is what transformers adds where a script says nothing.
    """

    temperature: float = 0.2
    seed: int = 0
    top_k: int = 50

    def described(self) -> dict[str, Any]:
        """As in `metrics.json` and `run.json`."""
        return {
            "do_sample": True,
            "temperature": self.temperature,
            "top_k": self.top_k,
            "seed": self.seed,
            "num_beams": 1,
        }

    def options(self, keys: Sequence[str]) -> dict[str, Any]:
        """Options of `generate` for one batch.

        Args:
            keys: what names each question of the batch, in order.
        """
        from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper

        processors = [TemperatureLogitsWarper(self.temperature), TopKLogitsWarper(self.top_k), OwnDraw(self, keys)]
        return {"do_sample": False, "num_beams": 1, "logits_processor": LogitsProcessorList(processors)}


class OwnDraw:
    """Leaves one word in each row, drawn from the row's softmax by a generator of the row's own."""

    def __init__(self, sampling: Sampling, keys: Sequence[str]) -> None:
        self._generators = [_generator(sampling.seed, key) for key in keys]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores (B, vocabulary) that are 0 for the drawn word and -inf for all others.

        Raises:
            ValueError: the batch has another size than there are keys.
        """
        import torch

        if len(scores) != len(self._generators):
            raise ValueError(f"{len(scores)} answers are generated at a time, {len(self._generators)} questions named")
        cumulative = scores.double().softmax(-1).cumsum(-1)
        draws = [torch.rand(1, dtype=torch.float64, generator=generator) for generator in self._generators]
        sought = torch.stack(draws).to(scores.device) * cumulative[:, -1:]
        # the first word whose cumulative probability exceeds the draw, hence never one of probability 0
        drawn = torch.searchsorted(cumulative, sought, right=True)
        return torch.full_like(scores, -torch.inf).scatter(1, drawn, 0.0)


def _generator(seed: int, key: str) -> Generator:
    import torch

    digest = hashlib.sha256(f"{seed}\n{key}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
