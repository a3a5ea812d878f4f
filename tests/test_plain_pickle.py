"""Pickles of plain values are read as Python reads them; all others are refused, and nothing of them is executed."""

import builtins
import collections
import copyreg
import datetime
import os
import pickle
import pickletools
import struct

import numpy as np
import pytest

from data_pipelines.sources import plain_pickle
from data_pipelines.sources.plain_pickle import load_plain_pickle

SHARED = ["the", "same"]
VALUES = [
    [],
    {"a": [1, -5, 2**40, 2**80, -(2**2000), 1.5, True, False, None, ()], "b": {"c": (1,), "d": (1, 2), "e": (1, 2, 3)}},
    [SHARED, SHARED, {"deep": SHARED}],
    ["naïve 犬 \U0001f426 \ud800", "line\nbreak 'quoted'", "x" * 300],
    [b"bytes", {3: "three", None: 0, 2.5: 1}],
    [(1, 2, 3, 4)] * 3000,
]


def write(folder, data: bytes):
    path = folder / "refs(unc).p"
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("value", VALUES, ids=range(len(VALUES)))
def test_plain_values_are_read_as_python_reads_them(tmp_path, protocol, value):
    data = pickle.dumps(value, protocol)
    if any(opcode.name in ("GLOBAL", "REDUCE") for opcode, _, _ in pickletools.genops(data)):
        assert protocol < 3  # Python 3 writes bytes as a call in those protocols
        with pytest.raises(ValueError, match="is refused"):
            load_plain_pickle(write(tmp_path, data))
        return
    assert load_plain_pickle(write(tmp_path, data)) == value == pickle.loads(data)


PYTHON_2 = {
    "protocol 0": (
        b"(lp0\n(dp1\nS'sent'\np2\nS'caf\\xc3\\xa9 \\'x\\''\np3\nsS'n'\np4\nI7\nsa(dp5\ng2\ng3\nsg4\nL8L\nsa."
    ),
    "protocol 2": (
        b"\x80\x02]q\x00(}q\x01(U\x04sentq\x02U\x09caf\xc3\xa9 'x'q\x03U\x01nq\x04K\x07u}q\x05(h\x02h\x03h\x04K\x08ue."
    ),
}


@pytest.mark.parametrize("data", PYTHON_2.values(), ids=PYTHON_2)
def test_byte_strings_of_python_2_become_text(tmp_path, data):
    assert pickle.loads(data, encoding="utf-8") == [{"sent": "café 'x'", "n": 7}, {"sent": "café 'x'", "n": 8}]
    assert load_plain_pickle(write(tmp_path, data)) == pickle.loads(data, encoding="utf-8")


def test_byte_strings_that_are_no_utf_8_are_taken_for_latin_1(tmp_path):
    data = b"\x80\x02U\x04caf\xe9."
    assert load_plain_pickle(write(tmp_path, data)) == pickle.loads(data, encoding="latin-1") == "café"


class Malicious:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


class WithState:
    def __init__(self):
        self.value = 1

    def __setstate__(self, state):
        raise AssertionError("executed")


class Registered:
    pass


def refused(tmp_path, data, *named):
    with pytest.raises(ValueError) as caught:
        load_plain_pickle(write(tmp_path, data))
    message = str(caught.value)
    assert "is refused: it holds" in message and "nothing of it was executed" in message
    assert "\n" not in message
    assert all(name in message for name in named), message


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_malicious_pickles_are_refused_and_nothing_is_executed(tmp_path, protocol):
    witness = tmp_path / "executed"
    command = f"touch {witness}"
    refused(tmp_path, pickle.dumps([{"ref_id": 1}, Malicious(os.system, command)], protocol), "posix.system")
    source = f"open({str(witness)!r}, 'w')"
    refused(tmp_path, pickle.dumps({"a": Malicious(builtins.eval, source)}, protocol), ".eval")
    refused(tmp_path, pickle.dumps([WithState()], protocol))
    for value in (np.float64(3), np.arange(3), datetime.date(2020, 1, 1), collections.OrderedDict(a=1), {1, 2}):
        refused(tmp_path, pickle.dumps([value], protocol))
    assert not witness.exists()


