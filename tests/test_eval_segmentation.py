"""PQ, mIoU and AP against torchmetrics and by hand, and open-vocabulary segmentation from end to end."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchmetrics.functional.classification import multiclass_jaccard_index
from torchmetrics.functional.detection import panoptic_quality

from data_pipelines.prepare import prepare
from data_pipelines.records import RegionRecord
from eval.__main__ import main
from eval.evaluation import Settings, evaluate
from eval.intervals import Measure, estimate
from eval.panoptic import Segments, average_precision, mean_iou_measure, panoptic_measures
from eval.segmentation import MOST_PROPOSALS, SENTENCE, probabilities_by_similarity
from eval.task_options import TaskOptions
from eval.vocabulary import Vocabulary, read_vocabulary, spoken, vocabulary_of_categories, vocabulary_of_names

from .eval_fakes import FakeDescriber, Records
from .eval_segments import (
    ScoringDescriber,
    box_rle,
    model_folder,
    rle_of,
    save_tiny_encoder,
    segments_record,
    write_data,
)
from .tiny_models import save_tiny_model

THINGS = np.array([True, True, True, False, False, False])
NAMES = ("car", "person", "dog", "road", "sky", "tree")
CATEGORIES = [{"id": place, "name": name, "isthing": int(THINGS[place])} for place, name in enumerate(NAMES)]


def value_of(measure: Measure) -> float:
    return float(measure.formula(measure.statistics.sum(axis=0)[None])[0])


def random_scene(chooser: np.random.Generator, side: int = 12) -> tuple[np.ndarray, np.ndarray]:
    """Ids of segments (side, side), and the class of each: stuff once, things several times."""
    stuff = chooser.permutation([3, 4, 5])[: chooser.integers(1, 4)]
    classes = np.concatenate([stuff, chooser.integers(0, 3, chooser.integers(1, 5))])
    ids = chooser.integers(0, len(classes), (side, side))
    ids.ravel()[: len(classes)] = np.arange(len(classes))
    return ids, classes


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.0, 0.4, 1.0]))
def test_panoptic_quality_and_mean_iou_are_those_of_torchmetrics(seed: int, wrong: float) -> None:
    chooser = np.random.default_rng(seed)
    truth, predicted, columns = [], [], [[], [], [], []]
    for picture in range(3):
        ids, classes = random_scene(chooser)
        answers = np.where(chooser.random(len(classes)) < wrong, chooser.integers(0, 6, len(classes)), classes)
        truth.append(np.stack([classes[ids], ids], axis=-1))
        predicted.append(np.stack([answers[ids], ids], axis=-1))
        for column, values in zip(
            columns, ([f"{picture}"] * len(classes), np.bincount(ids.ravel()), classes, answers), strict=True
        ):
            column.extend(values)
    images, areas, right, answered = columns
    segments = Segments(
        images, np.array(areas, float), np.array(right), np.array(answered), np.arange(len(images)), THINGS
    )
    measures = {measure.name: measure for measure in panoptic_measures(segments, len(images))}
    target, found = torch.from_numpy(np.stack(truth)), torch.from_numpy(np.stack(predicted))
    for name, kept in (("PQ", THINGS | True), ("PQ_things", THINGS), ("PQ_stuff", ~THINGS)):
        if name == "PQ":
            expected = panoptic_quality(found, target, {0, 1, 2}, {3, 4, 5}, return_sq_and_rq=True)
            mine = [value_of(measures[kind]) for kind in ("PQ", "SQ", "RQ")]
            np.testing.assert_allclose(mine, expected.tolist(), atol=1e-6)
        elif name in measures:
            expected = panoptic_quality(found, target, {0, 1, 2}, {3, 4, 5}, return_per_class=True).flatten()
            present = np.isin(np.arange(6), [*right, *answered])
            np.testing.assert_allclose(
                np.nan_to_num(value_of(measures[name])),
                expected.numpy()[kept & present].mean() if (kept & present).any() else 0,
                atol=1e-6,
            )
    per_class = multiclass_jaccard_index(found[..., 0], target[..., 0], num_classes=6, average="none").numpy()
    present = np.isin(np.arange(6), [*right, *answered])
    assert value_of(mean_iou_measure(segments, len(images))) == pytest.approx(per_class[present].mean(), abs=1e-6)


def test_panoptic_quality_by_hand() -> None:
    # a picture: road of 60 pixels, sky of 30 answered as road, two cars of 5 of which one is answered as a person
    segments = Segments(
        ["a"] * 4,
        np.array([60.0, 30.0, 5.0, 5.0]),
        np.array([3, 4, 0, 0]),
        np.array([3, 3, 0, 1]),
        np.arange(4),
        THINGS,
    )
    values = {measure.name: value_of(measure) for measure in panoptic_measures(segments, 4)}
    # road: IoU 60/90, TP 1; sky: FN 1; car: TP 1 with IoU 1, FN 1; person: FP 1
    road, sky, car, person = 2 / 3, 0, 1 / 1.5, 0
    assert values["PQ"] == pytest.approx((road + sky + car + person) / 4)
    assert values["SQ"] == pytest.approx((2 / 3 + 1) / 4)
    assert values["RQ"] == pytest.approx((1 + 1 / 1.5) / 4)
    assert values["PQ_things"] == pytest.approx((car + person) / 2)
    assert values["PQ_stuff"] == pytest.approx((road + sky) / 2)
    mean_iou = mean_iou_measure(segments, 4)
    assert value_of(mean_iou) == pytest.approx((60 / 90 + 0 + 5 / 10 + 0) / 4)


def test_a_stuff_answer_that_is_less_than_half_right_matches_nothing() -> None:
    segments = Segments(["a"] * 2, np.array([40.0, 60.0]), np.array([3, 4]), np.array([3, 3]), np.arange(2), THINGS)
    values = {measure.name: value_of(measure) for measure in panoptic_measures(segments, 2)}
    assert values["PQ"] == values["RQ"] == 0


def test_average_precision_by_hand() -> None:
    masks = [box_rle(10, 10, 0, 0, 5, 5), box_rle(10, 10, 5, 5, 10, 10)]
    things = np.array([True, True])
    right = np.array([0, 1])
    ap = lambda rows: average_precision(["a", "a"], masks, right, np.array(rows), things)  # noqa: E731
    assert ap([[0.9, 0.1], [0.2, 0.8]]) == pytest.approx(1)
    assert ap([[0.6, 0.4], [0.7, 0.3]]) == pytest.approx(0.5)
    # of class 0 the wrong one goes first (precision 1/2 at every recall), of class 1 the right one
    assert ap([[0.6, 0.4], [0.55, 0.45]]) == pytest.approx(1)
    assert ap([[0.4, 0.6], [0.55, 0.45]]) == pytest.approx(0.5)
    assert average_precision(["a", "a"], masks, right, np.eye(2), ~things) is None


def test_only_the_100_best_pairs_of_a_picture_are_detections() -> None:
    masks = [rle_of(np.arange(120).reshape(10, 12) == place) for place in range(120)]
    right = np.zeros(120, int)
    probabilities = np.tile([0.9, 0.1], (120, 1)) - np.arange(120)[:, None] * 1e-4
    found = average_precision(["a"] * 120, masks, right, probabilities, np.array([True, True]))
    # recall reaches 100/120: 84 of COCOeval's 101 recall thresholds
    assert found == pytest.approx(84 / 101)
    stuff_first = average_precision(["a"] * 120, masks, right, probabilities[:, ::-1], np.array([True, False]))
    assert stuff_first == 0


class Letters:
    """Embeds a text by the letters a, b, c in it."""

    checksum = ""

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        rows = np.array([[text.count(letter) + 1e-9 for letter in "xyz"] for text in texts])
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_classes_are_chosen_by_their_best_synonym() -> None:
    vocabulary = Vocabulary((("x", "xy"), ("z",), ("y", "yyz", "zzzy")), "letters")
    found = probabilities_by_similarity(Letters(), ["xxy", "z ", "xxy"], vocabulary)  # type: ignore[arg-type]
    sentence = SENTENCE.format("")
    assert not set("xyz") & set(sentence)
    cosine = lambda a, b: float(Letters().encode([a])[0] @ Letters().encode([b])[0])  # noqa: E731
    best = [max(cosine("xxy", text) for text in synonyms) for synonyms in vocabulary.classes]
    expected = np.exp(best) / np.exp(best).sum()
    np.testing.assert_allclose(found[0], expected)
    np.testing.assert_allclose(found[0], found[2])
    assert found[1].argmax() == 1


def test_names_are_said_as_people_say_them(tmp_path: Path) -> None:
    assert spoken("building-other-merged") == ("building", "building-other-merged")
    assert spoken("floor-wood") == ("floor-wood",)
    assert spoken("windowpane, window ") == ("windowpane", "window")
    file = tmp_path / "classes.txt"
    file.write_text("0:road, railroad\n\n1:bus stop:sign,bus\n")
    vocabulary = read_vocabulary(file)
    assert vocabulary.classes == (("road", "railroad"), ("bus stop:sign", "bus"))
    assert [vocabulary.place_of(name) for name in ("Railroad", "bus", "road-merged", "car")] == [0, 1, 0, None]
    listed = vocabulary_of_categories([{"name": "tree-merged", "isthing": 0}, {"name": "car", "isthing": 1}, 3], "x")
    assert listed.classes == (("tree", "tree-merged"), ("car",))
    assert (listed.is_thing(0), listed.is_thing(1)) == (False, True)
    assert listed.place_of("tree-merged") == listed.place_of("tree") == 0
    assert vocabulary_of_names(["b", "a", "", "b"], "x").classes == (("a",), ("b",))


@pytest.mark.parametrize(
    ("text", "message"),
    [("", "names 0 classes"), ("a\n,\n", "line 2 names no class"), ("a,b\nA\n", "names the class 'A' twice")],
)
def test_files_without_classes_are_refused(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "classes.txt"
    file.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_vocabulary(file)


def scenes(count: int, seed: int = 0) -> list[RegionRecord]:
    chooser, made = np.random.default_rng(seed), []
    things = dict(zip(NAMES, THINGS.tolist(), strict=True))
    for number in range(count):
        ids, classes = random_scene(chooser, 16)
        made.append(
            segments_record(number, ids, {place: NAMES[class_] for place, class_ in enumerate(classes)}, things)
        )
    return made


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture
def data(tmp_path: Path) -> Records:
    return write_data(tmp_path / "data", scenes(6), CATEGORIES)


def run_of(data: Records, **changes) -> Settings:
    root = data.root.parent
    return Settings("open-vocab-segmentation", data.root, root / "out", model=model_folder(root / "model"), **changes)


def naming(data: Records, say: str = "{}") -> FakeDescriber:
    names = {(record.image, region.segmentation["counts"]): region.name for record in data for region in record.regions}
    return FakeDescriber(lambda image, counts: say.format(names[image, counts]))


def test_perfect_answers_score_one(data: Records, encoder: Path) -> None:
    metrics = evaluate(
        run_of(data, sentence_bert=encoder), records=data, describer=naming(data, SENTENCE), progress=False
    )
    values = {name: row["value"] for name, row in metrics["metrics"].items()}
    for name in ("class_accuracy", "PQ", "SQ", "RQ", "PQ_things", "PQ_stuff", "mIoU"):
        assert values[name] == 1, name
        assert metrics["metrics"][name]["low"] == 1
    assert metrics["metrics"]["AP"]["low"] is None
    assert metrics["metrics"]["class_accuracy"]["chance"] == pytest.approx(1 / 6)
    assert metrics["notes"]["vocabulary"] == "6 classes of the categories of data, 6 texts"
    assert metrics["question"] == "What is in <mask>? Using a short phrase."
    assert "AP" not in metrics["by_region_size"]


def test_without_an_encoder_nothing_stands_in_for_it(data: Records) -> None:
    metrics = evaluate(run_of(data), records=data, describer=naming(data), progress=False)
    assert set(metrics["not_measured"]) == {"class_accuracy", "PQ", "SQ", "RQ", "AP", "mIoU"}
    assert "--sentence-bert" in metrics["not_measured"]["PQ"]
    assert set(metrics["metrics"]) == {"semantic_iou", "exact_match"}
    assert "not measured" in (data.root.parent / "out" / "report.html").read_text()


def likely(data: Records, mistake: dict[str, str] | None = None) -> ScoringDescriber:
    names = {(record.image, region.segmentation["counts"]): region.name for record in data for region in record.regions}
    changed = mistake or {}
    return ScoringDescriber(
        lambda image, region, text: -1.0 if changed.get(name := names[image, region["counts"]], name) == text else -9.0
    )


def test_likelihoods_give_the_classes_with_candidates(data: Records) -> None:
    options = TaskOptions(candidates="names")
    run = run_of(data, task_options=options, shuffle_seed=1)
    metrics = evaluate(run, records=data, describer=likely(data), progress=False)
    assert {metrics["metrics"][name]["value"] for name in ("PQ", "mIoU", "AP", "top_1", "exact_match")} == {1.0}
    assert metrics["control"]["metrics"]["PQ"]["value"] < 0.5
    assert metrics["control"]["expected"]["top_1"] == metrics["control"]["metrics"]["top_1"]["value"]
    assert metrics["control"]["expected"]["PQ"] == metrics["control"]["metrics"]["PQ"]["value"]
    wrong = replace(run, out=run.out / "wrong", shuffle_seed=None)
    metrics = evaluate(wrong, records=data, describer=likely(data, {"car": "dog", "sky": "road"}), progress=False)
    assert 0 < metrics["metrics"]["PQ"]["value"] < 1
    assert metrics["metrics"]["PQ_things"]["value"] < 1
    assert metrics["metrics"]["PQ"]["low"] <= metrics["metrics"]["PQ"]["value"] <= metrics["metrics"]["PQ"]["high"]


def test_answers_in_random_order_score_chance(tmp_path: Path) -> None:
    data = write_data(tmp_path / "data", scenes(150, seed=5), CATEGORIES)
    chooser = np.random.default_rng(0)
    drawn = ScoringDescriber(lambda *_: float(chooser.random()))
    run = run_of(data, task_options=TaskOptions(candidates="names"))
    metrics = evaluate(run, records=data, describer=drawn, progress=False)
    row = metrics["metrics"]["top_1"]
    assert row["low"] <= row["chance"] <= row["high"]
    assert metrics["metrics"]["PQ"]["value"] < 0.2
    assert metrics["metrics"]["mIoU"]["value"] == pytest.approx(1 / 11, abs=0.03)


def test_segments_beyond_300_are_missed(tmp_path: Path) -> None:
    ids = np.arange(18 * 18).reshape(18, 18)
    record = segments_record(0, ids, dict.fromkeys(range(324), "car") | {0: "dog"}, {"car": True, "dog": True})
    data = write_data(tmp_path / "data", [record])
    metrics = evaluate(
        run_of(data, task_options=TaskOptions(candidates="names")), records=data, describer=likely(data), progress=False
    )
    assert metrics["counts"]["regions"] == MOST_PROPOSALS
    assert metrics["notes"]["unasked_segments"].startswith("24 beyond")
    quality = 299 / (299 + 24 / 2)
    assert metrics["metrics"]["PQ"]["value"] == pytest.approx((quality + 1) / 2)
    assert metrics["metrics"]["mIoU"]["value"] == pytest.approx((299 / 323 + 1) / 2)


def test_regions_that_overlap_have_no_panoptic_quality(tmp_path: Path) -> None:
    record = scenes(1)[0]
    regions = (*record.regions, replace(record.regions[0], name="tree"))
    metadata = {"is_thing": [*record.metadata["is_thing"], False]}
    data = write_data(tmp_path / "data", [replace(record, regions=regions, metadata=metadata)], CATEGORIES)
    run = run_of(data, task_options=TaskOptions(candidates="names"))
    metrics = evaluate(run, records=data, describer=ScoringDescriber(lambda *_: 0.0), progress=False)
    assert set(metrics["not_measured"]) == {"PQ", "SQ", "RQ", "mIoU"}
    assert "overlap in 1 pictures, the first 0.png" in metrics["not_measured"]["PQ"]
    assert "AP" in metrics["metrics"]


def test_a_name_that_is_no_class_is_named(data: Records, tmp_path: Path) -> None:
    classes = tmp_path / "classes.txt"
    classes.write_text("car\nperson,man\n")
    run = run_of(data, task_options=TaskOptions(candidates="names", classes=classes))
    with pytest.raises(ValueError, match=r"4 names of the data are no class of classes.txt, the first '\w+'"):
        evaluate(run, records=data, describer=ScoringDescriber(lambda *_: 0.0), progress=False)


def test_parts_of_the_answers_have_no_average_precision() -> None:
    whole = Measure.whole("AP", 0.25, np.ones(3))
    found = estimate(whole, ["a", "b", "c"])
    assert found is not None
    assert (found.value, found.low, found.high, found.regions) == (0.25, None, None, 3)
    assert estimate(whole, ["a", "b", "c"], np.array([True, True, False])) is None


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """COCO's own panoptic annotations of one picture, prepared; the picture is painted by its segments."""
    root, source = tmp_path_factory.mktemp("published"), Path(__file__).parent / "coco_panoptic"
    (root / "images").mkdir()
    Image.open(source / "000000439180.png").convert("RGB").save(root / "images" / "000000439180.jpg")
    annotations = source / "panoptic_val2017.json"
    prepare("panoptic", annotations, root / "images", root / "data", inputs={"panoptic": source}, progress=False)
    save_tiny_model(root / "model")
    return root


@pytest.mark.parametrize("by", ["similarity", "likelihood"])
def test_published_annotations_go_from_end_to_end(published: Path, encoder: Path, tmp_path: Path, by: str) -> None:
    how = {"similarity": ["--sentence-bert", encoder, "--max-new-tokens", 3], "likelihood": ["--candidates", "names"]}
    arguments = ["--model", published / "model", "--data", published / "data", "--out", tmp_path / "out", *how[by]]
    assert main([str(argument) for argument in ["open-vocab-segmentation", *arguments]]) == 0
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert {"PQ", "SQ", "RQ", "PQ_things", "PQ_stuff", "mIoU", "AP"} <= set(metrics["metrics"])
    assert metrics["counts"]["regions"] == 30
    assert metrics["options"]["classes"] == 133
    manifest = json.loads((published / "data" / "manifest.json").read_text())
    assert manifest["categories"][0] == {"id": 1, "name": "person", "isthing": 1}
    assert len(manifest["categories"]) == 133
    page = (tmp_path / "out" / "report.html").read_text()
    assert ("Calibration" in page) == (by == "likelihood")
