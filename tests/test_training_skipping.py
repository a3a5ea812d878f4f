"""Samples that cannot be used: left out of their batch, named, counted, bounded, or the end of the run in one line."""

import json
import os
import pickle
import shutil
import signal
from pathlib import Path

import pytest
import torch

from data_pipelines.dataset import ConversationDataset
from osprey_tp import OspreyTPForConditionalGeneration, OspreyTPProcessor
from osprey_tp.processing import chat_template
from osprey_tp.training.collator import RECORD_IDS, ConversationCollator
from osprey_tp.training.samples import TolerantDataset, UnusableSample
from osprey_tp.training.skipping import SkippingCollator
from osprey_tp.training.trainer import StageTrainer
from scripts import train

from .test_training_checkpoints import before_step, break_off, error_of
from .test_training_collator import sample
from .test_training_run import settings, write_records
from .tiny_models import TEMPLATES, save_tiny_model, tiny_model, tiny_processor_and_config
from .training_logs import reproducible_log

RECORDS = 10


def equal(one: dict, other: dict) -> bool:
    if one.keys() != other.keys() or one.get(RECORD_IDS) != other.get(RECORD_IDS):
        return False
    return all(torch.equal(one[name], other[name]) for name in one if name != RECORD_IDS)


@pytest.fixture(scope="module")
def processor():
    return tiny_processor_and_config()[0]


def test_a_batch_of_usable_samples_is_what_it_was(processor) -> None:
    samples = [sample("a", ["one cat"]), sample("b", ["two", "dogs"])]
    assert equal(SkippingCollator(processor)(samples), ConversationCollator(processor)(samples))


def test_what_cannot_be_used_is_left_out_and_named(processor) -> None:
    good = [sample("a", ["one cat"]), sample("b", ["two"])]
    longest = int(ConversationCollator(processor)(good)["attention_mask"].sum(dim=1).max())
    unanswered = {"id": "unanswered", "conversation": sample("c", ["one"])["conversation"][:1]}
    samples = [
        good[0],
        {"id": "missing", "skipped": "picture is not there"},
        sample("uncounted", ["one"], regions=2),
        unanswered,
        good[1],
        sample("long", ["one " * 50]),
    ]
    batch = SkippingCollator(processor, longest)(samples)
    skipped = {skip["id"]: skip["reason"] for skip in batch.pop("skipped")}
    assert equal(batch, ConversationCollator(processor)(good))
    assert list(skipped) == ["missing", "uncounted", "unanswered", "long"]
    assert skipped["missing"] == "picture is not there"
    assert skipped["uncounted"].startswith("1 <mask> placeholders, 2 regions")
    assert skipped["unanswered"].startswith("no answer to learn from")
    assert skipped["long"].endswith(f"tokens, the model takes {longest}")


@pytest.mark.parametrize("language", TEMPLATES)
@pytest.mark.parametrize("template", [None, "plain"])
def test_a_batch_without_a_usable_sample_teaches_nothing_and_runs_everything(language, template) -> None:
    model, processor = tiny_model(language=language)
    if template is not None:
        processor.chat_template = chat_template(template)
    collator = SkippingCollator(processor)
    batch = collator([{"id": "missing", "skipped": "picture is not there"}])
    assert batch.pop("skipped") == [{"id": "missing", "reason": "picture is not there"}]
    assert (batch["labels"] == -100).all()
    assert len(batch["region_coverage"]) == (1 if template is None else 0)
    loss = model.train()(**batch, num_items_in_batch=torch.tensor(1)).loss
    loss.backward()
    assert loss == 0
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    assert gradients and not any(gradient.any() for gradient in gradients)
    again = collator([{"id": "other", "skipped": "picture is not there"}])
    assert all(torch.equal(again[name], batch[name]) for name in batch)


