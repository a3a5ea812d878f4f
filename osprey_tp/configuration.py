"""Configuration of the whole model: one declared, validated, saved place for every choice.

The published system hard-coded its numbers; here sizes come from the two sub-configurations (vision, text) and the
choices on which published checkpoints depend have names. A *preset* fills those that are left open:

| choice             | `published`                           | `recommended`                                  |
|--------------------|---------------------------------------|------------------------------------------------|
| `thumbnail_source` | `canvas`: the padded canvas, squeezed | `image`: the image itself                      |
| `resize_mode`      | `published`: normalise, then bilinear | `antialiased`: antialiased, then normalise     |
| `region_pooling`   | `published`: centre pixels, may vanish| `area`: exact area coverage, never vanishes    |
| row separator      | embedding row 0 (`<unk>`)             | the newline token                              |

Both cut pictures into tiles. `picture_layout` `square` pads each to one square in place of that, as published
checkpoints without high resolution do (TokenPacker, LLaVA-1.5, LLaVA-STF), and resizes it as CLIP does.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any, Literal

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

import osprey_tp.tiny_tower  # noqa: F401 - its model type may be that of a vision tower
from osprey_tp.tiling import MAX_TILES, Tiling
from osprey_tp.vision_towers import native_tile_size, require_fit, square_side

if TYPE_CHECKING:
    from osprey_tp.projectors import Projector

CHOICES = {
    "picture_layout": ("tiles", "square"),
    "resize_mode": ("antialiased", "published"),
    "thumbnail_source": ("image", "canvas", "none"),
    "region_pooling": ("area", "published"),
}
"""The named choices about pictures and regions, and the values each may take; the image processor has them too."""

REGION_FUSIONS = ("sum", "mlp")
"""How the levels of a region become one."""

PRESETS: dict[str, dict[str, Any]] = {
    "published": {
        "thumbnail_source": "canvas",
        "resize_mode": "published",
        "region_pooling": "published",
        "row_separator_token_id": 0,
    },
    "recommended": {
        "thumbnail_source": "image",
        "resize_mode": "antialiased",
        "region_pooling": "area",
        "row_separator_token_id": 13,
    },
}

_OF_LAYOUT: dict[str, dict[str, Any]] = {
    "tiles": {"max_tiles": 9},
    "square": {"max_tiles": 1, "resize_mode": "antialiased"},
}
"""What a layout fills before the preset does; no published code resizes squares otherwise."""

CLIP_VIT_L_14_336 = {
    "model_type": "clip_vision_model",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
    "projection_dim": 768,
}

VICUNA_7B = {
    "model_type": "llama",
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
}

VICUNA_13B = VICUNA_7B | {
    "hidden_size": 5120,
    "intermediate_size": 13824,
    "num_hidden_layers": 40,
    "num_attention_heads": 40,
    "num_key_value_heads": 40,
}

TINY_VISION: dict[str, dict[str, Any]] = {
    "clip": {
        "model_type": "clip_vision_model",
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "image_size": 48,
        "patch_size": 8,
        "projection_dim": 32,
    },
    "siglip": {
        "model_type": "siglip_vision_model",
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "image_size": 48,
        "patch_size": 8,
        "vision_use_head": False,
    },
}

_TINY_DECODER = {
    "vocab_size": 256,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
}

TINY_TEXT: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama"} | _TINY_DECODER,
    "qwen3": {"model_type": "qwen3", "head_dim": 16} | _TINY_DECODER,
}


@strict
class OspreyTPConfig(PreTrainedConfig):
    """Composite configuration: vision tower, projector, region encoder, language model, and how pictures are cut.

    Args:
        vision_config: Configuration of any vision transformer of transformers that returns hidden states.
        text_config: Configuration of any causal language model of transformers.
        preset: `recommended` or `published`; fills every choice of the table above that is not given.
        projector_type: How cells become visual tokens; `tokenpacker`, `stf` or `mlp` (`osprey_tp.projectors`).
        projector_num_attention_heads: Heads of the projector's attention; by default one for every 128 channels of
            the tower, as published. Of `tokenpacker` alone.
        scale_factor: s; a tile of n x n cells becomes (n/s)^2 visual tokens. By default as published: 2, and 1 for
            `mlp`, which can have no other.
        tile_size: Side of a tile in pixels, a multiple of the tower's patches. By default what the tower looks at; for
            other sizes it interpolates its position embeddings.
        picture_layout: `tiles`: a picture is cut into tiles with separators between them, and padded below or on the
            right; `square`: it is one tile without separators, in the middle of a square.
        max_tiles: Size of the table of tile grids: 9 (the default), 16 or 25; 1 for squares.
        feature_layers: Indices into the tower's hidden states (0 is the patch embedding, negative ones count from the
            end) that the projector and the region encoder read, in this order; by default those of the published
            projector. The last one is the coarse query of `tokenpacker` and what `mlp` reads.
        projector_feature_layers: Those of `feature_layers` that the projector reads, in this order; by default all, and
            the last one for `mlp`.
        output_norm_scale: If given, the projector and the region encoder end in a LayerNorm whose weight starts at
            this value, which keeps their tokens near the norm of word embeddings. Published checkpoints have none.
        region_pooling: `area` (exact share of each cell that the region covers) or `published` (centre pixels).
        region_feature_layers: Those of `feature_layers` that the region encoder reads, in this order; by default all.
        region_fusion: How the levels that the region encoder reads become one: `sum` of a linear layer each, as
            published, or `mlp`, where a GELU follows the sum.
        spatial_token: Give every region a second token, of its shape: the mask shrunk to a square, through an MLP
            (`SpatialEncoder`).
        spatial_side: Side of that square in pixels; published is 112.
        thumbnail_source: `image`, `canvas`, or `none`: pictures of several tiles have no thumbnail.
        resize_mode: `antialiased`, or `published`, which is for tiles alone.
        image_token_id: Id of `<image>`, repeated once for every visual token.
        region_token_id: Id of `<mask>`, `tokens_per_region` for every region.
        tile_separator_token_id: The embedding of this id stands between two tiles of a row.
        row_separator_token_id: The embedding of this id ends a row of tiles, and the thumbnail.

    Raises:
        TypeError: for a keyword that no field has (the nearest one is named).
        ValueError: for values that cannot work together.
    """

    model_type = "osprey_tp"
    sub_configs_defaults = {  # noqa: RUF012 - declared as transformers reads it
        "text_config": SubConfigSpec(config_class=AutoConfig, model_type="llama", init_kwargs=VICUNA_7B),
        "vision_config": SubConfigSpec(
            config_class=AutoConfig, model_type="clip_vision_model", init_kwargs=CLIP_VIT_L_14_336
        ),
    }

    text_config: Any = None
    vision_config: Any = None
    preset: Literal["published", "recommended"] = "recommended"
    projector_type: str = "tokenpacker"
    projector_num_attention_heads: int | None = None
    scale_factor: int | None = None
    tile_size: int | None = None
    picture_layout: Literal["tiles", "square"] = "tiles"
    max_tiles: int | None = None
    feature_layers: list[int] | tuple[int, ...] | None = None
    projector_feature_layers: list[int] | tuple[int, ...] | None = None
    output_norm_scale: float | None = None
    region_pooling: Literal["area", "published"] | None = None
    region_feature_layers: list[int] | tuple[int, ...] | None = None
    region_fusion: Literal["sum", "mlp"] = "sum"
    spatial_token: bool = False
    spatial_side: int = 112
    thumbnail_source: Literal["image", "canvas", "none"] | None = None
    resize_mode: Literal["antialiased", "published"] | None = None
    region_token_id: int = 32000
    image_token_id: int = 32001
    tile_separator_token_id: int = 29892
    row_separator_token_id: int | None = None
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        _reject_unknown(kwargs, known=[field.name for field in fields(self)])
        super().__post_init__(**kwargs)
        if self.preset not in PRESETS:
            raise ValueError(f"unknown preset {self.preset!r}; known: {', '.join(PRESETS)}")
        for name, value in (PRESETS[self.preset] | _OF_LAYOUT.get(self.picture_layout, {})).items():
            if getattr(self, name) is None:
                setattr(self, name, value)
        require_choices({name: getattr(self, name) for name in CHOICES})
        require_fit(self.vision_config)
        self._choose_as_published()
        if self.projector_num_attention_heads is None:
            self.projector_num_attention_heads = max(1, self.vision_config.hidden_size // 128)
        self.tie_word_embeddings = bool(self.text_config.tie_word_embeddings)
        self._check_tiling()
        self._check_projector()
        self._check_feature_layers()
        self._check_tokens()

    def _choose_as_published(self) -> None:
        """Fill what follows from the projector where it is open, and count layers from the first."""
        projector = self._projector
        if self.scale_factor is None:
            self.scale_factor = projector.published_scale_factor
        if self.feature_layers is None:
            self.feature_layers = projector.published_layers
        states = self.vision_config.num_hidden_layers + 1
        for name in ("feature_layers", "projector_feature_layers", "region_feature_layers"):
            layers = getattr(self, name)
            if layers is not None:
                setattr(self, name, [layer + states if -states <= layer < 0 else layer for layer in layers])

    @property
    def _projector(self) -> type[Projector]:
        """The class that `projector_type` names."""
        from osprey_tp.projectors import PROJECTORS

        if self.projector_type not in PROJECTORS:
            raise ValueError(f"unknown projector {self.projector_type!r}; known: {', '.join(sorted(PROJECTORS))}")
        return PROJECTORS[self.projector_type]

    @property
    def tiling(self) -> Tiling:
        """The geometry rules that follow from this configuration."""
        return Tiling(
            tile_size=native_tile_size(self.vision_config) if self.tile_size is None else self.tile_size,
            patch_size=square_side(self.vision_config.patch_size),
            scale_factor=self.scale_factor or 1,
            max_tiles=self.max_tiles or 1,
            thumbnail=self.thumbnail_source != "none",
            square=self.picture_layout == "square",
        )

    @property
    def projector_levels(self) -> list[int]:
        """Which of `feature_layers` the projector reads, by their place in it."""
        if self.projector_feature_layers is None and self._projector.reads_one_layer:
            return [len(self.feature_layers or ()) - 1]
        return self._places(self.projector_feature_layers)

    @property
    def region_levels(self) -> list[int]:
        """Which of `feature_layers` the region encoder reads, by their place in it."""
        return self._places(self.region_feature_layers)

    def _places(self, layers: Sequence[int] | None) -> list[int]:
        """Where `layers`, by default all, stand in `feature_layers`."""
        kept = list(self.feature_layers or ())
        return list(range(len(kept))) if layers is None else [kept.index(layer) for layer in layers]

    @property
    def tokens_per_region(self) -> int:
        """Tokens of the prompt that stand for a region."""
        return 2 if self.spatial_token else 1

    def _check_tiling(self) -> None:
        """Tile size, patch size, scale factor and grid table fit together."""
        if self.picture_layout == "tiles" and self.max_tiles not in MAX_TILES:
            raise ValueError(f"max_tiles must be one of {MAX_TILES}, not {self.max_tiles}")
        _ = self.tiling

    def _check_projector(self) -> None:
        """The projector can have this scale factor, and its heads divide the tower's width."""
        factors = self._projector.scale_factors
        if factors is not None and self.scale_factor not in factors:
            raise ValueError(
                f"the {self.projector_type} projector can have scale_factor {', '.join(map(str, factors))}, not "
                f"{self.scale_factor}; set it, or take projector_type tokenpacker"
            )
        width, heads = self.vision_config.hidden_size, self.projector_num_attention_heads or 1
        if width % heads:
            raise ValueError(f"projector_num_attention_heads {heads} does not divide the vision tower's width {width}")

    def _check_feature_layers(self) -> None:
        """Every feature layer is a hidden state of the tower, and what a part reads is among them."""
        states = self.vision_config.num_hidden_layers + 1
        kept = list(self.feature_layers or ())
        wrong = [layer for layer in kept if not 0 <= layer < states]
        if wrong or not kept:
            raise ValueError(f"feature_layers {kept} must name hidden states 0 to {states - 1} of the vision tower")
        for name in ("projector_feature_layers", "region_feature_layers"):
            read = getattr(self, name)
            if read is not None and not (read and set(read) <= set(kept)):
                raise ValueError(
                    f"{name} {read} must be some of feature_layers {kept}; what the tower's other layers hold is not "
                    "kept"
                )
        if self._projector.reads_one_layer and len(self.projector_levels) != 1:
            raise ValueError(
                f"the {self.projector_type} projector reads one layer, not projector_feature_layers "
                f"{self.projector_feature_layers}; name one"
            )
        if self.region_fusion not in REGION_FUSIONS:
            raise ValueError(f"region_fusion must be one of {REGION_FUSIONS}, not {self.region_fusion!r}")
        if self.spatial_side < 1:
            raise ValueError(f"spatial_side must be at least 1 pixel, got {self.spatial_side}")

    def _check_tokens(self) -> None:
        """Separators are rows of the embedding; the two placeholders differ from each other and from them."""
        vocabulary = self.text_config.vocab_size
        separators: dict[str, Any] = {
            "tile_separator_token_id": self.tile_separator_token_id,
            "row_separator_token_id": self.row_separator_token_id,
        }
        for name, value in separators.items():
            if not 0 <= value < vocabulary:
                raise ValueError(f"{name} {value} is not a row of the embedding ({vocabulary} rows)")
        if len({self.image_token_id, self.region_token_id, *separators.values()}) != len(set(separators.values())) + 2:
            raise ValueError(
                f"image_token_id {self.image_token_id}, region_token_id {self.region_token_id} and the separators "
                f"{sorted(separators.values())} must not coincide"
            )

    @classmethod
    def vicuna_7b(cls, **choices: Any) -> OspreyTPConfig:
        """CLIP ViT-L/14-336 and Vicuna-7B, the published sizes."""
        return cls(vision_config=dict(CLIP_VIT_L_14_336), text_config=dict(VICUNA_7B), **choices)

    @classmethod
    def vicuna_13b(cls, **choices: Any) -> OspreyTPConfig:
        """CLIP ViT-L/14-336 and Vicuna-13B, the published sizes."""
        return cls(vision_config=dict(CLIP_VIT_L_14_336), text_config=dict(VICUNA_13B), **choices)

    @classmethod
    def tiny(cls, vision: str = "clip", language: str = "llama", **choices: Any) -> OspreyTPConfig:
        """Sizes for tests and demonstrations: a `clip` or `siglip` tower, a `llama` or `qwen3` language model."""
        vision_config = dict(TINY_VISION[vision])
        text_config = dict(TINY_TEXT[language])
        text_config["vocab_size"] = max(choices.pop("vocab_size", 0), text_config["vocab_size"])
        defaults: dict[str, Any] = {
            "feature_layers": [1, 2, 3],
            "projector_num_attention_heads": 2,
            "tile_separator_token_id": 5,
            "row_separator_token_id": 6,
            "region_token_id": 7,
            "image_token_id": 8,
        }
        return cls(vision_config=vision_config, text_config=text_config, **(defaults | choices))


