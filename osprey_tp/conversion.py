"""Names of the published checkpoints' weights, and ours: the one place that knows both.

| part            | ours                    | published                                                         |
|-----------------|-------------------------|-------------------------------------------------------------------|
| language model  | `model.language_model.` | `model.` (plain LLaMA)                                            |
| head            | `lm_head.`              | `lm_head.`                                                        |
| vision tower    | `model.vision_tower.`   | `model.vision_tower.vision_tower.vision_model.`                   |
| projector       | `model.projector.`      | `model.mm_projector.`, for STF also `model.mm_projector_crosslayer.` |
| region encoder  | `model.region_encoder.` | `mask_extractor.` (top level)                                     |

Layout of the published files: `llava/model/multimodal_projector/builder.py` (projectors of TokenPacker, LLaVA-1.5 and
LLaVA-STF) and `llava/model/layers.py` (region encoder of the `tokenpacker-hd-osprey` branch). The spatial branch of the
region encoder is named as in the original Osprey (`mask_linear`).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor

PUBLISHED_PROJECTOR_PREFIX = "model.mm_projector."
PUBLISHED_REGION_ENCODER_PREFIX = "mask_extractor."
PUBLISHED_TOWER_PREFIX = "model.vision_tower.vision_tower.vision_model."
PUBLISHED_LANGUAGE_PREFIX = "model."

TOWER_PREFIX = "model.vision_tower."
PROJECTOR_PREFIX = "model.projector."
REGION_ENCODER_PREFIX = "model.region_encoder."
LANGUAGE_PREFIX = "model.language_model."
HEAD_PREFIX = "lm_head."
HEAD = f"{HEAD_PREFIX}weight"

_FUSED_ATTENTION = "mm_projector.clip_attn.in_proj_"
_FUSED_PARTS = ("attention.query", "attention.key", "attention.value")
"""What a fused weight stacks along its rows."""

_PROJECTOR_MODULES: dict[str, dict[str, str]] = {
    "tokenpacker": {
        "coarse_query": "mm_projector.q_proj_1",
        "fine_key.0": "mm_projector.k_proj_1.0",
        "fine_key.2": "mm_projector.k_proj_1.2",
        "fine_value.0": "mm_projector.v_proj_1.0",
        "fine_value.2": "mm_projector.v_proj_1.2",
        "query_norm": "mm_projector.ln_q_1",
        "key_norm": "mm_projector.ln_k_1",
        "value_norm": "mm_projector.ln_v_1",
        "attention.output": "mm_projector.clip_attn.out_proj",
        "mlp.0": "mm_projector.mlp.0",
        "mlp.2": "mm_projector.mlp.2",
    },
    "mlp": {"mlp.0": "mm_projector.0", "mlp.2": "mm_projector.2"},
    "stf": {
        "fusion.0": "mm_projector_crosslayer.0",
        "fusion.2": "mm_projector_crosslayer.2",
        "mlp.0": "mm_projector.0",
        "mlp.2": "mm_projector.2",
    },
}
"""For every `projector_type`, our modules and the published ones without `model.`."""

_REGION_MODULES = (
    ("level_projections", "res_layers"),
    ("output", "feat_linear"),
    ("spatial.layers", "mask_linear.layers"),
)
"""Our modules of the region encoder and the published ones; what follows them is the same."""

_NOT_WEIGHTS = re.compile(r"\.rotary_emb\.inv_freq$|\.embeddings\.position_ids$")
"""Constants that older transformers saved with the weights."""


@dataclass(frozen=True)
class PublishedName:
    """Where one of our weights lies in a published checkpoint.

    Attributes:
        name: Of the published weight.
        part: Which of `parts` equal pieces of it along the rows.
        parts: 3 for the fused attention, else 1.
    """

    name: str
    part: int = 0
    parts: int = 1


def published_name(name: str, projector_type: str) -> PublishedName:
    """Where the weight that we call `name` lies in a published checkpoint.

    Args:
        name: Of the state dict of `OspreyTPForConditionalGeneration`.
        projector_type: As in the configuration.

    Raises:
        KeyError: for a weight that no published code has.
    """
    if name.startswith(PROJECTOR_PREFIX):
        return _published_projector_name(name.removeprefix(PROJECTOR_PREFIX), projector_type)
    if name.startswith(REGION_ENCODER_PREFIX):
        module, _, kind = name.removeprefix(REGION_ENCODER_PREFIX).rpartition(".")
        return PublishedName(f"{PUBLISHED_REGION_ENCODER_PREFIX}{_renamed_region_module(module, 0)}.{kind}")
    if name.startswith(TOWER_PREFIX):
        return PublishedName(PUBLISHED_TOWER_PREFIX + name.removeprefix(TOWER_PREFIX))
    if name.startswith(LANGUAGE_PREFIX):
        return PublishedName(PUBLISHED_LANGUAGE_PREFIX + name.removeprefix(LANGUAGE_PREFIX))
    if name.startswith(HEAD_PREFIX):
        return PublishedName(name)
    raise KeyError(f"no published checkpoint has {name}")


def _published_projector_name(name: str, projector_type: str) -> PublishedName:
    module, _, kind = name.rpartition(".")
    if projector_type == "tokenpacker" and module in _FUSED_PARTS:
        return PublishedName(f"model.{_FUSED_ATTENTION}{kind}", _FUSED_PARTS.index(module), len(_FUSED_PARTS))
    published = _PROJECTOR_MODULES.get(projector_type, {}).get(module)
    if published is None:
        raise KeyError(f"no published {projector_type} projector has {name}")
    return PublishedName(f"model.{published}.{kind}")


def _renamed_region_module(module: str, side: int) -> str:
    """The other name of a module of the region encoder; `side` is 0 for ours, 1 for the published one."""
    for names in _REGION_MODULES:
        if module == names[side] or module.startswith(names[side] + "."):
            return names[1 - side] + module.removeprefix(names[side])
    raise KeyError(f"no published mask extractor has {module}")


def is_weight(name: str) -> bool:
    """Whether a published name stands for a weight, not for a constant that is computed anew."""
    return _NOT_WEIGHTS.search(name) is None


def projector_type_of(names: Iterable[str]) -> str | None:
    """The `projector_type` of weights by their published names, or None if no known projector is among them."""
    modules = {_from_projector(name).rpartition(".")[0] for name in names if "mm_projector" in name}
    if any(module.startswith("mm_projector_crosslayer") for module in modules):
        return "stf"
    for projector_type, signature in (("tokenpacker", "mm_projector.q_proj_1"), ("mlp", "mm_projector.0")):
        if signature in modules:
            return projector_type
    return None


def standard_projector_name(name: str) -> str:
    """A published projector's name as whole checkpoints have it: `model.mm_projector...`, whatever stands before.

    Raises:
        KeyError: if it is no name of a projector.
    """
    if "mm_projector" not in name:
        raise KeyError(f"{name} is not a weight of a projector; name a file of a projector alone")
    return f"model.{_from_projector(name)}"


def _from_projector(name: str) -> str:
    """`name` from `mm_projector` on, whatever stands before it."""
    return name[name.index("mm_projector") :]


def projector_from_published(weights: Mapping[str, Tensor], projector_type: str = "tokenpacker") -> dict[str, Tensor]:
    """Rename the weights of a published projector.

    Args:
        weights: By published name without `model.mm_projector.` (for STF, those of `model.mm_projector_crosslayer.`
            by the name without `model.`); `clip_attn.in_proj_*` holds query, key and value stacked, (3·C, ...).
        projector_type: As in the configuration.

    Returns:
        The state dict of that projector.

    Raises:
        KeyError: for a name that no published projector of that type has.
    """
    ours = {published: module for module, published in _PROJECTOR_MODULES[projector_type].items()}
    renamed: dict[str, Tensor] = {}
    for name, weight in weights.items():
        full = name if name.startswith("mm_projector_") else f"mm_projector.{name}"
        if projector_type == "tokenpacker" and full.startswith(_FUSED_ATTENTION):
            kind = full.removeprefix(_FUSED_ATTENTION)
            for part, rows in zip(_FUSED_PARTS, weight.chunk(len(_FUSED_PARTS)), strict=True):
                renamed[f"{part}.{kind}"] = rows
            continue
        module, _, kind = full.rpartition(".")
        if module not in ours:
            raise KeyError(f"model.{full} is not a weight of a {_PROJECTOR_TITLES[projector_type]} projector")
        renamed[f"{ours[module]}.{kind}"] = weight
    return renamed


_PROJECTOR_TITLES = {"tokenpacker": "TokenPacker", "mlp": "LLaVA-1.5", "stf": "LLaVA-STF"}


def region_encoder_from_published(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the weights of a published mask extractor.

    Args:
        weights: By published name without `mask_extractor.`.

    Returns:
        The state dict of `RegionEncoder`.

    Raises:
        KeyError: for a name that no published mask extractor has.
    """
    renamed = {}
    for name, weight in weights.items():
        module, _, kind = name.rpartition(".")
        try:
            renamed[f"{_renamed_region_module(module, 1)}.{kind}"] = weight
        except KeyError:
            message = f"{PUBLISHED_REGION_ENCODER_PREFIX}{name} is not a weight of a mask extractor"
            raise KeyError(message) from None
    return renamed


