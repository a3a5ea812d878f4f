"""The published way to answer about regions, made anew from its description as the baseline of benchmarks.

For every region the picture is opened, tiled and encoded again; the mask becomes a float picture of canvas size, is
shrunk bilinearly to the cells, and each level of features is put together into one map to be averaged under it; one
prompt at a time is generated. The weights, and so the answers, are those of the model it is compared with.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import torch

    from osprey_tp.describer import RegionDescriber
    from osprey_tp.tiling import TilePlan


def published_answers(
    describer: RegionDescriber, picture: Path, masks: Sequence[np.ndarray], question: str, max_new_tokens: int
) -> list[str]:
    """Answers to `question` about each of the masks (height, width), one after the other."""
    return [_answer(describer, picture, mask, question, max_new_tokens) for mask in masks]


def _answer(describer: RegionDescriber, path: Path, mask: np.ndarray, question: str, max_new_tokens: int) -> str:
    import torch

    from osprey_tp.images import load_image
    from osprey_tp.modeling import OspreyTPFeatures
    from osprey_tp.prompts import OVERVIEW

    model, processor = describer.model, describer.processor
    with torch.no_grad():
        image = load_image(path)
        picture = {"type": "image", "image": image, "regions": [mask]}
        messages = [{"role": "user", "content": [picture, {"type": "text", "text": OVERVIEW + question}]}]
        batch: Any = processor.prepare([messages], add_generation_prompt=True)
        plan = processor.image_processor.tiling.plan(*mask.shape)
        cells = model.model.encode_tiles(batch["pixel_values"].to(model.device))
        features = OspreyTPFeatures(
            pooler_output=model.model.visual_tokens(cells, batch["tile_grids"]),
            region_tokens=_region_token(model.model.region_encoder, cells, canvas_mask(mask, plan), plan),
        )
        generated: Any = model.generate(
            input_ids=batch["input_ids"].to(model.device),
            attention_mask=batch["attention_mask"].to(model.device),
            mm_encoder_outputs={"image": features},
            max_new_tokens=max_new_tokens,
            do_sample=False,
        )
    return processor.decode_answers(generated, batch["input_ids"].shape[1])[0]


def canvas_mask(mask: np.ndarray, plan: TilePlan) -> torch.Tensor:
    """The mask (height, width) as a float picture of the canvas, (1, 1, canvas height, canvas width)."""
    import torch
    from torch.nn.functional import interpolate, pad

    pixels = torch.from_numpy(mask).float()[None, None]
    resized = interpolate(pixels, size=(plan.resized_height, plan.resized_width), mode="nearest")
    return pad(resized, (0, plan.canvas_width - plan.resized_width, 0, plan.canvas_height - plan.resized_height))


def shrunk_mask(canvas: torch.Tensor, plan: TilePlan) -> torch.Tensor:
    """Which cells of the canvas (rows·n, cols·n) a canvas mask counts, as published."""
    from torch.nn.functional import interpolate

    side = plan.tiling.cells_per_side
    return interpolate(canvas, size=(plan.rows * side, plan.cols * side), mode="bilinear")[0, 0] > 0


def _region_token(encoder: Any, cells: torch.Tensor, canvas: torch.Tensor, plan: TilePlan) -> torch.Tensor:
    """(1, D), from cells (levels, tiles, n·n, C)."""
    side = plan.tiling.cells_per_side
    counted = shrunk_mask(canvas, plan).to(cells)
    total = 0
    for level, project in zip(cells, encoder.level_projections, strict=True):
        tiles = level[: plan.rows * plan.cols].unflatten(0, (plan.rows, plan.cols)).unflatten(2, (side, side))
        whole = tiles.permute(4, 0, 2, 1, 3).reshape(-1, plan.rows * side, plan.cols * side)  # (C, rows·n, cols·n)
        pooled = (whole * counted).sum(dim=(1, 2)) / (counted.sum() + 1e-8)
        total = total + project(pooled[None])
    return encoder.output_norm(encoder.output(total))
