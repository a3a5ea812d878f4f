"""Semantic Similarity with a tiny encoder: pooling, padding and the shape of the folder."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from eval.metrics import ScoringOptions, score, summarise
from eval.sentence_bert import SentenceBert
from eval.tasks import TASKS

from .eval_fakes import answers_to
from .eval_segments import save_tiny_encoder

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "red", "blue", "ring", "star", "a", "the"]


@pytest.fixture(scope="module")
def encoder_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_encoder(tmp_path_factory.mktemp("encoder"), WORDS)


def test_embeddings_are_means_of_length_one_whatever_they_are_batched_with(encoder_folder: Path) -> None:
    texts = ["red ring", "a", "the red star a blue ring"]
    found = SentenceBert.from_pretrained(encoder_folder).encode(texts)
    model, tokenizer = AutoModel.from_pretrained(encoder_folder).eval(), AutoTokenizer.from_pretrained(encoder_folder)
    for text, embedding in zip(texts, found, strict=True):
        with torch.no_grad():
            hidden = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].double().numpy()
        mean = hidden.mean(axis=0)
        np.testing.assert_allclose(embedding, mean / np.linalg.norm(mean), atol=1e-6)


def test_equal_texts_have_similarity_one_and_the_best_reference_counts(encoder_folder: Path) -> None:
    encoder = SentenceBert.from_pretrained(encoder_folder)
    answers, references = ["red ring", "blue star"], [("blue star", "red ring"), ("red ring",)]
    found = encoder.best_similarities(answers, references)
    embeddings = encoder.encode(["blue star", "red ring"])
    np.testing.assert_allclose(found, [1.0, embeddings[0] @ embeddings[1]], atol=1e-6)

    scored = answers_to(answers, references)
    scoring = score(TASKS["referring-classification"], scored, ScoringOptions("clean", encoder_folder))
    assert summarise(scoring, scored)["semantic_similarity"]["value"] == pytest.approx(found.mean(), abs=1e-6)
    assert scoring.notes["sentence_bert"] == encoder.checksum


def test_a_model_that_pools_otherwise_is_refused(encoder_folder: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(encoder_folder, tmp_path / "encoder"))
    (other / "1_Pooling").mkdir()
    (other / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_mean_tokens": False}))
    with pytest.raises(ValueError, match="mean of its tokens"):
        SentenceBert.from_pretrained(other)


ALL_MINILM = os.environ.get("ALL_MINILM_L6_V2")
if ALL_MINILM:

    def test_the_documented_example() -> None:
        """That of sbert.net, with the published weights; they are not shipped, hence only where they are named."""
        sentences = ["The weather is lovely today.", "It's so sunny outside!", "He drove to the stadium."]
        embeddings = SentenceBert.from_pretrained(Path(ALL_MINILM)).encode(sentences)
        similarities = embeddings @ embeddings.T
        assert similarities[np.triu_indices(3, 1)] == pytest.approx([0.6660, 0.1046, 0.1411], abs=5e-5)
