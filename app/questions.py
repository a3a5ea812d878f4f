"""What the app can ask about a region."""

from dataclasses import dataclass

from osprey_tp.prompts import (
    CATEGORY_QUESTION,
    DETAILED_DESCRIPTION_QUESTION,
    REGION_TOKEN,
    SHORT_DESCRIPTION_QUESTION,
    region_introduction,
    require_one_region,
)

CATEGORY, SHORT, DETAILED, FREE = "Category", "Short phrase", "Detailed description", "Your own question"
QUESTION_KINDS = (CATEGORY, SHORT, DETAILED, FREE)

LONGEST_QUESTION = 2000  # characters
_NEW_TOKENS = {CATEGORY: 32, SHORT: 64, DETAILED: 512, FREE: 512}
_WORDING = {
    CATEGORY: CATEGORY_QUESTION,
    SHORT: SHORT_DESCRIPTION_QUESTION,
    DETAILED: DETAILED_DESCRIPTION_QUESTION,
}


@dataclass(frozen=True)
class Question:
    """A question that holds one `<mask>`, and the limit of its answer in tokens."""

    text: str
    max_new_tokens: int


def make_question(kind: str, own: str = "") -> Question:
    """The question of a kind in `QUESTION_KINDS`; for `FREE`, the user's own.

    An own question that does not say where the region belongs gets the sentence that introduces regions in training put
    before it, so that it may also speak of `region1`. Raises `ValueError` if it is empty, too long, or holds several
    `<mask>`.
    """
    if kind not in QUESTION_KINDS:
        raise ValueError(f"no question of the kind {kind!r}; choose from {', '.join(QUESTION_KINDS)}")
    if kind != FREE:
        return Question(_WORDING[kind], _NEW_TOKENS[kind])
    own = own.strip()
    if not own:
        raise ValueError("write a question first")
    if len(own) > LONGEST_QUESTION:
        raise ValueError(f"the question has {len(own)} characters, the limit is {LONGEST_QUESTION}")
    if REGION_TOKEN not in own:
        own = region_introduction(1) + own
    return Question(require_one_region(own), _NEW_TOKENS[FREE])
