"""Hostile input: every reader of what comes from outside is right about it, or refuses it in one line.

The targets of `tests.fuzz` say what is owed. Here they get inputs made by hypothesis, a few hundred changed files each,
and everything that ever broke one of them (`tests/data/hostile`).
"""

import json
import math
import random
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from osprey_tp.masks import from_coco, to_mask, to_rle
from osprey_tp.outside import parse_json, read_yaml

from .fuzz.__main__ import changed
from .fuzz.checking import outcome
from .fuzz.mutation import deeply_nested
from .fuzz.targets import TARGETS

BROKEN_ONCE = sorted(Path(__file__).with_name("data").joinpath("hostile").glob("*/*.bin"))
SECONDS = 0.3
MOST_INPUTS = 150
WITHOUT_LIMIT = settings(max_examples=30, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))

numbers = st.one_of(
    st.integers(-3, 30),
    st.floats(-3, 30),
    st.sampled_from([math.nan, math.inf, -math.inf, 1e308, -1e308, 2**31, 2**63, 2**64, -(2**63), 10**400, True, None]),
)
plain = st.recursive(
    numbers | st.text(max_size=5) | st.sampled_from(["size", "counts", "\ud800", "\0", "../x", "<region99>"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)
run_lengths = st.one_of(st.lists(numbers, max_size=9), st.text("0123456789:;<=>?@ABCDEFabcdefo", max_size=12), plain)
sizes = st.just([12, 20]) | st.lists(numbers, max_size=3)
encodings = st.fixed_dictionaries({"counts": run_lengths}, optional={"size": sizes})
polygons = st.lists(st.lists(numbers, max_size=12), max_size=4)
boxes = st.fixed_dictionaries({"box": st.lists(numbers, min_size=3, max_size=5) | plain})
regions = st.one_of(polygons, encodings, boxes, plain).flatmap(
    lambda region: st.sampled_from(
        [region, {"segmentation": region}, {"mask": region, "points": [[1, 2]]}, {"mask": region, "points": region}]
    )
)


@pytest.fixture(autouse=True)
def _quiet():
    """Libraries warn about broken files, which is right and of no interest here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.mark.parametrize("name", TARGETS)
def test_changed_files_are_read_or_refused(name):
    target, seeds = TARGETS[name]
    source, originals = random.Random(0), seeds()
    for seed in originals:
        target(seed)
    for hostile in (b"", b"\0", b"\xff" * 100, *deeply_nested()):
        target(hostile)
    end = time.process_time() + SECONDS
    for _ in range(MOST_INPUTS):
        target(changed(source.choice(originals), source))
        if time.process_time() > end:
            return


@pytest.mark.parametrize("file", BROKEN_ONCE, ids=lambda file: f"{file.parent.name}-{file.stem}")
def test_what_once_broke_a_reader_does_so_no_more(file):
    TARGETS[file.parent.name][0](file.read_bytes())


@given(st.sampled_from([12, 1, 0, -1, 10**9, 2**40]), st.just(20) | st.integers(-1, 40), regions)
@WITHOUT_LIMIT
def test_regions_of_every_form(height, width, region):
    TARGETS["masks"][0](json.dumps({"height": height, "width": width, "region": region}).encode())


@given(st.binary(max_size=12))
@WITHOUT_LIMIT
def test_compressed_run_lengths(content):
    TARGETS["counts"][0](content)


@given(plain | st.fixed_dictionaries({"box": plain}) | encodings | polygons)
@WITHOUT_LIMIT
def test_answers_of_models(said):
    TARGETS["answers"][0](json.dumps(said).encode())


@given(
    plain, plain, st.lists(plain | boxes | st.fixed_dictionaries({"segmentation": encodings | polygons}), max_size=3)
)
@WITHOUT_LIMIT
def test_chat_requests(choice, text, given_regions):
    parts = [{"type": "regions", "regions": given_regions}, {"type": "text", "text": text}]
    body = {"model": "m", "messages": [{"role": "user", "content": parts}], "temperature": choice}
    TARGETS["chat"][0](json.dumps(body).encode())
    TARGETS["chat"][0](json.dumps(body | {"messages": choice}).encode())


@given(st.dictionaries(st.sampled_from(["id", "image", "height", "width", "regions", "turns", "metadata"]), plain))
@WITHOUT_LIMIT
def test_rows_of_records(values):
    row = json.loads(TARGETS["records"][1]()[0])
    TARGETS["records"][0](json.dumps(row | values).encode())
    TARGETS["records"][0](json.dumps(row | {"metadata": json.dumps(values)}).encode())


@given(st.dictionaries(st.text(max_size=3), plain, max_size=3), st.binary(max_size=40), st.integers(0, 2**64 - 1))
@WITHOUT_LIMIT
def test_headers_of_checkpoints(header, content, length):
    described = {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}} | header
    text = json.dumps(described).encode()
    TARGETS["safetensors"][0](len(text).to_bytes(8, "little") + text + content)
    TARGETS["safetensors"][0](length.to_bytes(8, "little") + text + content)
    TARGETS["indices"][0](json.dumps({"weight_map": header}).encode())


@given(st.lists(st.sampled_from(["..", ".", "in", "out", "loop", "~", "", "a" * 300, "\0", "é", "C:"]), max_size=5))
@WITHOUT_LIMIT
def test_paths(parts):
    for joint in ("/", "\\"):
        TARGETS["paths"][0](joint.join(parts).encode())


def test_many_polygons_are_drawn_in_bounded_time():
    corners = np.stack(np.meshgrid(np.arange(100), np.arange(100)), axis=-1).reshape(-1, 2) * 9
    many = [[x, y, x + 5, y, x + 5, y + 5, x, y + 5] for x, y in corners.tolist()]
    begun = time.process_time()
    mask = to_mask(many, 900, 900)
    assert time.process_time() - begun < 10  # all merged at once, two minutes
    assert mask.sum() == sum(to_mask([polygon], 900, 900).sum() for polygon in many[::100]) * 100


def test_a_picture_too_large_for_memory_is_no_place_for_a_mask():
    for region in ({"box": [0, 0, 9, 9]}, [[0, 0, 9, 0, 9, 9]], {"size": [10**6, 10**6], "counts": [0, 10**12]}):
        with pytest.raises(ValueError, match="the picture has 1000000 x 1000000 = 1000000000000 pixels, the limit is"):
            to_rle(region, 10**6, 10**6)


def test_a_segmentation_from_outside_names_no_file(tmp_path):
    for region in (str(tmp_path), {"mask": "/etc/passwd"}, {"segmentation": [[1, 2]]}, 3, None):
        with pytest.raises(ValueError, match="a segmentation is a list of polygons or a run-length encoding, not a"):
            from_coco(region)


def test_yaml_cannot_grow_without_end(tmp_path):
    doubled = "".join(f"{name}: &{name} [*{old}, *{old}]\n" for old, name in zip("abcdefgh", "bcdefghi", strict=True))
    (tmp_path / "a.yaml").write_text("a: &a [x, x]\n" + doubled)
    with pytest.raises(ValueError, match=r"a\.yaml is not valid YAML: it has aliases"):
        read_yaml(tmp_path / "a.yaml")
    (tmp_path / "deep.yaml").write_text("[" * 5000)
    with pytest.raises(ValueError, match=r"deep\.yaml is not valid YAML: it is nested more than 50 levels deep"):
        read_yaml(tmp_path / "deep.yaml")


def test_deep_json_is_refused_by_name():
    for text in deeply_nested():
        with pytest.raises(ValueError, match=r"^the file is no JSON \(it is nested too deeply\)$"):
            parse_json(text, "the file")


def test_a_device_is_no_picture():
    assert outcome(lambda: to_mask("/dev/zero", 4, 5)) is None
