"""What training owes whoever trusts it: frozen weights stay, losses weigh tokens alike, saving memory costs nothing."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data_pipelines.dataset import ConversationDataset
from osprey_tp import OspreyTPForConditionalGeneration, OspreyTPProcessor
from osprey_tp.training.arguments import load_settings
from osprey_tp.training.collator import ConversationCollator
from osprey_tp.training.outputs import RunFolder
from osprey_tp.training.stages import STAGES, apply_stage
from osprey_tp.training.start import load_start
from osprey_tp.training.trainer import StageTrainer
from osprey_tp.training.trainer_arguments import training_arguments
from scripts import train

from .mixed_records import write_mixed_records
from .test_training_run import settings, weights
from .tiny_models import save_tiny_model

Batch = dict[str, Any]


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("start") / "model")


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_mixed_records(tmp_path_factory.mktemp("records"))


@pytest.fixture(scope="module")
def samples(records: list[Path]) -> list[dict[str, Any]]:
    """Two samples with regions, two of whole pictures, two of text alone; their answers differ in length."""
    datasets = [ConversationDataset([folder], shuffle=False) for folder in records]
    return [dataset[place] for place in (0, 1) for dataset in datasets]


PROJECTOR, ENCODER, LANGUAGE, TOWER = (
    "model.projector.",
    "model.region_encoder.",
    "model.language_model.",
    "model.vision",
)
TRAINED = {
    "stage 1": (("stage=1",), (PROJECTOR,)),
    "stage 2": (("stage=2",), (ENCODER,)),
    "stage 2 and the projector": (("stage=2", "learning_rates.projector=1e-3"), (PROJECTOR, ENCODER)),
    "stage 3": (("stage=3",), (PROJECTOR, ENCODER, LANGUAGE, "lm_head.")),
    "stage 3 without regions": (("stage=3", "learning_rates.region_encoder=null"), (PROJECTOR, LANGUAGE, "lm_head.")),
    "the tower too": (("stage=2", "learning_rates.vision_tower=1e-3"), (ENCODER, TOWER)),
}


@pytest.mark.parametrize("case", TRAINED)
def test_what_is_frozen_does_not_move_and_what_is_trained_does(
    case: str, start: Path, records: list[Path], tmp_path: Path
) -> None:
    overrides, trained = TRAINED[case]
    seen = records[1:2] if case == "stage 1" else records  # its template has captions alone
    data = "data=[{}]".format(", ".join(map(str, seen)))
    arguments = settings(start, records[0], tmp_path / "out", data, "max_steps=2", *overrides)
    assert train.main(arguments) == 0
    before, after = weights(start), weights(tmp_path / "out")
    assert before.keys() == after.keys()
    without_gradient = (
        f"{TOWER}_tower.encoder.layers.3.",
        f"{TOWER}_tower.post_layernorm.",
    )  # after the last level read
    for name, weight in before.items():
        moves = name.startswith(trained) and not name.startswith(without_gradient)
        assert torch.equal(weight, after[name]) != moves, name


def loss_and_taught(model: OspreyTPForConditionalGeneration, batch: Batch) -> tuple[float, int]:
    """The model's loss and the number of tokens that it is the mean over; nothing is taught at the first place."""
    return float(model(**batch).loss), int((batch["labels"][:, 1:] != -100).sum())


def padded_on_the_left(batch: Batch) -> Batch:
    """The same batch with the padding of every row moved from its end to its beginning."""
    moved = dict(batch)
    padding = (batch["attention_mask"] == 0).sum(dim=1).tolist()
    for name in ("input_ids", "attention_mask", "labels"):
        moved[name] = torch.stack([row.roll(by) for row, by in zip(batch[name], padding, strict=True)])
    return moved


@pytest.mark.parametrize("mix", ["0", "1", "2", "01", "02", "12", "0314", "012345"])
@pytest.mark.parametrize("side", ["right", "left"])
@torch.no_grad()
def test_a_batch_s_loss_weighs_samples_by_their_taught_tokens(
    start: Path, samples: list[dict[str, Any]], mix: str, side: str
) -> None:
    model = OspreyTPForConditionalGeneration.from_pretrained(start).eval()
    collate = ConversationCollator(OspreyTPProcessor.from_pretrained(start))
    chosen = [samples[int(place)] for place in mix]
    alone = [loss_and_taught(model, collate([sample])) for sample in chosen]
    batch = collate(chosen)
    together, taught = loss_and_taught(model, batch if side == "right" else padded_on_the_left(batch))
    assert taught == sum(count for _, count in alone)
    expected = sum(loss * count for loss, count in alone) / taught
    assert together == pytest.approx(expected, rel=2e-6)
    if len(mix) > 2:
        assert len({count for _, count in alone}) > 1
        assert abs(np.mean([loss for loss, _ in alone]) / expected - 1) > 1e-3  # a mean over samples would be seen


def trainer_of(start: Path, records: list[Path], folder: Path, *more: str) -> StageTrainer:
    data = "data=[{}]".format(", ".join(map(str, records)))
    run = load_settings(None, settings(start, records[0], folder / "out", data, "stage=3", *more))
    model, processor = load_start(run)
    apply_stage(model, run.resolved_stage)
    arguments = training_arguments(run, RunFolder.of(run).work)
    return StageTrainer(model, run.resolved_stage, run, processor, train.load_data(run), arguments)


def test_accumulated_batches_take_the_steps_of_a_whole_one(start: Path, records: list[Path], tmp_path: Path) -> None:
    whole = trainer_of(start, records, tmp_path / "whole", "max_steps=3", "batch_size=6")
    split = trainer_of(start, records, tmp_path / "split", "max_steps=3", "batch_size=2", "gradient_accumulation=3")
    whole.train()
    split.train()
    losses = [[entry["loss"] for entry in trainer.loss_log] for trainer in (whole, split)]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)
    for one, other in zip(whole.whole_model.parameters(), split.whole_model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=2e-4)  # of steps of 1e-3, divided by tiny second moments


def gradients(model: OspreyTPForConditionalGeneration, batch: Batch) -> dict[str, torch.Tensor]:
    model.train()
    model.zero_grad()
    model(**batch).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("number", STAGES)
@pytest.mark.parametrize("adapted", [False, True])
def test_gradient_checkpointing_changes_no_gradient(
    start: Path, records: list[Path], samples: list[dict[str, Any]], tmp_path: Path, number: int, adapted: bool
) -> None:
    more = [f"stage={number}", "learning_rates.language_model=1e-4", "adapter={kind: lora, rank: 4, dropout: 0}"]
    trainer = trainer_of(start, records, tmp_path, "gradient_checkpointing=true", *(more if adapted else more[:1]))
    model = trainer.whole_model
    batch = ConversationCollator(OspreyTPProcessor.from_pretrained(start))(samples)
    calls: list[int] = []
    layer = model.model.language_model.layers[0]
    layer.self_attn.register_forward_pre_hook(lambda *_: calls.append(1))
    recomputed = gradients(model, batch)
    assert len(calls) == 2  # once forward, once again in the backward pass
    model.gradient_checkpointing_disable()
    kept = gradients(model, batch)
    assert len(calls) == 3
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == set(kept) == set(recomputed)
    for name, gradient in kept.items():
        assert torch.equal(gradient, recomputed[name]), name