def test_an_error_that_no_sample_causes_alone_is_raised(processor, monkeypatch) -> None:
    prepare = type(processor).prepare

    def failing(self, conversations, **options):
        if len(conversations) > 1:
            raise ValueError("together only")
        return prepare(self, conversations, **options)

    monkeypatch.setattr(type(processor), "prepare", failing)
    with pytest.raises(ValueError, match=r"together only \(records a, b\)"):
        SkippingCollator(processor)([sample("a", ["one"]), sample("b", ["two"])])


class Failing:
    """A data set of errors."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = errors

    def __len__(self) -> int:
        return len(self.errors)

    def __getitem__(self, index: int) -> dict:
        raise self.errors[index]


def test_errors_of_a_data_set_come_as_samples() -> None:
    errors = (
        UnusableSample("a", "picture x.png is not there", missing_image=True),
        UnusableSample("b", "nothing to ask (record b)"),
        ValueError("a shard\nis damaged"),
    )
    skipping = TolerantDataset(Failing(*errors), skip_missing_images=True)
    assert len(skipping) == 3
    assert skipping[0] == {"id": "a", "skipped": "picture x.png is not there"}
    assert skipping[1] == {"id": "b", "skipped": "nothing to ask"}
    assert skipping[2] == {"failed": "a shard is damaged"}
    strict = TolerantDataset(Failing(*errors))
    assert strict[0] == {"failed": "picture x.png is not there (record a); restore it, or set on_missing_image=skip"}
    assert strict[1] == skipping[1]
    with pytest.raises(KeyError):
        TolerantDataset(Failing(KeyError("a fault of the program")))[0]


def test_an_unusable_sample_travels_between_processes() -> None:
    error = UnusableSample("a", "broken", missing_image=True)
    other = pickle.loads(pickle.dumps(error))
    assert (str(other), other.record_id, other.reason, other.missing_image) == (str(error), "a", "broken", True)


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("start") / "model")


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten records; the picture of the fourth is missing, that of the eighth cut off."""
    records = write_records(tmp_path_factory.mktemp("damaged"), RECORDS)
    (records.parent / "images" / "3.png").unlink()
    os.truncate(records.parent / "images" / "7.png", 60)
    return records


def arguments_of(start: Path, records: Path, output: Path, *more: str) -> list[str]:
    """Two optimiser steps an epoch, three epochs."""
    steps = ("max_steps=6", "batch_size=5", "save_every=3")
    return [*settings(start, records, output, *steps), "stage=3", *more]


