"""The settings of a run as transformers' Trainer takes them: number formats, kernels, processes, DeepSpeed.

| `precision` | one process, torchrun                            | DeepSpeed                                      |
|-------------|--------------------------------------------------|------------------------------------------------|
| `fp32`      | float32 throughout                               | float32 throughout                             |
| `bf16`      | autocast over float32 weights; frozen ones in    | bfloat16 weights, float32 copies of those that |
|             | `frozen_precision`                               | train in the optimiser                         |
| `fp16`      | as `bf16` in float16, with loss scaling          | as `bf16` in float16, with its loss scaling    |
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, TrainingArguments
from transformers.utils import is_flash_attn_2_available, is_torch_tf32_available

from osprey_tp.outside import read_json
from osprey_tp.training.arguments import RunSettings


def training_arguments(settings: RunSettings, folder: Path) -> TrainingArguments:
    """The arguments of transformers' Trainer that follow from the settings of a run.

    Under a launcher this joins the processes; under DeepSpeed it must come before the model, which ZeRO-3 divides while
    it is loaded.

    Args:
        settings: The run.
        folder: Where checkpoints go.

    Raises:
        ValueError: for what this machine or the way in which the run was started cannot do.
        FileNotFoundError: if the DeepSpeed file is missing.
    """
    on_cpu = uses_cpu(settings)
    precision = precision_arguments(settings)
    if settings.deepspeed is not None and on_cpu:
        _start_deepspeed_on_the_cpu()
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
        optim=optimizer_name(settings),
        average_tokens_across_devices=True,
        torch_compile=settings.torch_compile,
        dataloader_num_workers=settings.workers,
        dataloader_persistent_workers=settings.workers > 0,
        # Batches are copied to a GPU from memory that it reads by itself, while it computes.
        dataloader_pin_memory=not on_cpu,
        accelerator_config={"non_blocking": not on_cpu},
        seed=settings.seed,
        data_seed=settings.seed,
        logging_steps=settings.log_every,
        logging_nan_inf_filter=False,
        save_steps=settings.save_every,
        save_total_limit=settings.keep_checkpoints,
        use_cpu=on_cpu,
        ddp_backend="gloo" if on_cpu and _has_launcher() else None,
        # Every part runs in every step (`OspreyTPModel.runs_every_part`); only a tower has layers past those it is read
        # at.
        ddp_find_unused_parameters="vision_tower" in settings.resolved_stage.learning_rates,
        report_to=list(settings.report_to) or "none",
        remove_unused_columns=False,
        **precision,
    )


def precision_arguments(settings: RunSettings) -> dict[str, Any]:
    """The arguments bf16, fp16, tf32 and deepspeed of the Trainer, which must agree.

    Raises:
        ValueError: for float16 on a CPU, for DeepSpeed without a launcher.
        FileNotFoundError: if the DeepSpeed file is missing.
    """
    on_cpu = uses_cpu(settings)
    if settings.precision == "fp16" and on_cpu:
        raise ValueError("precision=fp16 needs a GPU; on a CPU take precision=bf16 or precision=fp32")
    if settings.deepspeed is not None:
        _require_deepspeed(settings.deepspeed)
    return {
        "bf16": settings.precision == "bf16",
        "fp16": settings.precision == "fp16",
        "tf32": settings.tf32 and not on_cpu and is_torch_tf32_available(),
        "deepspeed": settings.deepspeed,
    }


def uses_cpu(settings: RunSettings) -> bool:
    """Whether the run computes on the CPU: asked to, or for want of an accelerator."""
    return settings.device == "cpu" or not torch.accelerator.is_available()


def optimizer_name(settings: RunSettings) -> str:
    """Name of the AdamW that suits, as transformers has it: fused on GPUs and where DeepSpeed offloads its state.

    torch's fused kernel for the CPU needs no compiler, unlike DeepSpeed's own.
    """
    fused = offloads_optimizer(settings) if settings.deepspeed is not None else not uses_cpu(settings)
    return "adamw_torch_fused" if fused else "adamw_torch"


def offloads_optimizer(settings: RunSettings) -> bool:
    """Whether the DeepSpeed file keeps the optimiser's state in main memory or on disk."""
    if settings.deepspeed is None:
        return False
    zero = read_deepspeed_file(settings.deepspeed).get("zero_optimization", {})
    return zero.get("offload_optimizer", {}).get("device", "none") != "none"


def read_deepspeed_file(file: str) -> dict[str, Any]:
    """A DeepSpeed configuration.

    Raises:
        FileNotFoundError: if there is no such file; names those of the project.
        ValueError: if it holds no JSON object.
    """
    if not Path(file).is_file():
        raise FileNotFoundError(
            f"there is no DeepSpeed file {file}; scripts/configs/deepspeed holds zero2.json, zero3.json and "
            "zero3_offload.json"
        )
    content = read_json(Path(file))
    if not isinstance(content, dict):
        raise ValueError(f"{file} must hold a JSON object with DeepSpeed's settings")
    return content


def require_attention(settings: RunSettings) -> None:
    """Refuse an attention that this run cannot compute; call it before the model is loaded.

    Raises:
        ValueError: naming what is missing, and what to take instead.
    """
    if settings.attention != "flash_attention_2":
        return
    if uses_cpu(settings) or settings.precision == "fp32":
        raise ValueError(
            "attention=flash_attention_2 needs a GPU and precision=bf16 or precision=fp16; take attention=sdpa"
        )
    if not is_flash_attn_2_available():
        raise ValueError(
            "attention=flash_attention_2 needs the package flash-attn; pip install 'osprey_tp[flash]', or take "
            "attention=sdpa"
        )


def cast_frozen(model: PreTrainedModel, settings: RunSettings) -> None:
    """Hold frozen weights in `frozen_precision`; call it when it is settled what trains.

    DeepSpeed holds all weights as `precision` says, so nothing is done for it. Quantised weights stay as they are, and
    so do buffers: rotary frequencies need float32.
    """
    if settings.frozen_precision == "fp32" or settings.deepspeed is not None:
        return
    for parameter in model.parameters():
        if not parameter.requires_grad and parameter.is_floating_point():
            parameter.data = parameter.data.to(torch.bfloat16)


def _has_launcher() -> bool:
    """Whether torchrun or deepspeed started this process."""
    return "LOCAL_RANK" in os.environ


def _require_deepspeed(file: str) -> None:
    read_deepspeed_file(file)
    if not _has_launcher():
        raise ValueError(
            f"deepspeed={file} needs a launcher: LAUNCHER=deepspeed PROCESSES=n bash scripts/stage3.sh ..., or "
            "torchrun -m scripts.train ..."
        )


def _start_deepspeed_on_the_cpu() -> None:
    """Join the processes by gloo, without the shared-memory kernels that DeepSpeed would compile for minutes."""
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed("gloo", auto_mpi_discovery=False)
