"""Yes/no questions about categories, checked by parsing the questions back against the record."""

import re
import string
from collections import Counter, defaultdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.__main__ import main
from data_pipelines.conversations import conversation_of
from data_pipelines.generation.positive_negative import QUESTIONS, positive_negative_records
from data_pipelines.records import RecordFolder, RegionRecord, Rejection, read_manifest, record_problems

from .generation_records import record, write_folder

NAMES = st.sampled_from(["cat", "dog", "Cat", "street_sign", "street sign", "toaster", "naïve 犬", "zebra", " "])


def asked(question: str) -> tuple[int, str]:
    """Region and category of a question, whatever its wording."""
    for wording in QUESTIONS:
        pattern = re.escape(wording).replace(r"\{region\}", r"<region(?P<region>\d+)>")
        if found := re.fullmatch(pattern.replace(r"\{category\}", "(?P<category>.+)"), question):
            return int(found["region"]), found["category"]
    raise AssertionError(question)


def plain(name: str) -> str:
    return name.replace("_", " ").casefold()


def questions_of(made: RegionRecord) -> list[tuple[int, str, str]]:
    texts = [turn.text for turn in made.turns]
    return [(*asked(question), answer) for question, answer in zip(texts[::2], texts[1::2], strict=True)]


@settings(max_examples=150, deadline=None)
@given(
    names=st.lists(NAMES, max_size=7),
    negatives=st.lists(NAMES, max_size=5),
    unsure=st.lists(NAMES, max_size=3),
    max_regions=st.integers(1, 4),
    seed=st.integers(0, 3),
)
def test_each_named_region_gets_a_yes_and_a_no_that_are_certain(names, negatives, unsure, max_regions, seed):
    source = record(7, *names, negative_categories=negatives, not_exhaustive_categories=unsure)
    made = list(positive_negative_records(source, max_regions=max_regions, seed=seed))
    assert made == list(positive_negative_records(source, max_regions=max_regions, seed=seed))
    records = [one for one in made if isinstance(one, RegionRecord)]
    certain = {plain(name) for name in negatives if name.strip()} - {plain(name) for name in [*names, *unsure]}
    named = [region for region in source.regions if region.name.strip()]
    left_out = sum(one.annotations for one in made if isinstance(one, Rejection))
    assert sum(len(one.regions) for one in records) + left_out == len(names)
    if not certain or not named:
        assert records == []
        return
    assert [region for one in records for region in one.regions] == named
    absent = Counter()
    for one in records:
        assert len(one.regions) <= max_regions
        assert record_problems(one) == []
        answers = defaultdict(dict)
        for number, category, answer in questions_of(one):
            assert answer not in answers[number]
            answers[number][answer] = category
        for number, region in enumerate(one.regions, start=1):
            assert set(answers[number]) == {"Yes", "No"}
            assert answers[number]["Yes"] == region.name.replace("_", " ")
            assert plain(answers[number]["No"]) in certain
            absent[plain(answers[number]["No"])] += 1
    assert max(absent.values()) - min(absent[name] for name in certain) <= 1


def test_answers_cannot_be_guessed_from_place_or_wording():
    places, wordings = Counter(), Counter()
    for number in range(300):
        source = record(number, "dog", "cat", negative_categories=["zebra", "toaster"])
        (made,) = positive_negative_records(source, max_regions=10, seed=0)
        for place, (question, answer) in enumerate(zip(made.turns[::2], made.turns[1::2], strict=True)):
            places[place, answer.text] += 1
            bare = re.sub(r"<region\d>|dog|cat(?!egory)|zebra|toaster", "", question.text)
            wordings[bare, answer.text] += 1
    assert all(100 < count < 200 for count in places.values())
    assert len(places) == 8
    assert len(wordings) == 2 * len(QUESTIONS)
    assert all(70 < count < 170 for count in wordings.values())


def test_wordings_hold_one_region_one_category_and_no_article():
    for wording in QUESTIONS:
        fields = sorted(name for _, name, _, _ in string.Formatter().parse(wording) if name)
        assert fields == ["category", "region"]
        assert not re.search(r"\ban? \{category\}", wording)


def test_the_command(tmp_path, capsys):
    folder = write_folder(
        tmp_path / "lvis",
        record(1, "dog", "cat", source="lvis", negative_categories=["zebra"], split="train"),
        record(2, "dog", source="lvis", negative_categories=["cat"], not_exhaustive_categories=["cat"]),
        record(3, "dog", source="lvis"),
    )
    arguments = ["generate", "positive-negative", str(folder), "--out", str(tmp_path / "out")]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "1 records with 2 regions and 4 answers" in printed
    assert "certain to be absent: 2 (lvis:2, lvis:3)" in printed
    manifest = read_manifest(tmp_path / "out")
    assert manifest["counts"]["in"] == {"records": 3}
    (made,) = RecordFolder.open(tmp_path / "out")
    assert (made.id, made.metadata) == ("osprey-lvis-positive-negative:lvis:1", {"split": "train"})
    conversation = conversation_of(made, None)
    assert len(conversation[0]["content"][0]["regions"]) == 4
    assert main([*arguments, "--overwrite", "--limit", "1"]) == 0


def test_a_list_of_categories_that_is_none_is_an_error(tmp_path, capsys):
    folder = write_folder(tmp_path / "lvis", record(1, "dog", source="lvis", negative_categories=[3]))
    assert main(["generate", "positive-negative", str(folder), "--out", str(tmp_path / "out")]) == 1
    assert "negative_categories is not a list of names (record lvis:1)" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("option", [["--endpoint", "http://h"], ["--model", "m"], ["--captions", "c"]])
def test_options_of_a_language_model_are_refused(tmp_path, capsys, option):
    assert main(["generate", "positive-negative", str(tmp_path), "--out", str(tmp_path / "out"), *option]) == 1
    assert f"leave out {option[0]}" in capsys.readouterr().err
