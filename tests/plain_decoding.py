"""What the fast path is compared with: every token from the whole prompt anew, one question at a time, no cache."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from osprey_tp import RegionDescriber
from osprey_tp.prompts import OVERVIEW


@torch.no_grad()
def answer_token_by_token(
    describer: RegionDescriber, image: Any, regions: Sequence[Any], question: str, max_new_tokens: int, ends: set[int]
) -> list[int]:
    """Ids of the greedy answer, the end id included."""
    picture = {"type": "image", "image": image, "regions": list(regions)}
    message = {"role": "user", "content": [picture, {"type": "text", "text": OVERVIEW + question}]}
    batch = dict(describer.processor.prepare([[message]], add_generation_prompt=True))
    words = len(describer.processor.tokenizer)
    answer: list[int] = []
    while len(answer) < max_new_tokens and not ends & set(answer):
        logits = describer.model(**batch).logits[0, -1]
        assert len(logits) <= words
        answer.append(int(logits.argmax()))
        new = torch.tensor([[answer[-1]]])
        batch["input_ids"] = torch.cat([batch["input_ids"], new], dim=1)
        batch["attention_mask"] = torch.ones_like(batch["input_ids"])
    return answer
