"""One training step acted out on shapes alone: the model's own forward and backward pass, its FLOPs, its memory.

Weights and pictures are fake tensors: they have a shape and a dtype but no memory, so that a model of 13 billion
parameters takes seconds. Ids, labels and masks are real, because the model looks into them. Nothing is computed from
formulas of ours: FLOPs are those of every operator that runs, memory is that of the tensors that live at a time.
Attention takes the fused kernel of the CPU, which keeps as much as those of GPUs do.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from osprey_tp.configuration import OspreyTPConfig
from osprey_tp.modeling import OspreyTPForConditionalGeneration
from osprey_tp.processing import IGNORED_LABEL
from osprey_tp.tiling import TilePlan
from osprey_tp.training.adapters import AdapterSettings, add_adapters
from osprey_tp.training.estimation import ModelSize, SampleShape
from osprey_tp.training.stages import (
    PartSummary,
    Stage,
    apply_stage,
    keep_frozen_tower_in_evaluation_mode,
)
from osprey_tp.training.trainer import checkpoint_activations


@dataclass(frozen=True)
class Precision:
    """Dtypes of a run.

    Attributes:
        trained: Of weights that train.
        frozen: Of weights that do not.
        autocast: What autocast computes in; None without autocast.
    """

    trained: torch.dtype
    frozen: torch.dtype
    autocast: torch.dtype | None = None

    @classmethod
    def of_trainer(cls, precision: str, frozen_precision: str = "fp32") -> Precision:
        """As the Trainer computes without DeepSpeed: autocast over float32 weights."""
        compute = _DTYPES[precision]
        return cls(torch.float32, _DTYPES[frozen_precision], None if compute is torch.float32 else compute)

    @classmethod
    def of_deepspeed(cls, precision: str) -> Precision:
        """As DeepSpeed computes: all weights in the dtype of computation, and no autocast."""
        return cls(_DTYPES[precision], _DTYPES[precision])


_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


@dataclass(frozen=True)
class StepCost:
    """What one forward and backward pass of a batch costs.

    Attributes:
        forward_flops: Of the forward pass.
        backward_flops: Of the backward pass, with what is computed again where activations are checkpointed.
        peak_bytes: Most that inputs, activations and gradients under way take at a time, without weights, collected
            gradients and optimiser.
    """

    forward_flops: int
    backward_flops: int
    peak_bytes: int

    @property
    def flops(self) -> int:
        """Of both."""
        return self.forward_flops + self.backward_flops


@dataclass
class Rehearsal:
    """A model of shapes alone to which a stage has been applied.

    Attributes:
        model: Its parameters are fake tensors.
        parts: What the stage trains.
        precision: Dtypes that it was made in.
    """

    model: OspreyTPForConditionalGeneration
    parts: list[PartSummary]
    precision: Precision
    _checkpointing: bool = False

    @classmethod
    def of(
        cls,
        config: OspreyTPConfig,
        stage: Stage,
        precision: Precision,
        *,
        adapter: AdapterSettings | None = None,
        attention: str = "sdpa",
    ) -> Rehearsal:
        """Make the model without memory, apply the stage, attach the adapters.

        Args:
            config: Of the model.
            stage: What trains.
            precision: Dtypes.
            adapter: LoRA in place of training the language model itself.
            attention: `eager` keeps all attention weights; every other one is taken for `sdpa`.
        """
        with torch.device("meta"):
            model, parts = staged_model(config, stage, precision.trained, adapter, attention)
        _take_shapes_alone(model, precision.frozen)
        model.train()
        keep_frozen_tower_in_evaluation_mode(model)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(_drop_gradient)
        return cls(model, parts, precision)

    def size(self, *, quantised: bool = False) -> ModelSize:
        """Numbers of parameters.

        Args:
            quantised: Whether the frozen linear layers of the decoder are held in 4 bits.
        """
        parameters = list(self.model.parameters())
        layers = (sum(p.numel() for p in module.parameters(recurse=False)) for module in self.model.modules())
        return ModelSize(
            parameters=sum(p.numel() for p in parameters),
            trainable=sum(p.numel() for p in parameters if p.requires_grad),
            largest_layer=max(layers),
            quantised=sum(frozen_linear_weights(self.model.model.language_model)) if quantised else 0,
        )

    def step(self, batch: Sequence[SampleShape], *, checkpointing: bool) -> StepCost:
        """Act out a forward and a backward pass.

        Args:
            batch: Its samples.
            checkpointing: Whether activations are computed again in the backward pass instead of being kept.
        """
        self._set_checkpointing(checkpointing)
        dtype = self.precision.autocast
        inputs = batch_inputs(self.model.config, batch)
        with FakeTensorMode(allow_non_fake_inputs=True):
            inputs["pixel_values"] = torch.empty(inputs["pixel_values"].shape)
        with Ledger(ignored=[*self.model.parameters(), *self.model.buffers()]) as ledger:
            ledger.add(inputs.values())
            with nullcontext() if dtype is None else torch.autocast("cpu", dtype):
                loss = self.model(**inputs, use_cache=False).loss
            forward = ledger.flops
            loss.backward()
        return StepCost(forward, ledger.flops - forward, ledger.peak)

    def _set_checkpointing(self, wanted: bool) -> None:
        if wanted and not self._checkpointing:
            checkpoint_activations(self.model)
        elif self._checkpointing and not wanted:
            _activation_method(self.model, "checkpointing_disable")()
            self.model.disable_input_require_grads()
        self._checkpointing = wanted


def _activation_method(model: OspreyTPForConditionalGeneration, name: str) -> Callable[..., None]:
    """A method that transformers calls `activation_...`, and in older versions `gradient_...`."""
    return getattr(model, f"activation_{name}", None) or getattr(model, f"gradient_{name}")


def batch_inputs(config: OspreyTPConfig, batch: Sequence[SampleShape]) -> dict[str, Tensor]:
    """Tensors that the model takes, with labels, of samples with these shapes; padded on the right.

    Pixels are on the meta device. What the text says is of no matter: its ids are 0, and all of it is learned.

    Raises:
        ValueError: for a sample that has fewer tokens than its picture and its regions need.
    """
    length = max(sample.tokens for sample in batch)
    ids = torch.zeros(len(batch), length, dtype=torch.long)
    attention_mask = torch.zeros_like(ids)
    labels = torch.full_like(ids, IGNORED_LABEL)
    plans: list[TilePlan] = []
    picture_of_region: list[int] = []
    for row, sample in enumerate(batch):
        plan = sample.plan(config.tiling)
        visual = 0 if plan is None else plan.num_visual_tokens
        text = visual + config.tokens_per_region * sample.regions
        if text >= sample.tokens or (sample.regions and plan is None):
            raise ValueError(
                f"a sample of {sample.tokens} tokens cannot hold {visual} visual tokens, {sample.regions} regions and "
                "text"
            )
        ids[row, :visual] = config.image_token_id
        ids[row, visual:text] = config.region_token_id
        attention_mask[row, : sample.tokens] = 1
        labels[row, text : sample.tokens] = 0
        if plan is not None:
            picture_of_region += [len(plans)] * sample.regions
            plans.append(plan)
    tiles, side = sum(plan.num_tiles for plan in plans), config.tiling.tile_size
    shape = (len(picture_of_region), config.spatial_side, config.spatial_side)
    shapes = {"region_shapes": torch.ones(shape)} if config.tokens_per_region > 1 else {}
    return {
        "input_ids": ids,
        "attention_mask": attention_mask,
        "labels": labels,
        "pixel_values": torch.empty(tiles, 3, side, side, device="meta"),
        "tile_grids": torch.tensor([(plan.rows, plan.cols) for plan in plans], dtype=torch.long).reshape(-1, 2),
        "region_coverage": torch.ones(len(picture_of_region), max((plan.num_cells for plan in plans), default=0)),
        "region_image_index": torch.tensor(picture_of_region, dtype=torch.long),
        **shapes,
    }


def staged_model(
    config: OspreyTPConfig, stage: Stage, dtype: torch.dtype, adapter: AdapterSettings | None, attention: str = "sdpa"
) -> tuple[OspreyTPForConditionalGeneration, list[PartSummary]]:
    """A model with random weights on the current default device, to which stage and adapters have been applied.

    Args:
        config: Of the model.
        stage: What trains.
        dtype: Of all weights.
        adapter: LoRA in place of training the language model itself.
        attention: `eager` keeps all attention weights; every other one is taken for `sdpa`.

    Returns:
        The model, and the stage's table of its modules.
    """
    model = OspreyTPForConditionalGeneration._from_config(
        config, dtype=dtype, attn_implementation="eager" if attention == "eager" else "sdpa"
    )
    if adapter is not None:
        add_adapters(model, replace(adapter, kind="lora"), dtype)
    return model, apply_stage(model, stage)


def frozen_linear_weights(module: nn.Module) -> list[int]:
    """Numbers of weights of every linear layer that does not train."""
    return [layer.weight.numel() for _, layer in _linear_layers(module) if not layer.weight.requires_grad]


_aten = torch.ops.aten
FLOP_FORMULAS: Mapping[Any, Callable[..., int]] = {
    _aten._scaled_dot_product_flash_attention_for_cpu: flop_registry[_aten._scaled_dot_product_flash_attention],
    _aten._scaled_dot_product_flash_attention_for_cpu_backward: flop_registry[
        _aten._scaled_dot_product_flash_attention_backward
    ],
    **flop_registry,
}
"""Of operators: torch's, and its formulas of attention on a GPU for that on a processor, which it lacked up to 2.14."""


