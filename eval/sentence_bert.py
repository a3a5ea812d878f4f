"""Semantic Similarity: cosine of SentenceBERT embeddings, from a folder on this machine.

The published model is all-MiniLM-L6-v2: mean of the last hidden states over the text's tokens, scaled to length 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from eval.checksums import folder_checksum
from eval.intervals import Array
from osprey_tp.outside import OWN_FILES_ALONE, read_json

BATCH_SIZE = 64
DEFAULT_MAX_TOKENS = 256


class SentenceBert:
    """A sentence encoder with mean pooling."""

    def __init__(self, model: Any, tokenizer: Any, max_tokens: int, checksum: str) -> None:
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.max_tokens = max_tokens
        self.checksum = checksum

    @classmethod
    def from_pretrained(cls, folder: Path) -> SentenceBert:
        """Load the encoder and the tokenizer from a folder; nothing is downloaded.

        Raises:
            ValueError: it is no such folder, or its encoder pools in another way than by the mean.
        """
        from transformers import AutoModel, AutoTokenizer

        if not (folder / "config.json").is_file():
            raise ValueError(f"{folder} holds no config.json; give the folder of a SentenceBERT model")
        pooling = folder / "1_Pooling" / "config.json"
        if pooling.is_file() and not read_json(pooling).get("pooling_mode_mean_tokens", True):
            raise ValueError(f"{folder} does not pool by the mean of its tokens; all-MiniLM-L6-v2 does")
        limits = folder / "sentence_bert_config.json"
        limit = read_json(limits).get("max_seq_length") if limits.is_file() else None
        return cls(
            AutoModel.from_pretrained(folder, **OWN_FILES_ALONE),
            AutoTokenizer.from_pretrained(folder, **OWN_FILES_ALONE),
            limit or DEFAULT_MAX_TOKENS,
            folder_checksum(folder),
        )

    def encode(self, texts: Sequence[str]) -> Array:
        """(texts, width) embeddings of length 1."""
        import torch

        embeddings = []
        with torch.inference_mode():
            for start in range(0, len(texts), BATCH_SIZE):
                batch = self.tokenizer(
                    list(texts[start : start + BATCH_SIZE]),
                    padding=True,
                    truncation=True,
                    max_length=self.max_tokens,
                    return_tensors="pt",
                )
                hidden = self.model(**batch).last_hidden_state  # (texts, tokens, width)
                present = batch["attention_mask"][..., None].to(hidden.dtype)
                mean = (hidden * present).sum(dim=1) / present.sum(dim=1).clamp(min=1e-9)
                embeddings.append(torch.nn.functional.normalize(mean, dim=1).double().numpy())
        return np.concatenate(embeddings)

    def best_similarities(self, answers: Sequence[str], references: Sequence[Sequence[str]]) -> Array:
        """(answers,) cosine of each answer and the reference nearest to it."""
        texts = sorted({*answers, *(reference for group in references for reference in group)})
        row = {text: index for index, text in enumerate(texts)}
        embeddings = self.encode(texts)
        return np.array(
            [
                max(float(embeddings[row[answer]] @ embeddings[row[reference]]) for reference in group)
                for answer, group in zip(answers, references, strict=True)
            ]
        )