def parts_from_published(weights: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Sort the weights of a published file of single parts, such as `mm_projector.bin`, and rename them.

    Args:
        weights: By published name. Whatever stands before `mm_projector` or `mask_extractor.` is dropped; names with
            neither are taken for a TokenPacker projector's.

    Returns:
        State dicts by part, `projector` and `region_encoder`, as far as the file has them.

    Raises:
        KeyError: for a name that neither part has.
    """
    projector: dict[str, Tensor] = {}
    region_encoder: dict[str, Tensor] = {}
    for name, weight in weights.items():
        _, extractor, inner = name.partition(PUBLISHED_REGION_ENCODER_PREFIX)
        if extractor:
            region_encoder[inner] = weight
        elif "mm_projector" in name:
            projector[_from_projector(name).removeprefix("mm_projector.")] = weight
        elif _is_bare(name, _PROJECTOR_MODULES["tokenpacker"].values()):
            projector[name] = weight
        else:
            raise KeyError(f"{name} belongs to neither a projector nor a mask extractor")
    projector_type = projector_type_of(name for name in weights if "mm_projector" in name) or "tokenpacker"
    parts = {
        "projector": projector_from_published(projector, projector_type),
        "region_encoder": region_encoder_from_published(region_encoder),
    }
    return {part: renamed for part, renamed in parts.items() if renamed}


def _is_bare(name: str, modules: Collection[str]) -> bool:
    """Whether `name` is that of a projector's weight without `mm_projector.`."""
    full = f"mm_projector.{name}"
    return full.startswith(_FUSED_ATTENTION) or full.rpartition(".")[0] in modules
