"""The settings of a run as transformers' Trainer takes them."""

from __future__ import annotations

from pathlib import Path

from transformers import TrainingArguments

from osprey_tp.training.arguments import RunSettings


def training_arguments(settings: RunSettings, folder: Path) -> TrainingArguments:
    """The arguments of transformers' Trainer that follow from the settings of a run.

    Args:
        settings: The run.
        folder: Where checkpoints go.
    """
    return TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=settings.batch_size,
        gradient_accumulation_steps=settings.gradient_accumulation,
        num_train_epochs=settings.epochs,
        max_steps=settings.max_steps,
        learning_rate=max(settings.resolved_stage.learning_rates.values()),
        lr_scheduler_type="cosine",
        warmup_steps=settings.warmup,
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_gradient_norm,
        bf16=settings.precision == "bf16",
        fp16=settings.precision == "fp16",
        dataloader_num_workers=settings.workers,
        dataloader_persistent_workers=settings.workers > 0,
        seed=settings.seed,
        data_seed=settings.seed,
        logging_steps=settings.log_every,
        logging_nan_inf_filter=False,
        save_steps=settings.save_every,
        save_total_limit=settings.keep_checkpoints,
        use_cpu=settings.device == "cpu",
        deepspeed=settings.deepspeed,
        report_to=list(settings.report_to) or "none",
        remove_unused_columns=False,
    )
