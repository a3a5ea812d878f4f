"""The whole model: vision tower, projector, region encoder and language model.

```
pixel_values (tiles, 3, S, S) ─► vision tower ─► cells (levels, tiles, n·n, C)
cells ─► projector ─► (tiles, t, D) ─► with separators, picture by picture ─► visual tokens [(v_i, D), ...]
cells, coverage (regions, cells) ─► region encoder ─► region tokens (regions·r, D)
input_ids (B, N) ─► embeddings (B, N, D), visual tokens at <image>, region tokens at <mask> ─► language model ─► logits
```

Letters: B prompts, N prompt tokens, S tile side in pixels, n cells a side, C tower width, t tokens a tile, r tokens a
region, D language width. Pictures and regions of a batch stand in the order of their prompts; regions of one prompt
picture by picture.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForImageTextToText, PreTrainedModel
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import slice_logits_to_keep
from transformers.utils.generic import can_return_tuple

from osprey_tp import language_models, vision_towers
from osprey_tp.configuration import OspreyTPConfig
from osprey_tp.generation import RegionGenerationMixin
from osprey_tp.joining import require_cells, require_same_logits
from osprey_tp.modeling_base import OspreyTPFeatures, OspreyTPPreTrainedModel
from osprey_tp.projectors import build_projector
from osprey_tp.prompts import IMAGE_TOKEN, REGION_TOKEN
from osprey_tp.region_encoder import RegionEncoder
from osprey_tp.tiling import count_tiles, visual_token_layout


class OspreyTPModel(OspreyTPPreTrainedModel):
    """Vision tower, projector, region encoder and language model without its head.

    Attributes:
        runs_every_part: Run tower, projector and region encoder on a blank tile and region where a batch has none, so
            that no process of a distributed run waits for a part that another skips, and every part has a gradient,
            which is then zero. Not saved; training sets it.
        region_encoder: None in a model that was loaded from a folder without one; it refuses regions.
    """

    def __init__(self, config: OspreyTPConfig) -> None:
        super().__init__(config)
        self.runs_every_part = False
        self.vision_tower = AutoModel.from_config(config.vision_config)
        self.projector = build_projector(config)
        self.region_encoder: RegionEncoder | None = RegionEncoder(config)
        self.language_model = AutoModel.from_config(config.text_config)
        language_models.require_fit(self.language_model)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The language model's word embeddings."""
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the language model's word embeddings."""
        self.language_model.set_input_embeddings(value)

    def encode_tiles(self, pixel_values: Tensor) -> Tensor:
        """Run the tower once on every tile.

        Args:
            pixel_values: (tiles, 3, S, S).

        Returns:
            (levels, tiles, n·n, C), the hidden states at `feature_layers` without class tokens.
        """
        layers = list(self.config.feature_layers or ())
        # gradient checkpointing asks every embedding for gradients, and a frozen tower would keep all activations
        trains = any(parameter.requires_grad for parameter in self.vision_tower.parameters())
        with torch.set_grad_enabled(torch.is_grad_enabled() and trains):
            return vision_towers.encode(self.vision_tower, pixel_values, layers, self.config.tiling.cells_per_tile)

    def visual_tokens(self, cells: Tensor, tile_grids: Tensor) -> list[Tensor]:
        """Project the cells of every tile and lay the tokens of each picture out with separators.

        Args:
            cells: (levels, tiles, n·n, C).
            tile_grids: (pictures, 2), rows and columns of each picture's tile grid.

        Returns:
            One (v_i, D) tensor a picture.
        """
        return self.lay_out(self.projector(cells), tile_grids)

    def lay_out(
        self, tokens: Tensor, tile_grids: Tensor, shown: Sequence[Sequence[int] | None] | None = None
    ) -> list[Tensor]:
        """Lay the tokens of every picture's tiles out with separators.

        Args:
            tokens: (tiles, t, D), of the shown tiles of all pictures, their thumbnails among them.
            tile_grids: (pictures, 2), rows and columns of each picture's tile grid.
            shown: As of `visual_token_layout`, for every picture.

        Returns:
            One (v_i, D) tensor a picture.
        """
        separators = torch.tensor(
            [self.config.tile_separator_token_id, self.config.row_separator_token_id], device=tokens.device
        )
        table = torch.cat([self.get_input_embeddings()(separators).to(tokens.dtype), tokens.flatten(0, 1)])
        pictures, first, tiling = [], 0, self.config.tiling
        for (rows, cols), of_picture in zip(tile_grids.tolist(), shown or [None] * len(tile_grids), strict=True):
            layout = visual_token_layout(
                rows, cols, tokens.shape[1], tiling.thumbnail, of_picture, separators=tiling.separators
            )
            places = torch.from_numpy(layout).to(tokens.device)
            pictures.append(table[torch.where(places < len(separators), places, places + first)])
            first += int((layout >= len(separators)).sum())
        return pictures

    def region_tokens(
        self,
        cells: Tensor,
        tile_grids: Tensor,
        region_coverage: Tensor,
        region_image_index: Tensor,
        region_shapes: Tensor | None = None,
    ) -> Tensor:
        """Encode every region of the batch.

        Args:
            cells: (levels, tiles, n·n, C).
            tile_grids: (pictures, 2).
            region_coverage: (regions, cells of the largest picture).
            region_image_index: (regions,), the picture each region belongs to.
            region_shapes: (regions, side, side), for a spatial token.

        Returns:
            (regions·r, D).

        Raises:
            ValueError: if the model has no region encoder.
        """
        encode = self.require_region_encoder()
        tiles = [self._count_tiles(rows, cols) for rows, cols in tile_grids.tolist()]
        first_tiles = torch.tensor([0, *tiles[:-1]], device=cells.device).cumsum(0)
        first_cells = first_tiles[region_image_index] * cells.shape[2]
        return encode(cells, region_coverage, first_cells, region_shapes)

    def require_region_encoder(self) -> RegionEncoder:
        """The region encoder.

        Raises:
            ValueError: if the model was loaded from a folder without one.
        """
        if self.region_encoder is None:
            raise ValueError(
                "this model has no region encoder: ask about whole pictures, or train stage 2 from its folder first"
            )
        return self.region_encoder

    def _count_tiles(self, rows: int, cols: int) -> int:
        return count_tiles(rows, cols, self.config.tiling.thumbnail)

    def get_image_features(
        self,
        pixel_values: Tensor,
        tile_grids: Tensor,
        region_coverage: Tensor | None = None,
        region_image_index: Tensor | None = None,
        region_shapes: Tensor | None = None,
        **kwargs: Any,
    ) -> OspreyTPFeatures:
        """Visual tokens of every picture and tokens of every region; `generate` calls this once.

        Args:
            pixel_values: (tiles, 3, S, S), tiles of all pictures one after the other.
            tile_grids: (pictures, 2).
            region_coverage: (regions, cells of the largest picture), or None for no regions.
            region_image_index: (regions,).
            region_shapes: (regions, side, side), for a spatial token.
            kwargs: Ignored; transformers passes output flags here.

        Raises:
            ValueError: if tiles and grids do not add up.
        """
        expected = sum(self._count_tiles(rows, cols) for rows, cols in tile_grids.tolist())
        if expected != pixel_values.shape[0]:
            raise ValueError(
                f"{pixel_values.shape[0]} tiles in pixel_values, but the grids {tile_grids.tolist()} need {expected}; "
                "pass both as the processor made them"
            )
        cells = self.encode_tiles(pixel_values)
        region_tokens = None
        if region_coverage is not None and region_image_index is not None and len(region_coverage):
            region_tokens = self.region_tokens(cells, tile_grids, region_coverage, region_image_index, region_shapes)
        return OspreyTPFeatures(pooler_output=self.visual_tokens(cells, tile_grids), region_tokens=region_tokens)

    def complete_features(
        self, vision: dict[str, Tensor | None], device: torch.device
    ) -> tuple[OspreyTPFeatures, list[Tensor]]:
        """As `get_image_features`, with a blank tile and a region of it where the batch has no picture or no region.

        Args:
            vision: Arguments of `get_image_features`; None for what the batch does not have.
            device: Of what is blank.

        Returns:
            The features of the batch, and tokens (., D) that belong to no prompt.
        """
        tiling, side = self.config.tiling, self.config.spatial_side
        pictures, regions = vision["pixel_values"], vision["region_coverage"]
        has_pictures = pictures is not None and len(pictures) > 0
        has_regions = has_pictures and regions is not None and len(regions) > 0
        blank = {}
        if not has_pictures:
            blank["pixel_values"] = torch.zeros(1, 3, tiling.tile_size, tiling.tile_size, device=device)
            blank["tile_grids"] = torch.ones(1, 2, dtype=torch.long, device=device)
        if not has_regions:
            blank["region_coverage"] = torch.ones(1, tiling.cells_per_tile, device=device)
            blank["region_image_index"] = torch.zeros(1, dtype=torch.long, device=device)
            blank["region_shapes"] = torch.ones(1, side, side, device=device)
        made: Any = self.get_image_features(**(vision | blank))  # type: ignore[arg-type]
        features = OspreyTPFeatures(
            pooler_output=made.pooler_output if has_pictures else None,
            region_tokens=made.region_tokens if has_regions else None,
        )
        unused = [] if has_pictures else made.pooler_output
        return features, unused if has_regions else [*unused, made.region_tokens]

    def embed_prompt(
        self, input_ids: Tensor, features: OspreyTPFeatures | None, unused: Sequence[Tensor] = ()
    ) -> Tensor:
        """Embed `input_ids` (B, N) with visual tokens at `<image>` and region tokens at `<mask>`: (B, N, D).

        `unused` are tokens (., D) that stand nowhere but take part in the graph, with a gradient of zero.

        Raises:
            ValueError: if placeholders and features do not have the same number.
        """
        pictures = features.pooler_output if features is not None else None
        regions = features.region_tokens if features is not None else None
        replacements = (
            (IMAGE_TOKEN, input_ids == self.config.image_token_id, torch.cat(pictures) if pictures else None),
            (REGION_TOKEN, input_ids == self.config.region_token_id, regions),
        )
        # placeholders need no row of their own: published vocabularies have none for <mask>
        words = input_ids.masked_fill(replacements[0][1] | replacements[1][1], 0)
        embeddings = self.get_input_embeddings()(words)
        for token, places, tokens in replacements:
            available = 0 if tokens is None else len(tokens)
            if int(places.sum()) != available:
                raise ValueError(
                    f"{int(places.sum())} {token} placeholders in input_ids, but {available} tokens to put there; "
                    "pass pictures and regions as the processor counted them, and do not truncate"
                )
            if tokens is not None:
                embeddings = embeddings.masked_scatter(places.unsqueeze(-1), tokens.to(embeddings.dtype))
        if unused:
            nowhere = torch.zeros_like(words, dtype=torch.bool).unsqueeze(-1)
            embeddings = embeddings.masked_scatter(nowhere, torch.cat(list(unused)).to(embeddings.dtype))
        return embeddings

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        tile_grids: Tensor | None = None,
        region_coverage: Tensor | None = None,
        region_image_index: Tensor | None = None,
        region_shapes: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        mm_encoder_outputs: dict[str, OspreyTPFeatures] | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Run the model; arguments as in `get_image_features`, the rest as in any decoder of transformers.

        `mm_encoder_outputs["image"]` holds features computed before (by `generate`, or by a session).
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("pass exactly one of input_ids and inputs_embeds")
        vision = {
            "pixel_values": pixel_values,
            "tile_grids": tile_grids,
            "region_coverage": region_coverage,
            "region_image_index": region_image_index,
            "region_shapes": region_shapes,
        }
        features, unused = (mm_encoder_outputs or {}).get("image"), list[Tensor]()
        has_pictures = pixel_values is not None and len(pixel_values) > 0
        if features is None and has_pictures and tile_grids is None:
            raise ValueError("pixel_values come without tile_grids; pass both as the processor made them")
        if features is None and self.runs_every_part and input_ids is not None and past_key_values is None:
            features, unused = self.complete_features(vision, input_ids.device)
        elif features is None and has_pictures:
            features = self.get_image_features(**vision)  # type: ignore[arg-type]
        if inputs_embeds is None:
            decoding = features is None and past_key_values is not None and past_key_values.get_seq_length() > 0
            assert input_ids is not None
            inputs_embeds = (
                self.embed_generated(input_ids) if decoding else self.embed_prompt(input_ids, features, unused)
            )
        return self.language_model(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            use_cache=use_cache,
            **kwargs,
        )

    def embed_generated(self, input_ids: Tensor) -> Tensor:
        """Embed tokens (B, n) that the model itself produced: a placeholder among them is a word like any other."""
        rows = self.config.text_config.vocab_size
        return self.get_input_embeddings()(input_ids.masked_fill(input_ids >= rows, 0))


