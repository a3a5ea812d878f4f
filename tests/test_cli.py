"""`osprey-tp describe`, as people run it."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from osprey_tp.cli import main
from osprey_tp.masks import to_mask

from .tiny_models import save_tiny_model, tiny_describer

QUESTION = "what is the region <mask>"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = save_tiny_model(tmp_path_factory.mktemp("tiny") / "model")
    image = Image.new("RGB", (192, 128), "white")
    ImageDraw.Draw(image).rectangle((40, 30, 99, 89), fill="red")
    image.save(folder / "picture.png")
    return folder


def describe(folder: Path, *arguments: str, image: str = "picture.png") -> list[str]:
    return ["describe", str(folder / image), "--model", str(folder), "--device", "cpu", *arguments]


def test_answers_equal_the_session(folder, capsys):
    assert main(describe(folder, "--box", "10,20,60,70", "--question", QUESTION, "--max-new-tokens", "8")) == 0
    session = tiny_describer().open(folder / "picture.png")
    expected = session.ask([{"box": [10, 20, 60, 70]}], QUESTION, max_new_tokens=8)[0]
    assert capsys.readouterr().out.strip() == expected


def test_a_point_finds_the_object_under_it(folder, capsys):
    assert main(describe(folder, "--point", "70,60", "--question", QUESTION, "--json")) == 0
    printed = json.loads(capsys.readouterr().out)
    mask = to_mask(printed["region"], 128, 192)
    drawn = np.zeros((128, 192), bool)
    drawn[30:90, 40:100] = True
    assert (mask & drawn).sum() / (mask | drawn).sum() > 0.9
    assert printed.keys() == {"image", "question", "answer", "region"}


def test_a_mask_file_is_a_region(folder, capsys):
    mask = np.zeros((128, 192), np.uint8)
    mask[20:70, 10:60] = 255
    Image.fromarray(mask).save(folder / "mask.png")
    assert main(describe(folder, "--mask", str(folder / "mask.png"), "--question", QUESTION)) == 0
    of_mask = capsys.readouterr().out
    assert main(describe(folder, "--box", "10,20,60,70", "--question", QUESTION)) == 0
    assert capsys.readouterr().out == of_mask


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--box", "5,5,5,20"], "box"),
        (["--box", "500,500,600,600"], "box"),
        (["--point", "500,3"], "the point 500,3 lies outside the picture, 192 pixels wide and 128 high"),
        (["--mask", "nowhere.png"], "nowhere.png"),
        (["--box", "1,1,9,9", "--question", "what is it?"], "holds 0 <mask> placeholders where 1 is needed"),
        (["--point", "5,5", "--segmenter", "magic"], "magic"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(folder, capsys, arguments, message):
    assert main(describe(folder, *arguments)) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err and captured.err.count("\n") == 1


def test_missing_files_are_named(folder, capsys):
    assert main(describe(folder, "--box", "1,1,9,9", image="missing.png")) == 1
    assert "missing.png" in capsys.readouterr().err
    assert main(["describe", str(folder / "picture.png"), "--model", "elsewhere", "--box", "1,1,9,9"]) == 1
    assert "no model folder elsewhere" in capsys.readouterr().err


def test_numbers_that_are_none_are_refused_before_anything_loads():
    run = subprocess.run(
        [sys.executable, "-m", "osprey_tp", "describe", "x.png", "--box", "1,2,3"], capture_output=True, text=True
    )
    assert run.returncode == 2
    assert "'1,2,3' is not 4 numbers joined by commas" in run.stderr
