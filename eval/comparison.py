"""What changed between two runs of one task on the same data, item by item, and whether the scores differ.

Both runs' answers are scored alike, by the profile of the later one. The interval of a difference is a paired
bootstrap: each resample draws the same pictures for both runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from eval.intervals import estimate_difference
from osprey_tp.outside import read_json

if TYPE_CHECKING:
    from eval.metrics import Answers, Scoring
    from eval.tasks import Task

COMPARISON_FILE = "compare.json"
COMPARISON_PAGE = "compare.html"
METRICS_FILE = "metrics.json"
COMPARED = ("model", "predictions", "question", "options", "decoding", "profile", "limit", "versions")


def check_comparable(run: Path, task: str, data: str) -> None:
    """Refuse to compare with a run of another task or other data.

    Args:
        run: folder of the other run's results.
        task: name of this run's task.
        data: checksum of this run's data folder.

    Raises:
        OSError: the folder holds no finished run with predictions.
        ValueError: task or data differ.
    """
    other = _metrics(run)
    if other["task"] != task:
        raise ValueError(f"{run} holds results of {other['task']}, not of {task}; runs of one task can be compared")
    if other["data"]["checksum"] != data:
        raise ValueError(
            f"{run} was run on other data (folder {other['data']['folder']}, checksum "
            f"{other['data']['checksum'][:12]}, here {data[:12]}); runs on the same data can be compared"
        )
    if not (run / "predictions.jsonl").is_file():
        raise FileNotFoundError(f"{run} holds no predictions.jsonl to compare with")


def described_run(run: Path) -> dict[str, Any]:
    """What makes a finished run different from others: model, question, decoding, profile, versions."""
    metrics = _metrics(run)
    return {"folder": run.name, **{name: metrics[name] for name in COMPARED if name in metrics}}


def _metrics(run: Path) -> dict[str, Any]:
    path = run / METRICS_FILE
    if not path.is_file():
        raise FileNotFoundError(f"{run} holds no {METRICS_FILE}; --compare takes the --out folder of a finished run")
    found: dict[str, Any] = read_json(path)
    return found


def compare(
    task: Task,
    runs: tuple[Mapping[str, Any], Mapping[str, Any]],
    answers: tuple[Answers, Answers],
    scorings: tuple[Scoring, Scoring],
) -> dict[str, Any]:
    """Scores of both runs with their difference, and every item whose answer changed, the most improved first.

    Each argument but the task is a pair: before, after. Both are about the same questions, in the same order.
    """
    headline = task.headline
    images = answers[1].images
    measures = [{measure.name: measure for measure in scoring.measures} for scoring in scorings]
    table = {}
    for name in measures[1]:
        if name not in measures[0]:
            continue
        before, after = measures[0][name], measures[1][name]
        found = estimate_difference(before, after, images)
        if found is not None:
            change = after.values - before.values
            table[name] = {
                "before": found.before,
                "after": found.after,
                "difference": found.difference,
                "low": found.low,
                "high": found.high,
                "higher": int((change > 0).sum()),
                "lower": int((change < 0).sum()),
            }
    items = _changed(answers, *(group[headline].values if headline in group else None for group in measures))
    return {
        "task": task.name,
        "headline": headline,
        "before": dict(runs[0]),
        "after": dict(runs[1]),
        "differing_settings": differing(*runs),
        "counts": {
            "items": len(images),
            "images": len(set(images)),
            "changed": len(items),
            "higher": sum(item["change"] is not None and item["change"] > 0 for item in items),
            "lower": sum(item["change"] is not None and item["change"] < 0 for item in items),
        },
        "metrics": table,
        "items": items,
    }


def differing(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Settings with different values: name -> [before, after]; parts of a setting one by one."""
    found = {}
    for name in COMPARED:
        old, new = before.get(name), after.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            for part in dict.fromkeys([*old, *new]):
                if old.get(part) != new.get(part):
                    found[f"{name} {part}"] = [old.get(part), new.get(part)]
        elif old != new:
            found[name] = [old, new]
    return found


def _changed(answers: tuple[Answers, Answers], before: Any, after: Any) -> list[dict[str, Any]]:
    """Items with another answer, or another score for the same answer, the most improved first."""
    items = []
    texts = zip(answers[0].texts, answers[1].texts, strict=True)
    for place, (question, (old, new)) in enumerate(zip(answers[1].questions, texts, strict=True)):
        scores = [_number(values, place) for values in (before, after)]
        if old.strip() == new.strip() and scores[0] == scores[1]:
            continue
        known = scores[0] is not None and scores[1] is not None
        items.append(
            {
                "id": question.id,
                "image": question.image,
                "category": question.category,
                "references": list(question.references),
                "before": old,
                "after": new,
                "score_before": scores[0],
                "score_after": scores[1],
                "change": scores[1] - scores[0] if known else None,
            }
        )
    return sorted(items, key=lambda item: -(item["change"] or 0.0))


def _number(values: Sequence[float] | None, place: int) -> Any:
    return None if values is None or not np.isfinite(values[place]) else float(values[place])
