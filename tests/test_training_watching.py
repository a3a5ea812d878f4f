"""What a run tells while it goes on, against independent counts; and what stops it."""

import io
import json
import math
import re
from pathlib import Path

import pytest
import torch
from transformers import Trainer, TrainerControl, TrainerState, TrainingArguments

from data_pipelines.dataset import ConversationDataset
from osprey_tp.training import throughput
from osprey_tp.training.arguments import load_settings
from osprey_tp.training.loss_guard import LossGuard, RunStoppedError
from osprey_tp.training.progress import ProgressReport, clock_in
from osprey_tp.training.throughput import Throughput
from osprey_tp.training.trainer import StageTrainer
from scripts import train

from .test_training_run import settings, write_records
from .tiny_models import save_tiny_model

BATCH, STEPS = 4, 6


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("start") / "model")


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_records(tmp_path_factory.mktemp("records"))


def arguments(start: Path, records: Path, output: Path, *more: str) -> list[str]:
    return [*settings(start, records, output), f"max_steps={STEPS}", f"batch_size={BATCH}", *more]


@pytest.fixture(scope="module")
def run(start: Path, records: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[torch.Tensor], str]:
    """A run that logs every second step: its folder, the masks of the batches that the model saw, standard error."""
    output = tmp_path_factory.mktemp("run") / "stage2"
    masks = []
    with pytest.MonkeyPatch.context() as patch:
        compute_loss = StageTrainer.compute_loss

        def seen(self, model, inputs, *rest, **named):
            assert "record_ids" not in inputs
            masks.append(inputs["attention_mask"].clone())
            return compute_loss(self, model, inputs, *rest, **named)

        patch.setattr(StageTrainer, "compute_loss", seen)
        patch.setattr("sys.stderr", io.StringIO())
        import sys

        assert train.main(arguments(start, records, output, "log_every=2", "gradient_accumulation=2")) == 0
        return output, masks, sys.stderr.getvalue()


def test_the_log_counts_what_the_model_saw(run: tuple[Path, list[torch.Tensor], str]) -> None:
    output, masks, _ = run
    log = json.loads((output / "training_log.json").read_text())
    assert [entry["step"] for entry in log] == [2, 4, 6] and len(masks) == 2 * STEPS
    for entry, first in zip(log, range(0, len(masks), 4), strict=True):
        window = masks[first : first + 4]
        tokens, places = sum(int(mask.sum()) for mask in window), sum(mask.numel() for mask in window)
        assert entry["tokens"] == tokens < places
        assert entry["padding_share"] == pytest.approx(1 - tokens / places)
        ratio = entry["tokens_per_second"] / entry["samples_per_second"]
        assert ratio == pytest.approx(tokens / (4 * BATCH))
        assert 0.1 < entry["peak_memory_gib"] < 64


def test_lines_without_a_terminal_say_the_same(run: tuple[Path, list[torch.Tensor], str]) -> None:
    output, _, shown = run
    log = json.loads((output / "training_log.json").read_text())
    lines = [line for line in shown.splitlines() if line.startswith("training: ")]
    assert len(lines) == len(log) and "\r" not in "".join(lines)
    for line, entry in zip(lines, log, strict=True):
        assert re.match(rf"training: {entry['step']}/{STEPS} \[\d+:\d\d<\d+:\d\d\] ", line)
        for figure in (f"loss {entry['loss']:.4g}", f"{entry['tokens_per_second']:,.0f} tokens/s"):
            assert figure in line
        assert re.search(r"padding \d+\.\d%, peak \d+\.\d GiB, ends (\w+ )*\d\d:\d\d$", line)


def test_tensorboard_holds_the_log(run: tuple[Path, list[torch.Tensor], str]) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    output, _, _ = run
    log = json.loads((output / "training_log.json").read_text())
    events = EventAccumulator(str(output / "tensorboard"))
    events.Reload()
    for name in ("loss", "learning_rate", "grad_norm", "tokens_per_second", "padding_share", "peak_memory_gib"):
        found = [(event.step, event.value) for event in events.Scalars(f"train/{name}")]
        assert found == [(entry["step"], pytest.approx(entry[name], rel=1e-6)) for entry in log]


