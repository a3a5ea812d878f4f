"""Judged descriptions and Ferret-Bench, with a real server on this machine as judge."""

import json
import os

import numpy as np
import pytest

from data_pipelines.generation.replies import ReplyLog
from eval.__main__ import main
from eval.evaluation import evaluate
from eval.everything import evaluate_all
from eval.intervals import estimate
from eval.judge import REPLIES_FILE
from eval.predictions import read_predictions
from eval.rating import parse_ratings, relative_score

from .chat_endpoint import KEY, ChatServer
from .judged_fakes import (
    TellingDescriber,
    judged_by,
    overlap_judge,
    prepare_descriptions,
    prepare_dlc_bench,
    prepare_ferret,
    prepare_pope,
    rated_texts,
    reading_judge,
    settings_for,
)

DESCRIPTIONS = [["a red cat asleep", "one blue dog running fast"], ["two green birds"], ["grey stone wall, very old"]]
TEXTS = [text for texts in DESCRIPTIONS for text in texts]
IDS = [
    "osprey-detailed-description:0#1",
    "osprey-detailed-description:0#2",
    "osprey-detailed-description:1#1",
    "osprey-detailed-description:2#1",
]


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("TEST_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def data(tmp_path):
    return prepare_descriptions(tmp_path, DESCRIPTIONS)


def evaluated(data, answers, server, task="description", **changes):
    given = iter(answers)
    describer = TellingDescriber(lambda text: next(given))
    return evaluate(settings_for(task, data, **judged_by(server), **changes), describer=describer, progress=False)


def values(metrics) -> dict[str, float]:
    return {name: row["value"] for name, row in metrics["metrics"].items()}


@pytest.mark.parametrize(
    ("reply", "ratings"),
    [
        ("8 9", (8, 9)),
        ("10 1\nThe second one is about another part.", (10, 1)),
        ("  7.5, 8.25  \r\nBecause.", (7.5, 8.25)),
        ("\n\n3 4", (3, 4)),
        ("", None),
        ("8", None),
        ("8 9 10", None),
        ("0 5", None),
        ("5 11", None),
        ("-1 -1", None),
        ("Assistant 1: 8, Assistant 2: 9", None),
        ("8/10 9/10", None),
        ("Both are good.\n8 9", None),
        ("8\n9", None),
        ("nan inf", None),
    ],
)
def test_ratings_are_two_numbers_on_the_first_line(reply, ratings):
    assert parse_ratings(reply) == ratings


def test_the_relative_score_is_a_ratio_of_means_and_not_a_mean_of_ratios():
    ratings = np.array([[10, 5], [2, 2], [np.nan, np.nan], [8, 1]], float)
    measure = relative_score("relative_score", ratings)
    found = estimate(measure, ["a", "b", "c", "d"])
    assert found.value == pytest.approx(8 / 20)
    assert found.regions == 3
    assert measure.values[[0, 1, 3]] == pytest.approx([0.5, 1, 0.125])


def test_right_descriptions_score_all_and_others_what_they_share(tmp_path, data):
    with ChatServer(overlap_judge) as server:
        metrics = evaluated(data, TEXTS, server)
        assert values(metrics) == {"relative_score": 1.0}
        assert metrics["mean_ratings"] == {"reference": 10, "model": 10}
        turned = [*TEXTS[1:], TEXTS[0]]
        metrics = evaluated(prepare_descriptions(tmp_path / "turned", DESCRIPTIONS), turned, server)
        assert values(metrics) == {"relative_score": pytest.approx(1 / 10)}
    judge = metrics["judge"]
    assert (judge["model"], judge["temperature"], judge["unparsable"], judge["replies"]) == ("judge-8b", 0, 0, 4)
    assert judge["endpoint"] == "OpenAI-compatible chat completions over http"
    assert len(judge["prompt_checksum"]) == 64
    assert "127.0.0.1" not in json.dumps(metrics) and KEY not in json.dumps(metrics)
    assert "judge-8b" in (tmp_path / "turned" / "out-description" / "report.html").read_text()


def test_the_control_is_judged_too(data):
    with ChatServer(overlap_judge) as server:
        settings = settings_for("description", data, **judged_by(server), shuffle_seed=0)
        metrics = evaluate(settings, describer=TellingDescriber(lambda text: TEXTS[0]), progress=False)
    # only the first picture has two regions: the right answer to one and none of the words of the other
    control = metrics["control"]
    assert control["counts"] == {"regions": 2, "left_out_single_region": 2}
    assert control["metrics"]["relative_score"]["value"] == pytest.approx((10 + 1) / 20)
    assert control["expected"] == {"relative_score": pytest.approx(1 / 10)}
    assert control["judge"]["replies"] == 2


def test_all_runs_what_a_judge_allows(tmp_path):
    told = {"question": "x?", "choices": [["x", 1], ["not said", 0]], "type": "positive"}
    described = prepare_dlc_bench(tmp_path / "dlc", [("cat", [told])])
    ferret = prepare_ferret(tmp_path / "ferret", QUESTIONS)
    pope = prepare_pope(tmp_path / "pope", ["yes", "no"])
    with ChatServer(reading_judge) as server:
        settings = settings_for("all", described, **judged_by(server))
        outcomes = evaluate_all(
            settings, [described, ferret, pope], load=lambda: TellingDescriber(lambda text: "a cat"), progress=False
        )
    states = {(outcome.task, outcome.state, outcome.reason) for outcome in outcomes}
    assert states >= {
        ("dlc-bench", "done", ""),
        ("ferret-bench", "left out", "needs reference answers (--references FILE)"),
        ("pope", "done", ""),
    }
    assert not [outcome for outcome in outcomes if outcome.state == "failed"]


def test_what_the_judge_reads(data):
    with ChatServer(overlap_judge) as server:
        evaluated(data, ["", *TEXTS[1:]], server)
    bodies = {body["messages"][1]["content"]: body for body in server.bodies}
    content = next(text for text in bodies if "a red cat asleep" in text)
    body = bodies[content]
    assert (body["model"], body["temperature"]) == ("judge-8b", 0)
    # the region is the polygon from (2, 4) to (20, 30) of a picture of 60 x 40 pixels
    assert "a detailed description of [0.033, 0.100, 0.333, 0.750]?" in content
    assert "[Assistant 1]\na red cat asleep\n[End of Assistant 1]" in content
    assert "[Context]" not in content
    assert rated_texts(body) == ["a red cat asleep", ""]


def test_replies_that_cannot_be_parsed_are_counted_and_left_out(data):
    def judge(body: dict) -> str:
        if "stone" in body["messages"][1]["content"]:
            return "Assistant 2 is better."
        return "8 4" if "cat" in body["messages"][1]["content"] else "10 9"

    def fault(body: dict, number: int) -> dict | None:
        refuses = "birds" in body["messages"][1]["content"]
        return {"status": 400, "body": {"error": {"message": "filtered"}}} if refuses else None

    with ChatServer(judge) as server:
        server.fault = fault
        metrics = evaluated(data, ["x"] * 4, server)
    assert values(metrics) == {"relative_score": pytest.approx(13 / 18)}
    assert metrics["metrics"]["relative_score"]["regions"] == 2
    assert (metrics["judge"]["unparsable"], metrics["judge"]["refused"]) == (1, 1)
    notes = " ".join(f"{name} {text}" for name, text in metrics["notes"].items())
    assert f"unparsable replies of the judge, left out {IDS[3]}" in notes
    assert f"{IDS[2]}: " in notes and "filtered" in notes


def test_a_judge_that_never_keeps_to_the_form_gives_no_score(data):
    with ChatServer(lambda body: "I would rather not say.") as server:
        metrics = evaluated(data, TEXTS, server)
    assert metrics["metrics"] == {}
    assert "4 unparsable, 0 refused" in metrics["not_measured"]["relative_score"]


def test_a_reply_is_asked_for_once(data):
    with ChatServer(overlap_judge) as server:
        first = evaluated(data, TEXTS, server)
        assert len(server.bodies) == 4
        assert evaluated(data, [], server) == first
        assert len(server.bodies) == 4
        evaluate(
            settings_for("description", data, **judged_by(server, judge_model="another")), progress=False, describer=0
        )
        assert len(server.bodies) == 8


def test_a_judge_that_fails_now_and_then_is_asked_again(data, monkeypatch):
    monkeypatch.setattr("data_pipelines.generation.endpoint.random.uniform", lambda low, high: 0.01)
    with ChatServer(overlap_judge) as server:
        server.fault = lambda body, number: {"status": 503} if number == 1 else None
        metrics = evaluated(data, TEXTS, server)
        assert values(metrics) == {"relative_score": 1.0}
        assert len(server.bodies) == 8


def command(data, server, *more: str) -> list[str]:
    lines = data.parent / "answers.jsonl"
    answers = [json.dumps({"id": name, "prediction": text}) for name, text in zip(IDS, TEXTS, strict=True)]
    lines.write_text("\n".join(answers) + "\n")
    arguments = ["description", "--data", data, "--out", data.parent / "out", "--predictions", lines]
    arguments += ["--judge", server.url, "--judge-model", "judge-8b", "--judge-key-variable", "TEST_KEY", *more]
    return [str(argument) for argument in arguments]


def test_a_judge_that_is_down_leaves_what_there_is_and_the_same_command_goes_on(data, monkeypatch, capsys):
    monkeypatch.setattr("data_pipelines.generation.endpoint.random.uniform", lambda low, high: 0.001)
    out = data.parent / "out"
    with ChatServer(overlap_judge) as server:
        server.fault = lambda body, number: None if "cat" in body["messages"][1]["content"] else {"status": 500}
        # one at a time, so that the only good reply is there before the judge is given up
        assert main(command(data, server, "--judge-concurrency", "1")) == 1
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith("error: the judge judge-8b did not answer everything: ") and "answered 500" in error
        assert "1 replies are kept, 3 requests are left: run it again" in error and KEY not in error
        assert not (out / "metrics.json").exists()
        with ReplyLog(out / REPLIES_FILE) as replies:
            assert len(replies) == 1

        asked = len(server.bodies)
        server.fault = lambda body, number: None
        assert main(command(data, server)) == 0
        assert len(server.bodies) == asked + 3
        assert "Relative score          100.0" in capsys.readouterr().out


def test_answers_of_the_model_stay_when_nobody_listens(data, monkeypatch):
    monkeypatch.setattr("data_pipelines.generation.endpoint.random.uniform", lambda low, high: 0.001)
    with ChatServer(overlap_judge) as server:
        pass
    with pytest.raises(ValueError, match=r"the judge judge-8b did not answer everything: .* cannot be reached"):
        evaluated(data, TEXTS, server)
    kept = read_predictions(data.parent / "out-description" / "predictions.jsonl")
    assert [prediction.prediction for prediction in kept] == TEXTS


def test_a_wrong_setting_is_said_before_anything_is_asked(data, monkeypatch, capsys):
    monkeypatch.delenv("TEST_KEY")
    with ChatServer(overlap_judge) as server:
        assert main(command(data, server)) == 1
        assert "TEST_KEY holds no key" in capsys.readouterr().err
        os.environ["TEST_KEY"] = KEY
        for wrong, message in (
            ([*command(data, server)[:-4], "--judge-key-variable", "TEST_KEY"], "needs both --judge URL and"),
            (["pope", *command(data, server)[1:]], "pope makes no use of --judge"),
        ):
            with pytest.raises(SystemExit) as stopped:
                main(wrong)
            assert stopped.value.code == 2
            assert message in capsys.readouterr().err
        assert server.bodies == []


def test_what_is_needed_is_said_before_anything_is_asked(data, tmp_path):
    describer = TellingDescriber(str)
    with pytest.raises(ValueError, match="description needs a judge: an OpenAI-compatible endpoint"):
        evaluate(settings_for("description", data), describer=describer, progress=False)
    ferret = prepare_ferret(tmp_path / "ferret", QUESTIONS)
    with ChatServer(overlap_judge) as server:
        with pytest.raises(ValueError, match=r"ferret-bench needs reference answers \(--references FILE\)"):
            evaluate(settings_for("ferret-bench", ferret, **judged_by(server)), describer=describer, progress=False)
        with pytest.raises(ValueError, match=r"or open questions and references.*folder of another task"):
            evaluate(settings_for("description", ferret, **judged_by(server)), describer=describer, progress=False)
    assert describer.asked == []


QUESTIONS = [
    ("description", "What surrounds <region>?"),
    ("description", "What is <region> like?"),
    ("reasoning", "What is the object <region> for?"),
]


@pytest.mark.parametrize("form", ["lines", "published"])
def test_ferret_bench_scores_each_category(tmp_path, form):
    data, references = prepare_ferret(tmp_path, QUESTIONS), tmp_path / "answers.json"
    texts = ["grass all around", "a flat thing", "to sit on it"]
    if form == "lines":
        lines = [json.dumps({"id": f"ferret-bench:{n}#1", "text": text}) for n, text in enumerate(texts)]
        references.write_text("\n".join(lines))
    else:
        entries = [{"question_id": n, "image": "x", "category": "c", "text": text} for n, text in enumerate(texts)]
        references.write_text(json.dumps(entries))
    contexts = tmp_path / "contexts.jsonl"
    lines = [json.dumps({"image": f"{n:012d}.jpg", "prompt": f"bench: [0.{n}, 0.2, 0.3, 0.4]"}) for n in range(3)]
    contexts.write_text("\n".join(lines))
    replies = {"grass": "10 5", "flat": "8 7", "sit": "9 3"}

    def judge(body: dict) -> str:
        return next(reply for word, reply in replies.items() if word in rated_texts(body)[0])

    with ChatServer(judge) as server:
        changes = {"task": "ferret-bench", "references": references, "contexts": contexts}
        metrics = evaluated(data, ["one", "two", "three"], server, **changes)
    assert values(metrics) == pytest.approx({"relative_score": 15 / 27})
    by_category = {row["category"]: row["scores"]["relative_score"] for row in metrics["by_category"]}
    assert by_category == pytest.approx({"description": 12 / 18, "reasoning": 3 / 9})
    content = next(
        body["messages"][1]["content"] for body in server.bodies if "grass" in body["messages"][1]["content"]
    )
    assert "What surrounds [0.033, 0.100, 0.333, 0.750]?" in content
    assert content.startswith("[Context]\nThis is in the picture:\nbench: [0.0, 0.2, 0.3, 0.4]\n\n[Question]")
    assert metrics["references"]["file"] == "answers.json"
    asked = read_predictions(tmp_path / "out-ferret-bench" / "predictions.jsonl")
    assert [prediction.question for prediction in asked] == [
        text.replace("<region>", "<mask>") for _, text in QUESTIONS
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            '{"id": "ferret-bench:0#1", "text": "x"}',
            "no reference answer for 2 of 3 questions, the first ferret-bench:1#1",
        ),
        ('{"id": "a", "text": "x"}\n{"id": "a", "text": "y"}', "two answers for a"),
        ('{"id": "a"}', 'entry 1: needed are "id"'),
        ("{", "neither JSON Lines nor a JSON list"),
        ("[1]", "does not hold objects"),
    ],
)
def test_reference_files_that_do_not_fit(tmp_path, content, message):
    (tmp_path / "references.jsonl").write_text(content)
    data = prepare_ferret(tmp_path, QUESTIONS)
    with ChatServer(overlap_judge) as server, pytest.raises(ValueError, match=message):
        evaluated(data, [], server, task="ferret-bench", references=tmp_path / "references.jsonl")
    assert server.bodies == []


def test_ospreys_published_description_questions_are_asked_as_they_stand(tmp_path):
    asked = [("description", "Could you describe the region shown as <region> in the picture in great detail?")]
    data = prepare_ferret(tmp_path, asked)
    (tmp_path / "answers.json").write_text(json.dumps([{"question_id": 0, "text": "a bright red tower"}]))
    with ChatServer(overlap_judge) as server:
        metrics = evaluated(data, ["A bright red tower"], server, references=tmp_path / "answers.json")
    assert values(metrics) == {"relative_score": 1.0}
    (made,) = read_predictions(tmp_path / "out-description" / "predictions.jsonl")
    assert made.question == "Could you describe the region shown as <mask> in the picture in great detail?"
