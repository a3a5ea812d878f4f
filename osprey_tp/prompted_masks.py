"""What all models of the Segment Anything family share: clicks, boxes and everything out of one embedding of a picture.

A model embeds a picture once, as a square of its own size; its light decoder then makes small masks of logits for any
number of prompts. Everything is a grid of clicks, as in the paper (Kirillov et al. 2023, section 5 and appendix B):
proposals are filtered by the model's own estimate of their IoU and by how little they change with the threshold, and
compared as they come out of the decoder; only those that are kept are enlarged to the size of the picture.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from osprey_tp.mask_selection import RunLengths, affordable, distinct, encode_masks, select_masks
from osprey_tp.segmenters import Box, Candidate, Point, check_prompts

CLICKS_A_SIDE = {"cpu": 16}
"""Clicks along each side of the picture when everything is asked for, by the kind of device."""
CLICKS_A_SIDE_ON_GPU = 32  # as published; a CPU of two cores would take more than a minute with ViT-B
PROMPTS_AT_A_TIME = 64
LEAST_STABILITY = 0.95
STABILITY_MARGIN = 1.0  # in logits
SLIMMEST = 64
"""A picture longer than this many times its shorter side is widened by repeating its edge: a patch must see it."""


class PromptedImage(ABC):
    """A picture that a model has embedded.

    Args:
        height: Of the picture in source pixels.
        width: Of the picture in source pixels.
        shown: The shares (of height, of width) of the model's square that the picture fills; the rest is padding.
        least_iou: The model's estimate that a mask must reach where everything is asked for.
        device: Of the model.
    """

    def __init__(
        self, height: int, width: int, shown: tuple[float, float], least_iou: float, device: torch.device
    ) -> None:
        self._height, self._width = height, width
        self._shown_share = shown
        self._least_iou = least_iou
        self._device = device

    def segment(self, points: Sequence[Point], labels: Sequence[bool], box: Box | None = None) -> list[Candidate]:
        """See `SegmentedImage.segment`.

        A single click is ambiguous and gets three candidates (whole, part, subpart); more prompts get the one mask that
        the model makes for them, as its authors advise. Scores are the model's own estimate of the IoU.
        """
        positions, positive = check_prompts(points, labels, box, self._height, self._width)
        logits, scores = self._decoded(
            positions[None] if len(positions) else None,
            positive[None] if len(positions) else None,
            None if box is None else np.asarray([box], dtype=np.float64),
            several=len(positions) == 1 and box is None,
        )
        found = self._candidates(logits[0], scores[0].tolist())
        if not found:
            raise ValueError("Segment Anything found no object here; click another spot or add a point")
        return sorted(found, key=lambda candidate: -candidate.score)

    def everything(self, most: int = 64) -> list[Candidate]:
        """See `SegmentedImage.everything`; the picture is not embedded again."""
        most = affordable(most, self._height, self._width)
        proposed: list[torch.Tensor] = []  # logits (h, w) each
        encoded: list[RunLengths] = []
        scores: list[float] = []
        clicks = self._grid()
        for start in range(0, len(clicks), PROMPTS_AT_A_TIME):
            batch = clicks[start : start + PROMPTS_AT_A_TIME]
            logits, estimates = self._decoded(batch, np.ones(batch.shape[:2], bool), None, several=True)
            shown = self._shown(logits)
            good = (estimates >= self._least_iou) & (stability(shown) >= LEAST_STABILITY)
            proposed.extend(logits[good])
            encoded.extend(encode_masks((shown[good] > 0).cpu().numpy()))
            scores.extend(estimates[good].tolist())
        kept = select_masks(encoded, np.array(scores), most)
        return distinct([found for i in kept for found in self._candidates(proposed[i][None], [scores[i]])])

    @abstractmethod
    def _decode(
        self, points: torch.Tensor | None, labels: torch.Tensor | None, boxes: torch.Tensor | None, several: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Masks for n prompts.

        Args:
            points: (n, k, 2), x before y, in source pixels.
            labels: (n, k), 1 on the object, 0 off it.
            boxes: (n, 4) as (x0, y0, x1, y1) in source pixels.
            several: Whether to make the candidates for an ambiguous prompt instead of one mask.

        Returns:
            Logits (n, m, h, w) of the model's whole square, above 0 inside, and estimates of the IoU (n, m).
        """

    @abstractmethod
    def _enlarge(self, logits: torch.Tensor) -> torch.Tensor:
        """The mask (height, width) or larger, padded to the right and below, of logits (h, w)."""

    def _grid(self) -> NDArray[np.float64]:
        """(n, 1, 2) positions in source pixels, evenly over the picture."""
        side = CLICKS_A_SIDE.get(self._device.type, CLICKS_A_SIDE_ON_GPU)
        shares = (np.arange(side) + 0.5) / side
        x, y = np.meshgrid(shares * self._width, shares * self._height)
        return np.stack([x.ravel(), y.ravel()], axis=1)[:, None]

    def _decoded(
        self,
        points: NDArray[np.float64] | None,
        labels: NDArray[np.bool_] | None,
        boxes: NDArray[np.float64] | None,
        several: bool,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.inference_mode():
            return self._decode(
                None if points is None else torch.as_tensor(points, dtype=torch.float32, device=self._device),
                None if labels is None else torch.as_tensor(labels, dtype=torch.int32, device=self._device),
                None if boxes is None else torch.as_tensor(boxes, dtype=torch.float32, device=self._device),
                several,
            )

    def _candidates(self, logits: torch.Tensor, scores: Sequence[float]) -> list[Candidate]:
        """Those of m masks, from logits (m, h, w) and estimates of m, that have a pixel in the picture."""
        found = []
        for mask_logits, score in zip(logits, scores, strict=True):
            with torch.inference_mode():
                enlarged = self._enlarge(mask_logits)
            mask = enlarged[: self._height, : self._width].cpu().numpy()
            if mask.any():
                found.append(Candidate(np.ascontiguousarray(mask), float(np.clip(score, 0, 1))))
        return found

    def _shown(self, logits: torch.Tensor) -> torch.Tensor:
        """The part of logits (..., h, w) that shows the picture."""
        height, width = (round(side * share) for side, share in zip(logits.shape[-2:], self._shown_share, strict=True))
        return logits[..., : max(1, height), : max(1, width)]


def stability(logits: torch.Tensor) -> torch.Tensor:
    """IoU (...) of the masks that logits (..., h, w) give at a higher and at a lower threshold; 0 for empty ones."""
    inner = (logits > STABILITY_MARGIN).sum(dim=(-2, -1))
    outer = (logits > -STABILITY_MARGIN).sum(dim=(-2, -1))
    return inner / outer.clamp(min=1)


def widened_pixels(image: Image.Image) -> NDArray[np.uint8]:
    """RGB pixels (height, width, 3) or, of a very slim picture, with its right or lower edge repeated."""
    pixels = np.array(image.convert("RGB"))
    least = -(-max(image.size) // SLIMMEST)
    missing = [max(0, least - side) for side in pixels.shape[:2]]
    if any(missing):
        pixels = np.pad(pixels, ((0, missing[0]), (0, missing[1]), (0, 0)), mode="edge")
    return np.ascontiguousarray(pixels)