@pytest.fixture(scope="module")
def whole(start: Path, damaged: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("whole") / "out"
    assert train.main(arguments_of(start, damaged, output, "on_missing_image=skip", "workers=1")) == 0
    return output


def test_a_run_skips_counts_and_names(whole) -> None:
    skips = [json.loads(line) for line in (whole / "skipped.jsonl").read_text().splitlines()]
    assert sorted(skip["id"] for skip in skips) == ["coco:3"] * 3 + ["coco:7"] * 3
    assert [{(skip["step"] + 1) // 2 for skip in skips if skip["id"] == name} for name in ("coco:3", "coco:7")] == [
        {1, 2, 3},
        {1, 2, 3},
    ]
    assert {"3.png" in skip["reason"] for skip in skips if skip["id"] == "coco:3"} == {True}


def test_the_others_weigh_what_they_weigh_without_them(whole, start, damaged) -> None:
    losses = [entry["loss"] for entry in json.loads((whole / "training_log.json").read_text())]
    dataset = TolerantDataset(ConversationDataset([damaged]), skip_missing_images=True)
    samples = [dataset[0, place] for place in range(5)]
    usable = [sample for sample in samples if "skipped" not in sample]
    assert len(usable) == 3  # both damaged pictures are in the first batch
    model = OspreyTPForConditionalGeneration.from_pretrained(start).train()
    with torch.no_grad():
        loss = model(**ConversationCollator(OspreyTPProcessor.from_pretrained(start))(usable)).loss
    assert losses[0] == pytest.approx(loss.item(), rel=1e-5)


def test_a_run_that_goes_on_counts_on(whole, start, damaged, tmp_path) -> None:
    arguments = arguments_of(start, damaged, tmp_path / "out", "on_missing_image=skip")
    with before_step(6, break_off), pytest.raises(KeyboardInterrupt):
        train.main(arguments)
    left = tmp_path / "out.unfinished" / "skipped.jsonl"
    assert len(left.read_text().splitlines()) > 3
    with left.open("a") as file:
        file.write('{"step": 6, "id": "cut o')
    assert train.main(arguments) == 0
    for name in ("skipped.jsonl", "model.safetensors"):
        assert (tmp_path / "out" / name).read_bytes() == (whole / name).read_bytes(), name
    logs = [reproducible_log(folder / "training_log.json") for folder in (tmp_path / "out", whole)]
    assert logs[0] == logs[1]


def test_a_step_of_which_nothing_is_left_teaches_nothing(start, damaged, tmp_path, monkeypatch) -> None:
    losses = []
    training_step = StageTrainer.training_step

    def noting(trainer: StageTrainer, *rest: object) -> torch.Tensor:
        losses.append(training_step(trainer, *rest))
        return losses[-1]

    monkeypatch.setattr(StageTrainer, "training_step", noting)
    arguments = arguments_of(start, damaged, tmp_path / "out", "on_missing_image=skip", "batch_size=1")
    assert train.main([*arguments, f"max_steps={RECORDS}"]) == 0
    skipped = [json.loads(line)["step"] for line in (tmp_path / "out" / "skipped.jsonl").read_text().splitlines()]
    assert len(skipped) == 2
    assert torch.isfinite(torch.stack(losses)).all()
    assert [step for step, loss in enumerate(losses, start=1) if loss == 0] == skipped


def test_too_many_skips_end_the_run_and_a_higher_bound_lets_it_go_on(start, damaged, tmp_path, capsys) -> None:
    arguments = arguments_of(start, damaged, tmp_path / "out", "on_missing_image=skip", "max_steps=4", "save_every=1")
    assert train.main([*arguments, "max_skipped=3"]) == 1
    captured = capsys.readouterr()
    error = captured.err.splitlines()[-1]
    assert error.startswith("error: 4 samples were skipped, max_skipped is 3; the last is record coco:")
    assert "skipped record coco:3: " in captured.err
    assert train.main([*arguments, "max_skipped=4"]) == 0
    assert "going on from" in capsys.readouterr().out
    assert len((tmp_path / "out" / "skipped.jsonl").read_text().splitlines()) == 4


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_picture_stops_a_run_in_one_line_by_default(workers, start, damaged, tmp_path, capsys) -> None:
    records = shutil.copytree(damaged.parent, tmp_path / "copy") / "records"
    shutil.copyfile(records.parent / "images" / "1.png", records.parent / "images" / "3.png")
    # only opening it tells that the other picture is broken
    assert train.main(arguments_of(start, records, tmp_path / "out", f"workers={workers}")) == 1
    error = error_of(capsys)
    assert error.startswith("error: picture ") and "7.png" in error
    assert error.endswith("(record coco:7); restore it, or set on_missing_image=skip")


def test_a_loading_process_that_is_killed_ends_the_run_in_one_line(start, damaged, tmp_path, capsys, monkeypatch):
    def killed(dataset, index):
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr("osprey_tp.training.samples.TolerantDataset.__getitem__", killed)
    arguments = arguments_of(start, damaged, tmp_path / "out", "on_missing_image=skip", "workers=1")
    assert train.main(arguments) == 1
    error = error_of(capsys)
    assert error.startswith("error: one of 1 processes that load data has ended (DataLoader worker (pid")
    assert error.endswith("with fewer, such as workers=0, to go on from the newest checkpoint")
