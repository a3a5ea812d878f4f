"""DLC-Bench: the min-rule and the means, worked out by hand; what counts as a choice; the published wording."""

import pytest

from eval.dlc_bench import judge_prompt, parse_choice, recognition_question
from eval.evaluation import evaluate

from .chat_endpoint import KEY, ChatServer
from .judged_fakes import (
    TellingDescriber,
    described,
    judged_by,
    prepare_dlc_bench,
    prepare_ferret,
    reading_judge,
    settings_for,
)


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("TEST_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def positive(text: str, right: float = 1, wrong: float = -1) -> dict:
    return {
        "question": f"{text}?",
        "choices": [[text, right], ["none of it", wrong], ["not said", 0]],
        "type": "positive",
    }


def negative(text: str, told: float = -1) -> dict:
    return {"question": f"{text}?", "choices": [[text, told], ["not said", 1]], "type": "negative"}


def evaluated(data, answers, judge, **changes):
    given = iter(answers)
    with ChatServer(judge) as server:
        settings = settings_for("dlc-bench", data, **judged_by(server), **changes)
        metrics = evaluate(settings, describer=TellingDescriber(lambda text: next(given)), progress=False)
    return metrics, server


def values(metrics) -> dict[str, float]:
    return {name.removeprefix("dlc_"): row["value"] for name, row in metrics["metrics"].items()}


OBJECTS = [
    ("zebra", [positive("stripes"), positive("black mane"), negative("wings")]),
    ("buses", [positive("red paint", right=0.5), negative("wings"), negative("a horn", told=-0.5)]),
    ("cup", [positive("handle")]),
]


def test_right_descriptions_score_all(tmp_path):
    objects = [("zebra", [positive("stripes"), negative("wings")]), ("cup", [positive("handle")])]
    metrics, _ = evaluated(
        prepare_dlc_bench(tmp_path, objects), ["a zebra with stripes", "a cup, handle up"], reading_judge
    )
    assert values(metrics) == {"average": 1, "positive": 1, "negative": 1, "recognition": 1}
    page = (tmp_path / "out-dlc-bench" / "report.html").read_text()
    assert "Recognised" in page and "judge-8b" in page


def test_after_a_failed_recognition_no_score_is_above_zero(tmp_path):
    answers = [
        "a zebra with stripes and wings",  # positive (1 + 0) / 2, negative -1
        "a train in red paint with a horn",  # not recognised: min(0, 0.5); min(0, 1), min(0, -0.5)
        "a cup",  # positive 0, no negatives
    ]
    metrics, _ = evaluated(prepare_dlc_bench(tmp_path, OBJECTS), answers, reading_judge)
    mean_positive, mean_negative = (0.5 + 0 + 0) / 3, (-1 + -0.25) / 2
    assert values(metrics) == pytest.approx(
        {
            "positive": mean_positive,
            "negative": mean_negative,
            "average": (mean_positive + mean_negative) / 2,
            "recognition": 2 / 3,
        }
    )
    assert metrics["metrics"]["dlc_negative"]["regions"] == 2
    assert metrics["metrics"]["dlc_average"]["regions"] == 3
    assert (metrics["judge"]["replies"], metrics["judge"]["unparsable"]) == (4 + 4 + 2, 0)


def test_descriptions_of_other_objects_lose(tmp_path):
    right = ["a zebra with stripes and a black mane", "buses in red paint", "a cup with a handle"]
    metrics, _ = evaluated(prepare_dlc_bench(tmp_path, OBJECTS), [*right[1:], right[0]], reading_judge)
    assert values(metrics) == {"average": 0, "positive": 0, "negative": 0, "recognition": 0}


def test_replies_that_are_no_choice_are_left_out_and_named(tmp_path):
    def judge(body: dict) -> str:
        description, question, _ = described(body)
        if "cup" in description and question.startswith("Is it"):
            return "Perhaps."
        return "Both A and B" if question == "black mane?" else reading_judge(body)

    answers = ["a zebra with stripes", "buses in red paint", "a cup with a handle"]
    metrics, _ = evaluated(prepare_dlc_bench(tmp_path, OBJECTS), answers, judge)
    # the zebra keeps one positive question, the cup is left out with its only one
    assert values(metrics) == pytest.approx(
        {"positive": (1 + 0.5) / 2, "negative": 1, "average": (0.75 + 1) / 2, "recognition": 1}
    )
    assert metrics["judge"]["unparsable"] == 2
    left_out = metrics["notes"]["unparsable replies of the judge, left out"]
    assert left_out == "dlc-bench:100#1 question 2, dlc-bench:102#1 question 0"


def test_objects_without_negatives_give_no_average(tmp_path):
    metrics, _ = evaluated(prepare_dlc_bench(tmp_path, OBJECTS[2:]), ["a cup with a handle"], reading_judge)
    assert values(metrics) == {"positive": 1, "recognition": 1}
    assert metrics["not_measured"] == {"dlc_average": "no object has a negative score"}


CHOICES = ["A zebra", "a naïve 犬", "Not mentioned."]


@pytest.mark.parametrize(
    ("reply", "index"),
    [
        ("A", 0),
        ("b", 1),
        (" C.\n", 2),
        ("(B)", 1),
        ("**B.**", 1),
        ("B. a naïve 犬", 1),
        ("c) not mentioned", 2),
        ("a zebra", 0),
        ("Not Mentioned", 2),
        ("D", None),
        ("", None),
        ("A or B", None),
        ("A zebra or a naïve 犬", None),
        ("A. a naïve 犬", None),
        ("Answer: A", None),
        ("A. A zebra\nThe description says so.", None),
        ("An object", None),
        ("AB", None),
    ],
)
def test_a_choice_is_its_letter_or_its_text(reply, index):
    assert parse_choice(reply, CHOICES) == index


def test_the_published_questions_of_recognition():
    likely, again = "Is it likely that the object", "Again, It does not have to be an exact match."
    for name, question in (
        ("zebra", f"{likely} in the description is a zebra or an object of a similar type? {again}"),
        ("umbrella", f"{likely} in the description is an umbrella or an object of a similar type? {again}"),
        ("bus", f"{likely} in the description is a bus or an object of a similar type? {again}"),
        ("sneakers", f"{likely}s in the description are sneakers or objects of a similar type? {again}"),
    ):
        entry = recognition_question(name, "x")
        assert entry["question"] == question
        assert entry["choices"] == [["Yes", "correct"], ["No", "incorrect"]]
    assert judge_prompt(recognition_question("bus", "x"), "A red bus.").split("\n")[1:] == [
        "1. Do not output any reasoning. Do not perform correction. Please output exactly one answer from the choices "
        "for each question. Do not repeat the question.",
        "2. There is no need for exact matching. Please choose the closest option based on the description.",
        "",
        "The description is:",
        "A red bus.",
        "",
        "From the description above, please answer the following question with one of the choices:",
        f"{likely} in the description is a bus or an object of a similar type? {again}",
        "A. Yes",
        "B. No",
        "",
    ]


def test_the_judge_reads_the_text_alone_and_a_recognition_question_of_the_file_is_used(tmp_path):
    choices = [["a zebra", "correct"], ["a horse", "incorrect"]]
    own = {"question": "What is it?", "choices": choices, "type": "recognition"}
    data = prepare_dlc_bench(tmp_path, [("zebra", [positive("stripes"), own, negative("wings")])])
    metrics, server = evaluated(data, ["a horse with stripes"], reading_judge)
    assert values(metrics) == {"average": 0, "positive": 0, "negative": 0, "recognition": 0}
    assert sorted(described(body)[1] for body in server.bodies) == ["What is it?", "stripes?", "wings?"]
    assert all(isinstance(message["content"], str) for body in server.bodies for message in body["messages"])


@pytest.mark.parametrize(
    ("name", "questions", "message"),
    [
        (
            "zebra",
            [negative("wings")],
            "types recognition, negative; needed are one recognition, at least one positive",
        ),
        ("zebra", [positive("x"), {**positive("y"), "type": "other"}], "types recognition, positive, other"),
        ("zebra", [{**positive("x"), "choices": [["x", "good"], ["y", 0]]}], "malformed choices of 'x[?]'"),
        ("zebra", [{**positive("x"), "choices": [["x", 1]]}], "malformed choices"),
        ("zebra", [{**positive("x"), "choices": "AB"}], "malformed choices"),
    ],
)
def test_malformed_questions_are_named(tmp_path, name, questions, message):
    data = prepare_dlc_bench(tmp_path, [(name, questions)])
    with pytest.raises(ValueError, match=f"dlc-bench:100.*{message}"):
        evaluated(data, [], reading_judge)


def test_a_name_is_needed_to_be_recognised(tmp_path):
    with pytest.raises(ValueError, match="dlc-bench:7 has no class name"):
        recognition_question(" ", "dlc-bench:7")
    with pytest.raises(ValueError, match="is it the folder of another task"):
        evaluated(prepare_ferret(tmp_path, [("description", "What is <region>?")]), [], reading_judge)