def test_throughput_is_that_of_all_processes_without_what_is_no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    counted = Throughput(torch.device("cpu"), clock=lambda: now[0])
    monkeypatch.setattr(throughput, "peak_memory", lambda device: 3 * 2**30)
    counted.count(torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0]]))
    now[0] = 104.0  # four seconds of training, then seven of saving, then one of training
    begin, now[0] = counted.now(), 111.0
    counted.leave_out(begin)
    now[0] = 112.0
    other = torch.tensor([[6, 8, 3, 5 * 2**30]])
    figures = counted.report(lambda own: torch.cat([own, other]))
    assert figures == {
        "tokens": 10,
        "padding_share": 1 - 10 / 16,
        "tokens_per_second": 2.0,
        "samples_per_second": 1.0,
        "peak_memory_gib": 5.0,
    }
    # A scoring that begins with a report leaves out what follows the report.
    begin, now[0] = counted.now(), 113.0
    counted.report(lambda own: own)
    now[0] = 120.0
    counted.leave_out(begin)
    counted.count(torch.ones(1, 4, dtype=torch.int64))
    now[0] = 122.0
    assert counted.report(lambda own: own)["tokens_per_second"] == 2.0


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_shows_one_bar_and_only_in_the_first_process(tmp_path: Path) -> None:
    logs = {"loss": 1.5, "tokens_per_second": 12345.6, "samples_per_second": 7.0, "padding_share": 0.25}
    logs["peak_memory_gib"] = 2.0
    for first in (True, False):
        screen, control = Terminal(), TrainerControl()
        report, options = ProgressReport(screen), TrainingArguments(output_dir=str(tmp_path), use_cpu=True)
        state = TrainerState(max_steps=3, is_world_process_zero=first)
        report.on_train_begin(options, state, control)
        for state.global_step in (1, 2, 3):
            report.on_step_end(options, state, control)
            report.on_log(options, state, control, logs=logs)
        report.on_evaluate(options, state, control, metrics={"eval_loss": 2.5})
        report.on_train_end(options, state, control)
        text = screen.getvalue()
        if not first:
            assert text == ""
            continue
        final = text.rstrip("\n").split("\r")[-1]
        assert "3/3" in final and "loss 1.5, 12,346 tokens/s, 7 samples/s, padding 25.0%, peak 2.0 GiB, ends " in final
        assert text.endswith("\n") and "held out, step 3: loss 2.5" in text


def test_the_end_is_a_time_of_day_with_the_day_where_it_is_another() -> None:
    assert re.fullmatch(r"(\w{3} )?\d\d:\d\d", clock_in(1))
    assert re.fullmatch(r"\w{3} \d\d:\d\d", clock_in(48 * 3600))
    assert re.fullmatch(r"\d+ \w{3} \d\d:\d\d", clock_in(30 * 24 * 3600))


