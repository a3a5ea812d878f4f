"""A Trainer that saves and reads what trains where the language model has adapters, and not what they adapt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn
from transformers import Trainer

from osprey_tp.modeling import OspreyTPForConditionalGeneration
from osprey_tp.training.adapters import has_adapters, read_adapters, write_adapters
from osprey_tp.training.parts import load_parts


class AdapterTrainer(Trainer):
    """Checkpoints of a model with adapters; without them, it is the Trainer that it extends.

    Attributes:
        whole_model: The model, not wrapped.
    """

    whole_model: OspreyTPForConditionalGeneration

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        # an empty state dict is ZeRO-3's, where its weights are not to be gathered
        if not has_adapters(self.whole_model) or state_dict == {}:
            super()._save(output_dir, state_dict)
            return
        if not self.args.should_save:
            return
        folder = Path(output_dir or self.args.output_dir)  # type: ignore[arg-type]
        folder.mkdir(parents=True, exist_ok=True)
        write_adapters(self.whole_model, folder, state_dict)
        if self.processing_class is not None:
            self.processing_class.save_pretrained(folder)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if not has_adapters(self.whole_model):
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        load_parts(self.whole_model, Path(resume_from_checkpoint))
        read_adapters(self.whole_model, Path(resume_from_checkpoint))
