"""POPE: what counts as no, and scores that are worked out by hand."""

import json

import pytest
from PIL import Image

from eval.__main__ import main
from eval.evaluation import evaluate
from eval.pope import says_yes
from eval.predictions import read_predictions

from .judged_fakes import TellingDescriber, prepare_ferret, prepare_pope, settings_for
from .tiny_models import save_tiny_model


@pytest.mark.parametrize(
    ("answer", "yes"),
    [
        ("Yes, there is a dog.", True),
        ("yes", True),
        ("No", False),
        ("no, there is none", False),
        ("No!", False),
        ("no\nyes", False),
        ("There is not a dog in the image.", False),
        ("Yes. There is no cat, though.", True),
        ("NO.", False),
        ("A knot on a nose.", True),
        ("It isn't there", True),
        ("", True),
        (". no", True),
    ],
)
def test_a_word_no_or_not_in_the_first_sentence_means_no(answer, yes):
    assert says_yes(answer) is yes


def values(metrics) -> dict[str, float]:
    return {name: row["value"] for name, row in metrics["metrics"].items()}


def evaluated(data, replies, **changes):
    describer = TellingDescriber(lambda text: replies[int(text.split()[4]) - 1])
    return evaluate(settings_for("pope", data, **changes), describer=describer, progress=False), describer


def test_all_four_cells_of_the_confusion(tmp_path):
    # yes/yes 3 times, yes to a "no" twice, no to a "yes" once, no/no 4 times
    labels = ["yes"] * 3 + ["no"] * 2 + ["yes"] + ["no"] * 4
    replies = ["Yes."] * 3 + ["Yes, it is."] * 2 + ["No, it is not."] + ["No."] * 4
    metrics, describer = evaluated(prepare_pope(tmp_path, labels), replies)
    precision, recall = 3 / 5, 3 / 4
    assert values(metrics) == pytest.approx(
        {
            "accuracy": 7 / 10,
            "precision": precision,
            "recall": recall,
            "F1": 2 * precision * recall / (precision + recall),
            "yes_ratio": 5 / 10,
        }
    )
    assert metrics["metrics"]["accuracy"]["chance"] == 0.5
    assert metrics["counts"] == {"regions": 10, "images": 6, "empty_answers": 0}
    assert metrics["question"] == "every record's own"
    assert set(describer.overviews) == {""}
    assert describer.asked[0] == ("Is there a thing 1 in the image?", 0)
    page = (tmp_path / "out-pope" / "report.html").read_text()
    assert "Yes-ratio" in page and "the whole picture" in page


@pytest.mark.parametrize(
    ("reply", "expected", "missing"),
    [
        ("No.", {"accuracy": 0.5, "recall": 0.0, "F1": 0.0, "yes_ratio": 0.0}, {"precision": "no answer is yes"}),
        ("", {"accuracy": 0.5, "precision": 0.5, "recall": 1.0, "F1": 2 / 3, "yes_ratio": 1.0}, {}),
    ],
)
def test_the_same_answer_to_everything_scores_chance(tmp_path, reply, expected, missing):
    metrics, _ = evaluated(prepare_pope(tmp_path, ["yes", "no"] * 3), [reply] * 6, shuffle_seed=0)
    assert values(metrics) == pytest.approx(expected)
    assert metrics["not_measured"] == missing
    assert ("empty answers" in metrics["notes"]) == (not reply)
    assert metrics["control"]["counts"]["regions"] == 0


def test_right_answers_score_all(tmp_path):
    labels = ["yes", "no", "no", "yes"]
    metrics, _ = evaluated(prepare_pope(tmp_path, labels), labels)
    assert values(metrics) == {"accuracy": 1, "precision": 1, "recall": 1, "F1": 1, "yes_ratio": 0.5}


def test_a_model_is_asked_about_whole_pictures_by_the_command(tmp_path, capsys):
    data, model = prepare_pope(tmp_path, ["yes", "no"]), save_tiny_model(tmp_path / "tiny")
    command = ["pope", "--data", str(data), "--out", str(tmp_path / "out")]
    asked = [*command, "--model", str(model), "--max-new-tokens", "3"]
    assert main(asked) == 0
    assert "Accuracy" in capsys.readouterr().out
    found = {prediction.id: prediction for prediction in read_predictions(tmp_path / "out" / "predictions.jsonl")}
    from osprey_tp import RegionDescriber

    picture = Image.open(tmp_path / "images" / "COCO_val2014_000000000001.jpg")
    session = RegionDescriber.from_pretrained(model).open(picture, "")
    assert session.ask_groups([[]], [found["pope:2"].question], max_new_tokens=3) == [found["pope:2"].prediction]

    mine = tmp_path / "mine.jsonl"
    mine.write_text("".join(json.dumps({"id": f"pope:{n}", "prediction": "Yes"}) + "\n" for n in (1, 2)))
    assert main(["pope", "--data", str(data), "--out", str(tmp_path / "mine"), "--predictions", str(mine)]) == 0
    assert main([*asked, "--question", "What is <mask>?"]) == 1
    assert "brings its own question" in capsys.readouterr().err


def test_data_of_another_task_are_refused(tmp_path):
    data = prepare_ferret(tmp_path, [("description", "What surrounds <region>?")])
    with pytest.raises(ValueError, match="pope needs questions about whole pictures"):
        evaluated(data, [])
    pope = prepare_pope(tmp_path / "other", ["yes"])
    for task, folder, needed in (
        ("ferret-bench", pope, "nobody has answered"),
        ("dlc-bench", pope, "questions for a judge"),
        ("description", pope, "descriptions of regions"),
        ("region-caption", data, "turns that describe a region"),
    ):
        given = {"judge": "http://127.0.0.1:1/v1", "judge_model": "m", "references": folder / "manifest.json"}
        with pytest.raises(ValueError, match=f"{task} needs .*{needed}.*is it the folder of another task"):
            evaluate(settings_for(task, folder, **given), describer=TellingDescriber(str), progress=False)
