"""A converted model proves itself: a fixed picture and two fixed regions, what the model says of them, and numbers."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from osprey_tp.describer import RegionDescriber
from osprey_tp.prompts import CAPTION_QUESTION, CATEGORY_QUESTION, OVERVIEW

_HEIGHT, _WIDTH = 400, 600
_NEW_TOKENS = 8


@dataclass(frozen=True)
class Digest:
    """What a model says of the fixed picture.

    Attributes:
        text: Hash of the prompts' ids, the greedy answers' ids and the rounded figures; the same for the same weights
            on the same kind of machine, and another for other weights.
        prompt_ids: Of every prompt, `<image>` expanded.
        answer_ids: Of every greedy answer, at most 8 tokens.
        figures: For every prompt, mean size and deviation of its visual tokens, of its region tokens if it has any, and
            of the next token's logits.
    """

    text: str
    prompt_ids: list[list[int]]
    answer_ids: list[list[int]]
    figures: list[list[float]]


def fixed_picture() -> Image.Image:
    """Two gradients and a checked pattern, 400 x 600 pixels, made without a file."""
    y, x = np.mgrid[0:_HEIGHT, 0:_WIDTH]
    red, green = x * 255 // (_WIDTH - 1), y * 255 // (_HEIGHT - 1)
    blue = np.where((x // 40 + y // 40) % 2 == 0, 220, 30)
    return Image.fromarray(np.stack([red, green, blue], axis=-1).astype(np.uint8))


def fixed_regions() -> list[np.ndarray]:
    """A box and a disc, masks of the picture's size."""
    y, x = np.mgrid[0:_HEIGHT, 0:_WIDTH]
    box = (y >= 50) & (y < 180) & (x >= 80) & (x < 320)
    disc = (y - 260) ** 2 + (x - 430) ** 2 <= 90**2
    return [box, disc]


def digest_of(folder: Path, device: str | None = None) -> Digest:
    """Run the fixed picture through a model folder: one question for each region, or one about the whole picture.

    Args:
        folder: What `convert` or training wrote.
        device: By default a GPU if there is one.

    Raises:
        ValueError: if a logit is no number.
    """
    from osprey_tp.conversion import REGION_ENCODER_PREFIX
    from osprey_tp.weights import list_weights

    describer = RegionDescriber.from_pretrained(folder, device=device)
    picture = fixed_picture()
    has_regions = any(name.startswith(REGION_ENCODER_PREFIX) for name in list_weights(folder))
    cases = [([region], CATEGORY_QUESTION) for region in fixed_regions()] if has_regions else [([], CAPTION_QUESTION)]
    answered = [_answer(describer, picture, regions, question) for regions, question in cases]
    prompt_ids, answer_ids, figures = (list(column) for column in zip(*answered, strict=True))
    stable = [[_rounded(figure) for figure in of_case] for of_case in figures]
    text = hashlib.sha256(json.dumps([prompt_ids, answer_ids, stable]).encode()).hexdigest()[:16]
    return Digest(text, prompt_ids, answer_ids, figures)


@torch.no_grad()
def _answer(
    describer: RegionDescriber, picture: Image.Image, regions: list[np.ndarray], question: str
) -> tuple[list[int], list[int], list[float]]:
    """Ids of prompt and greedy answer, and figures of what tower, projector, region encoder and language model make."""
    model: Any = describer.model
    item = {"type": "image", "image": picture, "regions": regions}
    content = [item, {"type": "text", "text": OVERVIEW + question}]
    batch = describer.processor.prepare([[{"role": "user", "content": content}]], add_generation_prompt=True)
    batch = batch.to(model.device)
    text = {name: batch[name] for name in ("input_ids", "attention_mask")}
    features = model.get_image_features(**{name: tensor for name, tensor in batch.items() if name not in text})
    logits = model(**text, mm_encoder_outputs={"image": features}, logits_to_keep=1).logits[0, -1]
    made = [*features.pooler_output, logits]
    if features.region_tokens is not None:
        made.insert(1, features.region_tokens)
    if not all(torch.isfinite(tensor).all() for tensor in made):
        raise ValueError("the converted model makes numbers that are none; convert with --dtype float32 or bfloat16")
    length = batch["input_ids"].shape[1]
    answer = model.generate(**batch, max_new_tokens=_NEW_TOKENS, do_sample=False)[0, length:].tolist()
    figures = [figure(tensor.double()).item() for tensor in made for figure in (_mean_size, torch.std)]
    return batch["input_ids"][0].tolist(), answer, figures


def _mean_size(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.abs().mean()


def _rounded(figure: float) -> str:
    """Three significant digits: rounding errors of another machine move them rarely."""
    return f"{figure:.2e}"
