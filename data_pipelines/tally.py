"""Counting what is wrong by its reason, with the first ids of each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

FIRST_IDS = 10
"""How many ids are kept for each reason."""

Tally = dict[str, dict[str, Any]]
"""reason -> {"count": how often, "first_ids": the ids where it was first seen, further sums}"""


def count(tally: Tally, reason: str, record_id: str, **sums: int) -> None:
    """Add one more case of `reason`, and `sums` to the sums of that reason."""
    entry = tally.setdefault(reason, {"count": 0, **dict.fromkeys(sums, 0), "first_ids": []})
    entry["count"] += 1
    for name, value in sums.items():
        entry[name] += value
    if len(entry["first_ids"]) < FIRST_IDS:
        entry["first_ids"].append(record_id)


def merge(tally: Tally, other: Mapping[str, Mapping[str, Any]]) -> None:
    """Add the cases of a tally that was counted later, as if all had been counted in one."""
    for reason, added in other.items():
        entry = tally.setdefault(reason, {name: 0 for name in added if name != "first_ids"} | {"first_ids": []})
        for name, value in added.items():
            entry[name] += value
        del entry["first_ids"][FIRST_IDS:]


def lines_of(tally: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """One line a reason, in alphabetical order: how often, and where first."""
    lines = []
    for reason, entry in sorted(tally.items()):
        more = ", ..." if entry["count"] > len(entry["first_ids"]) else ""
        lines.append(f"{reason}: {entry['count']} ({', '.join(entry['first_ids'])}{more})")
    return lines
