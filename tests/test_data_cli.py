"""`python -m data_pipelines` as people run it."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from data_pipelines.__main__ import main
from data_pipelines.records import RecordFolder

from .annotation_files import write_captions, write_referring, write_simple_instances

ROOT = Path(__file__).resolve().parents[1]


def prepare(folder: Path, annotations: Path, *more: str, source: str = "coco") -> int:
    arguments = ["--annotations", annotations, "--images", folder / "images", "--out", folder / "records"]
    return main(["prepare", source, *map(str, arguments), *more])


def test_prepare_validate_show(tmp_path, capsys):
    assert prepare(tmp_path, write_simple_instances(tmp_path), "--limit", "2") == 0
    assert "2 records with 4 regions" in capsys.readouterr().out
    assert main(["validate", str(tmp_path / "records")]) == 0
    assert "no problem found" in capsys.readouterr().out
    page = tmp_path / "pages" / "page.html"
    assert main(["show", str(tmp_path / "records"), "--out", str(page), "--published-prompts"]) == 0
    text = page.read_text(encoding="utf-8")
    assert "2 of 2 records" in capsys.readouterr().out
    assert text.count("data:image/jpeg;base64,") == 2
    assert "coco:1" in text
    assert "naïve dog 犬" in text
    assert "In the conversation below" in text
    assert not re.search(r"""(?:src|href)=["'](?!data:)""", text)
    assert sorted(path.name for path in page.parent.iterdir()) == ["page.html"]


def test_a_page_shows_which_region_each_question_is_about_and_escapes_text(tmp_path):
    prepare(tmp_path, write_referring(tmp_path), source="refcoco")
    page = tmp_path / "page.html"
    assert main(["show", str(tmp_path / "records"), "--out", str(page)]) == 0
    text = page.read_text(encoding="utf-8")
    assert "the cat &lt; the dog" in text
    assert "<mask>" not in text
    assert re.search(r'class="user said">.*<span class="badge"[^>]*>1</span>', text, re.DOTALL)


def test_a_page_of_captions(tmp_path):
    prepare(tmp_path, write_captions(tmp_path), source="captions")
    assert main(["show", str(tmp_path / "records"), "--out", str(tmp_path / "page.html"), "--limit", "1"]) == 0
    assert (tmp_path / "page.html").read_text(encoding="utf-8").count("<article>") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["show", "{}/nothing", "--out", "{}/page.html"], "not a folder of records"),
        (["show", "{}/records", "--out", "{}/page.html", "--limit", "0"], "the limit is 0"),
        (["show", "{}/records", "--out", "{}/page.html", "--images", "{}"], "record coco:1"),
        (["validate", "{}/nothing"], "not a folder of records"),
        (["synthesize", "--out", "{}/images"], "exists already"),
        (["synthesize", "--out", "{}/scenes", "--train", "-1"], "-1 scenes"),
    ],
)
def test_errors_are_one_line_and_leave_nothing(tmp_path, capsys, arguments, message):
    prepare(tmp_path, write_simple_instances(tmp_path, pictures=1))
    before = sorted(tmp_path.iterdir())
    capsys.readouterr()
    assert main([argument.format(tmp_path) for argument in arguments]) == 1
    lines = [line for line in re.split(r"[\r\n]+", capsys.readouterr().err) if "error:" in line]
    assert len(lines) == 1
    assert message in lines[0]
    assert lines[0].startswith(f"python -m data_pipelines {arguments[0]}: error:")
    assert sorted(tmp_path.iterdir()) == before


def test_validate_ends_with_1_when_something_would_break_training(tmp_path, capsys):
    prepare(tmp_path, write_simple_instances(tmp_path))
    (tmp_path / "images" / "000000000002.jpg").unlink()
    capsys.readouterr()
    assert main(["validate", str(tmp_path / "records")]) == 1
    assert "problem: picture not found: 1 (coco:2)" in capsys.readouterr().out


def test_the_command_names_the_source_that_reads_a_wrong_file(tmp_path):
    annotations = write_captions(tmp_path)
    command = [
        "prepare",
        "coco",
        "--annotations",
        annotations,
        "--images",
        tmp_path / "images",
        "--out",
        tmp_path / "x",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "data_pipelines", *map(str, command)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert "this looks like COCO captions, use `captions`" in done.stderr
    assert not (tmp_path / "x").exists()


def test_synthetic_scenes_take_the_same_way_as_real_data(tmp_path, capsys):
    scenes = tmp_path / "scenes"
    sizes = ["--train", "3", "--val", "1", "--test", "1", "--size", "96", "128"]
    assert main(["synthesize", "--out", str(scenes), "--seed", "3", *sizes]) == 0
    for source, kind in (
        ("synthetic", "instances"),
        ("coco", "instances"),
        ("refcoco", "refs"),
        ("captions", "captions"),
    ):
        out = tmp_path / "records" / source
        path = scenes / "annotations" / f"{kind}_train.json"
        arguments = ["--annotations", path, "--images", scenes / "images" / "train", "--out", out]
        assert main(["prepare", source, *map(str, arguments)]) == 0
        assert main(["validate", str(out)]) == 0
        folder = RecordFolder.open(out)
        content = json.loads(path.read_text())
        counts = folder.manifest["counts"]
        lost = sum(entry["annotations"] for entry in folder.manifest["rejections"].values())
        kept = counts["out"]["regions"] or counts["out"]["records"]
        assert counts["in"]["annotations"] == len(content["annotations"]) == kept + lost
        assert {(record.height, record.width) for record in folder} == {(96, 128)}
        assert set(folder.manifest["rejections"]) <= {"crowd region"}
    assert "error" not in capsys.readouterr().err
