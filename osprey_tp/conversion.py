"""Names of the published checkpoints' weights, and ours: the one place that knows both.

Layout of the published files: `llava/model/multimodal_projector/builder.py` (projector) and
`llava/model/layers.py` (region encoder) of the `tokenpacker-hd-osprey` branch.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

PUBLISHED_PROJECTOR_PREFIX = "model.mm_projector."
PUBLISHED_REGION_ENCODER_PREFIX = "mask_extractor."

_PROJECTOR_MODULES = {
    "q_proj_1": "coarse_query",
    "k_proj_1.0": "fine_key.0",
    "k_proj_1.2": "fine_key.2",
    "v_proj_1.0": "fine_value.0",
    "v_proj_1.2": "fine_value.2",
    "ln_q_1": "query_norm",
    "ln_k_1": "key_norm",
    "ln_v_1": "value_norm",
    "clip_attn.out_proj": "attention.output",
    "mlp.0": "mlp.0",
    "mlp.2": "mlp.2",
}

_FUSED_ATTENTION = "clip_attn.in_proj_"
_FUSED_PARTS = ("query", "key", "value")


def projector_from_published(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the weights of a published TokenPacker projector.

    Args:
        weights: By published name without `model.mm_projector.`; `clip_attn.in_proj_*` holds query, key and value
            stacked, (3·C, ...).

    Returns:
        The state dict of `TokenPackerProjector`.

    Raises:
        KeyError: for a name that no published projector has.
    """
    renamed: dict[str, Tensor] = {}
    for name, weight in weights.items():
        if name.startswith(_FUSED_ATTENTION):
            kind = name.removeprefix(_FUSED_ATTENTION)
            for part, rows in zip(_FUSED_PARTS, weight.chunk(3), strict=True):
                renamed[f"attention.{part}.{kind}"] = rows
            continue
        module, _, kind = name.rpartition(".")
        if module not in _PROJECTOR_MODULES:
            raise KeyError(f"{PUBLISHED_PROJECTOR_PREFIX}{name} is not a weight of a TokenPacker projector")
        renamed[f"{_PROJECTOR_MODULES[module]}.{kind}"] = weight
    return renamed


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
        if module == "feat_linear":
            renamed[f"output.{kind}"] = weight
        elif module.startswith("res_layers."):
            renamed[f"level_projections.{module.removeprefix('res_layers.')}.{kind}"] = weight
        else:
            raise KeyError(f"{PUBLISHED_REGION_ENCODER_PREFIX}{name} is not a weight of a mask extractor")
    return renamed


def parts_from_published(weights: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Sort the weights of a published file of single parts, such as `mm_projector.bin`, and rename them.

    Args:
        weights: By published name. Whatever stands before `mm_projector.` or `mask_extractor.` is dropped; names with
            neither are taken for a projector's.

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
        else:
            _, prefix, inner = name.partition(PUBLISHED_PROJECTOR_PREFIX.removeprefix("model."))
            bare = name.startswith(_FUSED_ATTENTION) or name.rpartition(".")[0] in _PROJECTOR_MODULES
            if not prefix and not bare:
                raise KeyError(f"{name} belongs to neither a projector nor a mask extractor")
            projector[inner if prefix else name] = weight
    parts = {
        "projector": projector_from_published(projector),
        "region_encoder": region_encoder_from_published(region_encoder),
    }
    return {part: renamed for part, renamed in parts.items() if renamed}
