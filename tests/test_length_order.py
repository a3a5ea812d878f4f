"""Batches of samples of alike length: a seeded order for any number of processes, from lengths measured once."""

import pickle
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines import length_order
from data_pipelines.dataset import ConversationDataset
from data_pipelines.length_order import grouped_by_length, padding_share, stored_lengths
from data_pipelines.lengths import Wording
from data_pipelines.records import RecordFolder, RegionRecord, Turn
from data_pipelines.writing import RecordWriter
from osprey_tp.processing import chat_template

from .order_under_torchrun import run, run_interrupted
from .test_training_run import settings as run_settings
from .test_training_run import write_records
from .tiny_models import save_tiny_model, tiny_processor_and_config

SEED = 5


def write_texts(folder: Path, count: int = 20, name: str = "llava") -> Path:
    """Conversations without a picture, of one word and of many."""
    with RecordWriter(folder, source="llava", image_root=folder.parent) as writer:
        for index in range(count):
            turns = (Turn("user", "red or blue?"), Turn("assistant", "red " * (index * 7 % count) + "blue"))
            writer.add(RegionRecord(f"{name}:{index}", "llava", "", 0, 0, (), turns))
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("records")
    return [write_records(root / "coco", 9), write_texts(root / "llava")]


def grouped(lengths: np.ndarray, batch: int, seed: int = SEED) -> np.ndarray:
    return grouped_by_length(lengths, batch, np.random.default_rng(seed))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 60), min_size=1, max_size=300), st.integers(1, 9), st.integers(0, 3))
def test_every_sample_stands_once_and_the_longest_come_first(lengths, batch, seed):
    lengths = np.array(lengths, np.int32)
    order = grouped(lengths, batch, seed)
    assert sorted(order) == list(range(len(lengths)))
    assert list(grouped(lengths, batch, seed)) == list(order)
    longest_first = sorted(lengths, reverse=True)
    assert list(lengths[order[:batch]]) == longest_first[:batch]
    left_over = len(lengths) % batch
    if left_over and len(lengths) > batch:
        assert list(lengths[order[-left_over:]]) == longest_first[batch : batch + left_over]
    # Runs of 64 batches hold all of them here, so every batch is a piece of the sorted samples.
    batches = [lengths[order[first : first + batch]] for first in range(batch, len(lengths) - left_over, batch)]
    spans = sorted((min(of_batch), max(of_batch)) for of_batch in batches)
    assert all(before[1] <= after[0] for before, after in pairwise(spans))


def test_large_data_is_random_but_for_its_batches():
    lengths = np.random.default_rng(0).integers(10, 2000, 40_000).astype(np.int32)
    first, second = grouped(lengths, 16), grouped(lengths, 16, SEED + 1)
    random = np.random.default_rng(0).permutation(40_000)
    assert padding_share(lengths[random], 16) > 0.4
    assert padding_share(lengths[first], 16) < 0.02
    assert padding_share(lengths[first], 4) < 0.02
    assert list(first[16:]) != list(second[16:])
    # Batches have no common neighbours from one order to the next, and no trend in length.
    partners = [{frozenset((a, b)) for a, b in order.reshape(-1, 2)} for order in (first, second)]
    assert len(partners[0] & partners[1]) < 200
    of_batches = lengths[first].reshape(-1, 16).mean(axis=1)[1:]
    assert abs(np.corrcoef(np.arange(len(of_batches)), of_batches)[0, 1]) < 0.06


@pytest.mark.parametrize("paraphrase", [True, False])
def test_samples_of_a_batch_are_of_alike_length_in_every_epoch(folders, tmp_path, paraphrase):
    weights = {str(folders[0]): 2.5, str(folders[1]): 0.6}
    dataset, plain = (ConversationDataset(weights, seed=SEED, paraphrase=paraphrase) for _ in range(2))
    processor, _ = tiny_processor_and_config()
    dataset.group_by_length(processor, 4, tmp_path)
    assert len(dataset) == len(plain) == 22 + 12
    orders = []
    for epoch in range(2):
        samples = [dataset[epoch, place] for place in range(len(dataset))]
        lengths = [processor.prepare([sample["conversation"]])["input_ids"].shape[1] for sample in samples]
        in_any_order = np.random.default_rng(0).permutation(lengths)
        assert padding_share(lengths[:32], 4) < (0.08 if paraphrase else 0.03) < 0.1 < padding_share(in_any_order, 4)
        assert paraphrase or lengths[0] == max(lengths)
        orders.append([sample["id"] for sample in samples])
        unordered = [plain.record((epoch, place))[1].id for place in range(len(plain))]
        assert sorted(orders[-1]) == sorted(unordered)
    assert orders[0] != orders[1]


