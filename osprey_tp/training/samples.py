"""Samples, and what a data set says in place of one that cannot be had."""

from __future__ import annotations

from typing import Any

from torch.utils.data import Dataset

from osprey_tp.outside import of_record

SKIPPED = "skipped"
"""Key of why a sample is left out; in a batch, of all that are left out of it."""
FAILED = "failed"
"""Key of the error that ends the run."""


class UnusableSample(ValueError):
    """A sample that nothing can be learned from, through no fault of the others.

    Attributes:
        record_id: Of the record that it was made of.
        reason: What is wrong, in a phrase.
        missing_image: Whether it is the picture that is missing or broken.
    """

    def __init__(self, record_id: str, reason: str, *, missing_image: bool = False) -> None:
        reason = reason.removesuffix(f" {of_record(record_id)}")
        super().__init__(f"{reason} {of_record(record_id)}")
        self.record_id = record_id
        self.reason = reason
        self.missing_image = missing_image

    def __reduce__(self) -> tuple[Any, ...]:
        return _unusable_sample, (self.record_id, self.reason, self.missing_image)


def _unusable_sample(record_id: str, reason: str, missing_image: bool) -> UnusableSample:
    return UnusableSample(record_id, reason, missing_image=missing_image)


class TolerantDataset(Dataset[dict[str, Any]]):
    """Another data set whose errors come as samples, so that the process that trains can tell them in one line.

    Args:
        dataset: Samples `{"id", "conversation"}`; raises `UnusableSample` for one that can be skipped.
        skip_missing_images: Whether a sample may be skipped because of its picture.
    """

    def __init__(self, dataset: Dataset[dict[str, Any]], *, skip_missing_images: bool = False) -> None:
        self.dataset = dataset
        self.skip_missing_images = skip_missing_images

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitem__(self, index: Any) -> dict[str, Any]:
        """The sample, or `{"id", "skipped"}` or `{"failed"}` with what is wrong with it."""
        try:
            return self.dataset[index]
        except UnusableSample as error:
            if error.missing_image and not self.skip_missing_images:
                return {FAILED: f"{error}; restore it, or set on_missing_image=skip"}
            return {"id": error.record_id, SKIPPED: error.reason}
        except (ValueError, OSError) as error:
            return {FAILED: " ".join(str(error).split())}
