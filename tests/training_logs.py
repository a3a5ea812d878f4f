"""Loss logs without what no two runs have in common."""

import json
from pathlib import Path

OF_THE_CLOCK = {"tokens_per_second", "samples_per_second", "peak_memory_gib", "seconds"}


def reproducible_log(file: Path) -> list[dict[str, float]]:
    """The entries of training_log.json or held_out.json, without times, rates and memory."""
    entries = json.loads(file.read_text("utf-8"))
    return [{name: value for name, value in entry.items() if name not in OF_THE_CLOCK} for entry in entries]
