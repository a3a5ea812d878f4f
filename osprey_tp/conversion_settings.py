"""What a published `config.json` says, as our configuration, and back.

The published file is flat: the language model's fields and `mm_*` facts about tower and projector. What it does not say
is fixed in the published code: the layers that are read, the table of tile grids, the preset. `--reverse` writes what
differs from that under one key of its own, `osprey_tp`, which published code passes over.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import AutoConfig, CLIPVisionConfig, LlamaConfig, PreTrainedConfig

from osprey_tp import outside
from osprey_tp.configuration import OspreyTPConfig, choices_of_a_model
from osprey_tp.conversion import PUBLISHED_REGION_ENCODER_PREFIX, PUBLISHED_TOWER_PREFIX, projector_type_of
from osprey_tp.outside import OWN_FILES_ALONE
from osprey_tp.projectors import PROJECTORS
from osprey_tp.weights import StoredWeight, few

OWN_KEY = "osprey_tp"
"""Key of a published `config.json` under which `--reverse` writes what that file has no words for."""

MODEL_TYPES = ("llava", "llava_llama")

_LANGUAGE_FIELDS = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "head_dim"),
    *("num_key_value_heads", "hidden_act", "max_position_embeddings", "rms_norm_eps", "initializer_range"),
    *("rope_theta", "rope_scaling", "attention_bias", "mlp_bias", "tie_word_embeddings"),
    *("bos_token_id", "eos_token_id", "pad_token_id"),
)
_SEPARATORS = ("tile_separator_token_id", "row_separator_token_id")
_CHANNELS_PER_HEAD = 64
"""Of every published CLIP tower."""

_SLICED, _PADDED, _CROPPED = "slice", "pad", "square"
"""Values of `image_aspect_ratio`: tiles, a square that holds the picture, a square cut out of its middle."""

_TITLES = {"tokenpacker": "TokenPacker", "mlp": "LLaVA-1.5", "stf": "LLaVA-STF"}


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object, or ValueError naming the file."""
    try:
        content = outside.read_json(file)
    except ValueError as error:
        raise ValueError(f"{error}; copy it again") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file} is no JSON object; copy it again")
    return content


