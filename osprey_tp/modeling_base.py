"""What both model classes share: their place in transformers, and what pictures and regions contribute to prompts."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling

from osprey_tp.configuration import OspreyTPConfig


@dataclass
class OspreyTPFeatures(BaseModelOutputWithPooling):
    """What pictures and regions contribute to the prompts of a batch.

    Attributes:
        pooler_output: One tensor a picture, its visual tokens with separators, (v_i, D).
        region_tokens: (regions, D).
    """

    pooler_output: list[Tensor] | None = None  # type: ignore[assignment]  # a tensor a picture, as in llava_next
    region_tokens: Tensor | None = None


class OspreyTPPreTrainedModel(PreTrainedModel):
    """What both model classes tell transformers about themselves."""

    config: OspreyTPConfig
    config_class = OspreyTPConfig
    base_model_prefix = "model"
    input_modalities = ["image", "text"]  # noqa: RUF012
    supports_gradient_checkpointing = True
    _skip_keys_device_placement = ["past_key_values"]  # noqa: RUF012
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    def save_pretrained(self, save_directory: str | os.PathLike[str], *args: Any, **kwargs: Any) -> None:
        """Write the weights under the model's own names.

        A model that was loaded under ZeRO-3 keeps renamings that none of its weights needed; by default transformers
        would apply them backwards.
        """
        super().save_pretrained(save_directory, *args, **({"save_original_format": False} | kwargs))

    def enable_input_require_grads(self) -> None:
        """Do nothing: activations are recomputed without torch's re-entrant form, which alone would need it.

        transformers calls this for activation checkpointing and peft for adapters. What it would do, give the word
        embeddings a gradient where they are frozen, costs a backward pass through layers in which nothing trains.
        """

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        scale = self.config.output_norm_scale if isinstance(self.config, OspreyTPConfig) else None
        output_norm = getattr(module, "output_norm", None)
        if scale is not None and isinstance(output_norm, nn.LayerNorm):
            init.constant_(output_norm.weight, scale)
