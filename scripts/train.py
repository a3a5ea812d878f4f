"""Train one stage.

    python -m scripts.train --config scripts/configs/tiny/stage2.yaml model=runs/stage1 output=runs/stage2
    torchrun --nproc_per_node 8 -m scripts.train --config scripts/configs/vicuna_7b/stage3.yaml
    deepspeed --module scripts.train --config scripts/configs/vicuna_7b/stage3.yaml deepspeed=zero2.json
    python -m scripts.train --config scripts/configs/vicuna_7b/stage3.yaml --dry-run --size vicuna-7b --samples 1000000

Every setting of the file can be given anew as key=value; `osprey_tp/training/arguments.py` describes them. The output
folder appears when the run is complete: model, processor, run_settings.yaml, run_configuration.json,
training_data.json, data_manifests.json, training_log.json, skipped.jsonl, trained_parts.json; and what there was to
watch: tensorboard/, held_out.html, held_out.json. A run that was interrupted or killed goes on from its newest sound
checkpoint when the same command is given again; Ctrl-C (exit code 130) and SIGTERM (0) write one first.
"""

from __future__ import annotations

import argparse
import math
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from osprey_tp.outside import of_record
from scripts import dry_run

if TYPE_CHECKING:
    from transformers import TrainingArguments

    from data_pipelines.dataset import ConversationDataset
    from data_pipelines.records import Purpose
    from osprey_tp.processing import OspreyTPProcessor
    from osprey_tp.training.arguments import RunSettings
    from osprey_tp.training.held_out import HeldOut
    from osprey_tp.training.outputs import RunFolder
    from osprey_tp.training.stages import PartSummary, Stage
    from osprey_tp.training.trainer import StageTrainer

HELD_OUT_SEED = 0
"""Of the held-out samples' choice and order, whatever the run's seed, so that runs can be compared."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program; return its exit code."""
    options = _parser().parse_intermixed_args(arguments)
    try:
        dry_run.require_dry_run(options)
        if options.dry_run:
            dry_run.dry_run(options.config, options.settings, options)
            return 0
        return train(options.config, options.settings)
    except (ValueError, OSError) as error:
        if _is_first_process() or not isinstance(error, _raised_together()):
            sys.stderr.write(f"error: {' '.join(str(error).split())}\n")
        return 1


def train(config: Path | None, overrides: Sequence[str]) -> int:
    """Train the stage that the settings describe, in the folder that they name, alone in it; return the exit code."""
    from osprey_tp.training.arguments import load_settings
    from osprey_tp.training.out_of_memory import telling_what_to_change
    from osprey_tp.training.outputs import RunFolder
    from osprey_tp.training.trackers import require_trackers

    settings = load_settings(config, overrides)
    require_trackers(settings.report_to)
    folder = RunFolder.of(settings)
    with folder.held() if _is_first_process() else nullcontext(True) as locked:
        if not locked:
            _say(f"{folder.work} is on a file system without locks; see to it that no other run uses it")
        if folder.is_finished(settings):
            if _is_first_process():
                folder.remove_work()
            _say(f"{folder.output} is finished; nothing to do")
            return 0
        with telling_what_to_change(settings):
            return train_in(folder, settings)


def train_in(folder: RunFolder, settings: RunSettings) -> int:
    """Train what is not finished yet; return the exit code."""
    from transformers.utils.logging import disable_progress_bar

    from osprey_tp.training.interruption import EndedBySignal
    from osprey_tp.training.liger import require_liger
    from osprey_tp.training.outputs import telling_what_cannot_be_written
    from osprey_tp.training.stages import apply_stage
    from osprey_tp.training.start import load_start
    from osprey_tp.training.trainer import StageTrainer, for_stage
    from osprey_tp.training.trainer_arguments import cast_frozen, require_attention, training_arguments

    if not _is_first_process():
        disable_progress_bar()
    stage = settings.resolved_stage
    arguments = training_arguments(settings, folder.work)  # before the model: ZeRO-3 divides it while it is loaded
    require_attention(settings)
    require_liger(settings)
    model, processor = load_start(settings)
    dataset = load_data(settings)
    check(dataset, settings)
    held_out = load_held_out(settings, dataset, folder)
    table = apply_stage(model, stage)
    cast_frozen(model, settings)
    show(stage, table, processor, dataset, settings)
    if _is_first_process():
        folder.begin(settings, dataset.description())
    if settings.group_by_length:
        group_by_length(dataset, for_stage(processor, stage), settings, arguments, folder)
    trainer = StageTrainer(model, stage, settings, processor, dataset, arguments)
    if held_out is not None:
        trainer.score_while_training(held_out)
    try:
        trainer.train(_checkpoint(folder))
    except EndedBySignal as end:
        _say(f"{end}; give the same command again to go on from {folder.work}/checkpoint-{end.step}")
        return end.exit_code
    with telling_what_cannot_be_written(folder.result):
        save(trainer, settings, table, dataset, folder)
    return 0


