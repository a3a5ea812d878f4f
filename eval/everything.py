"""`python -m eval all`: every task that the data allow, each with its own results, and one table of all.

```
out/
  TASK/DATA/    results of one task on one data folder, as `python -m eval TASK` writes them
  all.json      states, scores, and the published systems' rows
  all.html      the same as a page
```
"""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from eval.loading import load_describer, open_records, source_of
from eval.published import comparability, published_rows
from eval.tasks import NEEDS, TASKS, Task
from eval.team import Team, TeammateGone

if TYPE_CHECKING:
    from eval.asking import Describer
    from eval.evaluation import Settings
    from eval.questions import Records

ALL_FILE = "all.json"
ALL_PAGE = "all.html"
ERRORS = (ValueError, OSError, ImportError)


@dataclass(frozen=True)
class Outcome:
    """What became of one task on one data folder.

    Attributes:
        task: key of `eval.tasks.TASKS`; "" where the data folder itself cannot be used.
        data: name of the data folder, as in the results.
        source: what the data were prepared from.
        state: whether there are scores.
        reason: why there are none; "" if there are.
        seconds: how long it took.
        metrics: what `metrics.json` of the task holds.
    """

    task: str
    data: str
    source: str
    state: Literal["done", "failed", "left out"]
    reason: str = ""
    seconds: float = 0.0
    metrics: Mapping[str, Any] | None = None


def evaluate_all(
    settings: Settings,
    folders: Sequence[Path],
    *,
    load: Callable[[], Describer] | None = None,
    progress: bool = True,
    team: Team | None = None,
) -> list[Outcome]:
    """Run every task that finds questions in each folder; a task that fails does not keep the others from running.

    Args:
        settings: what is common to all; task, data and out are filled in, `out` being the folder of all results.
        folders: prepared data.
        load: loads the model once for all tasks; from `settings.model` by default.
        progress: show on stderr what runs, with regions/s and time left.
        team: processes that share the questions of every task; only the first one gets metrics.

    Raises:
        ValueError: two folders cannot be told apart by name.
        TeammateGone: another process died; results so far are kept.
    """
    from eval.evaluation import evaluate

    team = team or Team()
    model = settings.model
    assert model is not None
    load = load or cache(lambda: load_describer(model, **asdict(settings.loading)))
    outcomes: list[Outcome] = []
    for name, folder in named(folders).items():
        try:
            records, source = open_records(folder), source_of(folder)
            tasks = tasks_for(records)
        except ERRORS as error:
            outcomes.append(Outcome("", name, "", "failed", one_line(error)))
            continue
        for task in tasks:
            outcome = partial(Outcome, task.name, name, source)
            if lacking := [NEEDS[need] for need in task.needs if need not in settings.provides]:
                outcomes.append(outcome("left out", "needs " + " and ".join(lacking)))
                continue
            if progress and team.first:
                sys.stderr.write(f"{task.name} on {name}\n")
            own, begun = _settings_of(task, name, folder, settings), time.monotonic()
            try:
                metrics = evaluate(own, records=records, load=load, progress=progress, team=team)
            except ERRORS as error:
                outcomes.append(outcome("failed", one_line(error), time.monotonic() - begun))
                if isinstance(error, TeammateGone):
                    _write(settings, outcomes, team)
                    raise
            else:
                outcomes.append(outcome("done", seconds=time.monotonic() - begun, metrics=metrics))
            _write(settings, outcomes, team)
        if not tasks:
            outcomes.append(Outcome("", name, source, "failed", "no task finds anything to ask in it"))
    _write(settings, outcomes, team)
    return outcomes


def _settings_of(task: Task, name: str, folder: Path, settings: Settings) -> Settings:
    """What is common to all tasks, for one of them on one folder of that name."""
    options = settings.task_options.for_task(task.name)
    ranks = task.asker != "answers" or options.candidates is not None
    return replace(
        settings,
        task=task.name,
        data=folder,
        out=settings.out / task.name / name,
        shuffle_seed=settings.shuffle_seed if task.can_shuffle else None,
        sampling=None if ranks else settings.sampling,
        task_options=options,
    )


def named(folders: Sequence[Path]) -> dict[str, Path]:
    """A name for each folder: its own, with its parent's before it where several have the same.

    Raises:
        ValueError: that does not tell them apart.
    """
    whole = [folder.resolve() for folder in folders]
    counts = Counter(folder.name for folder in whole)
    names = [f"{folder.parent.name}-{folder.name}" if counts[folder.name] > 1 else folder.name for folder in whole]
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise ValueError(f"two data folders are called {repeated[0]}; give each once, under names of their own")
    return dict(zip(names, folders, strict=True))


def tasks_for(records: Records) -> list[Task]:
    """The tasks that find at least one question in the records, in the order of `TASKS`."""
    found: set[str] = set()
    for record in records:
        path = records.image_path(record)
        for name, task in TASKS.items():
            if name not in found and next(iter(task.questions(record, path, task.question)), None) is not None:
                found.add(name)
        if len(found) == len(TASKS):
            break
    return [task for name, task in TASKS.items() if name in found]


def table_of(outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """One table: a row for each of our results, those of published systems on data of the same source below it."""
    rows: list[dict[str, Any]] = []
    for outcome in outcomes:
        if outcome.metrics is None:
            continue
        metrics = outcome.metrics
        rows.append(
            {
                "task": outcome.task,
                "system": metrics["model"]["folder"],
                "data": outcome.data,
                "profile": metrics["profile"],
                "decoding": metrics["decoding"],
                "regions": metrics["counts"]["regions"],
                "scores": {name: row["value"] for name, row in metrics["metrics"].items()},
                "ours": True,
            }
        )
        rows += [
            {
                "task": row.task,
                "system": row.system,
                "data": row.benchmark,
                "profile": row.profile or None,
                "comparison": comparability(row, metrics["profile"], ranked="candidate_score" in metrics["options"]),
                "scores": dict(row.scores),
                "paper": row.paper,
                "note": row.note,
                "ours": False,
            }
            for row in published_rows(outcome.task, outcome.source)
        ]
    return rows


def one_line(error: BaseException) -> str:
    """The message of an error without line breaks."""
    return " ".join(str(error).split()) or type(error).__name__


def _write(settings: Settings, outcomes: Sequence[Outcome], team: Team) -> None:
    if not team.first:
        return
    from eval.everything_report import overview_page
    from osprey_tp.files import write_text

    assert settings.model is not None
    found = {
        "model": settings.model.name,
        "profile": settings.profile,
        "limit": settings.limit,
        "runs": [
            {
                "task": outcome.task,
                "data": outcome.data,
                "source": outcome.source,
                "state": outcome.state,
                "reason": outcome.reason,
                "seconds": round(outcome.seconds, 3),
                "headline": outcome.metrics["headline"] if outcome.metrics else None,
                "results": f"{outcome.task}/{outcome.data}" if outcome.metrics else None,
                "metrics": outcome.metrics["metrics"] if outcome.metrics else {},
                "not_measured": outcome.metrics["not_measured"] if outcome.metrics else {},
            }
            for outcome in outcomes
        ],
        "rows": table_of(outcomes),
    }
    text = json.dumps(found, indent=2, ensure_ascii=False, allow_nan=False)
    write_text(settings.out / ALL_FILE, text + "\n")
    write_text(settings.out / ALL_PAGE, overview_page(found, outcomes))
