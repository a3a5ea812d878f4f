"""From a list of conversations to one batch that the model takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from osprey_tp.processing import OspreyTPProcessor


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
            What `OspreyTPProcessor.prepare` returns, with `labels` (B, L).

        Raises:
            ValueError: naming the sample whose conversation cannot be rendered.
        """
        try:
            return dict(self.processor.prepare([sample["conversation"] for sample in samples], return_labels=True))
        except ValueError as error:
            raise ValueError(self._name_culprit(samples, error)) from error

    def _name_culprit(self, samples: Sequence[Mapping[str, Any]], error: ValueError) -> str:
        """The error with the id of the first sample that cannot be rendered by itself."""
        for sample in samples:
            try:
                self.processor.prepare([sample["conversation"]], return_labels=True)
            except ValueError as alone:
                return f"{alone} (record {sample['id']})"
        return f"{error} (records {', '.join(str(sample['id']) for sample in samples)})"
