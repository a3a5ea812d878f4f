"""Sampled answers: draws from the model's distribution, the same whatever is asked beside them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from data_pipelines.prepare import prepare
from data_pipelines.synthetic.writer import write_scenes
from eval.__main__ import main
from eval.asking import Asking, Shown
from eval.predictions import read_predictions
from eval.questions import Question
from eval.sampling import OwnDraw, Sampling

from .tiny_models import save_tiny_model


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sampling")
    write_scenes(root / "scenes", {"test": 2}, progress=False)
    annotations = root / "scenes" / "annotations" / "instances_test.json"
    prepare("synthetic", annotations, root / "scenes" / "images" / "test", root / "data", progress=False)
    save_tiny_model(root / "model")
    return root


def run(folders: Path, out: Path, *options: str) -> dict[str, str]:
    common = ["referring-classification", "--model", folders / "model", "--data", folders / "data", "--out", out]
    assert main([str(argument) for argument in (*common, "--max-new-tokens", "5", *options)]) == 0
    return {item.id: item.prediction for item in read_predictions(out / "predictions.jsonl")}


def drawn(scores: torch.Tensor, sampling: Sampling, keys: list[str]) -> torch.Tensor:
    """The word that greedy decoding takes of scores (B, vocabulary) after all processors."""
    for processor in sampling.options(keys)["logits_processor"]:
        scores = processor(torch.zeros(len(keys), 1, dtype=torch.long), scores)
    return scores.argmax(-1)


def test_draws_follow_the_softmax_at_the_temperature() -> None:
    logits = torch.tensor([1.0, 0.8, 0.5, 0.1, -1.0, -30.0])
    temperature, count = 0.7, 20_000
    keys = [f"question {number}" for number in range(count)]
    words = drawn(logits.expand(count, -1).clone(), Sampling(temperature, top_k=4), keys)
    kept = torch.softmax(logits[:4].double() / temperature, 0).numpy()
    found = np.bincount(words.numpy(), minlength=6)
    assert found[4:].sum() == 0
    assert chisquare(found[:4], kept * count).pvalue > 0.001


def test_later_words_are_drawn_anew() -> None:
    draw = OwnDraw(Sampling(), ["a"])
    scores = torch.zeros(1, 500)
    words = {int(draw(torch.zeros(1, 1), scores).argmax()) for _ in range(50)}
    assert len(words) > 40


def test_a_draw_depends_on_seed_and_question_alone() -> None:
    scores = torch.randn(3, 100, generator=torch.Generator().manual_seed(0))
    hot = Sampling(temperature=5.0, top_k=100)
    together = drawn(scores.clone(), hot, ["a", "b", "c"])
    torch.manual_seed(99)
    alone = [drawn(scores[row : row + 1].clone(), hot, [key]).item() for row, key in enumerate("abc")]
    assert together.tolist() == alone
    others = [drawn(scores.clone(), Sampling(5.0, seed, 100), ["a", "b", "c"]).tolist() for seed in range(1, 9)]
    assert len({tuple(words) for words in others}) > 4
    with pytest.raises(ValueError, match="2 answers are generated at a time, 3 questions named"):
        drawn(scores[:2].clone(), hot, ["a", "b", "c"])


def test_the_control_draws_for_itself() -> None:
    question, other = (Question(key, "a.png", Path("a.png"), 4, 4, "<mask>?", (), ("x",)) for key in "ab")
    asking = Asking(4, 5, sampling=Sampling())
    assert Shown(question, question).key != Shown(question, other).key
    assert set(asking.options([Shown(question, other)])) == {"do_sample", "num_beams", "logits_processor"}
    assert Asking(4, 5).options([Shown(question, question)]) == {"do_sample": False, "num_beams": 1}


def test_answers_do_not_depend_on_batches(folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hot = ("--sample", "--temperature", "1.5", "--seed", "3")
    wide = run(folders, tmp_path / "wide", *hot)
    assert run(folders, tmp_path / "narrow", *hot, "--batch-size", "1") == wide
    with monkeypatch.context() as patch:
        patch.setattr("osprey_tp.describer.MOST_COPIES", 2)
        assert run(folders, tmp_path / "few", *hot) == wide
    assert run(folders, tmp_path / "other", *hot[:-1], "4") != wide
    greedy = run(folders, tmp_path / "greedy")
    assert greedy != wide
    cold = run(folders, tmp_path / "cold", "--sample", "--temperature", "0.0001")
    assert cold == greedy
    run_file, metrics = (json.loads((tmp_path / "wide" / name).read_text()) for name in ("run.json", "metrics.json"))
    expected = {"do_sample": True, "temperature": 1.5, "top_k": 50, "seed": 3, "num_beams": 1}
    assert run_file["decoding"] == expected
    assert metrics["decoding"] == expected | {"max_new_tokens": 5, "batch_size": 16}


def test_greedy_and_sampled_answers_are_not_mixed(
    folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(folders, tmp_path, "--limit", "2")
    common = ["referring-classification", "--model", folders / "model", "--data", folders / "data", "--out", tmp_path]
    capsys.readouterr()
    assert main([str(argument) for argument in (*common, "--max-new-tokens", "5", "--sample")]) == 1
    assert "answers of another run (different: decoding)" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--seed", "1"), "belong to --sample"),
        (("--sample", "--temperature", "0"), "without --sample answers are greedy"),
        (("--sample", "--predictions", "p"), "either --model"),
    ],
)
def test_wrong_options_are_named(options: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["region-caption", "--data", "d", "--out", "o", "--model", "m", *options])
    assert left.value.code == 2
    assert message in capsys.readouterr().err
