"""Files that are not the annotations that were asked for are named for what they look like, whatever the source."""

import gzip
import io
import json
import pickle
import sqlite3
import tarfile
import zipfile

import numpy as np
import pytest
import scipy.io
from PIL import Image

from data_pipelines.sources import SOURCES, open_source
from data_pipelines.sources.reader import SourceOptions
from data_pipelines.staging import StagingWriter

from .annotation_files import write_json
from .test_benchmark_sources import ferret, pope
from .test_osprey724k_source import GOOD, entry
from .test_vcr_source import question


def picture(path, kind):
    Image.fromarray(np.zeros((5, 5, 3), np.uint8)).save(path, kind)


def archive(path):
    with tarfile.open(path, "w") as file:
        info = tarfile.TarInfo("instances.json")
        info.size = 2
        file.addfile(info, io.BytesIO(b"{}"))


def database(path):
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE a (b)")
    connection.close()


def packed(path):
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("instances.json", "{}")


def matlab_folder(path):
    path.mkdir()
    scipy.io.savemat(path / "2008_000008.mat", {"anno": 1})


FILES = {
    "python 2 pickle": (lambda path: path.write_bytes(b"(lp0\n(dp1\nS'ref_id'\np2\nI1\nsa."), "a pickle, as REFER's"),
    "pickle": (lambda path: path.write_bytes(pickle.dumps([{"ref_id": 1}])), "that `refcoco`, `refcoco+` and"),
    "MATLAB": (lambda path: scipy.io.savemat(path, {"anno": 1}, appendmat=False), "a MATLAB file; give the folder"),
    "HDF5": (lambda path: path.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(600)), "an HDF5 file, which no source reads"),
    "JPEG": (lambda path: picture(path, "JPEG"), "a JPEG picture, not annotations"),
    "PNG": (lambda path: picture(path, "PNG"), "a PNG picture, not annotations"),
    "zip": (packed, "a zip archive; unpack it first"),
    "gzip": (lambda path: path.write_bytes(gzip.compress(b"{}")), "a gzip archive; unpack it first"),
    "tar": (archive, "a tar archive; unpack it first"),
    "SQLite": (database, "an SQLite database, which no source reads"),
    "folder": (lambda path: path.mkdir(), "a folder"),
    "folder of MATLAB files": (matlab_folder, "pascal-part"),
}
READS = {
    "python 2 pickle": ("refcoco",),
    "pickle": ("refcoco",),
    "folder": ("cityscapes", "pascal-part"),
    "folder of MATLAB files": ("cityscapes", "pascal-part"),
}
"""Which sources take such a file for one of theirs, by the first part of their names."""


def refusal(tmp_path, source, path) -> str:
    (tmp_path / "images").mkdir(exist_ok=True)
    (tmp_path / "instances.json").write_text("{}")
    with pytest.raises(ValueError) as caught, StagingWriter(tmp_path / "staging.sqlite") as writer:
        open_source(source, SourceOptions(path, tmp_path / "images")).stage(writer)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("source", "kind"),
    [(source, kind) for kind in FILES for source in SOURCES if not source.startswith(READS.get(kind, ()))],
)
def test_what_is_no_json_is_named(tmp_path, source, kind):
    write, named = FILES[kind]
    path = tmp_path / "annotations"
    write(path)
    message = refusal(tmp_path, source, path)
    assert str(path) in message
    assert named in message, message


LISTS = {
    "VCR questions, use `vcr`": [question(0), question(1)],
    "POPE questions, use `pope`": [pope(1), pope(2)],
    "Ferret-Bench questions, use `ferret-bench`": [ferret(1)],
    "LLaVA conversations, use `llava`": [{"id": "1", "conversations": GOOD}],
    "Osprey-724K conversations, use `osprey-short-form` or": [entry(conversations=GOOD)],
    "Osprey-724K detailed descriptions, use `osprey-detailed-description`": [entry(description=["<region1>: x"])],
    "Visual Genome's region_descriptions.json, use `visual-genome`": [{"id": 1, "regions": []}],
    "Visual Genome's image_data.json, which no source reads": [{"image_id": 1, "url": "", "width": 1, "height": 1}],
    "COCO results, which no source reads": [{"image_id": 1, "category_id": 1, "score": 0.5}],
}


@pytest.mark.parametrize(
    ("source", "named"),
    [
        (source, named)
        for source in ("coco", "lvis", "llava", "osprey-short-form", "pope", "vcr", "refcoco", "custom")
        for named in LISTS
        if f"`{source}`" not in named
    ],
)
def test_lists_and_lines_of_another_format_are_named(tmp_path, source, named):
    path = write_json(tmp_path / "annotations", LISTS[named])
    assert f"this looks like {named}" in refusal(tmp_path, source, path)
    path.write_text("".join(json.dumps(value) + "\n" for value in LISTS[named] * 2))
    assert f"this looks like JSON Lines of {named}" in refusal(tmp_path, source, path)


def test_lines_of_something_unknown_are_named_too(tmp_path):
    path = tmp_path / "lines.json"
    path.write_text('{"a": 1}\n{"a": 2}\n')
    assert "this looks like JSON Lines, one object a line (more follows" in refusal(tmp_path, "coco", path)
