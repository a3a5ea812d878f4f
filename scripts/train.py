"""Train one stage.

    python -m scripts.train --config scripts/configs/tiny/stage2.yaml model=runs/stage1 output=runs/stage2
    torchrun --nproc_per_node 8 -m scripts.train --config scripts/configs/vicuna_7b/stage3.yaml
    deepspeed --module scripts.train --config scripts/configs/vicuna_7b/stage3.yaml deepspeed=zero2.json
    python -m scripts.train --config scripts/configs/vicuna_7b/stage3.yaml --dry-run --size vicuna-7b --samples 1000000

Every setting of the file can be given anew as key=value; `osprey_tp/training/arguments.py` describes them. The output
folder appears when the run is complete: model, processor, run_settings.yaml, training_data.json, training_log.json,
trained_parts.json. An interrupted run goes on from its newest checkpoint when the same command is given again.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from scripts import dry_run

if TYPE_CHECKING:
    from data_pipelines.dataset import ConversationDataset
    from osprey_tp.processing import OspreyTPProcessor
    from osprey_tp.training.arguments import RunSettings
    from osprey_tp.training.outputs import RunFolder
    from osprey_tp.training.stages import PartSummary, Stage
    from osprey_tp.training.trainer import StageTrainer


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program; return its exit code."""
    options = _parser().parse_intermixed_args(arguments)
    try:
        dry_run.require_dry_run(options)
        if options.dry_run:
            dry_run.dry_run(options.config, options.settings, options)
        else:
            train(options.config, options.settings)
    except (ValueError, OSError) as error:
        sys.stderr.write(f"error: {' '.join(str(error).split())}\n")
        return 1
    return 0


def train(config: Path | None, overrides: Sequence[str]) -> None:
    """Train the stage that the settings describe."""
    from osprey_tp.training.arguments import load_settings
    from osprey_tp.training.outputs import RunFolder
    from osprey_tp.training.stages import apply_stage
    from osprey_tp.training.start import load_start
    from osprey_tp.training.trainer import StageTrainer
    from osprey_tp.training.trainer_arguments import training_arguments

    settings = load_settings(config, overrides)
    stage = settings.resolved_stage
    folder = RunFolder.of(settings)
    if folder.is_finished(settings):
        _say(f"{folder.output} is finished; nothing to do")
        return
    arguments = training_arguments(settings, folder.work)  # before the model: ZeRO-3 divides it while it is loaded
    model, processor = load_start(settings)
    dataset = load_data(settings)
    table = apply_stage(model, stage)
    show(stage, table, processor, dataset)
    if _is_first_process():
        folder.begin(settings, dataset.description())
    trainer = StageTrainer(model, stage, settings, processor, dataset, arguments)
    trainer.train(resume_from_checkpoint=_checkpoint(folder))
    save(trainer, settings, table, folder)


def load_data(settings: RunSettings) -> ConversationDataset:
    """The samples of all prepared record folders, or of the mixture that a file describes."""
    from data_pipelines.dataset import ConversationDataset
    from data_pipelines.mixtures import Mixture, is_mixture_file, read_mixture

    files = [name for name in settings.data if is_mixture_file(name)]
    if files and len(settings.data) > 1:
        raise ValueError(f"data names {files[0]}, a mixture, and more; add the other folders to the mixture")
    return ConversationDataset(
        read_mixture(files[0]) if files else Mixture.of(settings.data),
        prompt_style=settings.prompt_style,
        seed=settings.seed,
        max_regions=settings.max_regions,
    )


def show(stage: Stage, table: list[PartSummary], processor: OspreyTPProcessor, dataset: ConversationDataset) -> None:
    """Print what trains, and one sample as the model sees it and what it is taught; fails where nothing is taught."""
    from osprey_tp.training.collator import ConversationCollator
    from osprey_tp.training.self_check import describe_first_sample
    from osprey_tp.training.stages import format_table
    from osprey_tp.training.trainer import for_stage

    processor = for_stage(processor, stage)
    _say(f"stage {stage.number}, {stage.title}: {len(dataset)} samples")
    _say(format_table(table))
    _say(describe_first_sample(processor, ConversationCollator(processor)([dataset[0]])))


def save(trainer: StageTrainer, settings: RunSettings, table: list[PartSummary], folder: RunFolder) -> None:
    """Write model, processor, settings, loss log and table aside, then rename."""
    from osprey_tp.training.outputs import DATA_FILE, LOG_FILE, TABLE_FILE, write_json, write_settings

    trainer.save_model(str(folder.result))
    if trainer.is_world_process_zero():
        write_settings(folder.result, settings)
        shutil.copyfile(folder.work / DATA_FILE, folder.result / DATA_FILE)
        write_json(folder.result / LOG_FILE, trainer.loss_log)
        write_json(folder.result / TABLE_FILE, [asdict(row) for row in table])
        folder.publish()
        _say(f"wrote {folder.output}")


def _checkpoint(folder: RunFolder) -> str | None:
    checkpoint = folder.newest_checkpoint()
    if checkpoint is not None:
        _say(f"going on from {checkpoint}")
    return None if checkpoint is None else str(checkpoint)


def _is_first_process() -> bool:
    """Whether this is the only process, or the first of those that torchrun or deepspeed started."""
    return os.environ.get("RANK", "0") == "0"


def _say(text: str) -> None:
    if _is_first_process():
        sys.stdout.write(text + "\n")
        sys.stdout.flush()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.train", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help="YAML file of settings")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="settings that replace those of the file")
    dry_run.add_arguments(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
