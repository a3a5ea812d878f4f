"""Train one stage.

    python -m scripts.train --config scripts/configs/tiny/stage2.yaml model=runs/stage1 output=runs/stage2
    torchrun --nproc_per_node 8 -m scripts.train --config scripts/configs/vicuna_7b/stage3.yaml
    deepspeed --module scripts.train --config scripts/configs/vicuna_7b/stage3.yaml deepspeed=zero2.json

Every setting of the file can be given anew as key=value; `osprey_tp/training/arguments.py` describes them. The output
folder appears when the run is complete: model, processor, run_settings.yaml, run_configuration.json,
training_data.json, data_manifests.json, training_log.json, skipped.jsonl, trained_parts.json. A run that was
interrupted or killed goes on from its newest sound checkpoint when the same command is given again; Ctrl-C and SIGTERM
write one first.
"""

from __future__ import annotations

import argparse
import math
import os
import shutil
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import TrainingArguments

    from data_pipelines.dataset import ConversationDataset
    from osprey_tp.processing import OspreyTPProcessor
    from osprey_tp.training.arguments import RunSettings
    from osprey_tp.training.outputs import RunFolder
    from osprey_tp.training.stages import PartSummary, Stage
    from osprey_tp.training.trainer import StageTrainer


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program; return its exit code."""
    options = _parser().parse_args(arguments)
    try:
        return train(options.config, options.settings)
    except (ValueError, OSError) as error:
        _end_progress_bars()
        sys.stderr.write(f"error: {' '.join(str(error).split())}\n")
        return 1


def train(config: Path | None, overrides: Sequence[str]) -> int:
    """Train the stage that the settings describe, in the folder that they name, alone in it; return the exit code."""
    from osprey_tp.training.arguments import load_settings
    from osprey_tp.training.outputs import RunFolder

    settings = load_settings(config, overrides)
    folder = RunFolder.of(settings)
    with folder.held() if _is_first_process() else nullcontext(True) as locked:
        if not locked:
            _say(f"{folder.work} is on a file system without locks; see to it that no other run uses it")
        if folder.is_finished(settings):
            if _is_first_process():
                folder.remove_work()
            _say(f"{folder.output} is finished; nothing to do")
            return 0
        return train_in(folder, settings)


def train_in(folder: RunFolder, settings: RunSettings) -> int:
    """Train what is not finished yet; return the exit code."""
    from osprey_tp.training.interruption import EndedBySignal
    from osprey_tp.training.liger import require_liger
    from osprey_tp.training.stages import apply_stage
    from osprey_tp.training.start import load_start
    from osprey_tp.training.trainer import StageTrainer, for_stage
    from osprey_tp.training.trainer_arguments import cast_frozen, require_attention, training_arguments

    stage = settings.resolved_stage
    arguments = training_arguments(settings, folder.work)  # before the model: ZeRO-3 divides it while it is loaded
    require_attention(settings)
    require_liger(settings)
    model, processor = load_start(settings)
    dataset = load_data(settings)
    check(dataset, settings)
    table = apply_stage(model, stage)
    cast_frozen(model, settings)
    show(stage, table, processor, dataset, settings)
    if _is_first_process():
        folder.begin(settings, dataset.description())
    if settings.group_by_length:
        group_by_length(dataset, for_stage(processor, stage), settings, arguments, folder)
    trainer = StageTrainer(model, stage, settings, processor, dataset, arguments)
    try:
        trainer.train(_checkpoint(folder))
    except EndedBySignal as end:
        _end_progress_bars()
        _say(f"{end}; give the same command again to go on from {folder.work}/checkpoint-{end.step}")
        return end.exit_code
    save(trainer, settings, table, dataset, folder)
    return 0


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


def check(dataset: ConversationDataset, settings: RunSettings) -> None:
    """Fail where shards or pictures are not as they were when they were prepared; the first process looks."""
    from data_pipelines.preflight import check_data

    if _is_first_process():
        for warning in check_data(dataset, stop_at_missing_images=settings.on_missing_image == "stop"):
            _say(warning)


def group_by_length(
    dataset: ConversationDataset,
    processor: OspreyTPProcessor,
    settings: RunSettings,
    arguments: TrainingArguments,
    folder: RunFolder,
) -> None:
    """Put samples of alike length into one batch; the first process of a machine measures, the others read."""
    batch = arguments.train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size
    samples = settings.max_steps * batch if settings.max_steps > 0 else settings.epochs * len(dataset)
    epochs = math.ceil(samples / len(dataset))
    with arguments.main_process_first(desc="measuring lengths"):
        dataset.group_by_length(processor, batch, folder.work, epochs, settings.workers)


def show(
    stage: Stage,
    table: list[PartSummary],
    processor: OspreyTPProcessor,
    dataset: ConversationDataset,
    settings: RunSettings,
) -> None:
    """Print what trains, and one sample as the model sees it and what it is taught; fails where nothing is taught."""
    from data_pipelines.preflight import first_telling_sample
    from osprey_tp.training.collator import ConversationCollator
    from osprey_tp.training.self_check import describe_first_sample
    from osprey_tp.training.stages import format_table
    from osprey_tp.training.trainer import for_stage

    processor = for_stage(processor, stage)
    _say(f"stage {stage.number}, {stage.title}: {len(dataset)} samples")
    _say(format_table(table))
    sample = first_telling_sample(
        dataset, with_regions=stage.number > 1, skip_missing_images=settings.on_missing_image == "skip"
    )
    _say(f"sample:  record {sample['id']}")
    _say(describe_first_sample(processor, ConversationCollator(processor)([sample])))


def save(
    trainer: StageTrainer,
    settings: RunSettings,
    table: list[PartSummary],
    dataset: ConversationDataset,
    folder: RunFolder,
) -> None:
    """Write the model and all that tells how it was made aside, then rename."""
    from osprey_tp.files import write_json
    from osprey_tp.training import ranks
    from osprey_tp.training.outputs import (
        CONFIGURATION_FILE,
        DATA_FILE,
        LOG_FILE,
        MANIFESTS_FILE,
        TABLE_FILE,
        run_configuration,
        write_settings,
    )

    if trainer.is_world_process_zero():
        shutil.rmtree(folder.result, ignore_errors=True)
    ranks.wait()
    trainer.save_model(str(folder.result))
    if trainer.is_world_process_zero():
        write_settings(folder.result, settings)
        shutil.copyfile(folder.work / DATA_FILE, folder.result / DATA_FILE)
        write_json(folder.result / MANIFESTS_FILE, dataset.manifests())
        write_json(folder.result / CONFIGURATION_FILE, run_configuration(settings, trainer.args))
        trainer.write_skips(folder.result)
        write_json(folder.result / LOG_FILE, trainer.loss_log)
        write_json(folder.result / TABLE_FILE, [asdict(row) for row in table])
        folder.publish()
        _say(f"wrote {folder.output}")


def _checkpoint(folder: RunFolder) -> str | None:
    from osprey_tp.training import ranks
    from osprey_tp.training.checkpoints import checkpoint_to_resume

    checkpoint, broken = checkpoint_to_resume(folder.work, ranks.rank(), ranks.gather)
    for item in broken:
        _say(f"{item.folder} is broken: {item.reason}; it is now {item.folder.name}.broken")
    if checkpoint is None:
        return None
    _say(f"going on from {checkpoint}")
    return str(checkpoint)


def _end_progress_bars() -> None:
    """Let what is said next begin a line."""
    if "tqdm" in sys.modules:
        from tqdm import tqdm

        for bar in list(getattr(tqdm, "_instances", ())):
            bar.close()


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
    return parser


if __name__ == "__main__":
    sys.exit(main())
