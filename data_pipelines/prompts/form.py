"""What a source's wording consists of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from osprey_tp.prompts import CAPTION_QUESTION, CATEGORY_QUESTION, OVERVIEW

PromptStyle = Literal["clean", "published"]
PROMPT_STYLES: tuple[PromptStyle, ...] = ("clean", "published")

REGION_LIST = "<regions>"
"""What a lead-in holds where the regions are listed: `region1 <mask>,region2 <mask>,...`."""

Introduction = Literal["always", "dialogue", "answers", "never"]
"""When the first question introduces regions by name, `region1<mask>,region2<mask>`, so that texts can speak of them:

- always: every region of the record, before anything is asked;
- dialogue: if an answer speaks of a region, if the questions come back to one, or if none of them says which is meant;
- answers: only if an answer speaks of a region;
- never: answers stay as they are.

Without an introduction, every reference in a question is a `<mask>` of its own.
"""


@dataclass(frozen=True)
class PromptForm:
    """How the records of a source are asked about.

    Attributes:
        lead: stands between the picture and the first question.
        region_questions: paraphrases of the source's own question about a region, each with one `<mask>`.
        name_questions: the same where a record has no turns, so that the region's name is the answer; if there are
            none, `region_questions`.
        picture_questions: paraphrases of its question about the whole picture.
        explanation_questions: paraphrases of asking for the reason of the last answer, which is the record's metadata
            "rationale"; without any, that is not asked for.
        suffixes: paraphrases of what ends every question, how to answer; "" for nothing.
        suffix_everywhere: add it even to a question that already says how to answer.
        separate: the questions do not build on each other. They are asked in random order, one about each region; where
            a region has several, the source's own question is as likely as all others together.
        max_regions: most regions in one conversation.
        introduction: when regions are introduced by name.
        lead_ins: paraphrases that introduce them, each with one `<regions>`; without any,
            `osprey_tp.prompts.region_introduction` does.
        class_names: texts call a region `<class name> at regionN`, where the class name is that of the *next* object: a
            shift by one that published VCR prompts have. The published loader drops records that speak of the last
            object; here it keeps its own name.
        angle_brackets: whether `<` and `>` stay in questions and answers.
        spaced_names: in answers that are names, `_` and `:` become spaces, as evaluation reads them.
    """

    lead: str = OVERVIEW
    region_questions: tuple[str, ...] = (CATEGORY_QUESTION,)
    name_questions: tuple[str, ...] = ()
    picture_questions: tuple[str, ...] = (CAPTION_QUESTION,)
    explanation_questions: tuple[str, ...] = ()
    suffixes: tuple[str, ...] = ("",)
    suffix_everywhere: bool = False
    separate: bool = False
    max_regions: int | None = None
    introduction: Introduction = "dialogue"
    lead_ins: tuple[str, ...] = ()
    class_names: bool = False
    angle_brackets: bool = True
    spaced_names: bool = False
