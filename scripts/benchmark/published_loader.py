"""The published way to load a training sample, made anew from its description as the baseline of benchmarks.

The picture is normalised in float32, resized bilinearly without antialiasing, padded to the canvas and cut; the
thumbnail is the canvas, squeezed. Every mask is decoded alone, becomes a float picture, is resized to the canvas by
nearest neighbours and stays one: the model shrinks it. The prompt is split at `<image>` and its parts are tokenised one
by one; labels are found by tokenising every turn, and every question, once more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

    from osprey_tp.processing import OspreyTPProcessor
    from osprey_tp.tiling import TilePlan

IMAGE_INDEX = -200
"""Stands for a whole picture among token ids."""
IGNORED_LABEL = -100


def published_batch(processor: OspreyTPProcessor, samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What the published loader makes of samples `{"id", "conversation"}` with one picture each.

    Returns:
        `pixel_values` (tiles, 3, S, S), `masks`, a list of float32 (regions, canvas height, canvas width) for each
        picture, and padded `input_ids`, `labels` and `attention_mask` (B, N).
    """
    import torch
    from torch.nn.utils.rnn import pad_sequence

    loaded = [_sample(processor, sample["conversation"]) for sample in samples]
    tiles, masks, ids, labels = (list(column) for column in zip(*loaded, strict=True))
    padding = processor.tokenizer.pad_token_id or 0
    input_ids = pad_sequence(ids, batch_first=True, padding_value=padding)
    return {
        "pixel_values": torch.cat(tiles),
        "masks": masks,
        "input_ids": input_ids,
        "labels": pad_sequence(labels, batch_first=True, padding_value=IGNORED_LABEL),
        "attention_mask": input_ids.ne(padding),
    }


def _sample(
    processor: OspreyTPProcessor, conversation: Sequence[Mapping[str, Any]]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    from osprey_tp.images import load_image

    first = conversation[0]["content"][0]
    picture = load_image(first["image"])
    plan = processor.image_processor.tiling.plan(picture.height, picture.width)
    return (
        published_tiles(picture, plan, processor.image_processor.image_mean, processor.image_processor.image_std),
        published_masks(first["regions"], plan),
        *_text(processor.tokenizer, conversation),
    )


def published_tiles(picture: Any, plan: TilePlan, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    """float32 (plan.num_tiles, 3, S, S) of a PIL picture."""
    import numpy as np
    import torch
    from torch.nn.functional import interpolate

    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous().float().div(255)
    pixels = (pixels - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    side = plan.tiling.tile_size
    resized = interpolate(pixels[None], size=(plan.resized_height, plan.resized_width), mode="bilinear")
    canvas = _padded(resized, plan.canvas_height, plan.canvas_width)
    tiles = canvas.reshape(3, plan.rows, side, plan.cols, side).permute(1, 3, 0, 2, 4).reshape(-1, 3, side, side)
    if not plan.has_thumbnail:
        return tiles
    thumbnail = interpolate(canvas, size=(plan.thumbnail_height, plan.thumbnail_width), mode="bilinear")
    return torch.cat([tiles, _padded(thumbnail, side, side)])


def published_masks(regions: Sequence[Mapping[str, Any]], plan: TilePlan) -> torch.Tensor:
    """float32 (regions, canvas height, canvas width) of COCO run lengths."""
    import torch
    from pycocotools import mask as coco_mask

    from scripts.benchmark.published_procedure import canvas_mask

    return torch.cat([canvas_mask(coco_mask.decode(region).astype(bool), plan)[0] for region in regions])


def _padded(picture: torch.Tensor, height: int, width: int) -> torch.Tensor:
    from torch.nn.functional import pad

    return pad(picture, (0, width - picture.shape[-1], 0, height - picture.shape[-2]))


def _text(
    tokenizer: PreTrainedTokenizerBase, conversation: Sequence[Mapping[str, Any]]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and labels of the conversation in the form of Vicuna v1."""
    import torch

    system = "A chat between a curious user and an artificial intelligence assistant. "
    system += "The assistant gives helpful, detailed, and polite answers to the user's questions."
    prompt, end = system + " ", tokenizer.eos_token
    for message in conversation:
        said = _said(message["content"])
        prompt += f"USER: {said} " if message["role"] == "user" else f"ASSISTANT: {said}{end}"
    ids = _ids(tokenizer, prompt)
    labels = torch.tensor(ids)
    reached, before = 1, ""  # what stands before a turn decides whether its first word begins with a blank
    labels[:reached] = IGNORED_LABEL
    for turn in prompt.split(end)[:-1]:
        known = len(_ids(tokenizer, before))
        question = turn.split(" ASSISTANT: ")[0] + " ASSISTANT:"
        unsaid = len(_ids(tokenizer, before + question)) - known
        labels[reached : reached + unsaid] = IGNORED_LABEL
        reached += len(_ids(tokenizer, before + turn + end)) - known
        before = end
    labels[reached:] = IGNORED_LABEL
    return torch.tensor(ids), labels


def _said(content: str | Sequence[Mapping[str, Any]]) -> str:
    if isinstance(content, str):
        return content
    return "".join("<image>\n" if item["type"] == "image" else item["text"] for item in content)


def _ids(tokenizer: PreTrainedTokenizerBase, prompt: str) -> list[int]:
    """Ids of the prompt, with one `IMAGE_INDEX` for each `<image>`, parts tokenised one by one."""
    ids = [tokenizer.bos_token_id]
    for number, part in enumerate(prompt.split("<image>")):
        if number:
            ids.append(IMAGE_INDEX)
        ids += tokenizer(part, add_special_tokens=False).input_ids
    return ids
