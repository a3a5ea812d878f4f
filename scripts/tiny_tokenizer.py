"""A Llama-type tokenizer of a few hundred pieces, trained on the texts that a tiny model is to read and write."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import LlamaTokenizer

CONTROL_PIECES = ("<unk>", "<s>", "</s>")
BYTE_PIECES = tuple(f"<0x{value:02X}>" for value in range(256))
"""The first rows are Llama's: control pieces, then one piece for every byte, so that any text can be written."""


def train_tiny_tokenizer(texts: Iterable[str], vocabulary_size: int = 1024) -> LlamaTokenizer:
    """Train byte-pair merges that stay inside words and return them as a Llama tokenizer.

    Args:
        texts: What the pieces are learned from; every word that is frequent becomes one piece.
        vocabulary_size: At most so many rows, control and byte pieces included.

    Raises:
        ValueError: if `vocabulary_size` leaves no room beside control and byte pieces.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import LlamaTokenizer

    reserved = [*CONTROL_PIECES, *BYTE_PIECES]
    if vocabulary_size <= len(reserved):
        raise ValueError(
            f"a vocabulary of {vocabulary_size} rows is too small; {len(reserved)} are control and byte pieces"
        )
    words = Tokenizer(models.BPE(unk_token=CONTROL_PIECES[0]))
    words.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Punctuation(),
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.Metaspace(prepend_scheme="first"),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size, special_tokens=reserved, min_frequency=2, show_progress=False
    )
    words.train_from_iterator(texts, trainer)
    model = _trained_model(words)
    return LlamaTokenizer(vocab=model["vocab"], merges=model["merges"], legacy=False, add_prefix_space=True)


def _trained_model(tokenizer: object) -> dict:
    import json

    model = json.loads(tokenizer.to_str())["model"]  # type: ignore[attr-defined]
    return {"vocab": model["vocab"], "merges": [tuple(merge) for merge in model["merges"]]}
