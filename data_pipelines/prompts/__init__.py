"""How each source's questions are worded, in our own clean words and as published.

| module | owns |
|---|---|
| `form.py` | `PromptForm`: how the turns of a record become prompts |
| `banks.py` | paraphrases of our own for every kind of question |
| `clean.py` | the forms in our own words, the default |
| `published.py` | the forms as published, misspellings included, for checkpoints that were trained on them |

`data_pipelines.conversations` applies a form to a record.
"""

from __future__ import annotations

from data_pipelines.prompts.clean import CLEAN_FORMS
from data_pipelines.prompts.form import PROMPT_STYLES, PromptForm, PromptStyle
from data_pipelines.prompts.published import PUBLISHED_FORMS

__all__ = ["CLEAN_FORMS", "PROMPT_STYLES", "PUBLISHED_FORMS", "PromptForm", "PromptStyle", "prompt_form"]


def prompt_form(source: str, style: PromptStyle = "clean") -> PromptForm:
    """The form of a source's prompts. A source without published wording keeps its clean form under that style too.

    Raises:
        ValueError: if the style is unknown.
    """
    if style not in PROMPT_STYLES:
        raise ValueError(f"unknown prompt style {style!r}; choose from {', '.join(PROMPT_STYLES)}")
    clean = CLEAN_FORMS.get(source, PromptForm())
    return PUBLISHED_FORMS.get(source, clean) if style == "published" else clean
