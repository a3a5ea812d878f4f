"""Masks from clicks by OpenCV's GrabCut (Rother, Kolmogorov, Blake 2004): no weights, any picture, a second or less.

GrabCut needs to know roughly where the object is; one click does not say how large it is. So it runs in windows of
several sizes around the click, each time starting once from the area of similar colour and once from a disc, which
finds textured objects. What lies along the window's frame counts as background. Of all these proposals, and the areas
of similar colour themselves, the best are kept: those that differ in colour from what surrounds them, do not run into
the frame, are compact, and were found repeatedly.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from osprey_tp.colour_areas import colour_areas
from osprey_tp.mask_selection import SAME_OBJECT_IOU, affordable, distinct, encode_masks, select_masks, times_found
from osprey_tp.segmenters import Box, Candidate, Point, check_prompts

Mask = NDArray[np.bool_]
Pixels = NDArray[np.uint8]

WORKING_SIDE = 144  # longest side, in pixels, of a window when proposals are made
EVERYTHING_SIDE = 512  # longest side, in pixels, of the picture in which all objects are looked for
REFINEMENT_SIDE = 320  # longest side, in pixels, of the window in which the kept proposals get their exact edge
SMALLEST_WINDOW = 32  # source pixels
WINDOW_SHARES = (1.0, 0.5, 0.25, 0.125)  # half the window's side, as a share of the picture's longer side
CANDIDATES = 3
SMALL_SHARE = 0.01  # of the picture: where all objects are asked for, smaller areas are rather spots on an object
LEAST_SCORE = 0.4  # of what passes for an object where all are asked for


@dataclass(frozen=True)
class Window:
    """A part (x0, y0, x1, y1) of the picture in whole source pixels, and what it is scaled by for work."""

    x0: int
    y0: int
    x1: int
    y1: int
    scale: float

    @classmethod
    def around(cls, box: Box, height: int, width: int, longest_side: int) -> "Window":
        """The window that covers a box in source pixels, cut at the picture's edges, shrunk to `longest_side`."""
        x0, y0 = max(0, int(np.floor(box[0]))), max(0, int(np.floor(box[1])))
        x1, y1 = min(width, int(np.ceil(box[2]))), min(height, int(np.ceil(box[3])))
        return cls(x0, y0, x1, y1, min(1.0, longest_side / max(x1 - x0, y1 - y0)))

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the scaled window."""
        return max(1, round((self.y1 - self.y0) * self.scale)), max(1, round((self.x1 - self.x0) * self.scale))

    def cut(self, array: NDArray) -> NDArray:
        """The scaled window's content out of an array in source pixels."""
        height, width = self.size
        part = np.ascontiguousarray(array[self.y0 : self.y1, self.x0 : self.x1])
        return part if self.scale == 1 else cv2.resize(part, (width, height), interpolation=cv2.INTER_AREA)

    def point(self, point: NDArray[np.float64]) -> tuple[int, int]:
        """(x, y) in the scaled window of a point in source pixels; the nearest pixel if it lies outside."""
        height, width = self.size
        x, y = (point[0] - self.x0) * self.scale, (point[1] - self.y0) * self.scale
        return int(np.clip(x, 0, width - 1)), int(np.clip(y, 0, height - 1))

    def restore(self, mask: Mask, height: int, width: int) -> Mask:
        """A mask of the scaled window as a mask (height, width) in source pixels."""
        restored = np.zeros((height, width), bool)
        smooth = cv2.resize(mask.astype(np.float32), (self.x1 - self.x0, self.y1 - self.y0))
        restored[self.y0 : self.y1, self.x0 : self.x1] = smooth > 0.5
        return restored

    def frame(self, height: int, width: int, thickness: int) -> Mask:
        """The scaled window's pixels along those of its sides that lie inside the picture."""
        frame = np.zeros(self.size, bool)
        if self.y0 > 0:
            frame[:thickness] = True
        if self.y1 < height:
            frame[-thickness:] = True
        if self.x0 > 0:
            frame[:, :thickness] = True
        if self.x1 < width:
            frame[:, -thickness:] = True
        return frame


class GrabCutSegmenter:
    """Segments by colour alone."""

    description = "GrabCut"

    def open(self, image: Image.Image) -> "GrabCutImage":
        """Takes in an RGB picture."""
        return GrabCutImage(np.asarray(image.convert("RGB")))


