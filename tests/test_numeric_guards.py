"""No NaN, through the whole model: regions of one pixel and of none, pictures of one pixel, bfloat16."""

import numpy as np
import pytest
import torch
from PIL import Image

from osprey_tp import RegionDescriber

from .tiny_models import tiny_model

QUESTION = "what is <mask>?"
SIZES = ((1, 1), (1, 40), (70, 90))
every_kind = pytest.mark.parametrize(
    ("preset", "dtype"),
    [("recommended", torch.float32), ("recommended", torch.bfloat16), ("published", torch.bfloat16)],
)


def picture_of(height: int, width: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def one_pixel(height: int, width: int, y: int, x: int) -> np.ndarray:
    mask = np.zeros((height, width), bool)
    mask[y, x] = True
    return mask


@every_kind
def test_one_pixel_is_enough_for_finite_losses_gradients_and_answers(preset, dtype):
    model, processor = tiny_model(preset=preset)
    model.to(dtype)
    describer = RegionDescriber(model, processor)
    for height, width in SIZES:
        corners = {(0, 0), (height - 1, width - 1), (height // 2, width // 2)}
        regions = [one_pixel(height, width, *corner) for corner in sorted(corners)]
        picture = picture_of(height, width)
        conversations = [
            [
                {
                    "role": "user",
                    "content": [
                        {"type": "image", "image": picture, "regions": [region]},
                        {"type": "text", "text": QUESTION},
                    ],
                },
                {"role": "assistant", "content": [{"type": "text", "text": "red"}]},
            ]
            for region in regions
        ]
        batch = processor.prepare(conversations, return_labels=True)
        assert torch.isfinite(torch.as_tensor(batch["region_coverage"])).all()
        model.zero_grad()
        output = model(**batch)
        assert torch.isfinite(output.logits).all() and torch.isfinite(output.loss)
        output.loss.backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is None or torch.isfinite(parameter.grad).all(), name
        with torch.no_grad():
            session = describer.open(picture)
            assert len(session.ask(regions, QUESTION, max_new_tokens=3)) == len(regions)
            assert np.isfinite(session.score(["red", "blue"], regions[:1])).all()


@every_kind
def test_a_region_that_covers_no_cell_makes_no_nan(preset, dtype):
    model, processor = tiny_model(preset=preset)
    model.to(dtype)
    picture, region = picture_of(70, 90), one_pixel(70, 90, 3, 4)
    content = [{"type": "image", "image": picture, "regions": [region]}, {"type": "text", "text": QUESTION}]
    batch = processor.prepare([[{"role": "user", "content": content}]])
    batch["region_coverage"] = torch.zeros_like(torch.as_tensor(batch["region_coverage"]))
    logits = model(**batch).logits
    assert torch.isfinite(logits).all()
    logits.float().sum().backward()
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in model.parameters())


def test_an_empty_region_is_refused_before_the_model_sees_it():
    describer = RegionDescriber(*tiny_model())
    session = describer.open(picture_of(20, 30))
    for empty in (np.zeros((20, 30), bool), [], {"size": [20, 30], "counts": [600]}, [[1, 1, 1, 1, 1, 1]]):
        with pytest.raises(ValueError, match="the region is empty"):
            session.ask([empty], QUESTION)
