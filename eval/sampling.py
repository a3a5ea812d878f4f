"""Sampled answers that depend on the seed and the question alone, not on batches, processes or other questions.

`generate` draws from one generator for the whole batch. Here each question has its own, seeded with the hash of seed
and question, and its noise is added to the log-probabilities: the largest of log p + Gumbel noise is a draw from p (the
Gumbel-max trick; Maddison, Tarlow, Minka: A* Sampling, 2014). So sampled questions are asked in batches like greedy
ones, and cost one random number a word of the vocabulary, question and token more.
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

        processors = [TemperatureLogitsWarper(self.temperature), TopKLogitsWarper(self.top_k), OwnNoise(self, keys)]
        return {"do_sample": False, "num_beams": 1, "logits_processor": LogitsProcessorList(processors)}


class OwnNoise:
    """Adds Gumbel noise to the scores of each row, from a generator of its own."""

    def __init__(self, sampling: Sampling, keys: Sequence[str]) -> None:
        self._generators = [_generator(sampling.seed, key) for key in keys]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores (B, vocabulary) whose largest in each row is a draw from their softmax.

        Raises:
            ValueError: the batch has another size than there are keys.
        """
        import torch

        if len(scores) != len(self._generators):
            raise ValueError(f"{len(scores)} answers are generated at a time, {len(self._generators)} questions named")
        noise = torch.empty(scores.shape, dtype=torch.float64)
        for row, generator in zip(noise, self._generators, strict=True):
            row.exponential_(generator=generator)
        return scores - noise.log_().to(scores)


def _generator(seed: int, key: str) -> Generator:
    import torch

    digest = hashlib.sha256(f"{seed}\n{key}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