def own_choices(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What `--reverse` wrote beside the published fields."""
    own = settings.get(OWN_KEY, {})
    if not isinstance(own, dict):
        raise ValueError(f"{OWN_KEY} in config.json is no object; restore what --reverse wrote")
    return own


def require_published_kind(place: Path, settings: Mapping[str, Any], names: list[str]) -> str:
    """The `projector_type` of a published checkpoint.

    Args:
        place: Its folder, for the messages.
        settings: Its `config.json`.
        names: Of its weights.

    Raises:
        ValueError: if it is anything else; the message says what it looks like.
    """
    found = settings.get("model_type")
    if found == OspreyTPConfig.model_type:
        raise ValueError(f"{place} is a model of osprey_tp already; --reverse writes the published layout of it")
    if any(name.startswith(("multi_modal_projector.", "model.multi_modal_projector.")) for name in names):
        raise ValueError(f"{place} is LLaVA in the layout of transformers; give the original ({_expected()})")
    if any(name.startswith(PUBLISHED_REGION_ENCODER_PREFIX + "res2.") for name in names):
        raise ValueError(
            f"{place} is the original Osprey with its convolutional tower; this library has vision transformers, give "
            "TokenPacker-HD with Osprey"
        )
    if found is not None and found not in MODEL_TYPES:
        raise ValueError(f"{place} is a {found}, not {_expected()}; name such a checkpoint")
    projector_type = projector_type_of(names)
    if projector_type is None:
        saved = settings.get("mm_projector_type", "none")
        shown = few(name for name in names if "mm_projector" in name) or few(names)
        raise ValueError(
            f"{place} has no projector that is known here (mm_projector_type {saved}, weights {shown}); name "
            + _expected()
        )
    return projector_type


def _expected() -> str:
    return "a checkpoint of TokenPacker, LLaVA-1.5 or LLaVA-STF"


def describe_kind(projector_type: str, sliced: bool, has_regions: bool) -> str:
    """What a checkpoint is called."""
    title = _TITLES[projector_type] + ("-HD" if sliced and projector_type == "tokenpacker" else "")
    return title + (" with Osprey" if has_regions else "")


def language_config(settings: Mapping[str, Any]) -> PreTrainedConfig:
    """The language model of a flat published `config.json`."""
    own = own_choices(settings).get("text_config")
    if own is not None:
        return LlamaConfig(**own)
    fields = {name: settings[name] for name in _LANGUAGE_FIELDS if settings.get(name) is not None}
    missing = [name for name in ("vocab_size", "hidden_size", "num_hidden_layers") if name not in fields]
    if missing:
        raise ValueError(f"config.json lacks {' and '.join(missing)}; restore the one that was saved with the weights")
    return LlamaConfig(**fields)


def config_of_folder(folder: Path) -> PreTrainedConfig:
    """The configuration of a model folder of transformers; the vision part where it has one of its own."""
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} holds no config.json; name a model folder of transformers")
    read_json(folder / "config.json")
    config = AutoConfig.from_pretrained(folder, **OWN_FILES_ALONE)
    return getattr(config, "vision_config", None) or config


def tower_config(settings: Mapping[str, Any], weights: Mapping[str, StoredWeight]) -> PreTrainedConfig:
    """The CLIP tower whose weights a checkpoint holds; sizes follow from their shapes, 64 channels a head."""
    own = own_choices(settings).get("vision_config")
    if own is not None:
        return CLIPVisionConfig(**own)

    def shape(name: str) -> tuple[int, ...]:
        if PUBLISHED_TOWER_PREFIX + name not in weights:
            raise ValueError(f"the checkpoint lacks {PUBLISHED_TOWER_PREFIX + name}; name CLIP with --vision-tower")
        return weights[PUBLISHED_TOWER_PREFIX + name].shape

    width, channels, patch, _ = shape("embeddings.patch_embedding.weight")
    cells = shape("embeddings.position_embedding.weight")[0] - 1  # without the class token
    side = round(cells**0.5)
    if side**2 != cells or width % _CHANNELS_PER_HEAD:
        raise ValueError(
            f"the vision tower in the checkpoint has {width} channels and {cells} cells, which no published CLIP has; "
            "name its folder with --vision-tower"
        )
    layers = {name.split(".")[6] for name in weights if name.startswith(f"{PUBLISHED_TOWER_PREFIX}encoder.layers.")}
    return CLIPVisionConfig(
        hidden_size=width,
        num_channels=channels,
        intermediate_size=shape("encoder.layers.0.mlp.fc1.weight")[0],
        num_hidden_layers=len(layers),
        num_attention_heads=width // _CHANNELS_PER_HEAD,
        image_size=side * patch,
        patch_size=patch,
        projection_dim=768,
    )


def check_facts(settings: Mapping[str, Any], width: int) -> None:
    """Compare what a published `config.json` says with what the published code does, where it can say otherwise.

    Args:
        settings: The file.
        width: Of the vision tower.

    Raises:
        ValueError: naming field, value and what is expected.
    """
    expected: dict[str, tuple[Any, ...]] = {
        "mm_hidden_size": (width,),
        "mm_vision_select_layer": (-2,),
        "mm_vision_select_feature": ("patch",),
        "mm_use_im_start_end": (False,),
        "mm_patch_merge_type": ("flat",),
        "image_aspect_ratio": (_PADDED, _SLICED, _CROPPED),
    }
    for name, values in expected.items():
        found = settings.get(name)
        if found is not None and found not in values:
            remedy = "name its own vision tower" if name == "mm_hidden_size" else "name another checkpoint"
            raise ValueError(f"config.json has {name} {found!r}, and {values[0]!r} is what can be converted; {remedy}")


def is_sliced(settings: Mapping[str, Any], has_regions: bool) -> bool:
    """Whether pictures were cut into tiles in training."""
    own = own_choices(settings).get("picture_layout")
    if own is not None:
        return bool(own == "tiles")
    return has_regions or settings.get("image_aspect_ratio") == _SLICED


def is_cropped(settings: Mapping[str, Any], has_regions: bool) -> bool:
    """Whether the published code shows the middle of a picture alone, which is what it does where nothing is said."""
    return not has_regions and settings.get("image_aspect_ratio", _CROPPED) == _CROPPED


def published_choices(
    settings: Mapping[str, Any],
    projector_type: str,
    weights: Mapping[str, StoredWeight],
    is_projector_alone: bool = False,
    **given: Any,
) -> dict[str, Any]:
    """Our configuration's choices for a published checkpoint, without what follows from tokenizer and parts.

    Args:
        settings: Its `config.json`.
        projector_type: As in our configuration.
        weights: Of the checkpoint, by published name.
        is_projector_alone: It is a projector that training goes on with, which is on tiles unless it was on squares
            that hold the picture.
        given: Choices of the command line, which go first; None for those that were not made. `max_tiles` says the
            layout too: 1 is a square.
    """
    has_regions = any(name.startswith(PUBLISHED_REGION_ENCODER_PREFIX) for name in weights)
    sliced = is_sliced(settings, has_regions)
    if is_projector_alone:
        sliced = settings.get("image_aspect_ratio") != _PADDED
    given = {name: value for name, value in given.items() if value is not None}
    if "max_tiles" in given:
        given["picture_layout"] = "square" if given["max_tiles"] == 1 else "tiles"
    layout = "tiles" if sliced else "square"
    choices: dict[str, Any] = {"preset": "published", "projector_type": projector_type, "picture_layout": layout}
    if projector_type == "tokenpacker":
        choices["scale_factor"] = settings.get("scale_factor", 2)
    spatial = weights.get(f"{PUBLISHED_REGION_ENCODER_PREFIX}mask_linear.layers.0.weight")
    if spatial is not None:
        choices |= {"spatial_token": True, "spatial_side": round(spatial.shape[1] ** 0.5)}
    if sliced and settings.get("patch_num") is not None:
        choices["max_tiles"] = int(settings["patch_num"])
    known = {*choices_of_a_model(), *_SEPARATORS}
    own = {name: value for name, value in own_choices(settings).items() if name in known}
    return choices | own | given


def to_published(config: OspreyTPConfig, dtype: str, template: str | None) -> dict[str, Any]:
    """The published `config.json` of a model.

    Args:
        config: Of the model.
        dtype: Of its weights.
        template: Its chat template, if it is not `vicuna_v1`.
    """
    text, vision = config.text_config, config.vision_config
    sliced = is_published_slicing(config)
    rope = dict(text.rope_parameters or {})
    settings: dict[str, Any] = {
        "architectures": ["LlavaLlamaForCausalLM"],
        "model_type": "llava",
        **{name: getattr(text, name) for name in _LANGUAGE_FIELDS if hasattr(text, name)},
        "rope_theta": rope.pop("rope_theta", 10000.0),
        "rope_scaling": rope if rope.get("rope_type", "default") != "default" else None,
        "torch_dtype": dtype,
        "use_cache": True,
        "image_aspect_ratio": _SLICED if sliced else _PADDED,
        "mm_hidden_size": vision.hidden_size,
        "mm_projector_type": "tokenpacker" if config.projector_type == "tokenpacker" else "mlp2x_gelu",
        "mm_use_im_patch_token": False,
        "mm_use_im_start_end": False,
        "mm_vision_select_feature": "patch",
        "mm_vision_select_layer": -2,
        "mm_vision_tower": "openai/clip-vit-large-patch14-336",
        "scale_factor": config.scale_factor,
        "tune_mm_mlp_adapter": False,
        "use_mm_proj": True,
    } | ({"patch_num": config.max_tiles} if sliced else {})
    own: dict[str, Any] = {name: getattr(config, name) for name in (*choices_of_a_model(), *_SEPARATORS)}
    own["vision_config"] = _plain(vision)
    own["text_config"] = _plain(text)
    if template is not None:
        own["chat_template"] = template
    return settings | {OWN_KEY: own}


def is_published_slicing(config: OspreyTPConfig) -> bool:
    """Whether the published code cuts pictures into tiles for such a model; it does so for TokenPacker alone."""
    return config.projector_type == "tokenpacker" and config.picture_layout == "tiles"


def _plain(config: PreTrainedConfig) -> dict[str, Any]:
    """A sub-configuration as it is saved."""
    return {name: value for name, value in config.to_diff_dict().items() if name not in ("transformers_version",)}


def require_published_can_hold(config: OspreyTPConfig) -> None:
    """Raise ValueError if the published code has no place for such a model, or would read other layers."""
    states = config.vision_config.num_hidden_layers + 1
    layers = [layer + states if layer < 0 else layer for layer in PROJECTORS[config.projector_type].published_layers]
    found = {
        "language model": (config.text_config.model_type, "llama"),
        "vision tower": (config.vision_config.model_type, "clip_vision_model"),
        "output_norm_scale": (config.output_norm_scale, None),
        "region_fusion": (config.region_fusion, "sum"),
        "spatial_token": (config.spatial_token, False),
        "feature_layers": (config.feature_layers, layers),
        "projector_feature_layers": (config.projector_feature_layers, None),
        "region_feature_layers": (config.region_feature_layers, None),
    }
    for name, (value, expected) in found.items():
        if value != expected:
            raise ValueError(
                f"the published code has no place for this model: its {name} is {value}, where only {expected} can be "
                "written; keep it in osprey_tp's own layout"
            )
