"""How each source's questions are worded, in our own clean words and as published.

A `PromptForm` says how the turns of a record become prompts; `data_pipelines.conversations` applies it. The `published`
wording is kept to the letter, misspellings included, for work with checkpoints that were trained on it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from osprey_tp.prompts import (
    CAPTION_QUESTION,
    CATEGORY_QUESTION,
    OVERVIEW,
    REGION_TOKEN,
    SHORT_DESCRIPTION_QUESTION,
)

PromptStyle = Literal["clean", "published"]
PROMPT_STYLES: tuple[PromptStyle, ...] = ("clean", "published")


@dataclass(frozen=True)
class PromptForm:
    """How the records of a source are asked about.

    Attributes:
        lead: stands between the picture and the first question.
        region_questions: paraphrases of the source's own question about a region, each with one `<mask>`.
        picture_questions: paraphrases of its question about the whole picture.
        separate: the questions do not build on each other. They are asked in random order, one about each region; where
            a region has several, the source's own question is as likely as all others together.
        max_regions: most regions in one conversation.
    """

    lead: str = OVERVIEW
    region_questions: tuple[str, ...] = (CATEGORY_QUESTION,)
    picture_questions: tuple[str, ...] = (CAPTION_QUESTION,)
    separate: bool = False
    max_regions: int | None = None


CATEGORY_QUESTIONS: tuple[str, ...] = (
    CATEGORY_QUESTION,
    f"Which category does {REGION_TOKEN} belong to? Answer with its name only.",
    f"Name what {REGION_TOKEN} shows, in a word or a short phrase.",
    f"In one word or phrase, what is {REGION_TOKEN}?",
)
DESCRIPTION_QUESTIONS: tuple[str, ...] = (
    SHORT_DESCRIPTION_QUESTION,
    f"Describe {REGION_TOKEN} so that nobody takes another region of the picture for it.",
    f"How would you refer to {REGION_TOKEN}, to tell it from everything else in the picture?",
    f"Say in a short phrase what {REGION_TOKEN} is and where it stands.",
)
CAPTION_QUESTIONS: tuple[str, ...] = (
    CAPTION_QUESTION,
    "What does the picture show? Answer in one sentence.",
    "Sum up the picture in a sentence.",
    "Write a short caption for the picture.",
)

_CATEGORIES = PromptForm(region_questions=CATEGORY_QUESTIONS, separate=True, max_regions=20)
_EXPRESSIONS = PromptForm(region_questions=DESCRIPTION_QUESTIONS, separate=True, max_regions=15)

CLEAN_FORMS: Mapping[str, PromptForm] = {
    "coco": _CATEGORIES,
    "synthetic": _CATEGORIES,
    "refcoco": _EXPRESSIONS,
    "refcoco+": _EXPRESSIONS,
    "refcocog": _EXPRESSIONS,
    "captions": PromptForm(picture_questions=CAPTION_QUESTIONS),
}

_PUBLISHED_REFCOCO = PromptForm(
    lead=(
        "I will provide you with only one region containing only one object, although there may be other objects "
        "present in the image. It is recommended that you describe the object's relative position with respect to "
        "other objects in the image, as well as its position within the image and its basic attributes."
    ),
    region_questions=(REGION_TOKEN,),
    separate=True,
    max_regions=15,
)

PUBLISHED_FORMS: Mapping[str, PromptForm] = {
    "coco": PromptForm(
        lead=(
            "In the conversation below, you simply answer the category name based on what you see in the imagery "
            "inside a particular region. I will give you only one region each time.\n"
        ),
        region_questions=(REGION_TOKEN,),
        separate=True,
        max_regions=20,
    ),
    "refcoco": _PUBLISHED_REFCOCO,
    "refcoco+": PromptForm(
        lead=(
            "I will provide you with only one region containing only one object, although there may be other objects "
            "present in the image. It is recommended that you describe the object's relative position with respect to "
            "other objects in the image and its basic attibuts, you should not give its position within the image."
        ),
        region_questions=(REGION_TOKEN,),
        separate=True,
        max_regions=15,
    ),
    "refcocog": _PUBLISHED_REFCOCO,
}


def prompt_form(source: str, style: PromptStyle = "clean") -> PromptForm:
    """The form of a source's prompts. A source without published wording keeps its clean form under that style too.

    Raises:
        ValueError: if the style is unknown.
    """
    if style not in PROMPT_STYLES:
        raise ValueError(f"unknown prompt style {style!r}; choose from {', '.join(PROMPT_STYLES)}")
    clean = CLEAN_FORMS.get(source, PromptForm())
    return PUBLISHED_FORMS.get(source, clean) if style == "published" else clean
