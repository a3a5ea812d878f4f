"""Pretrain the tiny vision tower, so that features pooled under a region tell its texture, colour and shape.

    python -m scripts.pretrain_tiny_tower --out runs/tower

The tower stands in for CLIP in the quickstart and in tests. Scenes are drawn as training goes on. Pooling is that of
the region encoder: coverage of cells times features, with one linear head for each level. Held-out scenes, in which a
third of the objects has a combination of attributes that is never drawn for training, are measured on the way.

The folder appears when training is complete: config.json, model.safetensors, preprocessor_config.json and
training_log.json.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch.utils.data import DataLoader

    from osprey_tp.image_processing import OspreyTPImageProcessor
    from osprey_tp.tiny_tower import TinyTowerModel
    from scripts.tower_heads import RegionHeads
    from scripts.tower_samples import Sample


@dataclass(frozen=True)
class Pretraining:
    """Settings of the training. Schedules count steps, so that a busy machine learns the same."""

    steps: int = 2000
    scenes_per_step: int = 16
    seed: int = 0
    held_out_scenes: int = 200
    steps_between_tests: int = 250
    matrix_learning_rate: float = 0.02
    learning_rate: float = 2e-3
    weight_decay: float = 0.02
    warm_up_share: float = 0.05
    threads: int = 1
    drawing_workers: int = 1

    def __post_init__(self) -> None:
        for name in ("steps", "scenes_per_step", "held_out_scenes", "steps_between_tests", "threads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; the exit code is 0 only if the tower was trained and saved."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.pretrain_tiny_tower",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    defaults = Pretraining()
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to make; must not exist")
    parser.add_argument("--steps", type=int, default=defaults.steps, help="of training (default %(default)s)")
    parser.add_argument("--seed", type=int, default=defaults.seed, help="of scenes and weights (default %(default)s)")
    parser.add_argument(
        "--scenes-per-step", type=int, default=defaults.scenes_per_step, help="batch size (default %(default)s)"
    )
    parser.add_argument(
        "--held-out-scenes", type=int, default=defaults.held_out_scenes, help="scenes to test on (default %(default)s)"
    )
    parser.add_argument("--threads", type=int, default=defaults.threads, help="of torch (default %(default)s)")
    parser.add_argument(
        "--drawing-workers",
        type=int,
        default=defaults.drawing_workers,
        help="processes that draw scenes, 0 for none of their own (default %(default)s)",
    )
    options = vars(parser.parse_args(arguments))
    out: Path = options.pop("out")
    try:
        pretrain(out, Pretraining(**options))
    except (OSError, ValueError) as error:
        sys.stderr.write(f"error: {' '.join(str(error).split())}\n")
        return 1
    return 0


def pretrain(out: Path, settings: Pretraining) -> dict[str, Any]:
    """Train a tower and write it to a folder.

    Returns:
        The log, as it is written to training_log.json.

    Raises:
        FileExistsError: ``out`` holds something already.
    """
    import torch

    from osprey_tp.tiny_tower import TinyTowerConfig, TinyTowerModel
    from scripts.tower_heads import RegionHeads

    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f"{out} exists already: name another folder, or remove it first")
    torch.set_num_threads(settings.threads)
    torch.manual_seed(settings.seed)
    config = TinyTowerConfig()
    processor = make_processor(config.image_size, config.patch_size)
    tower = TinyTowerModel(config)
    heads = RegionHeads(config)
    started = time.monotonic()
    history = train(tower, heads, processor, settings)
    standardise(tower, scene_batches(processor, "train", settings.held_out_scenes, settings))
    log = {
        "settings": asdict(settings),
        "torch": torch.__version__,
        "parameters": sum(parameter.numel() for parameter in tower.parameters()),
        "seconds": round(time.monotonic() - started),
        "held_out": history[-1]["held_out"],
        "history": history,
    }
    save(tower, processor, log, out)
    return log


def make_processor(tile_size: int, patch_size: int) -> OspreyTPImageProcessor:
    """The image processor whose tiles the tower learns from; mean and deviation of pixels are CLIP's."""
    from osprey_tp.image_processing import OspreyTPImageProcessor

    return OspreyTPImageProcessor(tile_size=tile_size, patch_size=patch_size)


