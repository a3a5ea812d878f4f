"""Streaming of JSON files: the same content as the standard library's parser gives, from windows of any size."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.sources import json_stream
from data_pipelines.sources.json_stream import Item, stream_json, stream_json_lines

scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
values = st.recursive(scalars, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=12)


def rebuilt(items: list[Item], was_list: bool):
    """The content of a file, put together again from its parts."""
    members: dict = {}
    for item in items:
        if item.listed:
            members.setdefault(item.key, []).append(item.value)
        else:
            members[item.key] = item.value
    return members[""] if was_list else members


@settings(max_examples=300, deadline=None)
@given(
    content=st.lists(values) | st.dictionaries(st.text(), values),
    piece=st.integers(1, 40),
    indent=st.sampled_from([None, 1]),
    ascii_only=st.booleans(),
)
def test_the_parts_are_those_of_the_standard_parser_whatever_the_window(
    tmp_path_factory, content, piece, indent, ascii_only
):
    path = tmp_path_factory.mktemp("json") / "file.json"
    text = json.dumps(content, indent=indent, ensure_ascii=ascii_only)
    path.write_bytes(text.encode("utf-8", "surrogatepass") if ascii_only else text.encode("utf-8", "replace"))
    expected = json.loads(path.read_text(encoding="utf-8"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_stream, "_PIECE", piece)
        items = list(stream_json(path))
    assert rebuilt(items, isinstance(content, list)) == expected


def test_a_number_at_the_end_of_the_window_is_read_whole(tmp_path, monkeypatch):
    path = tmp_path / "file.json"
    path.write_text('{"a": 123456, "b": [1234567, 89], "c": 1e5}')
    for piece in range(1, 30):
        monkeypatch.setattr(json_stream, "_PIECE", piece)
        assert rebuilt(list(stream_json(path)), False) == {"a": 123456, "b": [1234567, 89], "c": 1e5}
    path.write_text("  1234567")
    assert list(stream_json(path)) == [Item("", 1234567, False)]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "Expecting value"),
        ('{"images": [', "Expecting value"),
        ('{"images": [1, 2', "missing at character"),
        ('{"images": [1,]}', "Expecting value"),
        ('{"images" [1]}', "':' is missing at character 10"),
        ("{1: 2}", "a key is missing at character 1"),
        ('{"a": 1} {"b": 2}', "more follows after its end, at character 9"),
        ("[" * 200_000, "nested too deeply"),
        ('{"a": ' + "[" * 200_000, "nested too deeply"),
        ("[1, 2] x", "more follows"),
        ('["' + "a" * 100, "Unterminated string"),
        ("[" + "9" * 5000 + "]", "4300 digits"),
    ],
)
def test_what_is_not_json_is_refused_in_one_line(tmp_path, text, reason):
    path = tmp_path / "file.json"
    path.write_text(text)
    with pytest.raises(ValueError, match="cannot be read as JSON") as caught:
        list(stream_json(path))
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_broken_element_is_not_looked_for_in_all_of_a_large_file(tmp_path, monkeypatch):
    path = tmp_path / "file.json"
    path.write_text("[1, {broken" + " " * 5000 + "]")
    monkeypatch.setattr(json_stream, "_PIECE", 10)
    monkeypatch.setattr(json_stream, "_LONGEST_ELEMENT", 100)
    with pytest.raises(ValueError, match="double quotes at character 5"):
        list(stream_json(path))


def test_lines_are_read_one_by_one_and_named_when_they_are_broken(tmp_path):
    path = tmp_path / "file.jsonl"
    path.write_text('{"a": 1}\n\n[2]\n', encoding="utf-8-sig")
    assert list(stream_json_lines(path)) == [{"a": 1}, [2]]
    path.write_text('{"a": 1}\n{broken\n')
    with pytest.raises(ValueError, match=r"file\.jsonl, line 2, cannot be read as JSON"):
        list(stream_json_lines(path))
    with pytest.raises(ValueError, match="does not exist"):
        list(stream_json_lines(tmp_path / "absent.jsonl"))