class GrabCutImage:
    """An RGB picture (height, width, 3) in which `segment` looks for objects."""

    def __init__(self, pixels: Pixels) -> None:
        self._pixels = np.ascontiguousarray(pixels)
        self._height, self._width = pixels.shape[:2]
        self.nbytes = int(self._pixels.nbytes)

    def segment(self, points: Sequence[Point], labels: Sequence[bool], box: Box | None = None) -> list[Candidate]:
        """See `SegmentedImage.segment`; up to three candidates, different objects or parts of one."""
        positions, positive = check_prompts(points, labels, box, self._height, self._width)
        cv2.setRNGSeed(0)
        proposals = []
        for window in self._windows(positions[positive], box):
            scene = _Scene.of(self._pixels, window, positions, positive, box)
            guesses = scene.likely_foregrounds()
            for mask in [*(scene.cut_out(guess) for guess in guesses), scene.connected(guesses[0])]:
                restored = window.restore(mask, self._height, self._width)
                proposals.append((restored, scene.score(mask) * _size_prior(float(restored.mean()))))
        candidates = _distinct(proposals)
        return [Candidate(self._refined(mask, positions, positive, box), score) for mask, score in candidates]

    def everything(self, most: int = 64) -> list[Candidate]:
        """See `SegmentedImage.everything`: connected areas of similar colour that look like objects."""
        window = Window.around((0, 0, self._width, self._height), self._height, self._width, EVERYTHING_SIDE)
        pixels = window.cut(self._pixels)
        areas = colour_areas(pixels)
        scores = np.array([_score_of_area(pixels, area) for area in areas])
        encoded = [encode_masks(area[None])[0] for area in areas]
        scores = scores * [_found_again(int(times)) for times in times_found(encoded)]
        most = affordable(most, self._height, self._width)
        kept = [index for index in select_masks(encoded, scores, most) if scores[index] >= LEAST_SCORE]
        found = []
        for index in kept:
            mask = window.restore(areas[index], self._height, self._width)
            if window.scale < 1:
                mask = self._refined(mask, np.zeros((0, 2)), np.zeros(0, bool), None)
            if mask.any():
                found.append(Candidate(mask, float(scores[index])))
        return distinct(found)

    def _windows(self, positions: NDArray[np.float64], box: Box | None) -> list[Window]:
        """Windows of several sizes around the positive points; around the box, one with room on every side."""
        size = (self._height, self._width)
        if box is not None:
            margin = 0.25 * max(box[2] - box[0], box[3] - box[1]) + 2
            return [Window.around(_padded(box, margin), *size, longest_side=WORKING_SIDE)]
        clicked = (*positions.min(axis=0), *(positions.max(axis=0) + 1))
        halves = {max(SMALLEST_WINDOW / 2, share * max(size)) for share in WINDOW_SHARES}
        windows = (Window.around(_padded(clicked, half), *size, longest_side=WORKING_SIDE) for half in halves)
        return sorted(set(windows), key=lambda window: window.x1 - window.x0)

    def _refined(
        self, mask: Mask, positions: NDArray[np.float64], positive: NDArray[np.bool_], box: Box | None
    ) -> Mask:
        """The same object with its edge found again at a finer scale, in a window that just holds it."""
        ys, xs = np.nonzero(mask)
        object_box = (float(xs.min()), float(ys.min()), float(xs.max() + 1), float(ys.max() + 1))
        margin = 0.1 * max(object_box[2] - object_box[0], object_box[3] - object_box[1]) + 4
        window = Window.around(_padded(object_box, margin), self._height, self._width, longest_side=REFINEMENT_SIDE)
        scene = _Scene.of(self._pixels, window, positions, positive, box)
        coarse = window.cut(mask.astype(np.uint8) * 255) > 127
        refined = scene.refine(coarse)
        return window.restore(refined if refined.any() else coarse, self._height, self._width)


