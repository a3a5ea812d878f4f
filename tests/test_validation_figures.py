"""Figures of a validation report are those of an independent computation, for every number of processes."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from data_pipelines import validation
from data_pipelines.__main__ import main
from data_pipelines.conversations import conversation_of
from data_pipelines.records import RecordFolder, Region, RegionRecord, Turn
from data_pipelines.writing import RecordWriter
from osprey_tp.images import load_image
from osprey_tp.masks import to_mask

from .annotation_files import box_mask, compressed, rewrite_shard, write_picture
from .tiny_models import save_tiny_model, tiny_processor_and_config

DIALOGUES = 280


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model") / "model")


def run(folder: Path, *options: object) -> tuple[int, dict]:
    """Exit code and JSON report of `validate`."""
    path = folder.parent / "report.json"
    code = main(["validate", str(folder), *map(str, options), "--json", str(path)])
    return code, json.loads(path.read_text(encoding="utf-8"))


def words(rng: np.random.Generator) -> str:
    return " ".join(rng.choice(["red", "naïve", "犬", "Wort", "the", "<region1>"], size=rng.integers(1, 9)))


@pytest.fixture
def dialogues(tmp_path) -> Path:
    """Random dialogues about 30 pictures of several sizes, and some of text alone."""
    rng = np.random.default_rng(0)
    sizes = [(int(height), int(width)) for height, width in rng.integers(20, 120, (30, 2))]
    for number, size in enumerate(sizes):
        write_picture(tmp_path / "images", f"{number}.png", *size)
    with RecordWriter(tmp_path / "records", source="llava", image_root=tmp_path / "images") as writer:
        for number in range(DIALOGUES):
            picture = int(rng.integers(30))
            height, width = sizes[picture]
            regions = [
                Region(compressed(box_mask(0, 0, *rng.integers(1, 20, 2), height, width)), "x")
                for _ in range(rng.integers(1, 4))
            ]
            texts = [words(rng) for _ in range(2 * rng.integers(1, 3))]
            said = tuple(Turn(("user", "assistant")[place % 2], text) for place, text in enumerate(texts))
            if number % 10:
                record = RegionRecord(f"llava:{number}", "llava", f"{picture}.png", height, width, tuple(regions), said)
            else:
                plain = tuple(Turn(turn.role, turn.text.replace("<region1>", "it")) for turn in said)
                record = RegionRecord(f"llava:{number}", "llava", "", 0, 0, turns=plain)
            writer.add(record)
    return tmp_path / "records"


def inverted_cdf(values: list[int], percentile: int) -> int:
    return int(np.percentile(values, percentile, method="inverted_cdf"))


def test_figures_are_those_of_an_independent_computation(dialogues, model, monkeypatch):
    monkeypatch.setattr(validation, "RECORDS_PER_TASK", 64)
    code, report = run(dialogues, "--model", model, "--max-tokens", "300")
    folder = RecordFolder.open(dialogues)
    records = list(folder)
    assert code == 0 or report["problems"].keys() == {"sample longer than the model takes"}

    for kind, role in (("questions", "user"), ("answers", "assistant")):
        texts = [turn.text for record in records for turn in record.turns if turn.role == role]
        if kind == "questions":
            own = [text for text in texts if text == "<region1>"]
            assert report["language"]["own_questions"] == len(own) > 0
            texts = [text for text in texts if text != "<region1>"]
        figures, counted = report["language"][kind], Counter(texts)
        assert figures["count"] == len(texts)
        assert figures["mean_words"] == round(sum(len(text.split()) for text in texts) / len(texts), 4)
        assert figures["distinct"] == len(counted)
        assert [entry["count"] for entry in figures["most_frequent"]] == [n for _, n in counted.most_common(10)]
        assert figures["most_frequent"][0]["share"] == round(counted.most_common(1)[0][1] / len(texts), 4)
        spoken = "".join(texts).replace("<region1>", "")
        foreign = spoken.count("ï") + spoken.count("犬")
        assert figures["scripts"] == {"CJK": spoken.count("犬"), "LATIN": spoken.count("ï")}
        assert figures["non_ascii_letter_share"] == round(foreign / sum(map(str.isalpha, spoken)), 4)

    with_picture = [record for record in records if record.image]
    per_picture = Counter()
    for record in with_picture:
        per_picture[record.image] += len(record.regions)
    figures = report["region_figures"]
    assert report["pictures"] == len(per_picture) == 30
    assert report["language"]["text_only_records"] == DIALOGUES // 10
    for name, values in (
        ("per_picture", list(per_picture.values())),
        ("per_record", [len(r.regions) for r in with_picture]),
    ):
        assert figures[name]["mean"] == round(float(np.mean(values)), 4)
        assert figures[name]["percentile_50"] == inverted_cdf(values, 50)
        assert (figures[name]["least"], figures[name]["most"]) == (min(values), max(values))
    masks = [to_mask(r.segmentation, record.height, record.width) for record in with_picture for r in record.regions]
    assert figures["count"] == len(masks)
    assert figures["sizes"]["small"] == sum(mask.sum() < 32 * 32 for mask in masks)
    shares = np.array([mask.mean() for mask in masks])
    for edge, count in figures["share_of_picture"].items():
        low, high = (float(part.rstrip("%")) / 100 for part in edge.split("-"))
        assert count == ((shares > low + 1e-12) & (shares <= high + 1e-12)).sum()


def test_lengths_are_those_of_the_samples_and_too_long_ones_are_removed(dialogues, model, tmp_path):
    processor, _ = tiny_processor_and_config()
    folder = RecordFolder.open(dialogues)
    lengths = {}
    for record in folder:
        image = load_image(folder.image_path(record)) if record.image else None
        batch = processor.prepare([conversation_of(record, image)], return_labels=True)
        lengths[record.id] = batch["input_ids"].shape[1]
    values = list(lengths.values())
    limit = inverted_cdf(values, 90)
    code, report = run(dialogues, "--model", model, "--max-tokens", limit)
    assert code == 1
    long = [name for name, length in lengths.items() if length > limit]
    found = report["problems"]["sample longer than the model takes"]
    assert (found["count"], found["first_ids"]) == (len(long), long[:10])
    figures = report["lengths"]
    assert (figures["least"], figures["most"], figures["limit"]) == (min(values), max(values), limit)
    assert figures["longest_record"] == max(lengths, key=lengths.__getitem__)
    for percentile in (50, 90, 95, 99):
        assert figures[f"percentile_{percentile}"] == inverted_cdf(values, percentile)
    assert figures["mean"] == round(float(np.mean(values)), 4)
    for bar in figures["histogram"]:
        assert bar["samples"] == sum(bar["from"] <= value <= bar["to"] for value in values)
    assert sum(bar["samples"] for bar in figures["histogram"]) == len(values)

    options = ["--model", str(model), "--max-tokens", str(limit)]
    assert main(["validate", str(dialogues), "--fix", str(tmp_path / "fixed"), *options]) == 0
    copy = RecordFolder.open(tmp_path / "fixed")
    assert [record.id for record in copy] == [name for name in lengths if name not in long]
    assert run(tmp_path / "fixed", *options)[1]["problems"] == {}


def test_the_report_is_the_same_for_every_number_of_processes(dialogues, monkeypatch):
    monkeypatch.setattr(validation, "RECORDS_PER_TASK", 50)
    monkeypatch.setattr(validation, "PICTURES_PER_TASK", 3)

    def change(rows):
        for row in rows[::7]:
            row["image"] = "absent.png" if row["image"] else ""
            row["id"] = "llava:same"
        for row in rows[1::90]:
            row["regions"][0]["counts"] = "~"

    rewrite_shard(dialogues, change)
    one, three = run(dialogues), run(dialogues, "--processes", 3)
    assert one == three
    assert one[0] == 1
    assert one[1]["problems"]["record id stands twice"]["count"] == len(range(0, DIALOGUES, 7)) - 1
