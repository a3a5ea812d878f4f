"""Asks a model every question, one picture at a time, and keeps each answer on the disk as soon as it is there.

```
questions ─► groups by picture ─► shards.py: this process's share ─► threads decode pictures ahead
    ─► session ─► batches ─► predictions.jsonl, or a file for each process, gathered when all are done
```
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import groupby, islice
from pathlib import Path
from typing import Any

from eval.asking import ASKERS, Asking, Describer, Shown
from eval.batches import in_batches, telling_of_memory
from eval.predictions import PredictionLog, read_predictions
from eval.questions import Question, shuffled_regions
from eval.shards import gather, part_of, share_of
from eval.tasks import Task
from eval.team import Step, Team

PREDICTIONS_FILE = "predictions.jsonl"
CONTROL_FILE = "predictions_shuffled.jsonl"
AHEAD = 2
"""Pictures that are decoded ahead for each worker."""


@dataclass(frozen=True)
class _Course:
    """One way of showing regions, with the file of its answers.

    Attributes:
        log: where this process writes: the file, or its own part of it.
        answered: ids that have an answer.
        seed: of the shuffling; None for regions as they are.
    """

    log: PredictionLog
    answered: frozenset[str]
    seed: int | None = None


@dataclass(frozen=True)
class _Pending(Shown):
    """A question that has no answer yet."""

    log: PredictionLog


def ask_all(
    task: Task,
    questions: Sequence[Question],
    describer: Describer,
    out: Path,
    asking: Asking,
    *,
    limit: int | None = None,
    shuffle_seed: int | None = None,
    progress: bool = True,
    workers: int = 0,
    step: Step | None = None,
) -> None:
    """Answer every question, or the first `limit` of them, that `out` does not hold yet.

    Answers go to `predictions.jsonl`, in the end in the order of the questions. With `shuffle_seed`, the same questions
    are asked once more with regions shuffled within each picture (`predictions_shuffled.jsonl`); questions whose
    picture has no other region are left out there. Each picture is opened once for both.

    Args:
        task: says how to ask.
        questions: those of one picture side by side, as `collect_questions` returns them.
        describer: the model.
        out: folder of the results.
        asking: batch size, longest answer, tiling, decoding.
        limit: how many questions; those left out still take part in the shuffling of their picture.
        shuffle_seed: seed of the control; None for no control.
        progress: show regions/s and the time left on stderr.
        workers: threads that decode pictures ahead; none by default.
        step: the processes that share the questions; this one alone by default. All of them return when their own share
            is done, the first one when all answers are gathered.

    Raises:
        ValueError: a picture has another size than its record says, or the session gave another number of answers
            than it was asked for. Answers so far are kept.
        TeammateLost: another process failed or died. Answers so far are kept.
        OSError: the GPU has no room for a single question, or the disk none for an answer. Answers so far are kept.
    """
    step = step or Step(Team(), str(out))
    team, order = step.team, [question.id for question in questions]
    files: dict[Path, int | None] = {out / PREDICTIONS_FILE: None}
    if shuffle_seed is not None:
        files[out / CONTROL_FILE] = shuffle_seed
    if team.first:
        for file in files:
            gather(file, order)
        step.tell("ready")
    step.wait_for("ready", [0])
    with ExitStack() as stack, telling_of_memory():
        courses = [_open(file, seed, team, stack) for file, seed in files.items()]
        wanted = set(order[:limit])
        by_picture = groupby(questions, key=lambda question: question.image)
        plans = [plan for _, group in by_picture if (plan := _pending(list(group), wanted, courses))]
        with _progress(sum(map(len, plans)), step, progress and team.first) as show:
            for plan, picture in _with_pictures(share_of(plans, team.rank, team.size), workers):
                for answered in _ask_picture(task, plan, picture, describer, asking):
                    show(answered)
            stack.close()
            step.tell("done")
            if team.first:
                step.wait_for("done", range(team.size), lambda: show(0))
    if team.first:
        for file in files:
            gather(file, order)


def _open(path: Path, seed: int | None, team: Team, stack: ExitStack) -> _Course:
    if team.size == 1:
        log = stack.enter_context(PredictionLog(path))
        return _Course(log, frozenset(log.predictions), seed)
    before = read_predictions(path) if path.exists() else []
    log = stack.enter_context(PredictionLog(part_of(path, team.rank)))
    return _Course(log, frozenset(item.id for item in before), seed)


def _pending(questions: list[Question], wanted: set[str], courses: Sequence[_Course]) -> list[_Pending]:
    """What is still to be asked about one picture."""
    asked = [question for question in questions if question.id in wanted]
    pending = []
    for course in courses:
        shown = None if course.seed is None else shuffled_regions(questions, course.seed)
        pending += [
            _Pending(question, question if shown is None else shown[question.id], course.log)
            for question in asked
            if question.id not in course.answered and (shown is None or question.id in shown)
        ]
    return pending


@contextmanager
def _progress(total: int, step: Step, shown: bool) -> Iterator[Callable[[int], None]]:
    """A bar with regions/s and time left over all processes; gives a function to tell it how many more are answered."""
    from tqdm import tqdm

    with tqdm(total=total, unit="region", desc="asking", disable=not shown, smoothing=0.1) as bar:

        def show(answered: int) -> None:
            together = step.add("answered", answered)
            if step.team.size == 1:
                bar.update(answered)
            elif shown:
                bar.update(together - bar.n)

        yield show


def _with_pictures(plans: list[list[_Pending]], workers: int) -> Iterator[tuple[list[_Pending], Any]]:
    """Each plan with its picture: its path, or with workers its pixels, decoded while earlier ones are asked about.

    Threads are enough: Pillow decodes without holding Python's lock.
    """
    if not workers:
        yield from ((plan, plan[0].question.image_path) for plan in plans)
        return
    from osprey_tp.images import load_image

    with ThreadPoolExecutor(workers, thread_name_prefix="pictures") as pool:
        jobs = ((plan, pool.submit(load_image, plan[0].question.image_path)) for plan in plans)
        waiting: deque[tuple[list[_Pending], Future[Any]]] = deque(islice(jobs, AHEAD * workers))
        try:
            while waiting:
                plan, job = waiting.popleft()
                picture = job.result()
                waiting.extend(islice(jobs, 1))
                yield plan, picture
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _ask_picture(task: Task, plan: list[_Pending], picture: Any, describer: Describer, asking: Asking) -> Iterator[int]:
    """Ask what is pending about one picture, in batches; yields how many answers each batch brought."""
    session = describer.open(picture, task.overview)
    for item in plan:
        if (session.height, session.width) != (item.question.height, item.question.width):
            raise ValueError(
                f"{item.question.image} is {session.height}x{session.width} pixels, its record says "
                f"{item.question.height}x{item.question.width} (question {item.question.id}); prepare the data again"
            )
    for batch, predictions in in_batches(plan, asking, partial(ASKERS[task.asker], session)):
        for log in dict.fromkeys(item.log for item in batch):
            log.append([made for made, item in zip(predictions, batch, strict=True) if item.log is log])
        yield len(batch)
