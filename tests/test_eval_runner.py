"""Asking: every region once, each picture opened once, nothing lost or repeated by a kill, true derangements."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.asking import Asking
from eval.predictions import PredictionLog, read_predictions
from eval.questions import Question, collect_questions, shuffled_regions
from eval.runner import CONTROL_FILE, PREDICTIONS_FILE, ask_all
from eval.tasks import TASKS
from osprey_tp.tiling import Tiling

from . import preloaded
from .eval_fakes import HEIGHT, WIDTH, FakeDescriber, Record, Records, Region, Turn, knowing, make_data, square

CLASSIFICATION, CAPTION = TASKS["referring-classification"], TASKS["region-caption"]
ASKING = Asking(batch_size=4, max_new_tokens=9)
NAMES = [["red", "green", "blue"], ["red"], ["blue", "green", "yellow", "red", "red", "blue"]]
ROOT = Path(__file__).resolve().parents[1]


def ask_classification(records: Records, describer: FakeDescriber, out: Path, asking: Asking, **options: bool) -> None:
    ask_all(CLASSIFICATION, collect_questions(CLASSIFICATION, records), describer, out, asking, **options)


def ids_in(path: Path) -> list[str]:
    return [prediction.id for prediction in read_predictions(path)]


def test_every_region_is_asked_once_in_batches_and_each_picture_opened_once(tmp_path: Path) -> None:
    records = make_data(tmp_path / "data", NAMES)
    describer = knowing(records)
    ask_classification(records, describer, tmp_path, ASKING, progress=False)
    found = read_predictions(tmp_path / PREDICTIONS_FILE)
    assert [(item.id, item.prediction) for item in found] == [
        (f"fake:{picture}#{region + 1}", name)
        for picture, names in enumerate(NAMES)
        for region, name in enumerate(names)
    ]
    assert all(item.references == (item.prediction,) and item.shown_region is None for item in found)
    assert describer.opened == ["0.png", "1.png", "2.png"]
    sizes = [(name, size) for name, size, _, _ in describer.asked]
    assert sizes == [("0.png", 3), ("1.png", 1), ("2.png", 4), ("2.png", 2)]
    assert (describer.together, describer.calls) == ([2, 1], [4, 4, 2])
    options = {"max_new_tokens": 9, "do_sample": False, "num_beams": 1}
    assert all(call[2:] == (CLASSIFICATION.question, options) for call in describer.asked)


def test_rows_and_memory_bound_the_pictures_that_are_open_together(tmp_path: Path) -> None:
    records = make_data(tmp_path / "data", [["red", "green"]] * 7 + [["red"] * 8])
    questions = collect_questions(CLASSIFICATION, records)
    opened = {}
    for most in (30, 25, 5):
        describer = knowing(records)
        describer.size = 10
        asking = Asking(batch_size=4, max_new_tokens=9, most_picture_bytes=most)
        ask_all(CLASSIFICATION, questions, describer, tmp_path / str(most), asking, progress=False)
        assert ids_in(tmp_path / str(most) / PREDICTIONS_FILE) == [question.id for question in questions]
        assert max(describer.calls) <= 4
        opened[most] = describer.together
    assert opened == {30: [2, 2, 2, 1, 1], 25: [2, 2, 2, 1, 1], 5: [1] * 8}


def test_a_region_that_cannot_be_used_costs_no_other_picture_its_answers(tmp_path: Path) -> None:
    records = make_data(tmp_path / "data", [["red"], ["blue", "green"], ["yellow"], ["green"]])
    right = knowing(records).answer

    def answer(image: str, counts: str) -> str:
        if image == "2.png":
            raise ValueError("region 1 is empty")
        return right(image, counts)

    questions = collect_questions(CLASSIFICATION, records)
    with pytest.raises(ValueError, match="region 1 is empty"):
        ask_all(CLASSIFICATION, questions, FakeDescriber(answer), tmp_path, ASKING, progress=False)
    assert ids_in(tmp_path / PREDICTIONS_FILE) == [question.id for question in questions[:3]]
    describer = knowing(records)
    ask_all(CLASSIFICATION, questions, describer, tmp_path, ASKING, progress=False)
    assert describer.opened == ["2.png", "3.png"]
    assert ids_in(tmp_path / PREDICTIONS_FILE) == [question.id for question in questions]


def test_what_fails_for_pictures_together_only_is_asked_one_by_one(tmp_path: Path) -> None:
    records = make_data(tmp_path / "data", NAMES)
    describer = knowing(records)
    together = describer.ask_many

    def needs_memory(questions, **options):
        if len({id(question.session) for question in questions}) > 1:
            raise MemoryError
        return together(questions, **options)

    describer.ask_many = needs_memory  # type: ignore[method-assign]
    ask_classification(records, describer, tmp_path, ASKING, progress=False)
    assert len(ids_in(tmp_path / PREDICTIONS_FILE)) == 10
    assert describer.calls == [3, 1, 4, 2]


def test_regions_of_records_that_share_a_picture_are_asked_together(tmp_path: Path) -> None:
    records = make_data(tmp_path / "data", [["red", "green"], ["blue"]])
    first = records.records[0]
    records.records.append(Record("again", first.image, HEIGHT, WIDTH, (first.regions[1],)))
    describer = knowing(records)
    ask_classification(records, describer, tmp_path, ASKING, progress=False)
    assert ids_in(tmp_path / PREDICTIONS_FILE) == ["fake:0#1", "fake:0#2", "again#1", "fake:1#1"]
    assert describer.opened == ["0.png", "1.png"]


def test_sizes_are_in_shares_of_the_picture_and_in_cells(tmp_path: Path) -> None:
    records = make_data(tmp_path / "data", [["red"]])
    question = collect_questions(CLASSIFICATION, records)[0]
    tiling = Tiling(tile_size=64, patch_size=8, scale_factor=2, max_tiles=9)
    plan = tiling.plan(HEIGHT, WIDTH)
    pixels = 144 * (plan.resized_height / HEIGHT) * (plan.resized_width / WIDTH)
    asking = Asking(4, 9, tiling)
    ask_all(CLASSIFICATION, [question], knowing(records), tmp_path, asking, progress=False)
    found = read_predictions(tmp_path / PREDICTIONS_FILE)[0]
    assert found.area_share == pytest.approx(144 / (HEIGHT * WIDTH))
    assert found.region_cells == pytest.approx(pixels / 64)


class Interrupted(Exception):
    pass


def test_a_run_that_broke_off_goes_on_without_asking_again(tmp_path: Path) -> None:
    records = make_data(tmp_path / "data", NAMES)
    questions = collect_questions(CLASSIFICATION, records)
    whole, control = tmp_path / PREDICTIONS_FILE, tmp_path / CONTROL_FILE
    right, answered = knowing(records).answer, []

    def breaks_at_six(image: str, counts: str) -> str:
        if len(answered) == 6:
            raise Interrupted
        answered.append(counts)
        return right(image, counts)

    with pytest.raises(Interrupted):
        ask_all(
            CLASSIFICATION, questions, FakeDescriber(breaks_at_six), tmp_path, ASKING, shuffle_seed=1, progress=False
        )
    before = ids_in(whole) + ids_in(control)
    assert 0 < len(before) <= 6
    with whole.open("ab") as file:
        file.write(b'{"id": "fake:2#1", "predic')
    describer = knowing(records)
    ask_all(CLASSIFICATION, questions, describer, tmp_path, ASKING, shuffle_seed=1, progress=False)
    assert sorted(ids_in(whole)) == sorted(question.id for question in questions)
    assert sorted(ids_in(control)) == sorted(question.id for question in questions if question.image != "1.png")
    assert sum(size for _, size, _, _ in describer.asked) == len(questions) * 2 - 1 - len(before)

    idle = knowing(records)
    ask_all(CLASSIFICATION, questions, idle, tmp_path, ASKING, shuffle_seed=1, progress=False)
    assert idle.opened == []


KILLED_RUN = """
import sys, time
from pathlib import Path
from eval.questions import collect_questions
from eval.asking import Asking
from eval.runner import ask_all
from eval.tasks import TASKS
from tests.eval_fakes import FakeDescriber, make_data
folder = Path(sys.argv[1])
records = make_data(folder / "data", [["red", "green", "blue"]] * 200)
def answer(image, counts):
    time.sleep(0.002)
    return "x" * 3000