def test_every_other_way_to_make_objects_is_refused(tmp_path):
    refused(tmp_path, b"(S'echo'\nios\nsystem\n.", "os.system")
    refused(tmp_path, b"(cos\nsystem\nS'echo'\no.", "os.system")
    refused(tmp_path, b"Pname\n.", "outside the file")
    refused(tmp_path, b"\x80\x04\x8c\x04nameQ.", "outside the file")
    refused(tmp_path, b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x04echo\x85R.", "os.system")
    refused(tmp_path, b"\x80\x05\x96\x01\x00\x00\x00\x00\x00\x00\x00a.", "BYTEARRAY8")
    refused(tmp_path, b"\x80\x02}]K\x01s.", "a dictionary with a list as a key")


def test_the_extension_registry_is_not_asked_even_for_what_it_remembers(tmp_path):
    copyreg.add_extension(__name__, "Registered", 240)
    try:
        data = pickle.dumps(Registered, 2)
        assert data == b"\x80\x02\x82\xf0."
        copyreg._extension_cache[240] = Registered
        refused(tmp_path, data, "extension registry")
        refused(tmp_path, b"\x80\x02\x83\xf0\x00.", "extension registry")
        refused(tmp_path, b"\x80\x02\x84\xf0\x00\x00\x00.", "extension registry")
    finally:
        copyreg.remove_extension(__name__, "Registered", 240)
        copyreg._extension_cache.pop(240, None)


BROKEN = {
    "empty": b"",
    "cut": pickle.dumps([1, 2, 3], 2)[:-2],
    "no instruction": b"\x80\x02\xff.",
    "nothing to stop with": b".",
    "bytes that are not there": b"\x80\x04\x8e" + struct.pack("<Q", 2**62) + b"abc.",
    "text that is not there": b"\x80\x02X" + struct.pack("<I", 2**31) + b"abc.",
    "a negative length": b"\x80\x02\x8b" + struct.pack("<i", -5) + b".",
    "a value that was not remembered": b"\x80\x02h\x07.",
    "items for a number": b"\x80\x02K\x01(K\x02e.",
    "a key without its value": b"\x80\x02}(K\x01u.",
    "a tuple of nothing": b"\x80\x02\x87.",
    "a mark that is not there": b"\x80\x02e.",
    "a string without quotes": b"Sabc\n.",
    "too many digits": b"L" + b"9" * 10_000 + b"L\n.",
    "no text": b"\x80\x02X\x02\x00\x00\x00\xff\xfe.",
}


@pytest.mark.parametrize("data", BROKEN.values(), ids=BROKEN)
def test_broken_pickles_end_in_one_line(tmp_path, data):
    with pytest.raises(ValueError) as caught:
        load_plain_pickle(write(tmp_path, data))
    assert "is not a whole pickle" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_a_file_claims_allocates_nothing(tmp_path):
    """An index of 2**31 makes the memo of Python's own unpickler 32 GB large; depth breaks recursion."""
    index = b"\x80\x02]r" + struct.pack("<I", 2**31 - 1) + b"."
    assert load_plain_pickle(write(tmp_path, index)) == []
    depth = 200_000
    value = load_plain_pickle(write(tmp_path, b"\x80\x02" + b"]" * depth + b"a" * (depth - 1) + b"."))
    for _ in range(depth - 1):
        (value,) = value
    assert value == []
    bomb = b"\x80\x02]q\x00" + b"".join(b"]q%c(%se" % (n, b"h%c" % (n - 1) * 10) for n in range(1, 60)) + b"."
    assert len(load_plain_pickle(write(tmp_path, bomb))) == 10


def test_limits_of_size(tmp_path, monkeypatch):
    path = write(tmp_path, pickle.dumps(list(range(100)), 2))
    monkeypatch.setattr(plain_pickle, "MOST_INSTRUCTIONS", 50)
    with pytest.raises(ValueError, match="more than 50 instructions"):
        load_plain_pickle(path)
    monkeypatch.setattr(plain_pickle, "LARGEST_FILE", 10)
    with pytest.raises(ValueError, match="the limit is 10"):
        load_plain_pickle(path)
    with pytest.raises(ValueError, match="does not exist"):
        load_plain_pickle(tmp_path / "absent.p")
