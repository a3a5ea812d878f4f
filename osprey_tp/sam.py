"""Masks from clicks by Segment Anything (Kirillov et al. 2023), through the `segment_anything` package."""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from segment_anything import SamPredictor
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer

from osprey_tp.segmenters import Box, Candidate, Point, check_prompts

PUBLISHED_SIZES = {768: "ViT-B", 1024: "ViT-L", 1280: "ViT-H"}  # by the width of the image encoder
DECODER_HEADS = 8  # of every published model; the weights' shapes do not show it


class SamSegmenter:
    """Segments with a loaded model; one picture is embedded once, each click costs the light mask decoder only."""

    def __init__(self, model: Sam) -> None:
        self._model = model.eval()
        width = model.image_encoder.pos_embed.shape[-1]
        self.description = f"Segment Anything {PUBLISHED_SIZES.get(width, f'ViT of width {width}')}"

    @classmethod
    def from_checkpoint(cls, path: Path, device: str = "cpu") -> SamSegmenter:
        """Loads a checkpoint as published; its size is recognised from the shapes of its weights.

        Raises `FileNotFoundError` if there is no such file, `ValueError` if it is not a checkpoint of the model.
        """
        if not path.is_file():
            raise FileNotFoundError(f"no checkpoint of Segment Anything at {path}")
        try:
            weights = torch.load(path, map_location="cpu", weights_only=True)
            model = build_sam(weights)
            model.load_state_dict(weights)
        except (
            pickle.UnpicklingError,
            RuntimeError,
            EOFError,
            KeyError,
            TypeError,
            AttributeError,
            ValueError,
        ) as error:
            reason = str(error).strip().partition("\n")[0] or type(error).__name__
            raise ValueError(f"{path} is not a checkpoint of Segment Anything: {reason}") from error
        return cls(model.to(device))

    def open(self, image: Image.Image) -> SamImage:
        """Embeds an RGB picture; about half a minute for ViT-B on a CPU."""
        predictor = SamPredictor(self._model)
        predictor.set_image(np.array(image.convert("RGB")))
        return SamImage(predictor)


class SamImage:
    """A picture embedded by Segment Anything."""

    def __init__(self, predictor: SamPredictor) -> None:
        self._predictor = predictor
        self._height, self._width = predictor.original_size
        self.nbytes = predictor.get_image_embedding().nbytes

    def segment(self, points: Sequence[Point], labels: Sequence[bool], box: Box | None = None) -> list[Candidate]:
        """See `SegmentedImage.segment`.

        A single click is ambiguous and gets three candidates (whole, part, subpart); more prompts get the one mask that
        the model makes for them, as its authors advise. Scores are the model's own estimate of the IoU.
        """
        positions, positive = check_prompts(points, labels, box, self._height, self._width)
        masks, scores, _ = self._predictor.predict(
            point_coords=positions if len(positions) else None,
            point_labels=positive.astype(np.int64) if len(positions) else None,
            box=None if box is None else np.asarray(box, dtype=np.float64),
            multimask_output=len(positions) == 1 and box is None,
        )
        found = [
            Candidate(mask.astype(bool), float(np.clip(score, 0, 1)))
            for mask, score in zip(masks, scores, strict=True)
            if mask.any()
        ]
        if not found:
            raise ValueError("Segment Anything found no object here; click another spot or add a point")
        return sorted(found, key=lambda candidate: -candidate.score)


def build_sam(weights: Mapping[str, torch.Tensor]) -> Sam:
    """An untrained model of the size that a checkpoint's weights have.

    Raises `KeyError` if a weight that tells the size is missing.
    """
    encoder = _image_encoder(weights)
    embed_dim = weights["image_encoder.neck.0.weight"].shape[0]
    grid = encoder.img_size // encoder.patch_embed.proj.kernel_size[0]
    attention = "mask_decoder.transformer.layers.0"
    decoder = MaskDecoder(
        num_multimask_outputs=weights["mask_decoder.mask_tokens.weight"].shape[0] - 1,
        transformer=TwoWayTransformer(
            depth=_count(weights, "mask_decoder.transformer.layers."),
            embedding_dim=embed_dim,
            mlp_dim=weights[f"{attention}.mlp.lin1.weight"].shape[0],
            num_heads=DECODER_HEADS,
            attention_downsample_rate=embed_dim
            // weights[f"{attention}.cross_attn_token_to_image.q_proj.weight"].shape[0],
        ),
        transformer_dim=embed_dim,
        iou_head_depth=_count(weights, "mask_decoder.iou_prediction_head.layers."),
        iou_head_hidden_dim=weights["mask_decoder.iou_prediction_head.layers.0.weight"].shape[0],
    )
    prompts = PromptEncoder(
        embed_dim=embed_dim,
        image_embedding_size=(grid, grid),
        input_image_size=(encoder.img_size, encoder.img_size),
        mask_in_chans=weights["prompt_encoder.mask_downscaling.6.weight"].shape[1],
    )
    return Sam(image_encoder=encoder, prompt_encoder=prompts, mask_decoder=decoder)


def _image_encoder(weights: Mapping[str, torch.Tensor]) -> ImageEncoderViT:
    """A relative position table has 2 * side - 1 rows, where side is the window's, or the whole grid's if the block
    attends globally, and as many columns as one head is wide.
    """
    _, grid, _, width = weights["image_encoder.pos_embed"].shape
    patch_size = weights["image_encoder.patch_embed.proj.weight"].shape[-1]
    depth = _count(weights, "image_encoder.blocks.")
    tables = [weights[f"image_encoder.blocks.{index}.attn.rel_pos_h"] for index in range(depth)]
    sides = [(len(table) + 1) // 2 for table in tables]
    windows = [side for side in sides if side != grid]
    return ImageEncoderViT(
        img_size=grid * patch_size,
        patch_size=patch_size,
        embed_dim=width,
        depth=depth,
        num_heads=width // tables[0].shape[1],
        mlp_ratio=weights["image_encoder.blocks.0.mlp.lin1.weight"].shape[0] / width,
        out_chans=weights["image_encoder.neck.0.weight"].shape[0],
        norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
        use_rel_pos=True,
        window_size=windows[0] if windows else 0,
        global_attn_indexes=tuple(index for index, side in enumerate(sides) if side == grid),
    )


def _count(weights: Mapping[str, torch.Tensor], prefix: str) -> int:
    """How many numbered modules there are under a prefix of the weights' names."""
    return len({name[len(prefix) :].partition(".")[0] for name in weights if name.startswith(prefix)})
