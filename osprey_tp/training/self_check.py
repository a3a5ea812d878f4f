"""One sample as the model sees it and what it is taught, shown before a run begins."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from osprey_tp.prompts import IMAGE_TOKEN, REGION_TOKEN

if TYPE_CHECKING:
    from osprey_tp.processing import OspreyTPProcessor


def describe_first_sample(processor: OspreyTPProcessor, batch: Mapping[str, Any]) -> str:
    """The first sample of a collated batch in words: prompt, taught tokens, pictures and regions.

    Args:
        processor: Whose tokenizer made the batch.
        batch: What `ConversationCollator` returns.

    Raises:
        ValueError: if no token of the batch is taught.
    """
    taught = batch["labels"][0] != -100
    if not bool((batch["labels"] != -100).any()):
        raise ValueError(
            f"no token of the first batch is taught; the chat template {processor.chat_template!r} needs "
            "{% generation %} marks around the answers and the conversations need assistant turns"
        )
    seen = batch["input_ids"][0][batch["attention_mask"][0].bool()]
    lines = [
        "sees:    " + _readable(processor.tokenizer.decode(seen)),
        "learns:  " + repr(processor.tokenizer.decode(batch["input_ids"][0][taught])),
        f"tokens:  {len(seen)} seen, {int(taught.sum())} taught",
    ]
    if batch.get("pixel_values") is not None:
        grids = " ".join(f"{rows}x{cols}" for rows, cols in batch["tile_grids"].tolist())
        lines.append(f"batch:   tiles {tuple(batch['pixel_values'].shape)}, grids (rows x cols) {grids}")
    if batch.get("region_coverage") is not None and len(batch["region_coverage"]):
        cells = batch["region_coverage"].sum(dim=1)
        lines.append(f"regions: {len(cells)} in the batch, covering {cells.min():.2f} to {cells.max():.2f} cells")
    return "\n".join(lines)


def _readable(text: str) -> str:
    """Runs of image placeholders as `<image>*119`; line ends visible."""
    runs = re.compile(f"(?:{re.escape(IMAGE_TOKEN)}\\s*){{2,}}")
    shortened = runs.sub(lambda run: f"{IMAGE_TOKEN}*{run.group().count(IMAGE_TOKEN)} ", text)
    return repr(shortened).replace(REGION_TOKEN, f" {REGION_TOKEN} ")
