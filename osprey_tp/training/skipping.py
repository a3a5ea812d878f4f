"""Samples that cannot be learned from: left out of their batch, named, counted, and never the end of a rank alone.

```
data set ─► TolerantDataset: sample, or what is wrong with it ─► SkippingCollator: batch, with `skipped` and `failed`
    ─► SkippingTrainer, on every rank: `failed` ends the run; `skipped` is gathered, counted, written to skipped.jsonl
```

A batch of which nothing is left becomes one constant picture without a taught token: its loss and its gradients are
zero, and every module runs, as other ranks may wait for it. The loss is a mean over taught tokens, so that the samples
that are left weigh what they would weigh without the others.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import Trainer

from osprey_tp.files import write_text
from osprey_tp.processing import IGNORED_LABEL, Conversation
from osprey_tp.prompts import REGION_TOKEN
from osprey_tp.training import ranks
from osprey_tp.training.collator import ConversationCollator
from osprey_tp.training.samples import FAILED, SKIPPED

SKIPPED_FILE = "skipped.jsonl"


@dataclass(frozen=True)
class SkippingCollator(ConversationCollator):
    """A `ConversationCollator` that leaves out what cannot be rendered, labelled, or is too long for the model.

    Attributes:
        longest: Most tokens of a sample.
    """

    longest: int = sys.maxsize

    def __call__(self, samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Collate samples of a `TolerantDataset`.

        Returns:
            The batch of the usable ones; besides it `skipped`, a list of `{"id", "reason"}`, if there are any, and
            `failed`, the first error that ends the run, if there is one.
        """
        failures = [sample[FAILED] for sample in samples if FAILED in sample]
        if failures:
            return {**self._stand_in, FAILED: failures[0]}
        skipped = [{"id": sample["id"], "reason": sample[SKIPPED]} for sample in samples if SKIPPED in sample]
        usable = [sample for sample in samples if SKIPPED not in sample]
        batch = self._batch(usable, skipped)
        return {**batch, SKIPPED: skipped} if skipped else batch

    def _batch(self, samples: list[Mapping[str, Any]], skipped: list[dict[str, str]]) -> dict[str, Any]:
        """The batch of what is usable among the samples; the others are added to `skipped`."""
        batch: dict[str, Any] | None = None
        if samples:
            try:
                batch = super().__call__(samples)
            except ValueError:
                faults = [self._fault(sample) for sample in samples]
                if not any(faults):
                    raise
                return self._without(samples, faults, skipped)
        if batch is None:
            return dict(self._stand_in)
        lengths = batch["attention_mask"].sum(dim=1).tolist()
        if max(lengths) > self.longest:
            return self._without(samples, [self._excess(length) for length in lengths], skipped)
        return batch

    def _without(
        self, samples: list[Mapping[str, Any]], faults: list[str | None], skipped: list[dict[str, str]]
    ) -> dict[str, Any]:
        pairs = list(zip(samples, faults, strict=True))
        skipped.extend({"id": sample["id"], "reason": fault} for sample, fault in pairs if fault is not None)
        return self._batch([sample for sample, fault in pairs if fault is None], skipped)

    def _fault(self, sample: Mapping[str, Any]) -> str | None:
        try:
            self.processor.prepare([sample["conversation"]], return_labels=True)
        except ValueError as error:
            return " ".join(str(error).split())
        return None

    def _excess(self, length: int) -> str | None:
        return f"{length} tokens, the model takes {self.longest}" if length > self.longest else None

    @cached_property
    def _stand_in(self) -> dict[str, Any]:
        """A batch of one grey tile and, if the template lets questions through, a region of it; no token is taught."""
        side = self.processor.image_processor.tile_size
        for region in (True, False):
            try:
                batch = dict(self.processor.prepare([_grey(side, region)], return_labels=True))
            except ValueError:
                continue
            return {**batch, "labels": torch.full_like(batch["labels"], IGNORED_LABEL)}
        raise ValueError("the chat template can render neither a question about a region nor a caption")


