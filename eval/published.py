"""Scores that papers published, to stand beside ours, each with the rules it was made under.

Scores of different profiles (`eval.profiles`) are scores of different things. A row whose profile differs from a run's,
or is not known, is shown as such and never ranked beside it. Values are shares of 1 as everywhere in `eval`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class PublishedRow:
    """What one paper says of one system.

    Attributes:
        system: name of the model.
        task: key of `eval.tasks.TASKS`.
        benchmark: the data as the paper names it.
        source: `source` of a data folder with these data, as in its manifest.
        scores: measure, as in `metrics.json` -> value, 1 being 100.
        profile: key of `eval.profiles.PROFILES`, "verbatim" where answers are judged as they are, "" where it is not
            known.
        paper: where the numbers stand.
        note: what else one has to know to compare.
    """

    system: str
    task: str
    benchmark: str
    source: str
    scores: Mapping[str, float]
    profile: str
    paper: str
    note: str = ""


SAMPLED = "sampled at temperature 0.2"
OSPREY = "Osprey, CVPR 2024 (arXiv 2312.10032)"
DAM = "Describe Anything, ICCV 2025 (arXiv 2504.16072)"
PAM = "Perceive Anything, 2025 (arXiv 2506.05302)"
PIXELREFER = "PixelRefer, 2025 (arXiv 2510.23603)"
GLAMM = "GLaMM, CVPR 2024 (arXiv 2311.03356)"
GAR = "Grasp Any Region, 2025 (arXiv 2510.18876)"


def _classification(
    system: str, benchmark: str, similarity: float, iou: float, profile: str, paper: str
) -> PublishedRow:
    return PublishedRow(
        system,
        "referring-classification",
        {"lvis": "LVIS, 1K images, 4,004 objects", "paco": "PACO, 1K images, 4,263 objects"}[benchmark],
        benchmark,
        {"semantic_similarity": similarity / 100, "semantic_iou": iou / 100},
        profile,
        paper,
        SAMPLED if profile == "osprey" else "",
    )


def _caption(
    system: str, benchmark: str, meteor: float, cider: float, profile: str, paper: str, note: str
) -> PublishedRow:
    name = {"refcocog": "RefCOCOg val", "visual-genome": "Visual Genome test"}[benchmark]
    scores = {"METEOR": meteor / 100, "CIDEr": cider / 100}
    return PublishedRow(system, "region-caption", name, benchmark, scores, profile, paper, note)


def _segmentation(benchmark: str, source: str, quality: float, precision: float, iou: float) -> PublishedRow:
    return PublishedRow(
        "Osprey-7B",
        "open-vocab-segmentation",
        benchmark,
        source,
        {"PQ": quality / 100, "AP": precision / 100, "mIoU": iou / 100},
        "osprey",
        OSPREY,
        SAMPLED,
    )


def _described(system: str, score: float, paper: str) -> PublishedRow:
    return PublishedRow(
        system,
        "dlc-bench",
        "DLC-Bench",
        "dlc-bench",
        {"dlc_average": score / 100},
        "verbatim",
        paper,
        "judge Llama-3.1-8B, text only",
    )


PUBLISHED: tuple[PublishedRow, ...] = (
    _classification("Osprey-7B", "lvis", 65.24, 38.19, "osprey", OSPREY),
    _classification("DAM-8B", "lvis", 89.0, 77.7, "", DAM),
    _classification("PAM-3B", "lvis", 88.6, 78.3, "", PAM),
    _classification("VideoRefer-VL3-7B", "lvis", 90.7, 84.2, "pixelrefer", PIXELREFER),
    _classification("Osprey-7B", "paco", 73.06, 52.72, "osprey", OSPREY),
    _classification("DAM-8B", "paco", 84.2, 73.2, "", DAM),
    _classification("PAM-3B", "paco", 87.4, 74.9, "", PAM),
    _classification("VideoRefer-VL3-7B", "paco", 92.0, 85.8, "pixelrefer", PIXELREFER),
    _caption("Osprey-7B", "refcocog", 16.6, 108.3, "osprey", OSPREY, "fine-tuned, one reference an item"),
    _caption("GLaMM", "refcocog", 16.2, 106.0, "", GLAMM, "all references of a region"),
    _caption("GLaMM", "visual-genome", 19.7, 180.5, "", GLAMM, "all references of a region"),
    _caption("PAM-3B", "visual-genome", 20.8, 142.3, "", PAM, ""),
    _caption("VideoRefer-VL3-7B", "visual-genome", 19.7, 166.1, "pixelrefer", PIXELREFER, ""),
    _segmentation("Cityscapes val", "cityscapes", 50.64, 29.17, 49.78),
    _segmentation("ADE20K-150 val", "panoptic", 41.89, 41.24, 29.63),
    PublishedRow(
        "Osprey-7B",
        "description",
        "Osprey's detailed descriptions, 80 questions",
        "ferret-bench",
        {"relative_score": 0.7754},
        "verbatim",
        OSPREY,
        "judge GPT-4, text only",
    ),
    _described("VideoRefer-VL3-7B", 65.2, PIXELREFER),
    _described("DAM-3B", 67.0, DAM),
    _described("GAR-8B", 67.4, GAR),
)


def published_rows(task: str, source: str) -> list[PublishedRow]:
    """What was published of a task on data of this source."""
    return [row for row in PUBLISHED if (row.task, row.source) == (task, source)]


def comparability(row: PublishedRow, profile: str, *, ranked: bool = False) -> str:
    """How a published row stands to a run under `profile`, in words for a table.

    Args:
        row: the published one.
        profile: of the run.
        ranked: the run ranked candidates by likelihood, where published systems answer freely.
    """
    if ranked:
        return "free answers, here candidates were ranked: not comparable"
    if not row.profile:
        return "rules not stated: not comparable as it is"
    return "same profile" if row.profile == profile else f"profile {row.profile}: not comparable with {profile}"