def train(
    tower: TinyTowerModel, heads: RegionHeads, processor: OspreyTPImageProcessor, settings: Pretraining
) -> list[dict[str, Any]]:
    """Train tower and heads in place.

    Returns:
        One entry every 10 steps (step, learning_rate as a share of the highest, loss as a mean of these steps), with
        ``held_out`` where it was measured, the last one among them.
    """
    import torch
    from tqdm.auto import tqdm

    batches = scene_batches(processor, "train", settings.steps * settings.scenes_per_step, settings)
    held_out = scene_batches(processor, "test", settings.held_out_scenes, settings)
    optimizers, schedules = make_optimizers(tower, heads, settings)
    parameters = [*tower.parameters(), *heads.parameters()]
    history: list[dict[str, Any]] = []
    losses: list[float] = []
    progress = tqdm(batches, total=settings.steps, desc="pretraining the tower", unit="step")
    for step, batch in enumerate(progress, start=1):
        tower.train()
        pixel_values = batch.pixel_values.contiguous(memory_format=torch.channels_last)  # a third faster on CPUs
        features = tower(pixel_values, output_hidden_states=True).hidden_states
        loss = heads.loss(features, batch)
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        share = float(schedules[0].get_last_lr()[0]) / settings.learning_rate
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()
        losses.append(loss.item())
        is_test = step % settings.steps_between_tests == 0 or step == settings.steps
        if step % 10 == 0 or is_test:
            entry: dict[str, Any] = {
                "step": step,
                "learning_rate": round(share, 4),
                "loss": round(sum(losses) / len(losses), 4),
            }
            losses.clear()
            if is_test:
                entry["held_out"] = accuracies(tower, heads, held_out)
                tqdm.write(f"step {step}: loss {entry['loss']:.3f}, held out {entry['held_out']}", file=sys.stderr)
            history.append(entry)
    return history


def standardise(tower: TinyTowerModel, scenes: DataLoader[Sample]) -> None:
    """Standardise what the tower hands out, over the regions of some scenes."""
    import torch

    from osprey_tp.region_encoder import pool

    tower.eval()
    pooled = []
    for batch in scenes:
        with torch.no_grad():
            states = torch.stack(tower(batch.pixel_values, output_hidden_states=True).hidden_states)
        first_cells = torch.zeros(len(batch.labels), dtype=torch.long)
        pooled.append(pool(states.flatten(1, 2), batch.tiles_coverage, first_cells))
    tower.standardise(torch.cat(pooled, dim=1))


def scene_batches(
    processor: OspreyTPImageProcessor, split: str, count: int, settings: Pretraining
) -> DataLoader[Sample]:
    """The scenes of a split in order, drawn by processes of their own while the tower learns."""
    from torch.utils.data import DataLoader

    from scripts.tower_samples import DrawnScenes, collate

    return DataLoader(
        DrawnScenes(processor, split, count, settings.seed, recolour=split == "train"),
        batch_size=settings.scenes_per_step,
        collate_fn=collate,
        num_workers=settings.drawing_workers,
    )


def make_optimizers(
    tower: TinyTowerModel, heads: RegionHeads, settings: Pretraining
) -> tuple[list[torch.optim.Optimizer], list[torch.optim.lr_scheduler.LambdaLR]]:
    """Muon for the matrices of the tower, AdamW for all else; each warms up, then follows a cosine."""
    import torch
    from transformers import get_cosine_schedule_with_warmup

    from scripts.muon import Muon

    matrices: list[torch.nn.Parameter] = []
    others = list(heads.parameters())
    for name, parameter in tower.named_parameters():
        is_matrix = parameter.ndim >= 2 and "depthwise" not in name and "position" not in name
        (matrices if is_matrix else others).append(parameter)
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(others, lr=settings.learning_rate, weight_decay=settings.weight_decay),
        Muon(matrices, lr=settings.matrix_learning_rate, weight_decay=settings.weight_decay),
    ]
    warm_up = round(settings.warm_up_share * settings.steps)
    return optimizers, [get_cosine_schedule_with_warmup(each, warm_up, settings.steps) for each in optimizers]


def accuracies(tower: TinyTowerModel, heads: RegionHeads, scenes: DataLoader[Sample]) -> dict[str, float]:
    """Shares of held-out regions whose texture, colour, shape, and all three the heads name rightly.

    Keys that end in "_unseen" count only regions of a combination that is never drawn for training.
    """
    import torch

    from data_pipelines.synthetic.vocabulary import is_held_out
    from scripts.tower_samples import ATTRIBUTES

    tower.eval()
    correct, unseen = [], []
    with torch.inference_mode():
        for batch in scenes:
            features = tower(batch.pixel_values, output_hidden_states=True).hidden_states
            correct.append(heads.answers(features, batch.tiles_coverage) == batch.labels)
            for label in batch.labels.tolist():
                texture, colour, shape = (words[index] for words, index in zip(ATTRIBUTES.values(), label, strict=True))
                unseen.append(is_held_out(texture, colour, shape))
    right = torch.cat(correct)
    table = torch.cat([right, right.all(dim=1, keepdim=True)], dim=1).double()
    names = [*ATTRIBUTES, "all"]
    result = dict(zip(names, table.mean(dim=0).tolist(), strict=True))
    if any(unseen):
        means = table[torch.tensor(unseen)].mean(dim=0).tolist()
        result |= {f"{name}_unseen": value for name, value in zip(names, means, strict=True)}
    return {name: round(value, 4) for name, value in result.items()}


def save(tower: TinyTowerModel, processor: OspreyTPImageProcessor, log: dict[str, Any], out: Path) -> None:
    """Write the folder aside, then rename it."""
    from osprey_tp.files import folder_aside, write_json

    with folder_aside(out) as aside:
        tower.save_pretrained(aside)
        processor.save_pretrained(aside)
        write_json(aside / "training_log.json", log)


if __name__ == "__main__":
    sys.exit(main())
