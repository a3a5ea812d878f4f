"""Caption measures by pycocoevalcap: METEOR, CIDEr, BLEU-1 to 4, ROUGE-L.

The scorers are called one by one, since `COCOEvalCap.evaluate()` always builds SPICE, which downloads. METEOR and the
Penn Treebank tokenizer are Java programs inside the package. Without Java, METEOR is not measured and the texts are
split into lower-case words instead, which gives equal scores for plain phrases but not for every punctuation.

METEOR and BLEU are formulas of counts summed over the corpus, CIDEr and ROUGE-L are means. CIDEr's word weights come
from the references of the whole set and stay fixed in the resamples of an interval.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np

from eval.intervals import Array, Measure, mean_measure

MISSING_JAVA = "no Java runtime (Debian and Ubuntu: apt-get install default-jre-headless)"
PTB_TOKENIZER = "Penn Treebank tokenizer of pycocoevalcap"
WORD_TOKENIZER = "lower-case words (no Java runtime for the Penn Treebank tokenizer)"
BLEU_ORDERS = 4
STANDARD_ERROR = 2
# pycocoevalcap's guards against division by zero; part of its published numbers.
SMALL, TINY = 1e-9, 1e-15

Texts = dict[int, list[str]]


@cache
def has_java() -> bool:
    """Whether a Java runtime answers."""
    java = shutil.which("java")
    return java is not None and subprocess.run([java, "-version"], capture_output=True, check=False).returncode == 0


def caption_measures(answers: Sequence[str], references: Sequence[Sequence[str]]) -> tuple[list[Measure], str]:
    """METEOR (with Java), CIDEr, BLEU-1 to 4, ROUGE-L of (answers,) texts, and the tokenizer that was used.

    Raises:
        ModuleNotFoundError: pycocoevalcap is not installed.
        ValueError: the tokenizer did not give every text back.
    """
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    tokenize = ptb_tokens if has_java() else word_tokens
    answer_tokens = tokenize([[answer] for answer in answers])
    reference_tokens = tokenize(references)
    _, cider = Cider().compute_score(reference_tokens, answer_tokens)
    _, rouge = Rouge().compute_score(reference_tokens, answer_tokens)
    measures = [meteor_measure(answer_tokens, reference_tokens)] if has_java() else []
    measures += [mean_measure("CIDEr", cider), mean_measure("ROUGE_L", rouge)]
    measures += bleu_measures(answer_tokens, reference_tokens)
    return measures, PTB_TOKENIZER if has_java() else WORD_TOKENIZER


def ptb_tokens(texts: Sequence[Sequence[str]]) -> Texts:
    """Penn Treebank tokens joined by spaces, lower case, without punctuation; as COCO's caption evaluation."""
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    lines = {index: [{"caption": " ".join(text.split())} for text in group] for index, group in enumerate(texts)}
    with _kept_errors() as said:
        tokens: Texts = PTBTokenizer().tokenize(lines)
        if {key: len(group) for key, group in tokens.items()} != {key: len(group) for key, group in lines.items()}:
            raise ValueError(
                f"the tokenizer returned {len(tokens)} of {len(lines)} texts; does `java -version` work? It said: "
                f"{said()[-500:] or 'nothing'}"
            )
    return {index: [line.replace("|||", " ") for line in group] for index, group in tokens.items()}


@contextmanager
def _kept_errors() -> Iterator[Callable[[], str]]:
    """Keep what programs write to standard error: the tokenizer's speed is no news, but its failure is."""
    sys.stderr.flush()
    with tempfile.TemporaryFile() as file:

        def said() -> str:
            file.seek(0)
            return file.read().decode("utf-8", "replace").strip()

        before = os.dup(STANDARD_ERROR)
        os.dup2(file.fileno(), STANDARD_ERROR)
        try:
            yield said
        finally:
            os.dup2(before, STANDARD_ERROR)
            os.close(before)


def word_tokens(texts: Sequence[Sequence[str]]) -> Texts:
    """Lower-case words joined by spaces, without punctuation."""
    return {
        index: [" ".join(re.findall(r"\w+(?:['’]\w+)*", text.lower())) for text in group]
        for index, group in enumerate(texts)
    }


def bleu_measures(answers: Texts, references: Texts) -> list[Measure]:
    """BLEU-1 to 4 with the closest reference length, from the n-gram counts of pycocoevalcap's scorer."""
    from pycocoevalcap.bleu.bleu_scorer import BleuScorer

    scorer = BleuScorer(n=BLEU_ORDERS)
    for index, answer in answers.items():
        scorer += (answer[0], references[index])
    statistics = np.array([_bleu_statistics(counts) for counts in scorer.ctest], dtype=np.float64)
    return [
        Measure(f"Bleu_{order}", statistics, _bleu_formula(order), _bleu_formula(order)(statistics))
        for order in range(1, BLEU_ORDERS + 1)
    ]


def _bleu_statistics(counts: dict[str, Any]) -> list[float]:
    """[correct n-grams of order 1..4, guessed ones of order 1..4, answer length, closest reference length]."""
    length = counts["testlen"]
    closest = min((abs(reference - length), reference) for reference in counts["reflen"])[1]
    return [*counts["correct"], *counts["guess"], length, closest]


def _bleu_formula(order: int) -> Any:
    def bleu(sums: Array) -> Array:
        correct, guessed = sums[..., :order], sums[..., BLEU_ORDERS : BLEU_ORDERS + order]
        precision = np.prod((correct + TINY) / (guessed + SMALL), axis=-1) ** (1 / order)
        ratio = (sums[..., -2] + TINY) / (sums[..., -1] + SMALL)
        return np.asarray(precision * np.exp(np.minimum(0.0, 1 - 1 / ratio)))

    return bleu


@cache
def _meteor() -> Any:
    """The METEOR program; it takes seconds to start, hence once a process."""
    from pycocoevalcap.meteor.meteor import Meteor

    return Meteor()


def meteor_measure(answers: Texts, references: Texts) -> Measure:
    """METEOR 1.5: the corpus score is the formula of the answers' summed match counts."""
    meteor = _meteor()
    lines = [meteor._stat(answer[0], references[index]) for index, answer in answers.items()]
    statistics = np.array([line.split() for line in lines], dtype=np.float64)
    # METEOR counts the one chunk of a perfect match as no fragmentation, and so it does when it sums.
    perfect = (statistics[:, -3] == 1) & (statistics[:, -2:] == statistics[:, :2]).all(axis=1)
    statistics[perfect, -3] = 0

    def formula(sums: Array) -> Array:
        rows = [" ".join(f"{number:.1f}" for number in row) for row in sums]
        process = meteor.meteor_p
        process.stdin.write(("EVAL ||| " + " ||| ".join(rows) + "\n").encode())
        process.stdin.flush()
        scores = [float(process.stdout.readline()) for _ in rows]
        process.stdout.readline()  # the score of all rows together
        return np.array(scores)

    return Measure("METEOR", statistics, formula, formula(statistics))
