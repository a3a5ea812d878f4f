"""`validate` on the command line: every kind of problem is found, figures are right, and a cleaned copy is clean."""

import json
import math
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from data_pipelines.__main__ import main
from data_pipelines.records import RecordFolder, Region, RegionRecord, Turn
from data_pipelines.validation import validate
from data_pipelines.writing import RecordWriter
from osprey_tp.images import load_image

from .annotation_files import (
    HEIGHT,
    WIDTH,
    annotation_entry,
    box_mask,
    compressed,
    image_entry,
    polygon,
    rewrite_shard,
    write_captions,
    write_instances,
    write_picture,
    write_simple_instances,
)
from .tiny_models import save_tiny_model


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model") / "model")


def prepared(folder: Path, pictures: int = 3) -> Path:
    """Three records of two regions."""
    annotations = write_simple_instances(folder, pictures)
    arguments = ["--annotations", annotations, "--images", folder / "images", "--out", folder / "records"]
    assert main(["prepare", "coco", *map(str, arguments)]) == 0
    return folder / "records"


def run(*arguments: object) -> tuple[int, dict]:
    """Exit code and JSON report of `validate PATH ...`."""
    path = Path(str(arguments[0])).parent / "report.json"
    code = main(["validate", *map(str, arguments), "--json", str(path)])
    report = json.loads(path.read_text(encoding="utf-8"))
    path.unlink()
    assert (code == 0) == report["usable"] or "--fix" in arguments
    return code, report


def turns(*texts: str) -> list[dict]:
    return [{"role": ("user", "assistant")[place % 2], "text": text} for place, text in enumerate(texts)]


def change_region(**values):
    return lambda rows: rows[0]["regions"][0].update(values)


def change_record(**values):
    return lambda rows: rows[0].update(values)


def repeat_id(rows):
    rows[1]["id"] = rows[2]["id"] = rows[0]["id"]


EMPTY = compressed(box_mask(0, 0, 0, 0))["counts"]
BROKEN = {
    "malformed mask": change_region(counts="~~"),
    "empty region": change_region(counts=EMPTY),
    "malformed box": change_region(box=[5.0, 5.0, 5.0, 9.0]),
    "box beyond the picture": change_region(box=[0.0, 0.0, WIDTH + 9.0, 5.0]),
    "region without a name or an answer": change_region(name="  "),
    "picture of another size than the record": lambda rows: rows[0].update(image="large.png"),
    "record id stands twice": repeat_id,
    "region reference out of range": change_record(turns=turns("Is <region9> red?", "Yes.")),
    "empty answer": change_record(turns=turns("Is <region1> red?", "Yes.", "Why?", " ")),
    "text holds a placeholder of the prompt": change_record(turns=turns("Is <region1> red?", "A <mask>.")),
    "turns do not alternate between user and assistant": change_record(turns=turns("Is <region1> red?")),
    "nothing to learn: neither regions nor turns": change_record(regions=[]),
    "regions without a picture": change_record(image=""),
    "picture without area": change_record(height=0),
    "record that makes no conversation": change_record(
        image="", height=0, width=0, regions=[], turns=turns("", "A picture.")
    ),
    "row that is no record": change_record(metadata="{"),
    "metadata that is no text": change_record(metadata='{"rationale": 3}'),
    "image path leaves the image folder": change_record(image="../instances.json"),
    "unreadable picture": change_record(image="cut.jpg"),
    "picture not found": change_record(image="absent.jpg"),
}


