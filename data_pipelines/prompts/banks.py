"""Paraphrases of our own for every kind of question; the first of each is asked where nothing shall vary."""

from __future__ import annotations

from osprey_tp.prompts import (
    CAPTION_QUESTION,
    CATEGORY_QUESTION,
    DETAILED_DESCRIPTION_QUESTION,
    REGION_TOKEN,
    SHORT_DESCRIPTION_QUESTION,
)

CATEGORY_QUESTIONS: tuple[str, ...] = (
    CATEGORY_QUESTION,
    f"Which category does {REGION_TOKEN} belong to? Answer with its name only.",
    f"Name what {REGION_TOKEN} shows, in a word or a short phrase.",
    f"In one word or phrase, what is {REGION_TOKEN}?",
    f"What do you see in {REGION_TOKEN}? The name is enough.",
    f"Tell me the name of the category of {REGION_TOKEN}.",
    f"What would you call {REGION_TOKEN}? Give no more than its name.",
    f"{REGION_TOKEN} marks something in the picture. What is it called?",
)
"""Answered by the name of a category."""

PART_QUESTIONS: tuple[str, ...] = (
    f"What is the category of {REGION_TOKEN}? For a part, answer with the object and then the part.",
    f"Name the object that {REGION_TOKEN} shows, or the object and the part of it.",
    f"{REGION_TOKEN} may be an object or only a part of one. Name it: the object first, then the part.",
    f"Which object is {REGION_TOKEN}, or which part of which object? Write the object before the part.",
    f"In the form `object part`, what is {REGION_TOKEN}? Leave the part out if it is the entire object.",
    f"Give the name of the object in {REGION_TOKEN}, followed by the name of the part if it is one.",
)
"""Answered by the name of an object, or of an object and its part, such as "dog ear"."""

EXPRESSION_QUESTIONS: tuple[str, ...] = (
    SHORT_DESCRIPTION_QUESTION,
    f"Describe {REGION_TOKEN} so that nobody takes another region of the picture for it.",
    f"How would you refer to {REGION_TOKEN}, to tell it from everything else in the picture?",
    f"Say in a short phrase what {REGION_TOKEN} is and where it stands.",
)
"""Answered by an expression that means this region alone, by its place too."""

PLACELESS_EXPRESSION_QUESTIONS: tuple[str, ...] = (
    SHORT_DESCRIPTION_QUESTION,
    f"Describe {REGION_TOKEN} by how it looks, so that nobody takes another region of the picture for it.",
    f"Without saying where it is, how would you tell {REGION_TOKEN} from everything else in the picture?",
    f"Say in a short phrase what {REGION_TOKEN} is and what it looks like.",
)
"""Answered by an expression that means this region alone, without its place in the picture."""

DESCRIPTION_QUESTIONS: tuple[str, ...] = (
    SHORT_DESCRIPTION_QUESTION,
    f"Describe {REGION_TOKEN} in a few words.",
    f"What is there in {REGION_TOKEN}? Answer in a short phrase.",
    f"Give a short phrase that fits {REGION_TOKEN}.",
    f"Write a brief caption for {REGION_TOKEN}.",
    f"Say briefly what {REGION_TOKEN} shows.",
    f"What would a short label under {REGION_TOKEN} say?",
    f"In a few words, what is going on in {REGION_TOKEN}?",
)
"""Answered by a phrase about the region."""

DETAILED_QUESTIONS: tuple[str, ...] = (
    DETAILED_DESCRIPTION_QUESTION,
    f"Describe {REGION_TOKEN} in detail.",
    f"Tell me everything that you can see of {REGION_TOKEN}.",
    f"What does {REGION_TOKEN} look like? Leave nothing out.",
    f"Please write a thorough description of {REGION_TOKEN}.",
    f"Look closely at {REGION_TOKEN} and describe what you find.",
    f"I cannot see the picture. Describe {REGION_TOKEN} to me as precisely as you can.",
    f"Give a full account of {REGION_TOKEN}: what it is, its parts, its colours and what surrounds it.",
    f"Describe how {REGION_TOKEN} looks and what its role in the picture is, at length.",
    f"What can be said about {REGION_TOKEN}? Be as detailed as the picture allows.",
)
"""Answered by sentences about the region."""

EXPLANATION_QUESTIONS: tuple[str, ...] = (
    "Why do you think so?",
    "What makes you say that?",
    "How can you tell?",
    "Please give the reason for your answer.",
    "What in the picture speaks for that?",
    "Explain your answer.",
    "How did you come to this answer?",
    "On what do you base that?",
    "What leads you to this conclusion?",
    "Which evidence is there for it?",
)
"""Answered by the reason of the answer before."""

CAPTION_QUESTIONS: tuple[str, ...] = (
    CAPTION_QUESTION,
    "What does the picture show? Answer in one sentence.",
    "Sum up the picture in a sentence.",
    "Write a short caption for the picture.",
)
"""Answered by a sentence about the whole picture."""

SHORT_ANSWER_SUFFIXES: tuple[str, ...] = (
    " Answer with a single word or a short phrase.",
    " A word or a short phrase is enough.",
    " Keep the answer to a few words.",
    " Reply as briefly as possible.",
)

YES_OR_NO_SUFFIXES: tuple[str, ...] = (
    " Answer with yes or no.",
    " Yes or no?",
    " Say yes or no.",
    " Reply with yes or no only.",
)
