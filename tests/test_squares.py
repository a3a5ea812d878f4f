"""The square layout: one padded square a picture, as LLaVA-1.5 and TokenPacker without HD see it.

Pixels are compared with transformers' CLIPImageProcessor after an expand2square of Pillow's own, logits with its
LlavaForConditionalGeneration.
"""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import CLIPImageProcessorPil, LlavaConfig, LlavaForConditionalGeneration

from osprey_tp import OspreyTPConfig, OspreyTPForConditionalGeneration, OspreyTPImageProcessor, Tiling
from osprey_tp import image_processing as image_processing_module

from .golden_recipe import image
from .mask_coverage import area_coverage, published_coverage
from .tiny_models import tiny_model

SQUARE = {"picture_layout": "square", "max_tiles": 1}


def expand2square(picture: Image.Image, mean: list[float]) -> Image.Image:
    """The picture pasted into the middle of a square of the mean colour."""
    side = max(picture.size)
    square = Image.new("RGB", (side, side), tuple(int(255 * channel) for channel in mean))
    square.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    return square


def as_clip_sees(picture: Image.Image, side: int, **scale: list[float]) -> torch.Tensor:
    """(1, 3, side, side), normalised."""
    size = {"size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}}
    clip = CLIPImageProcessorPil(**size, **scale)
    return clip(expand2square(picture, clip.image_mean), return_tensors="pt").pixel_values


@pytest.mark.parametrize("size", [(480, 641), (90, 37), (336, 336), (1, 200), (700, 33), (20, 20)])
@pytest.mark.parametrize("scale", [{}, {"image_mean": [0.5, 0.4, 0.2], "image_std": [0.5, 0.25, 0.5]}], ids=str)
def test_pixels_equal_those_of_clips_own_processor(size, scale, monkeypatch):
    monkeypatch.setattr(image_processing_module, "_PIXELS_AT_A_TIME", 9000)  # several bands of rows
    picture = Image.fromarray(image(*size))
    found = OspreyTPImageProcessor(**SQUARE, **scale)(picture, return_tensors="pt")
    assert found.tile_grids.tolist() == [[1, 1]]
    torch.testing.assert_close(found.pixel_values, as_clip_sees(picture, 336, **scale), rtol=0, atol=1e-6)
