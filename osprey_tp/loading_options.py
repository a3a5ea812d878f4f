"""How a model is loaded: where it runs, in which precision, and how much of a picture it reads.

`LoadingOptions` are the choices of `RegionDescriber.from_pretrained`; `add_loading_options` offers them on a command
line. Nothing slow is imported before a model is.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, fields
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

DTYPES = ("float32", "bfloat16", "float16")
TILES_SHOWN = ("all", "near-regions")
QUANTIZATIONS = {
    "int8-dynamic": ("torchao", "int8"),
    "8bit": ("bitsandbytes", "qlora"),
    "4bit": ("bitsandbytes", "qlora"),
}
"""Of the language model's linear layers: what makes it, and which extra of this project brings that."""

_KEPT = ("model.vision_tower", "model.projector", "model.region_encoder", "lm_head")
"""Parts that are never quantised: they are small, and the tokens they make are read by all layers."""


@dataclass(frozen=True)
class LoadingOptions:
    """How a model is loaded; `max_tiles` and `tiles` may be lowered again for a picture.

    Attributes:
        device: By default a GPU if there is one, for `int8-dynamic` the CPU.
        dtype: A dtype of torch or its name; by default that of the weights.
        quantization: A key of `QUANTIZATIONS`; None for none.
        device_map: As of transformers (`auto` spreads the model over what there is), in place of `device`.
        max_tiles, tiles: As of `osprey_tp.encoded_tiles.TileBudget`.
        compile: Whether the vision tower is compiled, which makes loading slow and pictures fast.
    """

    device: str | torch.device | None = None
    dtype: str | torch.dtype | None = None
    quantization: str | None = None
    device_map: str | dict[str, Any] | None = None
    max_tiles: int | None = None
    tiles: str = "all"
    compile: bool = False

    @property
    def that_change_answers(self) -> dict[str, Any]:
        """Those that are not as by default, without the ones that only say where and how fast a model runs."""
        names = ("dtype", "quantization", "max_tiles", "tiles")
        return {name: str(getattr(self, name)) for name in names if getattr(self, name) != getattr(type(self), name)}

    @property
    def place(self) -> torch.device:
        """Where the model runs, if no `device_map` says it."""
        import torch

        on_cpu = self.quantization == "int8-dynamic" or not torch.cuda.is_available()
        return torch.device(self.device or ("cpu" if on_cpu else "cuda"))

    def arguments(self) -> dict[str, Any]:
        """What `PreTrainedModel.from_pretrained` takes for them; without a `device_map` among it, move the model then.

        Raises:
            ValueError: if they contradict each other, or name what there is not.
            ImportError: if a package is missing, with the remedy.
        """
        if self.device is not None and self.device_map is not None:
            raise ValueError("give device or device_map, not both: device_map says where every part of the model is")
        if self.quantization is None and self.device_map is None:
            return {"dtype": self._dtype()}
        arguments = {"dtype": self._dtype(), "device_map": self.device_map or {"": self.place}}
        if self.quantization is not None:
            arguments["quantization_config"] = self._config()
        _require_package("accelerate", "train", "quantization" if self.device_map is None else "device_map")
        return arguments

    def _dtype(self) -> torch.dtype | str:
        import torch

        if self.dtype is None or isinstance(self.dtype, torch.dtype):
            return self.dtype or "auto"
        found = getattr(torch, self.dtype, None)
        if not isinstance(found, torch.dtype) or not found.is_floating_point:
            raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, not {self.dtype!r}")
        return found

    def _config(self) -> Any:
        import torch
        from transformers import BitsAndBytesConfig, TorchAoConfig

        kind = self.quantization
        if kind not in QUANTIZATIONS:
            raise ValueError(f"quantization must be one of {', '.join(QUANTIZATIONS)}, not {kind!r}")
        _require_package(*QUANTIZATIONS[kind], f"quantization {kind}")
        if kind == "int8-dynamic":
            if self.place.type != "cpu" or self.device_map not in (None, "cpu"):
                raise ValueError("quantization int8-dynamic runs on the CPU; on a GPU take 8bit")
            from torchao.quantization import Int8DynamicActivationInt8WeightConfig

            return TorchAoConfig(Int8DynamicActivationInt8WeightConfig(), modules_to_not_convert=list(_KEPT))
        if kind == "8bit":
            return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=list(_KEPT))
        dtype = self._dtype()
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype if isinstance(dtype, torch.dtype) else torch.bfloat16,
            llm_int8_skip_modules=list(_KEPT),
        )


def add_loading_options(parser: argparse.ArgumentParser) -> None:
    """Offer `LoadingOptions` on a command line; `loading_options` reads them."""
    group = parser.add_argument_group("how the model is loaded")
    group.add_argument("--device", help="cpu, cuda, ... (default: a GPU if there is one)")
    group.add_argument("--dtype", choices=DTYPES, help="precision (default: that of the weights)")
    group.add_argument(
        "--quantization",
        choices=tuple(QUANTIZATIONS),
        help="of the language model's layers: int8-dynamic on the CPU (package torchao), 8bit or 4bit (bitsandbytes)",
    )
    group.add_argument(
        "--device-map", choices=("auto",), help="spread the model over all GPUs and the CPU, in place of --device"
    )
    group.add_argument(
        "--max-tiles", type=int, metavar="N", help="cut pictures into fewer tiles than the model does by default"
    )
    group.add_argument(
        "--tiles",
        choices=TILES_SHOWN,
        default="all",
        help="near-regions: read only tiles that asked regions touch, and the thumbnail (default: %(default)s)",
    )
    group.add_argument(
        "--compile", action="store_true", help="compile the vision tower: half a minute at the start, faster pictures"
    )


def loading_options(options: argparse.Namespace) -> LoadingOptions:
    """What the command line says of loading."""
    return LoadingOptions(**{field.name: getattr(options, field.name) for field in fields(LoadingOptions)})


def _require_package(package: str, extra: str, needed_for: str) -> None:
    if find_spec(package) is None:
        raise ImportError(f"{needed_for} needs the package {package}: pip install 'osprey_tp[{extra}]'")