def test_lengths_are_measured_once_for_all_that_decides_them(folders, tmp_path, monkeypatch):
    root = tmp_path / "records"
    write_texts(root)
    folder, (processor, _) = RecordFolder.open(root), tiny_processor_and_config()
    calls = []
    measure = length_order.sample_length
    monkeypatch.setattr(length_order, "sample_length", lambda *args: calls.append(1) or measure(*args))

    def measured(processor=processor, wording=Wording()) -> tuple[list[int], int]:
        calls.clear()
        return stored_lengths(folder, processor, wording, tmp_path / "spare").tolist(), len(calls)

    lengths, number = measured()
    assert number == len(folder) == 20
    assert lengths == [measure(record, processor).total for record in folder]
    assert measured() == (lengths, 0)
    assert measured(wording=Wording("published"))[1] == 20
    other, _ = tiny_processor_and_config()
    other.chat_template = chat_template("plain")
    assert measured(other)[1] == 20
    assert measured(other)[1] == 0
    assert measured(tiny_processor_and_config(max_tiles=16)[0])[1] == 20
    files = sorted((root / "lengths").iterdir())
    assert len(files) == 4 and not (tmp_path / "spare").exists()
    for file in files:
        file.write_bytes(file.read_bytes()[:50])
    assert measured() == (lengths, 20)
    assert measured() == (lengths, 0)
    write_texts(tmp_path / "changed", name="other")
    folder = RecordFolder.open(tmp_path / "changed")
    assert measured()[1] == 20


def test_a_folder_that_cannot_be_written_to_leaves_them_with_the_run(folders, tmp_path, monkeypatch):
    root = write_texts(tmp_path / "records")
    processor, _ = tiny_processor_and_config()
    monkeypatch.setattr(length_order.os, "access", lambda *args: False)
    lengths = stored_lengths(RecordFolder.open(root), processor, Wording(), tmp_path / "spare")
    assert not (root / "lengths").exists()
    monkeypatch.setattr(length_order, "sample_length", None)
    again = stored_lengths(RecordFolder.open(root), processor, Wording(), tmp_path / "spare")
    np.testing.assert_array_equal(again, lengths)


def test_other_processes_can_measure(tmp_path):
    folder, (processor, _) = RecordFolder.open(write_texts(tmp_path / "records")), tiny_processor_and_config()
    alone = stored_lengths(folder, processor, Wording(), tmp_path)
    measure = pickle.loads(pickle.dumps(partial(length_order._measure, folder, processor, Wording())))
    assert measure(0) == alone.tolist()


def test_a_record_that_makes_no_sample_has_no_length(tmp_path, monkeypatch):
    folder = RecordFolder.open(write_texts(tmp_path / "records", 2))
    measure = length_order.sample_length

    def measure_all_but_one(record, processor, wording):
        if record.id == "llava:0":
            raise ValueError("it makes no conversation")
        return measure(record, processor, wording)

    monkeypatch.setattr(length_order, "sample_length", measure_all_but_one)
    lengths = stored_lengths(folder, tiny_processor_and_config()[0], Wording(), tmp_path)
    assert lengths[0] == 0 < lengths[1]


def test_a_run_that_goes_on_sees_the_order_it_began(folders, tmp_path, monkeypatch):
    start = save_tiny_model(tmp_path / "start")
    arguments = [
        *run_settings(start, folders[0], tmp_path, "stage=3", "group_by_length=true", "max_steps=9", "batch_size=4"),
        f"data=[{folders[0]}, {folders[1]}]",
    ]
    whole = run([*arguments, f"output={tmp_path}/whole"])
    monkeypatch.setattr(length_order, "sample_length", None)
    assert run_interrupted([*arguments, f"output={tmp_path}/resumed"], steps=7, saved=6) == whole
    dataset = ConversationDataset([folders[0], folders[1]])
    dataset.group_by_length(tiny_processor_and_config()[0], 4, tmp_path)
    assert [sample[1][0] for sample in whole[:28]] == [dataset[0, place]["id"] for place in range(28)]