class OspreyTPForConditionalGeneration(OspreyTPPreTrainedModel, RegionGenerationMixin):
    """`OspreyTPModel` with a language-model head: loss, logits, `generate`.

    Attributes:
        fused_loss: Computes the training loss from hidden states (B, N, D), the head's weight, labels and D; logits are
            then not made. Not saved.
    """

    fused_loss: Callable[..., Tensor] | None = None

    def __init__(self, config: OspreyTPConfig) -> None:
        super().__init__(config)
        self.model = OspreyTPModel(config)
        self.lm_head = language_models.build_head(config.text_config)
        self._tied_weights_keys = language_models.tied_weights(self.model.language_model, "model.language_model.")
        self.post_init()

    @classmethod
    def from_parts(
        cls, vision_tower: PreTrainedModel, language_model: PreTrainedModel, **choices: Any
    ) -> OspreyTPForConditionalGeneration:
        """Put a trained tower and a trained causal language model together; projector and region encoder are new.

        Args:
            vision_tower: Any vision transformer of transformers with hidden states, or a model that holds one as
                `vision_model`.
            language_model: Any causal language model of transformers (`osprey_tp.language_models` says which).
            choices: Fields of `OspreyTPConfig` (token ids, scale factor, preset, ...).

        Raises:
            ValueError: if tower or language model is of a kind that cannot be used, or the choices do not fit them.
        """
        vision_tower = getattr(vision_tower, "vision_model", vision_tower)
        text_config = language_model.config.get_text_config()
        config = OspreyTPConfig(vision_config=vision_tower.config, text_config=text_config, **choices)
        decoder = language_models.decoder_of(language_model, text_config)
        with torch.device("meta"):
            model = cls(config)
        parts = model.model
        parts.projector, parts.region_encoder = build_projector(config), RegionEncoder(config)
        for part in (parts.projector, parts.region_encoder):
            part.apply(model._init_weights)
            part.to(device=language_model.device, dtype=language_model.dtype)
        parts.vision_tower = vision_tower
        parts.language_model = decoder
        model.set_output_embeddings(language_models.head_of(language_model, model.lm_head))
        model.generation_config = language_model.generation_config
        require_same_logits(model, language_model)
        require_cells(vision_tower, config)
        return model

    def get_input_embeddings(self) -> nn.Module:
        """The language model's word embeddings."""
        return self.model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the language model's word embeddings."""
        self.model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        """The head."""
        return self.lm_head

    def set_output_embeddings(self, value: nn.Linear) -> None:
        """Replace the head's weights; what the family does to its logits stays."""
        self.lm_head = language_models.with_rule(value, self.config.text_config)

    def get_image_features(self, *args: Any, **kwargs: Any) -> OspreyTPFeatures:
        """See `OspreyTPModel.get_image_features`."""
        return self.model.get_image_features(*args, **kwargs)

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        tile_grids: Tensor | None = None,
        region_coverage: Tensor | None = None,
        region_image_index: Tensor | None = None,
        region_shapes: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        mm_encoder_outputs: dict[str, OspreyTPFeatures] | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Logits, and the loss over `labels` (B, N), where -100 marks every token that is not an answer."""
        outputs = self.model(
            input_ids=input_ids,
            pixel_values=pixel_values,
            tile_grids=tile_grids,
            region_coverage=region_coverage,
            region_image_index=region_image_index,
            region_shapes=region_shapes,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            mm_encoder_outputs=mm_encoder_outputs,
            **kwargs,
        )
        text, logits, loss = self.config.text_config, None, None
        if labels is not None and self.training and self.fused_loss is not None:
            loss = self.fused_loss(outputs.last_hidden_state, self.lm_head.weight, labels, text.hidden_size, **kwargs)
        else:
            logits = self.lm_head(slice_logits_to_keep(outputs.last_hidden_state, logits_to_keep))
            if labels is not None:
                loss = self.loss_function(logits=logits, labels=labels, vocab_size=text.vocab_size, **kwargs)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


AutoModel.register(OspreyTPConfig, OspreyTPModel)
AutoModelForImageTextToText.register(OspreyTPConfig, OspreyTPForConditionalGeneration)