class Ledger(TorchDispatchMode):
    """Writes down what operators cost while it is entered.

    torch's own `FlopCounterMode` follows modules as well, and by that keeps what checkpointing computed again alive.

    Args:
        ignored: Tensors whose storages are not counted, such as weights, when a view of them is made.

    Attributes:
        flops: Of matrix products, convolutions and attention, by torch's formulas; two for a product with its addition.
        peak: Most bytes of storages that lived at a time.
    """

    def __init__(self, ignored: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.flops = 0
        self.peak = 0
        self._current = 0
        self._ignored = {tensor.untyped_storage()._cdata for tensor in ignored}
        self._sizes: dict[int, int] = {}

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the operator and write down what it computed and made."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        formula = FLOP_FORMULAS.get(getattr(func, "overloadpacket", None))
        if formula is not None:
            self.flops += formula(*args, **kwargs, out_val=result)
        self.add(tree_leaves(result))
        return result

    def add(self, values: Iterable[Any]) -> None:
        """Count the storages of tensors that are not counted yet, until they are freed."""
        for value in values:
            if not isinstance(value, Tensor):
                continue
            storage = value.untyped_storage()
            key = storage._cdata
            if key in self._ignored or key in self._sizes:
                continue
            self._sizes[key] = storage.nbytes()
            self._current += storage.nbytes()
            self.peak = max(self.peak, self._current)
            weakref.finalize(storage, self._remove, key)

    def _remove(self, key: int) -> None:
        self._current -= self._sizes.pop(key)


def _linear_layers(module: nn.Module) -> list[tuple[str, nn.Linear]]:
    return [(name, layer) for name, layer in module.named_modules() if isinstance(layer, nn.Linear)]


def _take_shapes_alone(model: nn.Module, frozen: torch.dtype) -> None:
    """Replace what lies on the meta device by fake tensors that say they lie on the CPU; frozen ones of that dtype."""
    made: dict[int, Tensor] = {}

    def fake(tensor: Tensor) -> Tensor:
        trains = tensor.requires_grad
        is_weight = isinstance(tensor, nn.Parameter)
        dtype = frozen if is_weight and not trains and tensor.is_floating_point() else tensor.dtype
        empty = torch.empty(tensor.shape, dtype=dtype)
        return nn.Parameter(empty, requires_grad=trains) if is_weight else empty

    with FakeTensorMode(allow_non_fake_inputs=True):
        for module in model.modules():
            for tensors in (module._parameters, module._buffers):
                for name, tensor in tensors.items():
                    if tensor is not None:
                        tensors[name] = made.setdefault(id(tensor), fake(tensor))  # type: ignore[assignment]


def _drop_gradient(parameter: Tensor) -> None:
    """Collected gradients belong to the memory of the model's state, which ZeRO shares out."""
    parameter.grad = None
