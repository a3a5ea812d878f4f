"""The forms in our own words. The opening sentence and the introduction of regions are those of the sessions."""

from __future__ import annotations

from collections.abc import Mapping

from data_pipelines.prompts import banks
from data_pipelines.prompts.form import PromptForm

_CATEGORIES = PromptForm(
    region_questions=banks.CATEGORY_QUESTIONS, separate=True, max_regions=20, introduction="answers"
)
_FEDERATED_CATEGORIES = PromptForm(
    region_questions=banks.CATEGORY_QUESTIONS, separate=True, max_regions=20, introduction="answers", spaced_names=True
)
_SYNTHETIC = PromptForm(
    region_questions=banks.CATEGORY_QUESTIONS[:4], separate=True, max_regions=20, introduction="answers"
)
"""Fewer wordings, since the models that learn from synthetic scenes are tiny."""

_PARTS = PromptForm(
    region_questions=banks.PART_QUESTIONS, separate=True, max_regions=15, introduction="answers", spaced_names=True
)
_EXPRESSIONS = PromptForm(
    region_questions=banks.EXPRESSION_QUESTIONS, separate=True, max_regions=15, introduction="answers"
)
_PLACELESS_EXPRESSIONS = PromptForm(
    region_questions=banks.PLACELESS_EXPRESSION_QUESTIONS, separate=True, max_regions=15, introduction="answers"
)
_OWN_DATA = PromptForm(
    region_questions=banks.DESCRIPTION_QUESTIONS,
    name_questions=banks.CATEGORY_QUESTIONS,
    picture_questions=banks.CAPTION_QUESTIONS,
    separate=True,
    max_regions=20,
    introduction="answers",
)
_SHORT_ANSWERS = PromptForm(suffixes=banks.SHORT_ANSWER_SUFFIXES)
_DETAILED = PromptForm(
    region_questions=banks.DETAILED_QUESTIONS, name_questions=banks.CATEGORY_QUESTIONS, introduction="answers"
)

CLEAN_FORMS: Mapping[str, PromptForm] = {
    "coco": _CATEGORIES,
    "lvis": _FEDERATED_CATEGORIES,
    "paco": _PARTS,
    "refcoco": _EXPRESSIONS,
    "refcoco+": _PLACELESS_EXPRESSIONS,
    "refcocog": _EXPRESSIONS,
    "pascal-part": _PARTS,
    "partimagenet": _PARTS,
    "visual-genome": PromptForm(
        region_questions=banks.DESCRIPTION_QUESTIONS, separate=True, max_regions=3, introduction="answers"
    ),
    "vcr": PromptForm(explanation_questions=banks.EXPLANATION_QUESTIONS),
    "osprey-short-form": _SHORT_ANSWERS,
    "osprey-part-level": _SHORT_ANSWERS,
    "osprey-conversation": PromptForm(),
    "osprey-lvis-positive-negative": PromptForm(suffixes=banks.YES_OR_NO_SUFFIXES, introduction="answers"),
    "osprey-detailed-description": _DETAILED,
    "llava": PromptForm(lead=""),
    "panoptic": _CATEGORIES,
    "cityscapes": _CATEGORIES,
    "ferret-bench": PromptForm(),
    "pope": PromptForm(lead="", suffixes=banks.YES_OR_NO_SUFFIXES),
    "dlc-bench": _DETAILED,
    "captions": PromptForm(picture_questions=banks.CAPTION_QUESTIONS),
    "custom": _OWN_DATA,
    "synthetic": _SYNTHETIC,
}
"""By name of the source."""