@dataclass(frozen=True)
class _Scene:
    """One scaled window: its pixels (h, w, 3), and what the prompts say for certain about its pixels (h, w)."""

    pixels: Pixels
    seeds: tuple[tuple[int, int], ...]
    certain_foreground: Mask
    certain_background: Mask
    frame: Mask

    @classmethod
    def of(
        cls,
        pixels: Pixels,
        window: Window,
        positions: NDArray[np.float64],
        positive: NDArray[np.bool_],
        box: Box | None,
    ) -> "_Scene":
        height, width = pixels.shape[:2]
        frame = window.frame(height, width, thickness=2)
        radius = max(1, round(min(window.size) * 0.012))
        certain = {True: np.zeros(window.size, np.uint8), False: np.zeros(window.size, np.uint8)}
        for position, label in zip(positions, positive, strict=True):
            cv2.circle(certain[bool(label)], window.point(position), radius, 1, -1)
        background = certain[False].astype(bool) | frame
        if box is not None:
            x0, y0 = window.point(np.array(box[:2]))
            x1, y1 = window.point(np.array(box[2:]))
            outside = np.ones(window.size, bool)
            outside[y0 : y1 + 1, x0 : x1 + 1] = False
            background |= outside
        foreground = certain[True].astype(bool) & ~certain[False].astype(bool)
        seeds = tuple(window.point(position) for position in positions[positive])
        return cls(window.cut(pixels), seeds, foreground, background & ~foreground, frame)

    def likely_foregrounds(self) -> list[Mask]:
        """First guesses: what has the clicked colour and is connected to it, and a disc around the clicks."""
        height, width = self.pixels.shape[:2]
        if not self.seeds:
            return [~self.certain_background]
        smooth = cv2.medianBlur(self.pixels, 5) if min(height, width) >= 5 else self.pixels
        lab = cv2.cvtColor(smooth, cv2.COLOR_RGB2LAB)
        similar, disc = np.zeros((height, width), np.uint8), np.zeros((height, width), np.uint8)
        for seed in self.seeds:
            filled = np.zeros((height + 2, width + 2), np.uint8)
            flags = 4 | cv2.FLOODFILL_FIXED_RANGE | cv2.FLOODFILL_MASK_ONLY | (1 << 8)
            cv2.floodFill(lab, filled, seed, 0, (30, 12, 12), (30, 12, 12), flags)
            similar |= filled[1:-1, 1:-1]
            cv2.circle(disc, seed, max(2, min(height, width) // 8), 1, -1)
        return [similar.astype(bool) & ~self.certain_background, disc.astype(bool) & ~self.certain_background]

    def cut_out(self, likely: Mask, iterations: int = 3) -> Mask:
        """Runs GrabCut from a first guess and keeps what is connected to the clicks; never empty."""
        trimap = np.full(likely.shape, cv2.GC_PR_BGD, np.uint8)
        trimap[likely] = cv2.GC_PR_FGD
        return self.connected(self._grabcut(trimap, iterations))

    def refine(self, coarse: Mask) -> Mask:
        """Decides anew in a band along the edge of a mask; the rest of it stays."""
        band = max(2, round(0.03 * max(coarse.shape)))
        kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * band + 1, 2 * band + 1))
        mask = coarse.astype(np.uint8)
        trimap = np.where(coarse, np.uint8(cv2.GC_PR_FGD), np.uint8(cv2.GC_PR_BGD))
        trimap[cv2.erode(mask, kernel).astype(bool)] = cv2.GC_FGD
        trimap[~cv2.dilate(mask, kernel).astype(bool)] = cv2.GC_BGD
        return self.connected(self._grabcut(trimap, iterations=2))

    def score(self, mask: Mask) -> float:
        """How much like an object a mask looks, 0 to 1: set off by colour, whole, compact."""
        outline = mask & ~cv2.erode(mask.astype(np.uint8), np.ones((3, 3), np.uint8), borderValue=0).astype(bool)
        perimeter = max(1, int(outline.sum()))
        cut_by_frame = (
            outline & cv2.dilate(self.frame.astype(np.uint8), np.ones((5, 5))).astype(bool)
        ).sum() / perimeter
        border = np.ones(mask.shape, bool)
        border[1:-1, 1:-1] = False
        along_border = (outline & border).sum() / perimeter
        compactness = min(1.0, 4 * np.pi * mask.sum() / perimeter**2)
        whole = (1 - cut_by_frame) ** 2 * (1 - along_border)
        return float(self._separation(mask) * whole * compactness**0.2)

    def _separation(self, mask: Mask) -> float:
        """1 minus the overlap of the colour histograms inside a mask and in a band around it."""
        reach = max(3, round(np.sqrt(mask.sum()) / 3))
        kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * reach + 1, 2 * reach + 1))
        around = cv2.dilate(mask.astype(np.uint8), kernel).astype(bool) & ~mask
        if not around.any():
            return 0.0
        lab = cv2.cvtColor(self.pixels, cv2.COLOR_RGB2LAB)
        histograms = []
        for part in (mask, around):
            histogram = cv2.calcHist([lab], [0, 1, 2], part.astype(np.uint8), [12, 16, 16], [0, 256] * 3)
            histograms.append(histogram / part.sum())
        return float(1 - np.minimum(*histograms).sum())

    def _grabcut(self, trimap: NDArray[np.uint8], iterations: int) -> Mask:
        trimap[self.certain_background] = cv2.GC_BGD
        trimap[self.certain_foreground] = cv2.GC_FGD
        foreground = (trimap == cv2.GC_FGD) | (trimap == cv2.GC_PR_FGD)
        if foreground.all() or not foreground.any():
            return foreground
        image = cv2.cvtColor(self.pixels, cv2.COLOR_RGB2BGR)
        models = np.zeros((1, 65)), np.zeros((1, 65))
        cv2.grabCut(image, trimap, (0, 0, 1, 1), *models, iterations, cv2.GC_INIT_WITH_MASK)
        return (trimap == cv2.GC_FGD) | (trimap == cv2.GC_PR_FGD)

    def connected(self, mask: Mask) -> Mask:
        """The parts of a mask that hold a positive click (without clicks, the largest part), small holes filled."""
        count, parts, statistics, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=4)
        if self.seeds:
            kept = mask & np.isin(parts, [parts[y, x] for x, y in self.seeds if mask[y, x]])
        else:
            kept = parts == 1 + int(np.argmax(statistics[1:, cv2.CC_STAT_AREA])) if count > 1 else mask
        if not kept.any():
            return self.certain_foreground if self.certain_foreground.any() else ~self.certain_background
        count, holes, statistics, _ = cv2.connectedComponentsWithStats((~kept).astype(np.uint8), connectivity=4)
        small = np.flatnonzero(statistics[:, cv2.CC_STAT_AREA] < 0.02 * kept.sum())
        return kept | (np.isin(holes, small[small > 0]) & ~self.certain_background)