def _grey(side: int, region: bool) -> Conversation:
    regions = [{"box": [0, 0, side, side]}] if region else []
    image = {"type": "image", "image": Image.new("RGB", (side, side), "grey"), "regions": regions}
    question = {"type": "text", "text": REGION_TOKEN * len(regions)}
    return [{"role": "user", "content": [image, question]}, {"role": "assistant", "content": "."}]


class SkippingTrainer(Trainer):
    """A Trainer that counts what its collator skips.

    Attributes:
        max_skipped: Most samples that a run skips.
        skipped: What has been skipped since the run began, by all ranks: `{"step", "id", "reason"}`.
        new_skips: What this rank has skipped since it was last noted.
    """

    max_skipped: int = sys.maxsize

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.skipped: list[dict[str, Any]] = []
        self.new_skips: list[dict[str, Any]] = []

    def resume_skips(self, checkpoint: str | None) -> None:
        """Count on from a checkpoint; what was skipped after it will be skipped again."""
        step = 0 if checkpoint is None else int(checkpoint.rpartition("-")[2])
        own = _read_lines(self._skipped_file, step) if ranks.rank() == 0 else []
        self.skipped = ranks.gather(own)[0]
        if ranks.rank() == 0:
            self.write_skips(self._skipped_file.parent)

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> tuple[list[Any], Any]:
        """The batches of an optimiser step, without what the collator says of them.

        Raises:
            ValueError: what ends the run.
        """
        batches, items = super().get_batch_samples(*args, **kwargs)
        for batch in batches:
            if FAILED in batch:
                raise ValueError(batch[FAILED])
            self.new_skips.extend({"step": self.state.global_step + 1, **skip} for skip in batch.pop(SKIPPED, ()))
        return batches, items

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """As the Trainer's; what a batch of held-out samples says besides its tensors is not for the model."""
        return super()._prepare_inputs({name: value for name, value in inputs.items() if name != SKIPPED})

    def _get_num_items_in_batch(self, *args: Any, **kwargs: Any) -> Any:
        """Taught tokens of an optimiser step; 1 where nothing is taught, as the loss is divided by them."""
        items = super()._get_num_items_in_batch(*args, **kwargs)
        return items.clamp(min=1) if isinstance(items, torch.Tensor) else items

    def note_skips(self) -> None:
        """Gather what all ranks have skipped, write it down, and say it; every rank calls this.

        Raises:
            ValueError: on every rank, if it is more than `max_skipped`.
        """
        new = [skip for of_rank in ranks.gather(self.new_skips) for skip in of_rank]
        self.new_skips = []
        self.skipped.extend(new)
        if ranks.rank() == 0:
            with self._skipped_file.open("a", encoding="utf-8") as file:
                file.write(_lines(new))
            for skip in new:
                _say(f"skipped record {skip['id']}: {skip['reason']}")
        if len(self.skipped) > self.max_skipped:
            last = self.skipped[-1]
            raise ValueError(
                f"{len(self.skipped)} samples were skipped, max_skipped is {self.max_skipped}; the last is record "
                f"{last['id']}: {last['reason']}; look at {self._skipped_file}, and at the data with `python -m "
                "data_pipelines validate`"
            )

    def write_skips(self, folder: Path) -> None:
        """Write all that was skipped into a folder, line by line."""
        write_text(folder / SKIPPED_FILE, _lines(self.skipped))

    @property
    def _skipped_file(self) -> Path:
        return Path(str(self.args.output_dir), SKIPPED_FILE)


def _lines(skips: Sequence[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(skip, ensure_ascii=False) + "\n" for skip in skips)


def _read_lines(file: Path, last_step: int) -> list[dict[str, Any]]:
    """What was skipped up to a step; a last line that was cut off by the end of a process belongs to a later one."""
    if not file.is_file():
        return []
    *whole, _ = file.read_text(encoding="utf-8", errors="replace").split("\n")
    skips = [json.loads(line) for line in whole]
    return [skip for skip in skips if skip["step"] <= last_step]


def _say(text: str) -> None:
    """A line of its own on stderr, above a progress bar that is there."""
    from tqdm import tqdm

    tqdm.write(text, file=sys.stderr)