def test_trackers_are_known_and_installed_before_a_model_is_loaded(
    records: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def error(*more: str) -> str:
        assert train.main([*settings(tmp_path / "absent", records, tmp_path / "out"), *more]) == 1
        return capsys.readouterr().err.splitlines()[-1]

    assert error("report_to=wandb") == (
        "error: report_to names wandb, which is not installed; pip install wandb, or report_to=none"
    )
    assert "trackio, which is not installed" in error("report_to=[tensorboard, trackio]")
    assert error("report_to=tensorbord").startswith("error: report_to must be some of tensorboard, wandb, trackio, or")
    assert error("report_to=[none, tensorboard]").startswith("error: report_to must be some of")
    assert load_settings(None, settings(tmp_path, records, tmp_path)).report_to == ("tensorboard",)


def test_no_tracker_writes_nothing(start: Path, records: Path, tmp_path: Path) -> None:
    assert train.main(arguments(start, records, tmp_path / "out", "max_steps=1", "report_to=none")) == 0
    assert not list(tmp_path.rglob("*tfevents*"))


def ids_of_step(records: Path, step: int) -> list[str]:
    """The ids that the data set itself gives for a step of one process."""
    dataset = ConversationDataset({records: 1.0})
    places = range((step - 1) * BATCH, step * BATCH)
    return [dataset[divmod(place, len(dataset))]["id"] for place in places]


def test_a_loss_that_is_no_number_stops_the_run_before_it_is_saved(
    start: Path, records: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    compute_loss = StageTrainer.compute_loss

    def broken(self, model, inputs, *rest, **named):
        loss = compute_loss(self, model, inputs, *rest, **named)
        return loss * math.nan if self.state.global_step == 2 else loss

    monkeypatch.setattr(StageTrainer, "compute_loss", broken)
    output = tmp_path / "out"
    work = tmp_path / "out.unfinished"
    assert train.main(arguments(start, records, output, "save_every=2", "log_every=5")) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    ids = ", ".join(ids_of_step(records, 3))
    assert error.startswith(f"error: step 3 has the loss nan; records of its batch: {ids}; newest checkpoint: {work}/")
    assert f"newest checkpoint: {work / 'checkpoint-2'};" in error
    assert not output.exists() and [path.name for path in work.glob("checkpoint-*")] == ["checkpoint-2"]


def test_a_gradient_that_is_no_number_stops_the_run(
    start: Path, records: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    training_step = StageTrainer.training_step

    def broken(self, model, *rest):
        loss = training_step(self, model, *rest)
        if self.state.global_step == 1:
            next(parameter for parameter in model.parameters() if parameter.grad is not None).grad.view(-1)[0] = (
                math.inf
            )
        return loss

    monkeypatch.setattr(StageTrainer, "training_step", broken)
    assert train.main(arguments(start, records, tmp_path / "out", "save_every=6", "log_every=3")) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    ids = ", ".join(ids_of_step(records, 2))
    assert re.match(r"error: step 2 has gradients of norm (inf|nan), with the loss \d", error)
    assert f"records of its batch: {ids}; newest checkpoint: none yet; " in error


def test_a_spike_stops_the_run(
    start: Path, records: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    training_step = Trainer.training_step

    def spiked(self, *rest):
        return training_step(self, *rest) * (3 if self.state.global_step == 6 else 1)

    monkeypatch.setattr(Trainer, "training_step", spiked)
    assert train.main(arguments(start, records, tmp_path / "out", "max_steps=9", "spike_factor=2")) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert re.match(r"error: step 7 has the loss \d+\.?\d*, more than 2 \(spike_factor\) times \d", error)
    assert f"records of its batch: {', '.join(ids_of_step(records, 7))}; newest checkpoint: {tmp_path}" in error


def checked(guard: LossGuard, losses: list[float], logged: list[float], first: int = 1) -> None:
    for step, loss in enumerate(losses, first):
        guard.note_batch(step, torch.tensor(loss), [f"record:{step}"])
    guard.check(logged, lambda rows: rows, lambda records: records, lambda: None)


def test_a_spike_is_told_by_the_median_of_the_losses_logged_before() -> None:
    logged = [9.0] * 30 + [1.0] * 24 + [3.0] * 2 + [2.0] * 24  # the median of the last 50 is 2
    checked(LossGuard(4.0, True), [7.9, 0.1], logged)
    with pytest.raises(RunStoppedError, match=r"step 8 has the loss 8\.5, more than 4 .* times 2, .* record:8; "):
        checked(LossGuard(4.0, True), [3.0, 8.5, 2.0], logged, first=7)
    checked(LossGuard(0.0, True), [1e9], logged)
    checked(LossGuard(4.0, True), [1e9], logged[:4])  # too few to say what is usual


def test_the_loss_of_a_step_is_that_of_its_batches_and_of_all_processes() -> None:
    guard = LossGuard(2.0, True)
    guard.note_batch(1, torch.tensor(1.0), ["a"])
    guard.note_batch(1, torch.tensor(2.0), ["b"])  # gradient accumulation
    guard.note_gradient_norm(torch.tensor(0.5))
    other = torch.tensor([[math.inf, 0.5]])
    with pytest.raises(RunStoppedError, match="step 1 has the loss inf; records of its batch: a, b, c, d; "):
        guard.check([], lambda rows: torch.cat([rows, other]), lambda records: [*records, "c", "d"], lambda: None)
    guard.note_batch(2, torch.tensor(3.0), ["a"])
    guard.note_gradient_norm(-1.0)  # how DeepSpeed says that a norm is no number
    with pytest.raises(RunStoppedError, match="step 2 has gradients of norm nan"):
        guard.check([], lambda rows: rows, list, lambda: None)


def test_loss_scaling_may_meet_gradients_that_are_no_number() -> None:
    guard = LossGuard(0.0, watches_gradients=False)
    guard.note_batch(1, torch.tensor(1.0), ["a"])
    guard.note_gradient_norm(torch.tensor(math.inf))
    guard.check([], lambda rows: rows, list, lambda: None)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("evaluate_every=0", "evaluate_every must be at least 1, got 0"),
        ("held_out_samples=0", "held_out_samples must be at least 1, got 0"),
        ("spike_factor=1", "spike_factor must be above 1, or 0 to let every loss pass, got 1.0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(setting: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        load_settings(None, [*settings(tmp_path, tmp_path, tmp_path), setting])