def require_choices(settings: Mapping[str, Any]) -> None:
    """Raise ValueError if one of the named choices about pictures and regions is unknown, or two do not fit.

    Args:
        settings: Holds every name of `CHOICES`.
    """
    for name, values in CHOICES.items():
        if settings[name] not in values:
            raise ValueError(f"{name} must be one of {values}, not {settings[name]!r}")
    if settings["picture_layout"] == "square" and settings["resize_mode"] != "antialiased":
        raise ValueError(f"resize_mode of squares must be 'antialiased', as in CLIP, not {settings['resize_mode']!r}")


def choices_of_a_model() -> list[str]:
    """Names of the fields that are free where tower, language model and tokenizer are put together."""
    given = ("text_config", "vision_config", "tie_word_embeddings")
    own = OspreyTPConfig.__annotations__
    return [name for name in own if name not in given and not name.endswith("_token_id")]


_FRAMEWORK_KEYWORDS = {
    "attn_implementation",
    "experts_implementation",
    "model_type",
    "name_or_path",
    "num_labels",
    "output_attentions",
    "torch_dtype",
    "use_cache",
}
"""Keywords that transformers itself reads, beside the declared fields."""


def _reject_unknown(keywords: dict[str, Any], known: list[str]) -> None:
    """Raise TypeError for keywords that are neither fields, nor transformers' own, nor private to it."""
    for name in keywords:
        if name.startswith("_") or name in _FRAMEWORK_KEYWORDS:
            continue
        nearest = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
        raise TypeError(f"OspreyTPConfig has no setting {name!r}{hint}")


AutoConfig.register(OspreyTPConfig.model_type, OspreyTPConfig)