def _score_of_area(pixels: Pixels, area: Mask) -> float:
    """How much like an object an area of a picture looks, seen with as much around it as the score needs."""
    ys, xs = np.nonzero(area)
    margin = round(np.sqrt(len(ys)) / 3) + 6
    box = (float(xs.min()), float(ys.min()), float(xs.max() + 1), float(ys.max() + 1))
    window = Window.around(_padded(box, margin), area.shape[0], area.shape[1], longest_side=max(area.shape))
    nothing = np.zeros(window.size, bool)
    whole = _Scene(window.cut(pixels), (), nothing, nothing, nothing).score(window.cut(area))
    return whole * min(1.0, float(area.mean()) / SMALL_SHARE) ** 0.5


def _padded(box: Sequence[float], margin: float) -> Box:
    x0, y0, x1, y1 = box
    return x0 - margin, y0 - margin, x1 + margin, y1 + margin


def _size_prior(share: float) -> float:
    """Slightly less for a region that fills less than a tenth of the picture: rather the object than a spot on it."""
    return min(1.0, share / 0.1) ** 0.08


def _found_again(times: int) -> float:
    """What a proposal's score is multiplied with that was found so many times."""
    return 0.8 + 0.2 * min(1.0, times / 4)


def _distinct(proposals: list[tuple[Mask, float]]) -> list[tuple[Mask, float]]:
    """The best proposals that differ from each other, best first; one that was found again scores higher."""
    groups: list[list[tuple[Mask, float]]] = []
    for proposal in sorted(proposals, key=lambda proposal: -proposal[1]):
        group = next((group for group in groups if _iou(group[0][0], proposal[0]) >= SAME_OBJECT_IOU), None)
        if group is None:
            groups.append([proposal])
        else:
            group.append(proposal)
    scored = [(group[0][0], group[0][1] * _found_again(len(group))) for group in groups]
    return sorted(scored, key=lambda candidate: -candidate[1])[:CANDIDATES]


def _iou(first: Mask, second: Mask) -> float:
    return float((first & second).sum() / max(1, (first | second).sum()))