def load_data(
    settings: RunSettings,
    names: Mapping[str, float] | None = None,
    *,
    paraphrase: bool = True,
    purpose: Purpose = "training",
) -> ConversationDataset:
    """The samples of all prepared record folders, or of the mixture that a file describes.

    Args:
        settings: The run.
        names: Folders or a mixture as in `settings.data`, in place of them.
        paraphrase: Vary the wording of the sources' own questions.
        purpose: `evaluation` takes folders for evaluation too.
    """
    from data_pipelines.dataset import ConversationDataset
    from data_pipelines.mixtures import Mixture, is_mixture_file, read_mixture

    key, names = ("data", settings.data) if names is None else ("held_out", names)
    files = [name for name in names if is_mixture_file(name)]
    if files and len(names) > 1:
        raise ValueError(f"{key} names {files[0]}, a mixture, and more; add the other folders to the mixture")
    return ConversationDataset(
        read_mixture(files[0]) if files else Mixture.of(names),
        prompt_style=settings.prompt_style,
        seed=settings.seed,
        max_regions=settings.max_regions,
        paraphrase=paraphrase,
        purpose=purpose,
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


def load_held_out(settings: RunSettings, training: ConversationDataset, folder: RunFolder) -> HeldOut | None:
    """The samples that are scored while the run goes on, the same for every run; None where no folder is named.

    Raises:
        ValueError: for a folder that the run trains on, and for a record whose last question has no answer.
    """
    from osprey_tp.training.held_out import HeldOut
    from scripts.held_out_page import write_page

    if not settings.held_out:
        return None
    of_every_run = replace(settings, seed=HELD_OUT_SEED)
    samples = load_data(of_every_run, settings.held_out, paraphrase=False, purpose="evaluation")
    _require_apart(samples, training)
    count = min(settings.held_out_samples, len(samples))
    for place in range(count):
        where, record, _ = samples.record((0, place))
        if record.turns and record.turns[-1].role == "user":
            raise ValueError(
                f"held_out: {where.path} holds a question without an answer {of_record(record.id)}, which cannot be "
                "scored; name a folder of records with answers"
            )
    title = f"Held-out samples of stage {settings.stage}: {folder.output.name}"
    return HeldOut(samples, count, lambda scores, answers: write_page(folder.work, title, scores, answers))


def _require_apart(held_out: ConversationDataset, training: ConversationDataset) -> None:
    """Raise ValueError, naming it, for a held-out folder whose records, or a copy of them, the run trains on."""
    trained = {shard["sha256"]: folder.path for folder in training.folders for shard in folder.manifest["shards"]}
    trained |= {str(folder.path.resolve()): folder.path for folder in training.folders}
    for folder in held_out.folders:
        for name in (str(folder.path.resolve()), *(shard["sha256"] for shard in folder.manifest["shards"])):
            if name in trained:
                raise ValueError(
                    f"held_out names {folder.path}, whose records are those of {trained[name]}, which data names too; "
                    "scores of samples that a run trains on say nothing"
                )


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
        _keep_watched(folder)
        folder.publish()
        _say(f"wrote {folder.output}")


def _keep_watched(folder: RunFolder) -> None:
    """Put what people watched, where there is any, into the finished folder."""
    from osprey_tp.training.trackers import TENSORBOARD_FOLDER
    from scripts.held_out_page import PAGE, SCORES

    if (folder.work / TENSORBOARD_FOLDER).is_dir():
        shutil.copytree(folder.work / TENSORBOARD_FOLDER, folder.result / TENSORBOARD_FOLDER, dirs_exist_ok=True)
    for name in (PAGE, SCORES):
        if (folder.work / name).is_file():
            shutil.copyfile(folder.work / name, folder.result / name)


def _raised_together() -> type[ValueError]:
    """Errors that all processes raise at once, so that one of them tells."""
    from osprey_tp.training.loss_guard import RunStoppedError

    return RunStoppedError


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
