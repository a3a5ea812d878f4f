"""Answer normalisation, by the rules of published evaluations, so that a score can stand beside a published one.

| profile    | categories                                                    | captions                            |
|------------|---------------------------------------------------------------|-------------------------------------|
| osprey     | answer: what stands between the first and second colon, if    | the same cut at colons; a line ends |
|            | there is one; then `.` `:` `,` become spaces. Reference: `_`  | at each full stop                   |
|            | and `:` become spaces. Case is kept (for similarity)          |                                     |
| pixelrefer | both sides: `_` `:` `,` `.` `(` `)` become spaces, lower case | the first 100 words of the answer   |
| clean      | both sides: Unicode NFKC, case folded, everything that is no  | only white space is tidied          |
|            | letter, digit or mark becomes a space                         |                                     |

Sources: `lvis_paco_eval.py` and `refcocog_eval.py` of Osprey; `eval_paco_lvis.py` and `change2eval_format.py` of
PixelRefer. The cut at colons scores right answers of the form `category:subcategory` half, hence `clean` by default.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from dataclasses import dataclass

Rule = Callable[[str], str]


@dataclass(frozen=True)
class Profile:
    """How answers and references are normalised before they are compared, for names and for captions."""

    name: str
    summary: str
    category_answer: Rule
    category_reference: Rule
    caption_answer: Rule


def _spaces_for(characters: str, text: str) -> str:
    return text.translate({ord(character): " " for character in characters})


def _cut_at_colons(text: str) -> str:
    parts = text.strip().split(":")
    return parts[1] if len(parts) > 1 else parts[0]


def _osprey_category_answer(text: str) -> str:
    return _spaces_for(".:,", _cut_at_colons(text))


def _osprey_category_reference(text: str) -> str:
    return _spaces_for("_:", text)


def _osprey_caption(text: str) -> str:
    return _cut_at_colons(text).replace(".", ".\n")


def _pixelrefer_category(text: str) -> str:
    return _spaces_for("_:,.()", text).strip().lower()


def _pixelrefer_caption(text: str) -> str:
    return " ".join(text.split(" ")[:100])


def _clean_category(text: str) -> str:
    folded = unicodedata.normalize("NFKC", text).casefold()
    kept = (character if unicodedata.category(character)[0] in "LNM" else " " for character in folded)
    return " ".join("".join(kept).split())


def _clean_caption(text: str) -> str:
    return " ".join(text.split())


PROFILES: dict[str, Profile] = {
    profile.name: profile
    for profile in (
        Profile(
            "osprey",
            "as Osprey's scripts: the answer is cut at the first colon",
            _osprey_category_answer,
            _osprey_category_reference,
            _osprey_caption,
        ),
        Profile(
            "pixelrefer",
            "as PixelRefer's scripts: lower case, no cut at colons",
            _pixelrefer_category,
            _pixelrefer_category,
            _pixelrefer_caption,
        ),
        Profile(
            "clean",
            "case, punctuation and Unicode forms do not matter, nothing is cut (default)",
            _clean_category,
            _clean_category,
            _clean_caption,
        ),
    )
}
DEFAULT_PROFILE = "clean"
