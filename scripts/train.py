"""Train one stage.

    python -m scripts.train --config scripts/configs/tiny_stage2.yaml model=runs/stage1 output=runs/stage2
    torchrun --nproc_per_node 8 -m scripts.train --config scripts/configs/vicuna_7b_stage3.yaml
    deepspeed --module scripts.train --config scripts/configs/vicuna_7b_stage3.yaml deepspeed=zero2.json

Every setting of the file can be given anew as key=value; `osprey_tp/training/arguments.py` describes them. The output
folder appears when the run is complete: model, processor, run_settings.yaml, training_log.json, trained_parts.json.
An interrupted run goes on from its newest checkpoint when the same command is given again.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch.utils.data import Dataset

    from osprey_tp.modeling import OspreyTPForConditionalGeneration
    from osprey_tp.processing import OspreyTPProcessor
    from osprey_tp.training.arguments import RunSettings
    from osprey_tp.training.outputs import RunFolder
    from osprey_tp.training.trainer import StageTrainer


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program; return its exit code."""
    options = _parser().parse_args(arguments)
    try:
        train(options.config, options.settings)
    except (ValueError, OSError) as error:
        sys.stderr.write(f"error: {' '.join(str(error).split())}\n")
        return 1
    return 0


def train(config: Path | None, overrides: Sequence[str]) -> None:
    """Train the stage that the settings describe."""
    from osprey_tp.training.arguments import load_settings
    from osprey_tp.training.outputs import RunFolder

    settings = load_settings(config, overrides)
    folder = RunFolder.of(settings)
    if folder.prepare(settings) == "finished":
        _say(f"{folder.output} is finished; nothing to do")
        return
    trainer = build_trainer(settings, folder)
    trainer.train(resume_from_checkpoint=_checkpoint(folder))
    save(trainer, settings, folder)


def build_trainer(settings: RunSettings, folder: RunFolder) -> StageTrainer:
    """Load the start model and the data, apply the stage, and show one sample."""
    from osprey_tp.training.outputs import TABLE_FILE, write_json
    from osprey_tp.training.stages import apply_stage, format_table
    from osprey_tp.training.trainer import StageTrainer

    stage = settings.resolved_stage
    model, processor = load_model(settings)
    dataset = load_data(settings)
    table = apply_stage(model, stage)
    trainer = StageTrainer(model, stage, settings, processor, dataset, folder.work)
    if trainer.is_world_process_zero():
        write_json(folder.work / TABLE_FILE, [asdict(row) for row in table])
        _say(f"stage {stage.number}, {stage.title}: {len(dataset)} samples, start {settings.model}")  # type: ignore[arg-type]
        _say(format_table(table))
        _say(show_first_sample(trainer))
    return trainer


def load_model(settings: RunSettings) -> tuple[OspreyTPForConditionalGeneration, OspreyTPProcessor]:
    """The start model in float32, and its processor."""
    import torch

    from osprey_tp.modeling import OspreyTPForConditionalGeneration
    from osprey_tp.processing import OspreyTPProcessor

    _require_model_folder(Path(settings.model))
    model = OspreyTPForConditionalGeneration.from_pretrained(settings.model, dtype=torch.float32, local_files_only=True)
    processor = OspreyTPProcessor.from_pretrained(settings.model, local_files_only=True)
    processor.check_fits(model.config)
    return model, processor


def load_data(settings: RunSettings) -> Dataset:
    """The samples of all prepared record folders."""
    from data_pipelines.dataset import ConversationDataset

    return ConversationDataset(
        settings.data, prompt_style=settings.prompt_style, seed=settings.seed, max_regions=settings.max_regions
    )


def show_first_sample(trainer: StageTrainer) -> str:
    """The first sample as the model sees it, and what it is taught; fails where nothing is taught."""
    from osprey_tp.training.self_check import describe_first_sample

    return describe_first_sample(trainer.processing_class, trainer.data_collator([trainer.train_dataset[0]]))


def save(trainer: StageTrainer, settings: RunSettings, folder: RunFolder) -> None:
    """Write model, processor, settings, loss log and table aside, then rename."""
    from osprey_tp.training.outputs import LOG_FILE, TABLE_FILE, write_json, write_settings

    trainer.save_model(str(folder.result))
    if trainer.is_world_process_zero():
        write_settings(folder.result, settings)
        write_json(folder.result / LOG_FILE, trainer.loss_log)
        (folder.work / TABLE_FILE).replace(folder.result / TABLE_FILE)
        folder.publish()
        _say(f"wrote {folder.output}")


def _checkpoint(folder: RunFolder) -> str | None:
    checkpoint = folder.newest_checkpoint()
    if checkpoint is not None:
        _say(f"going on from {checkpoint}")
    return None if checkpoint is None else str(checkpoint)


def _require_model_folder(folder: Path) -> None:
    needed = ("config.json", "processor_config.json")
    missing = [name for name in needed if not (folder / name).is_file()]
    if missing:
        raise ValueError(
            f"{folder} is no model folder, it lacks {' and '.join(missing)}; name one that a stage wrote, or scripts.convert"
        )


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.train", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help="YAML file of settings")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="settings that replace those of the file")
    return parser


if __name__ == "__main__":
    sys.exit(main())
