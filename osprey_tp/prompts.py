"""The words every prompt is made of: placeholders, the published question forms, and how regions are introduced.

Evaluation, the app and the sessions ask with these; `data_pipelines` adds the wording of each training source.
"""

from __future__ import annotations

IMAGE_TOKEN = "<image>"
REGION_TOKEN = "<mask>"

OVERVIEW = "This provides an overview of the picture.\n"
"""What follows `<image>\\n` in published region prompts."""

DOTTED_OVERVIEW = ".\n" + OVERVIEW
"""The same in published VCR training and in the evaluation of open-vocabulary segmentation and of RefCOCOg captions."""

CATEGORY_QUESTION = f"What is the category of {REGION_TOKEN}? Using only one word or phrase."
SHORT_DESCRIPTION_QUESTION = f"Please give me a short description of {REGION_TOKEN}."
DETAILED_DESCRIPTION_QUESTION = f"Can you provide me with a detailed description of {REGION_TOKEN}?"
OPEN_VOCABULARY_QUESTION = f"What is in {REGION_TOKEN}? Using a short phrase."
"""Of the published evaluation on ADE20K and Cityscapes, after `DOTTED_OVERVIEW`; `CATEGORY_QUESTION` is that on LVIS
and PACO after `OVERVIEW`, `SHORT_DESCRIPTION_QUESTION` that on RefCOCOg after `DOTTED_OVERVIEW`."""

CAPTION_QUESTION = "Please give me a short description of the picture."


def region_name(index: int) -> str:
    """Name of the region at `index` (counted from 0) in prompts and answers: `region1`, `region2`, ..."""
    return f"region{index + 1}"


def region_introduction(count: int, first: int = 0) -> str:
    """Sentence that introduces `count` regions, as published; `first` is the index of the first of them.

    Example:
        >>> region_introduction(2)
        'There are 2 part regions in the picture: region1<mask>,region2<mask>. '
    """
    if count < 1:
        raise ValueError(f"an introduction needs at least one region, got {count}")
    listed = ",".join(region_name(first + index) + REGION_TOKEN for index in range(count))
    noun = "region" if count == 1 else "regions"
    return f"There are {count} part {noun} in the picture: {listed}. "


def require_one_region(question: str) -> str:
    """Return `question` if it holds exactly one `<mask>`.

    Raises:
        ValueError: naming the count and the remedy.
    """
    count = question.count(REGION_TOKEN)
    if count != 1:
        raise ValueError(
            f"the question holds {count} {REGION_TOKEN} placeholders where 1 is needed, since it is asked of one "
            f"region at a time; write {REGION_TOKEN} once where the region belongs: {question!r}"
        )
    return question
