"""The forms as published, to the letter: what Osprey's loaders and evaluation scripts asked, misspellings included.

The published banks of paraphrases (detailed descriptions, short descriptions, reasons, lead-ins) are not repeated
here: one published example each, and then paraphrases of our own.
"""

from __future__ import annotations

from collections.abc import Mapping

from data_pipelines.prompts import banks
from data_pipelines.prompts.form import REGION_LIST, PromptForm
from osprey_tp.prompts import (
    CATEGORY_QUESTION,
    DOTTED_OVERVIEW,
    OPEN_VOCABULARY_QUESTION,
    REGION_TOKEN,
)

PARTIMAGENET_OBJECTS = (
    *("Bottle", "Biped", "Quadruped", "Fish", "Reptile", "Bicycle", "Bird", "Car", "Boat", "Snake", "Aeroplane"),
)
PARTIMAGENET_PARTS = (
    *("Tier", "Hand", "Wing", "Mouth", "Tail", "Side", "Fin", "Engine", "Foot", "Head", "Body", "Sail", "Seat"),
)
"""In the published order; "Side" is the data set's "Side Mirror", "Tier" its word for a tyre."""

PASCAL_PART_OBJECTS = (
    *("potted plant", "aeroplane", "cow", "cat", "bus", "horse", "car"),
    *("dog", "bicycle", "person", "bird", "bottle", "sheep", "motorbike"),
)
PASCAL_PART_PARTS = (
    *("eye", "window", "cap", "headlight", "hand", "mirror", "arm", "plant", "wheel", "ear"),
    *("pot", "foot", "leg", "nose", "body", "horn", "handlebar", "neck", "license plate", "paw"),
    *("saddle", "head", "muzzle", "tail", "wing", "beak", "hair", "torso", "door", "mouth"),
)
"""In the published order."""


def _answered_by_name(lead: str, max_regions: int) -> PromptForm:
    """Instructions once, then one bare `<mask>` a question."""
    return PromptForm(
        lead=lead, region_questions=(REGION_TOKEN,), separate=True, max_regions=max_regions, introduction="never"
    )


def _parts_lead(answer_format: str, objects: tuple[str, ...], parts: tuple[str, ...]) -> str:
    return (
        "In the conversation below, you simply answer the category and subcategory name based on what you seein the "
        "image inside a particular region. It maybe a subpart of an object. I will give you only one region each time. "
        f"Your answer should in the format of {answer_format}. "
        f"Categories Containing {', '.join(objects)}. Subcategories Containing {','.join(parts)}.\n"
    )


_COCO_LEAD = (
    "In the conversation below, you simply answer the category name based on what you see in the imagery "
    "inside a particular region. I will give you only one region each time.\n"
)
_EXPRESSION_LEAD = (
    "I will provide you with only one region containing only one object, although there may be other objects "
    "present in the image. It is recommended that you describe the object's relative position with respect to "
    "other objects in the image"
)
_REFCOCO = _answered_by_name(
    _EXPRESSION_LEAD + ", as well as its position within the image and its basic attributes.", 15
)
_REFCOCO_PLUS = _answered_by_name(
    _EXPRESSION_LEAD + " and its basic attibuts, you should not give its position within the image.", 15
)

_CONVERSATION = PromptForm(introduction="always", angle_brackets=False)
_SHORT_ANSWERS = PromptForm(
    suffixes=(" Answer the question using a single word or phrase.",),
    suffix_everywhere=True,
    introduction="always",
    angle_brackets=False,
)

_DETAILED_QUESTIONS = (
    f"Can you provide me with a detailed description of the region in the picture marked by {REGION_TOKEN}?",
    *banks.DETAILED_QUESTIONS,
)
_SHORT_DESCRIPTION_QUESTIONS = (f"Give me a short description of {REGION_TOKEN}.", *banks.DESCRIPTION_QUESTIONS)
_REASON_QUESTIONS = ("why?", *banks.EXPLANATION_QUESTIONS)
_LEAD_INS = (
    f"Given {REGION_LIST},",
    f"There are {REGION_LIST} in the image,",
    f"The image shows {REGION_LIST},",
    f"Look at {REGION_LIST},",
    f"You are given {REGION_LIST},",
    f"With {REGION_LIST} in the image,",
    f"Consider {REGION_LIST},",
)

_EVALUATED_CATEGORIES = PromptForm(
    region_questions=(CATEGORY_QUESTION,), separate=True, max_regions=1, introduction="never"
)
_EVALUATED_SEGMENTS = PromptForm(
    lead=DOTTED_OVERVIEW,
    region_questions=(OPEN_VOCABULARY_QUESTION,),
    separate=True,
    max_regions=1,
    introduction="never",
)

PUBLISHED_FORMS: Mapping[str, PromptForm] = {
    "coco": _answered_by_name(_COCO_LEAD, 20),
    "partimagenet": _answered_by_name(
        _parts_lead("category subcategory", PARTIMAGENET_OBJECTS, PARTIMAGENET_PARTS), 15
    ),
    "pascal-part": _answered_by_name(_parts_lead("category:subcategory", PASCAL_PART_OBJECTS, PASCAL_PART_PARTS), 15),
    "refcoco": _REFCOCO,
    "refcoco+": _REFCOCO_PLUS,
    "refcocog": _REFCOCO,
    "osprey-short-form": _SHORT_ANSWERS,
    "osprey-part-level": _SHORT_ANSWERS,
    "osprey-conversation": _CONVERSATION,
    "osprey-lvis-positive-negative": PromptForm(introduction="never"),
    "osprey-detailed-description": PromptForm(region_questions=_DETAILED_QUESTIONS, introduction="never"),
    "visual-genome": PromptForm(
        region_questions=_SHORT_DESCRIPTION_QUESTIONS,
        suffixes=(" Answer the question using a short phrase.",),
        suffix_everywhere=True,
        separate=True,
        max_regions=3,
        introduction="never",
    ),
    "vcr": PromptForm(
        lead=DOTTED_OVERVIEW,
        explanation_questions=_REASON_QUESTIONS,
        introduction="always",
        lead_ins=_LEAD_INS,
        class_names=True,
    ),
    "llava": PromptForm(lead=""),
    "pope": PromptForm(lead=""),
    "lvis": _EVALUATED_CATEGORIES,
    "paco": _EVALUATED_CATEGORIES,
    "panoptic": _EVALUATED_SEGMENTS,
    "cityscapes": _EVALUATED_SEGMENTS,
}
"""By name of the source. RefCOCOg, which no published stage trains on, is asked as RefCOCO; LVIS, PACO and the
panoptic sources as the published evaluation asks, one region at a time."""