task = TASKS["referring-classification"]
ask_all(task, collect_questions(task, records), FakeDescriber(answer), folder,
        Asking(2, 9), progress=False)
"""


def test_a_process_killed_at_any_moment_loses_and_repeats_nothing(tmp_path: Path) -> None:
    predictions = tmp_path / PREDICTIONS_FILE
    command = [preloaded.python(), "-c", KILLED_RUN, str(tmp_path)]
    for lines in (3, 20):
        process = subprocess.Popen(command, cwd=ROOT)
        while process.poll() is None and (not predictions.exists() or predictions.stat().st_size < 3000 * lines):
            time.sleep(0.001)
        os.kill(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    subprocess.run(command, cwd=ROOT, check=True)
    found = ids_in(predictions)
    assert sorted(found) == sorted(f"fake:{picture}#{region}" for picture in range(200) for region in (1, 2, 3))


def test_a_broken_line_in_the_middle_is_no_broken_end(tmp_path: Path) -> None:
    path = tmp_path / PREDICTIONS_FILE
    path.write_text('{"id": "a#1", "prediction": "x"}\n{"id": "b\n{"id": "c#1", "prediction": "x"}\n')
    with pytest.raises(ValueError, match=r"line 2 is no JSON"):
        PredictionLog(path)


def test_the_control_shows_another_region_for_every_question(tmp_path: Path) -> None:
    records = make_data(tmp_path / "data", NAMES)
    questions = collect_questions(CLASSIFICATION, records)
    describer = knowing(records)
    ask_all(CLASSIFICATION, questions, describer, tmp_path, ASKING, shuffle_seed=5, progress=False)
    masks = {question.id: question.regions[0]["counts"] for question in questions}
    names = {question.id: question.references[0] for question in questions}
    control = read_predictions(tmp_path / CONTROL_FILE)
    assert len(control) == 9
    for item in control:
        assert item.shown_region is not None
        assert masks[item.shown_region] != masks[item.id]
        assert item.prediction == names[item.shown_region]
        assert item.references == (names[item.id],)
    assert describer.opened == ["0.png", "1.png", "2.png"]


def question_with(number: int, counts: str) -> Question:
    return Question(
        f"r#{number}", "a.png", Path("a.png"), 4, 4, "<mask>?", ({"size": [4, 4], "counts": counts},), ("x",)
    )


@settings(deadline=None)
@given(st.lists(st.sampled_from("abcdef"), max_size=12), st.integers(0, 2**32))
def test_shuffling_is_a_derangement_of_the_different_masks(counts: list[str], seed: int) -> None:
    questions = [question_with(number, text) for number, text in enumerate(counts)]
    shown = shuffled_regions(questions, seed) if questions else {}
    if len(set(counts)) < 2:
        assert shown == {}
        return
    pairs = {(question.regions[0]["counts"], shown[question.id].regions[0]["counts"]) for question in questions}
    assert len(pairs) == len(set(counts))
    assert {replacement for _, replacement in pairs} == set(counts)
    assert all(own != replacement for own, replacement in pairs)
    assert shuffled_regions(questions, seed) == shown


def test_other_seeds_shuffle_otherwise() -> None:
    questions = [question_with(number, text) for number, text in enumerate("abcdefgh")]
    orders = {tuple(item.id for item in shuffled_regions(questions, seed).values()) for seed in range(20)}
    assert len(orders) > 15


def test_a_picture_of_another_size_than_its_record_stops_the_run_and_keeps_what_is_there(tmp_path: Path) -> None:
    records = make_data(tmp_path / "data", [["red"], ["green"]])
    record = records.records[1]
    records.records[1] = Record(record.id, record.image, HEIGHT + 1, WIDTH, record.regions)
    with pytest.raises(ValueError, match=r"1\.png is 48x64 pixels, its record says 49x64 \(question fake:1#1\)"):
        ask_all(
            CLASSIFICATION,
            collect_questions(CLASSIFICATION, records),
            knowing(records),
            tmp_path,
            ASKING,
            progress=False,
        )
    assert ids_in(tmp_path / PREDICTIONS_FILE) == ["fake:0#1"]


def test_descriptions_are_answers_to_the_own_question_about_a_region() -> None:
    regions = (Region(square(0, 0), "red"), Region(square(0, 20), "blue"), Region(square(0, 40), "green"))
    exchanges = [
        ("<region1>", "a red square"),
        ("Is <region1> left of <region2>?", "yes"),
        ("What colour is <region3>?", "green"),
        ("<region2>", "the blue one"),
        ("<region2>", "a blue square"),
        ("<region2>", "the blue one"),
    ]
    turns = [Turn(role, text) for pair in exchanges for role, text in zip(("user", "assistant"), pair, strict=True)]
    records = Records(Path(), [Record("r", "a.png", HEIGHT, WIDTH, regions, tuple(turns))])
    found = {question.id: question.references for question in collect_questions(CAPTION, records)}
    assert found == {"r#1": ("a red square",), "r#2": ("the blue one", "a blue square")}


def test_data_that_cannot_be_asked_about_are_refused(tmp_path: Path) -> None:
    records = make_data(tmp_path / "data", [["red"], ["blue"]])
    with pytest.raises(ValueError, match=r"region-caption needs turns .*; is it the folder of another task\?"):
        collect_questions(CAPTION, records)
    nameless = make_data(tmp_path / "nameless", [["", " "]])
    with pytest.raises(ValueError, match=r"referring-classification needs regions with a name"):
        collect_questions(CLASSIFICATION, nameless)
    records.records.append(records.records[0])
    with pytest.raises(ValueError, match=r"1 record ids stand twice in the data, the first fake:0"):
        collect_questions(CLASSIFICATION, records)


def test_a_limit_takes_the_first_regions_and_shuffles_as_without_it(tmp_path: Path) -> None:
    records = make_data(tmp_path / "data", [["red", "green", "blue", "yellow"], ["red"]])
    questions = collect_questions(CLASSIFICATION, records)
    ask_all(
        CLASSIFICATION, questions, knowing(records), tmp_path / "few", ASKING, limit=2, shuffle_seed=1, progress=False
    )
    ask_all(CLASSIFICATION, questions, knowing(records), tmp_path / "all", ASKING, shuffle_seed=1, progress=False)
    assert ids_in(tmp_path / "few" / PREDICTIONS_FILE) == ["fake:0#1", "fake:0#2"]
    whole = {item.id: item for item in read_predictions(tmp_path / "all" / CONTROL_FILE)}
    few = read_predictions(tmp_path / "few" / CONTROL_FILE)
    assert few == [whole["fake:0#1"], whole["fake:0#2"]]


def test_lines_of_predictions_are_plain_json(tmp_path: Path) -> None:
    records = make_data(tmp_path / "data", [["red"]])
    ask_all(
        CLASSIFICATION, collect_questions(CLASSIFICATION, records), knowing(records), tmp_path, ASKING, progress=False
    )
    line = json.loads((tmp_path / PREDICTIONS_FILE).read_text())
    assert line["id"] == "fake:0#1"
    assert set(line) >= {"question", "prediction", "references", "area_share", "region_cells", "image"}
