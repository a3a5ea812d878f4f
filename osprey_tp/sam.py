"""Masks from clicks by Segment Anything (Kirillov et al. 2023), through the `segment_anything` package."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import torch
from PIL import Image
from segment_anything import SamPredictor
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer

from osprey_tp.outside import one_line
from osprey_tp.prompted_masks import PromptedImage, widened_pixels
from osprey_tp.segmenters import VIT_SIZES
from osprey_tp.weights import read_torch

LEAST_IOU = 0.88  # where everything is asked for, as the authors' generator of masks has it
DECODER_HEADS = 8  # of every published model; the weights' shapes do not show it


class SamSegmenter:
    """Segments with a loaded model; one picture is embedded once, each click costs the light mask decoder only."""

    def __init__(self, model: Sam) -> None:
        self._model = model.eval()
        width = model.image_encoder.pos_embed.shape[-1]
        self.description = f"Segment Anything {VIT_SIZES.get(width, f'ViT of width {width}')}"

    @classmethod
    def from_checkpoint(cls, path: Path, device: str = "cpu") -> SamSegmenter:
        """Loads a checkpoint as published; its size is recognised from the shapes of its weights.

        Raises `FileNotFoundError` if there is no such file, `ValueError` if it is not a checkpoint of the model.
        """
        if not path.is_file():
            raise FileNotFoundError(f"no checkpoint of Segment Anything at {path}")
        try:
            weights = read_torch(path)
            model = build_sam(weights)
            model.load_state_dict(weights)
        except (RuntimeError, LookupError, TypeError, ArithmeticError, ValueError) as error:
            reason = f"it lacks {error}" if isinstance(error, KeyError) else one_line(error)
            raise ValueError(f"{path} is not a checkpoint of Segment Anything: {reason}") from error
        return cls(model.to(device))

    def open(self, image: Image.Image) -> SamImage:
        """Embeds an RGB picture; about half a minute for ViT-B on a CPU."""
        predictor = SamPredictor(self._model)
        predictor.set_image(widened_pixels(image))
        return SamImage(predictor, image.height, image.width)


class SamImage(PromptedImage):
    """A picture embedded by Segment Anything."""

    def __init__(self, predictor: SamPredictor, height: int, width: int) -> None:
        side = predictor.model.image_encoder.img_size
        shown = (predictor.input_size[0] / side, predictor.input_size[1] / side)
        super().__init__(height, width, shown, LEAST_IOU, predictor.device)
        self._predictor = predictor
        self.nbytes = predictor.get_image_embedding().nbytes

    def _decode(
        self, points: torch.Tensor | None, labels: torch.Tensor | None, boxes: torch.Tensor | None, several: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        model, transform, size = self._predictor.model, self._predictor.transform, self._predictor.original_size
        sparse, dense = model.prompt_encoder(
            points=None if points is None else (transform.apply_coords_torch(points, size), labels),
            boxes=None if boxes is None else transform.apply_boxes_torch(boxes, size),
            masks=None,
        )
        return model.mask_decoder(
            image_embeddings=self._predictor.get_image_embedding(),
            image_pe=model.prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=several,
        )

    def _enlarge(self, logits: torch.Tensor) -> torch.Tensor:
        model = self._predictor.model
        enlarged = model.postprocess_masks(
            logits[None, None], self._predictor.input_size, self._predictor.original_size
        )
        return enlarged[0, 0] > model.mask_threshold


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
