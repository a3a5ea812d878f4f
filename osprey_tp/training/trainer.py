"""The Trainer of transformers, told which parts train at which rate, and that a frozen tower stays frozen."""

from __future__ import annotations

from copy import copy
from typing import Any

import torch
from torch.utils.data import Dataset
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from osprey_tp.modeling import OspreyTPForConditionalGeneration
from osprey_tp.processing import OspreyTPProcessor, chat_template
from osprey_tp.training.adapter_trainer import AdapterTrainer
from osprey_tp.training.arguments import RunSettings
from osprey_tp.training.liger import apply_liger
from osprey_tp.training.resumable import ResumableTrainer
from osprey_tp.training.sampler import EpochSampler
from osprey_tp.training.samples import TolerantDataset
from osprey_tp.training.skipping import SkippingCollator
from osprey_tp.training.stages import Stage, keep_frozen_tower_in_evaluation_mode, trained_parameters_of
from osprey_tp.training.watching import WatchedTrainer


class SamplerFollowsEpoch(TrainerCallback):
    """Tells the sampler which epoch begins; accelerate does not when several processes go on in the middle of one."""

    def __init__(self, sampler: EpochSampler) -> None:
        self.sampler = sampler

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Set the sampler's epoch."""
        self.sampler.set_epoch(int(state.epoch or 0))


class StageTrainer(ResumableTrainer, WatchedTrainer, AdapterTrainer):
    """A Trainer with one learning rate for each part of the model.

    Args:
        model: Model to which `stage` has been applied.
        stage: What trains, at which rate.
        settings: The run.
        processor: Renders conversations, by the stage's chat template if it names one; saved as it is.
        dataset: Samples `{"id", "conversation"}`, indexed by (epoch, place); its order is kept, whatever the number of
            processes (`osprey_tp.training.sampler`).
        arguments: What `training_arguments` makes of the settings.
    """

    def __init__(
        self,
        model: OspreyTPForConditionalGeneration,
        stage: Stage,
        settings: RunSettings,
        processor: OspreyTPProcessor,
        dataset: Dataset,
        arguments: TrainingArguments,
    ) -> None:
        if settings.gradient_checkpointing:
            checkpoint_activations(model)
        if settings.liger:
            apply_liger(model)
        model.model.runs_every_part = True
        self.stage = stage
        self.settings = settings
        self.whole_model = model
        super().__init__(
            model=model,
            args=arguments,
            data_collator=SkippingCollator(for_stage(processor, stage), processor.longest_sample(model.config)),
            train_dataset=TolerantDataset(dataset, skip_missing_images=settings.on_missing_image == "skip"),
            processing_class=processor,
        )
        self.max_skipped = settings.max_skipped
        # accelerate deals batches to processes in turn, so one sampler over global batches gives all of them its order.
        self.sampler = EpochSampler(len(dataset), self.get_total_train_batch_size(self.args))  # type: ignore[arg-type]
        self.add_callback(SamplerFollowsEpoch(self.sampler))

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> EpochSampler:
        return self.sampler

    def create_optimizer(self, model: torch.nn.Module | None = None) -> torch.optim.Optimizer:
        """AdamW (or what the arguments name) with a group of parameters for every part that trains."""
        if self.optimizer is None:
            optimizer_class, options = self.get_optimizer_cls_and_kwargs(self.args, self.whole_model)
            groups = [
                {"params": trained_parameters_of(self.whole_model, part), "lr": rate}
                for part, rate in self.stage.learning_rates.items()
            ]
            self.optimizer = optimizer_class(groups, **(options | {"weight_decay": self.args.weight_decay}))
        return super().create_optimizer(model)

    def compute_loss(self, model: torch.nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """The model's own loss, without keys and values that nobody goes on from.

        The Trainer has just put all of the model in training mode, the tower too.
        """
        keep_frozen_tower_in_evaluation_mode(self.whole_model)
        return super().compute_loss(model, {**inputs, "use_cache": False}, *args, **kwargs)


def checkpoint_activations(model: OspreyTPForConditionalGeneration) -> None:
    """Recompute activations in the backward pass, without torch's re-entrant form, which loses frozen inputs."""
    model.activation_checkpointing_enable({"use_reentrant": False})


def for_stage(processor: OspreyTPProcessor, stage: Stage) -> OspreyTPProcessor:
    """A processor that renders conversations as the stage wants them; `processor` itself stays as it is."""
    if stage.template is None:
        return processor
    rendering = copy(processor)
    rendering.chat_template = chat_template(stage.template)
    return rendering
