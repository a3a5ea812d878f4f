"""A small vision tower for tests, the quickstart and demonstrations, where a pretrained CLIP is out of reach.

``TinyTowerModel`` is called as ``CLIPVisionModel`` is and has attention and feed-forward parts of the same make. What
differs lets it learn shapes from few pictures on a CPU: a convolutional stem in place of the patch projection, a
depthwise 3x3 convolution in each layer, and no class token.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel, initialization
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.clip.configuration_clip import CLIPVisionConfig
from transformers.models.clip.modeling_clip import CLIPMLP, CLIPAttention


@strict
class TinyTowerConfig(PreTrainedConfig):
    """Sizes of the tower, under the names that ``CLIPVisionConfig`` has for them, and the width of the stem."""

    model_type = "osprey_tp_tiny_tower"
    base_config_key = "vision_config"

    image_size: int = 64
    patch_size: int = 8
    num_channels: int = 3
    stem_channels: int = 32
    hidden_size: int = 96
    intermediate_size: int = 192
    num_hidden_layers: int = 4
    num_attention_heads: int = 4
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-5
    attention_dropout: float = 0.0
    initializer_range: float = 0.02

    def __post_init__(self, **kwargs: Any) -> None:
        """Raise ``ValueError`` for sizes that do not go together."""
        super().__post_init__(**kwargs)
        if self.patch_size < 4 or self.patch_size & (self.patch_size - 1):
            raise ValueError(f"patch_size {self.patch_size} must be a power of two, at least 4")
        if self.image_size % self.patch_size:
            raise ValueError(f"image_size {self.image_size} is no multiple of patch_size {self.patch_size}")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(f"hidden_size {self.hidden_size} is no multiple of {self.num_attention_heads} heads")

    @property
    def cells_per_side(self) -> int:
        """Cells along a side of a tile."""
        return self.image_size // self.patch_size


def _convolution(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.GELU()
    )


class TinyTowerStem(nn.Module):
    """3x3 convolutions from pixels to cells, with as many strides of 2 as that takes; positions are added."""

    def __init__(self, config: TinyTowerConfig) -> None:
        super().__init__()
        narrow, wide = config.stem_channels, 2 * config.stem_channels
        layers = [_convolution(config.num_channels, narrow, stride=2)]
        channels = narrow
        for _ in range(config.patch_size.bit_length() - 3):
            layers += [_convolution(channels, wide, stride=2), _convolution(wide, wide)]
            channels = wide
        self.layers = nn.Sequential(*layers, _convolution(channels, config.hidden_size, stride=2))
        self.position = nn.Parameter(torch.zeros(config.cells_per_side**2, config.hidden_size))

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """(tiles, channels, image_size, image_size) to (tiles, cells, hidden_size), cells row by row."""
        return self.layers(pixel_values).flatten(2).transpose(1, 2) + self.position


class TinyTowerLayer(GradientCheckpointingLayer):
    """Depthwise convolution, attention and feed-forward, each added to its input."""

    def __init__(self, config: TinyTowerConfig) -> None:
        super().__init__()
        size = config.hidden_size
        self.cells_per_side = config.cells_per_side
        self.depthwise = nn.Conv2d(size, size, 3, padding=1, groups=size)
        self.layer_norm1 = nn.LayerNorm(size, eps=config.layer_norm_eps)
        self.self_attn = CLIPAttention(cast(CLIPVisionConfig, config))
        self.layer_norm2 = nn.LayerNorm(size, eps=config.layer_norm_eps)
        self.mlp = CLIPMLP(config)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """(tiles, cells, hidden_size) to the same; the cells of a tile learn from neighbours first, then from all."""
        grid = hidden_states.transpose(1, 2).unflatten(2, (self.cells_per_side, self.cells_per_side))
        hidden_states = hidden_states + self.depthwise(grid).flatten(2).transpose(1, 2)
        attended, _ = self.self_attn(self.layer_norm1(hidden_states))
        hidden_states = hidden_states + attended
        return hidden_states + self.mlp(self.layer_norm2(hidden_states))


class TinyTowerModel(PreTrainedModel):
    """The tower: tiles in, the hidden states of their cells out. It stands in for ``CLIPVisionModel``."""

    config: TinyTowerConfig
    config_class = TinyTowerConfig
    base_model_prefix = "tiny_tower"
    main_input_name = "pixel_values"
    input_modalities = "image"
    supports_gradient_checkpointing = True
    _no_split_modules = ["TinyTowerLayer"]  # noqa: RUF012 (the base class declares it so)
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    def __init__(self, config: TinyTowerConfig) -> None:
        super().__init__(config)
        self.stem = TinyTowerStem(config)
        self.layers = nn.ModuleList(TinyTowerLayer(config) for _ in range(config.num_hidden_layers))
        states = (config.num_hidden_layers + 1, config.hidden_size)
        self.register_buffer("state_mean", torch.zeros(states))
        self.register_buffer("state_deviation", torch.ones(states))
        self.gradient_checkpointing = False
        self.post_init()

    def train(self, mode: bool = True) -> TinyTowerModel:
        """As usual, but a frozen tower stays in evaluation mode, so that the statistics of BatchNorm do not move."""
        return super().train(mode and any(parameter.requires_grad for parameter in self.parameters()))

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, TinyTowerStem):
            initialization.normal_(module.position, std=self.config.initializer_range)
        if isinstance(module, TinyTowerModel):
            initialization.zeros_(module.state_mean)
            initialization.ones_(module.state_deviation)

    @torch.no_grad()
    def standardise(self, pooled: torch.Tensor) -> None:
        """Bring every channel of the states that are handed out to mean 0 and deviation 1 over regions.

        What is learned from the states then learns all channels at a like pace.

        Args:
            pooled: (layers + 1, regions, hidden_size), states as handed out so far, pooled under many regions.
        """
        mean, deviation = pooled.mean(dim=1), pooled.std(dim=1)
        self.state_mean += mean * self.state_deviation
        self.state_deviation *= deviation.clamp_min(1e-6)

    def forward(
        self, pixel_values: torch.Tensor, output_hidden_states: bool | Sequence[int] | None = None, **kwargs: object
    ) -> BaseModelOutputWithPooling:
        """Encode tiles, each on its own.

        Args:
            pixel_values: (tiles, channels, image_size, image_size), normalised.
            output_hidden_states: True for the states of all layers, or the numbers of those to keep, which may be
                negative; the others are None then. Number 0 is the stem's output.
            kwargs: taken for the sake of callers of other towers; nothing in it matters here.

        Returns:
            ``last_hidden_state`` (tiles, cells, hidden_size), ``pooler_output`` its mean over cells, and with
            ``output_hidden_states`` the tuple ``hidden_states`` of layers + 1 entries.

        Raises:
            ValueError: tiles are of another size than the configuration says.

        """
        expected = (self.config.num_channels, self.config.image_size, self.config.image_size)
        if tuple(pixel_values.shape[1:]) != expected:
            raise ValueError(f"tiles of shape {tuple(pixel_values.shape[1:])}, where the tower takes {expected}")
        states = [self.stem(pixel_values.to(self.dtype))]
        for layer in self.layers:
            states.append(layer(states[-1]))
        states = [
            (state - mean) / deviation
            for state, mean, deviation in zip(states, self.state_mean, self.state_deviation, strict=True)
        ]
        last = states[-1]
        return BaseModelOutputWithPooling(
            last_hidden_state=last,
            pooler_output=last.mean(dim=1),
            hidden_states=self._select(states, output_hidden_states),  # type: ignore[arg-type]
        )

    def _select(
        self, states: list[torch.Tensor], wanted: bool | Sequence[int] | None
    ) -> tuple[torch.Tensor | None, ...] | None:
        wanted = self.config.output_hidden_states if wanted is None else wanted
        if isinstance(wanted, bool) or wanted is None:
            return tuple(states) if wanted else None
        numbers = {range(len(states))[number] for number in wanted}
        return tuple(state if number in numbers else None for number, state in enumerate(states))


AutoConfig.register(TinyTowerConfig.model_type, TinyTowerConfig)
AutoModel.register(TinyTowerConfig, TinyTowerModel)
