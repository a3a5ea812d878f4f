"""Adapters of the language model: LoRA, and LoRA over weights of 4 bits (QLoRA), by peft and bitsandbytes.

Projector and region encoder have no adapters; they train in full beside them. A run with adapters writes a folder with

```
adapter/            peft's own files: adapter_config.json, adapter_model.safetensors
parts.safetensors   projector, region encoder and whatever else trains, in full; parts.json says what they are
config.json, processor, run_settings.yaml, which names the model that the run started from
```

and `scripts.merge` makes a plain model folder of it. Checkpoints of the run have the same files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from osprey_tp.model_folder import ADAPTER_FOLDER
from osprey_tp.training.parts import EXPORTABLE, weights_of_parts, write_parts
from osprey_tp.training.stages import trained_parameters_of

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from osprey_tp.modeling import OspreyTPForConditionalGeneration

ALL_LINEAR = "all-linear"
ADAPTER_WEIGHTS = "adapter_model.safetensors"

_LANGUAGE_MODEL = "model.language_model."
_PEFT_PREFIX = "base_model.model."


@dataclass(frozen=True)
class AdapterSettings:
    """Adapters of the language model.

    Attributes:
        kind: `lora`; or `qlora`, which holds the adapted weights in 4 bits and needs a GPU.
        rank: Rank of an adapter.
        alpha: An adapter's output is scaled by alpha / rank.
        dropout: Share of an adapter's inputs that is left out in training.
        targets: Names of the layers that get adapters, such as `q_proj`; `all-linear` for every linear layer.
    """

    kind: Literal["lora", "qlora"]
    rank: int = 64
    alpha: float = 128.0
    dropout: float = 0.05
    targets: tuple[str, ...] = (ALL_LINEAR,)

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"adapter.rank must be at least 1, got {self.rank}")
        if not self.alpha > 0:
            raise ValueError(f"adapter.alpha must be positive, got {self.alpha:g}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"adapter.dropout is a share, from 0 to below 1, got {self.dropout:g}")
        if not self.targets:
            raise ValueError(f"adapter.targets names no layer; give names such as q_proj, or {ALL_LINEAR}")


def require_adapters_can_run(settings: AdapterSettings) -> None:
    """Raise ValueError, with the remedy, where a package or a device that the adapters need is missing."""
    from importlib.util import find_spec

    import torch
    from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

    if find_spec("peft") is None:
        raise ValueError("adapter needs the package peft; pip install 'osprey_tp[train]'")
    if settings.kind == "lora":
        return
    if not torch.cuda.is_available():
        raise ValueError("adapter.kind=qlora needs a CUDA GPU, and there is none here; take adapter.kind=lora")
    if find_spec("bitsandbytes") is None:
        raise ValueError("adapter.kind=qlora needs the package bitsandbytes; pip install 'osprey_tp[qlora]'")
    if is_deepspeed_zero3_enabled():
        raise ValueError("adapter.kind=qlora does not go with ZeRO-3; take a ZeRO-2 file, or adapter.kind=lora")


def add_adapters(model: OspreyTPForConditionalGeneration, settings: AdapterSettings, compute: torch.dtype) -> None:
    """Give the language model adapters that change nothing yet; for `qlora`, hold what they adapt in 4 bits.

    Args:
        model: Changed in place.
        settings: Kind, size and places of the adapters.
        compute: Dtype in which weights of 4 bits are multiplied.

    Raises:
        ValueError: for a target that the language model does not have.
    """
    from peft import LoraConfig, inject_adapter_in_model

    language_model = model.model.language_model
    targets = _linear_layers(language_model, settings.targets)
    if settings.kind == "qlora":
        hold_in_4_bits(language_model, targets, compute)
    configuration = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,  # type: ignore[arg-type]  # peft divides it; a float is as good
        lora_dropout=settings.dropout,
        target_modules=sorted({name.rpartition(".")[2] for name in targets}),
    )
    inject_adapter_in_model(configuration, language_model)


def _linear_layers(language_model: nn.Module, targets: tuple[str, ...]) -> list[str]:
    """Full names of the linear layers whose last names are among `targets`."""
    from torch import nn

    linear = [name for name, module in language_model.named_modules() if isinstance(module, nn.Linear)]
    known = sorted({name.rpartition(".")[2] for name in linear})
    unknown = [target for target in targets if target not in (*known, ALL_LINEAR)]
    if unknown:
        raise ValueError(
            f"adapter.targets names {unknown[0]}, which is no linear layer of the language model; "
            f"it has {', '.join(known)}"
        )
    return [name for name in linear if ALL_LINEAR in targets or name.rpartition(".")[2] in targets]


def hold_in_4_bits(language_model: nn.Module, names: list[str], compute: torch.dtype) -> None:
    """Put bitsandbytes' layers of 4 bits (NF4, doubly quantised) in the places `names`, on the process' own device."""
    import torch
    from bitsandbytes.nn import Linear4bit, Params4bit

    device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
    for name in names:
        parent, _, last = name.rpartition(".")
        layer = language_model.get_submodule(name)
        held: Any = Linear4bit(
            layer.in_features, layer.out_features, layer.bias is not None, compute, quant_type="nf4", device="meta"
        )
        held.weight = Params4bit(layer.weight.data, requires_grad=False, quant_type="nf4", compress_statistics=True)
        held.bias = layer.bias
        setattr(language_model.get_submodule(parent), last, held.to(device))  # rounds the weights
    language_model.is_loaded_in_4bit = True  # type: ignore[assignment]  # where peft looks for it


def has_adapters(model: OspreyTPForConditionalGeneration) -> bool:
    """Whether `add_adapters` has been applied."""
    return hasattr(model.model.language_model, "peft_config")


def write_adapters(
    model: OspreyTPForConditionalGeneration, folder: Path, state: Mapping[str, Tensor] | None = None
) -> None:
    """Write the adapters and all parts that train in full, as the head of this module says.

    Args:
        model: Has adapters.
        folder: Exists.
        state: The weights of the whole model, where they are gathered from several processes.
    """
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    state = model.state_dict() if state is None else state
    language_model = model.model.language_model
    inner = {
        name.removeprefix(_LANGUAGE_MODEL): weight
        for name, weight in state.items()
        if name.startswith(_LANGUAGE_MODEL) and ".lora_" in name
    }
    adapters = get_peft_model_state_dict(language_model, state_dict=inner)
    (folder / ADAPTER_FOLDER).mkdir(parents=True, exist_ok=True)
    save_file(
        {_PEFT_PREFIX + name: weight.detach().cpu().contiguous() for name, weight in adapters.items()},
        folder / ADAPTER_FOLDER / ADAPTER_WEIGHTS,
        metadata={"format": "pt"},
    )
    language_model.peft_config["default"].save_pretrained(str(folder / ADAPTER_FOLDER))
    trained = [part for part in EXPORTABLE if part != "vision_tower" or trained_parameters_of(model, part)]
    write_parts(folder, weights_of_parts(state, trained), model.config)
    model.config.save_pretrained(folder)


def read_adapters(model: OspreyTPForConditionalGeneration, folder: Path) -> None:
    """Read adapters, which `add_adapters` has made, from `adapter/` of `folder`.

    Raises:
        ValueError: if the folder holds other adapters than the model.
        OSError: if the file is missing.
    """
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    from osprey_tp.weights import read_safetensors

    file = folder / ADAPTER_FOLDER / ADAPTER_WEIGHTS
    found = {name.removeprefix(_PEFT_PREFIX): weight for name, weight in read_safetensors(file).items()}
    language_model = model.model.language_model
    expected = {name: weight.shape for name, weight in get_peft_model_state_dict(language_model).items()}
    if {name: weight.shape for name, weight in found.items()} != expected:
        raise ValueError(f"{file} holds adapters of other layers or another rank than the settings ask for")
    set_peft_model_state_dict(language_model, found)
