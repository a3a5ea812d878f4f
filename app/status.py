"""One line about what goes on, and errors as such lines."""

import html
from dataclasses import dataclass


@dataclass(frozen=True)
class Status:
    """One line about what goes on. `kind` is "ready", "busy", "done" or "error"."""

    kind: str
    text: str

    def __str__(self) -> str:
        """As HTML."""
        return f'<div class="status {self.kind}" role="status">{html.escape(self.text)}</div>'


def failed(error: Exception) -> Status:
    """An error's message on one line, with a capital letter and a full stop."""
    text = " ".join(str(error).split()).rstrip(".")
    return Status("error", f"{text[:1].upper()}{text[1:]}.")