def odd_pictures(folder: Path) -> None:
    write_picture(folder, "large.png", 50, 70)
    write_picture(folder, "whole.jpg")
    content = (folder / "whole.jpg").read_bytes()
    (folder / "cut.jpg").write_bytes(content[: len(content) // 2])


@pytest.mark.parametrize("reason", BROKEN)
def test_every_kind_of_problem_is_found_and_a_fixed_copy_is_clean(tmp_path, capsys, reason):
    folder = prepared(tmp_path)
    odd_pictures(tmp_path / "images")
    assert run(folder)[0] == 0
    rewrite_shard(folder, BROKEN[reason])
    before = list(tmp_path.iterdir())
    capsys.readouterr()
    code, report = run(folder)
    assert code == 1
    found = report["problems"][reason]
    first = "row 0" if reason == "row that is no record" else "coco:1"
    assert found["first_ids"][0] == first
    assert found["count"] == len(found["first_ids"])
    assert found["remedy"]
    assert found["example"] or reason.startswith("nothing to learn")
    text = capsys.readouterr().out
    assert f"problem: {reason}: {found['count']} ({first}" in text
    assert "something would break training" in text
    assert list(tmp_path.iterdir()) == before

    assert main(["validate", str(folder), "--fix", str(tmp_path / "fixed")]) == 0
    assert run(tmp_path / "fixed")[1]["problems"] == {}
    copy = RecordFolder.open(tmp_path / "fixed")
    assert copy[-1].id == ("coco:1" if reason == "record id stands twice" else "coco:3")
    removed = copy.manifest["rejections"]
    lines = [json.loads(line) for line in (tmp_path / "fixed" / "rejections.jsonl").read_text().splitlines()]
    assert Counter(line["reason"] for line in lines) == {name: entry["count"] for name, entry in removed.items()}
    assert all(line["id"].startswith(first) for line in lines)
    if reason != "row that is no record":
        lost = sum(entry["annotations"] for entry in removed.values())
        assert report["regions"] == copy.manifest["counts"]["out"]["regions"] + lost


def test_a_fixed_copy_says_what_it_was_made_from_and_keeps_sound_records(tmp_path, capsys):
    folder = prepared(tmp_path)
    original = RecordFolder.open(folder)
    rewrite_shard(folder, BROKEN["empty region"])
    out = tmp_path / "fixed"
    capsys.readouterr()
    assert main(["validate", str(folder), "--fix", str(out)]) == 0
    assert "removed: empty region: 1 (coco:1/region1)" in capsys.readouterr().out
    copy = RecordFolder.open(out)
    assert [copy[index] for index in (1, 2)] == [original[index] for index in (1, 2)]
    assert copy[0].regions == original[0].regions[1:]
    assert copy.manifest["arguments"]["fixed"] == str(folder)
    assert copy.manifest["arguments"]["of"] == original.manifest["arguments"]
    assert copy.manifest["inputs"][0]["name"] == "manifest.json"
    assert copy.manifest["image_root"] == "../images"
    assert main(["validate", str(folder), "--fix", str(out)]) == 1
    assert main(["validate", str(folder), "--fix", str(out), "--overwrite"]) == 0


def test_of_a_repeated_id_the_first_usable_record_stays(tmp_path):
    folder = prepared(tmp_path)

    def change(rows):
        repeat_id(rows)
        rows[0]["image"] = "absent.jpg"

    rewrite_shard(folder, change)
    assert main(["validate", str(folder), "--fix", str(tmp_path / "fixed")]) == 0
    (kept,) = RecordFolder.open(tmp_path / "fixed")
    assert (kept.id, kept.image) == ("coco:1", "000000000002.jpg")


def test_a_changed_shard_differs_from_its_checksum(tmp_path):
    folder = prepared(tmp_path)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["shards"][0]["sha256"] = "0" * 64
    (folder / "manifest.json").write_text(json.dumps(manifest))
    code, report = run(folder)
    assert code == 1
    assert report["problems"]["shard differs from its checksum"]["first_ids"] == ["records-00000.arrow"]
    assert main(["validate", str(folder), "--fix", str(tmp_path / "fixed")]) == 0
    assert run(tmp_path / "fixed")[0] == 0


def test_warnings_do_not_break_training(tmp_path, capsys):
    folder = prepared(tmp_path, pictures=24)

    def change(rows):
        for row in rows:
            row["turns"] = turns("Is <region1> red?", "Yes.")
        rows[1]["turns"] = turns("Are <region1> and <region2> red?", "No.")

    rewrite_shard(folder, change)
    capsys.readouterr()
    code, report = run(folder)
    assert code == 0
    assert report["problems"] == {}
    assert report["warnings"]["region never mentioned"]["count"] == 23
    assert report["warnings"]["region never mentioned"]["example"] == "region2"
    assert report["warnings"]["one answer stands for most"]["first_ids"] == ["'Yes.'"]
    assert "warning: region never mentioned: 23 (coco:1, coco:3, " in capsys.readouterr().out


def test_regions_that_a_prompt_introduces_are_seen(tmp_path):
    write_picture(tmp_path, "1.png")
    region = Region(compressed(box_mask(1, 1, 9, 9)), "")
    dialogue = (Turn("user", "What colour is the cat?"), Turn("assistant", "Black."))
    with RecordWriter(tmp_path / "records", source="osprey-conversation", image_root=tmp_path) as writer:
        writer.add(
            RegionRecord("osprey-conversation:1", "osprey-conversation", "1.png", HEIGHT, WIDTH, (region,), dialogue)
        )
    assert run(tmp_path / "records")[1]["warnings"] == {}


def test_samples_that_cannot_be_labelled_or_rendered_are_found(tmp_path, model):
    folder = prepared(tmp_path)
    assert run(folder, "--model", model)[0] == 0
    marks = tmp_path / "unmarked"
    save_tiny_model(marks)
    template = marks / "chat_template.jinja"
    text = template.read_text().replace("{%- generation -%}", "").replace("{%- endgeneration -%}", "")
    template.write_text(text)
    code, report = run(folder, "--model", marks)
    assert code == 1
    assert report["problems"]["sample without an answer to learn from"]["count"] == 3
    code, report = run(folder, "--model", model, "--template", "plain")
    assert code == 1
    problem = report["problems"]["sample that the model's processor does not take"]
    assert problem["count"] == 3
    assert "0 <mask> placeholders, 2 regions" in problem["example"]


def test_every_picture_is_opened_once(tmp_path, monkeypatch):
    arguments = [
        "--annotations",
        write_captions(tmp_path),
        "--images",
        tmp_path / "images",
        "--out",
        tmp_path / "records",
    ]
    assert main(["prepare", "captions", *map(str, arguments)]) == 0
    opened = []
    monkeypatch.setattr("data_pipelines.checks.load_image", lambda path: opened.append(path) or load_image(path))
    report = validate(RecordFolder.open(tmp_path / "records"), progress=False)
    assert (report.records, report.pictures, report.regions, report.problems) == (2, 1, 0, {})
    assert len(opened) == 1
    Image.new("RGB", (10, 10)).save(tmp_path / "images" / "000000000001.jpg")
    report = validate(RecordFolder.open(tmp_path / "records"), progress=False)
    assert report.problems["picture of another size than the record"]["count"] == 2


def test_evaluation_records_may_leave_a_question_open(tmp_path, model):
    write_picture(tmp_path / "images", "1.png")
    with RecordWriter(
        tmp_path / "records", source="pope", purpose="evaluation", image_root=tmp_path / "images"
    ) as writer:
        question = (Turn("user", "Is there a dog?"),)
        writer.add(RegionRecord("pope:1", "pope", "1.png", HEIGHT, WIDTH, turns=question))
    code, report = run(tmp_path / "records", "--model", model)
    assert (code, report["purpose"], report["lengths"]["mean_tokens"]["answers"]) == (0, "evaluation", 0)


def raw_file(folder: Path) -> Path:
    annotations = [
        annotation_entry(1, 1, [polygon(1, 1, 9, 9)]),
        annotation_entry(2, 1, compressed(box_mask(1, 1, 9, 9)), iscrowd=1),
        annotation_entry(3, 2, None),
        annotation_entry(4, 3, [polygon(1, 1, 9, 9)]),
    ]
    path = write_instances(folder, [image_entry(number) for number in (1, 2, 3)], annotations)
    (folder / "images" / "000000000003.jpg").unlink()
    return path


def test_a_raw_file_is_read_as_prepare_would_and_nothing_is_written(tmp_path, model, capsys):
    path = raw_file(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    options = ["--source", "coco", "--images", tmp_path / "images"]
    code, report = run(path, *options, "--model", model)
    assert code == 0
    assert (report["records"], report["regions"]) == (1, 1)
    assert {reason: entry["first_ids"] for reason, entry in report["left_out"].items()} == {
        "crowd region": ["coco:1#2"],
        "no segmentation": ["coco:2#3"],
        "picture not found": ["coco:3"],
        "picture without a usable region": ["coco:2"],
    }
    assert "left out: crowd region: 1 (coco:1#2)" in capsys.readouterr().out
    assert run(path, *options, "--include-crowd")[1]["regions"] == 2
    (tmp_path / "images" / "000000000001.jpg").write_bytes(b"no picture")
    code, report = run(path, *options)
    assert code == 1
    assert report["problems"]["unreadable picture"]["first_ids"] == ["coco:1"]
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{}/instances.json"], "looks like COCO instances, use `coco`; validate it with --source NAME --images DIR"),
        (["{}/captions.json"], "looks like COCO captions, use `captions`"),
        (["{}/list.json"], "no known format: it holds a JSON list"),
        (["{}/lines.jsonl"], "looks like JSON Lines of LLaVA conversations, use `llava`"),
        (["{}/images/000000000001.jpg"], "looks like a JPEG picture"),
        (["{}/text.txt"], "cannot be read as JSON"),
        (["{}/instances.json", "--source", "coco"], "name it with --images DIR"),
        (["{}/captions.json", "--source", "coco", "--images", "{}/images"], "use `captions`"),
        (["{}/instances.json", "--source", "coco", "--images", "{}/images", "--fix", "{}/x"], "cleans a folder"),
        (["{}/records", "--fix", "{}/records", "--overwrite"], "the folder itself"),
        (["{}/records", "--fix", "{}/images"], "not a folder of records"),
        (["{}/records", "--processes", "0"], "number of processes is 0"),
        (["{}/records", "--max-tokens", "9"], "name it with --model DIR"),
        (["{}/records", "--model", "{}/images"], "processor_config.json"),
        (["{}/records", "--model", "{}", "--max-tokens", "0"], "processor_config.json"),
    ],
)
def test_what_cannot_be_done_is_one_line(tmp_path, capsys, arguments, message):
    prepared(tmp_path)
    write_captions(tmp_path)
    (tmp_path / "list.json").write_text("[1, 2]")
    (tmp_path / "lines.jsonl").write_text('{"id": 1, "conversations": []}\n' * 2)
    (tmp_path / "text.txt").write_text("no JSON")
    before = sorted(tmp_path.rglob("*"))
    capsys.readouterr()
    assert main(["validate", *(argument.format(tmp_path) for argument in arguments)]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert sum("error:" in line for line in error.splitlines()) == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_nothing_left_is_an_error_that_leaves_nothing(tmp_path, capsys):
    folder = prepared(tmp_path, pictures=1)
    rewrite_shard(folder, change_record(image="absent.jpg"))
    assert main(["validate", str(folder), "--fix", str(tmp_path / "fixed")]) == 1
    assert "no usable record" in capsys.readouterr().err
    assert not (tmp_path / "fixed").exists()


def test_boxes_that_are_no_numbers_are_malformed(tmp_path):
    folder = prepared(tmp_path)
    rewrite_shard(folder, change_region(box=[math.nan, 0.0, 1.0, 1.0]))
    assert "malformed box" in run(folder)[1]["problems"]
    rewrite_shard(folder, change_region(box=[0.0, 1.0]))
    assert "malformed box" in run(folder)[1]["problems"]
    rewrite_shard(folder, change_region(box=[2.0**31] * 999))
    example = run(folder)[1]["problems"]["malformed box"]
    assert len(example["example"]) < 310
