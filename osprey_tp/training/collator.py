"""From a list of conversations to one batch that the model takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from osprey_tp.outside import of_record, one_line

if TYPE_CHECKING:
    from osprey_tp.processing import OspreyTPProcessor

RECORD_IDS = "record_ids"
"""Key of a batch under which the ids of its records travel; the model never sees it."""


@dataclass(frozen=True)
class ConversationCollator:
    """Render conversations by the processor that evaluation and the app use too, with labels on the answers alone.

    Attributes:
        processor: Whose chat template renders the conversations.
    """

    processor: OspreyTPProcessor

    def __call__(self, samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Collate samples `{"id": str, "conversation": list of messages}`.

        Returns:
            What `OspreyTPProcessor.prepare` returns, with `labels` (B, L), and the ids of the records as `RECORD_IDS`.

        Raises:
            ValueError: naming the sample whose conversation cannot be rendered.
        """
        try:
            batch = self.processor.prepare([sample["conversation"] for sample in samples], return_labels=True)
        except ValueError as error:
            raise ValueError(self._name_culprit(samples, error)) from error
        return {**batch, RECORD_IDS: [str(sample["id"]) for sample in samples]}

    def _name_culprit(self, samples: Sequence[Mapping[str, Any]], error: ValueError) -> str:
        """The error with the id of the first sample that cannot be rendered by itself."""
        for sample in samples:
            try:
                self.processor.prepare([sample["conversation"]], return_labels=True)
            except ValueError as alone:
                return f"{alone} {of_record(sample['id'])}"
        return f"{error} (records {one_line(', '.join(str(sample['id']) for sample in samples))})"
