"""Asks a model every question, several pictures at a time, and keeps each answer on the disk as soon as it is there.

```
questions ─► groups by picture ─► shards.py: this process's share ─► threads decode pictures ahead
    ─► rounds of pictures that are open together ─► batches of their questions
    ─► predictions.jsonl, or a file for each process, gathered when all are done
```

Questions about the pictures of a round share batches. A round holds whole pictures, as many as rows and memory allow;
if it fails, its pictures are asked about one by one, so that a picture that cannot be used costs no other its answers.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path
from typing import Any

from eval.asking import ASKERS, Asking, Describer, Posed, Shown
from eval.batches import in_batches, telling_of_memory
from eval.predictions import Prediction, PredictionLog, read_predictions
from eval.questions import Question, shuffled_regions
from eval.shards import gather, part_of, share_of
from eval.tasks import Task
from eval.team import Step, Team

PREDICTIONS_FILE = "predictions.jsonl"
CONTROL_FILE = "predictions_shuffled.jsonl"
AHEAD = 4
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


_Plan = tuple[list[_Pending], Any]
"""What is to be asked about one picture, and the picture: a path or its pixels."""


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
        asking: batch size, longest answer, tiling, decoding, memory of open pictures.
        limit: how many questions; those left out still take part in the shuffling of their picture.
        shuffle_seed: seed of the control; None for no control.
        progress: show regions/s and the time left on stderr.
        workers: threads that decode pictures ahead; none by default.
        step: the processes that share the questions; this one alone by default. All of them return when their own share
            is done, the first one when all answers are gathered.

    Raises:
        ValueError: a picture has another size than its record says, or the model gave another number of answers
            than it was asked for. Answers so far, and to all questions about pictures before it, are kept.
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
            pictures = _with_pictures(share_of(plans, team.rank, team.size), workers)
            for together in _rounds(pictures, describer, asking):
                for answered in _ask_round(task, together, describer, asking):
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


def _with_pictures(plans: list[list[_Pending]], workers: int) -> Iterator[_Plan]:
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


def _rounds(pictures: Iterable[_Plan], describer: Describer, asking: Asking) -> Iterator[list[_Plan]]:
    """Pictures that are open together: as many as rows and memory allow, at least one.

    Where the next picture cannot be had, those before it are asked about first.
    """
    gathered: list[_Plan] = []
    questions = size = 0
    try:
        for plan, picture in pictures:
            own = describer.bytes_of(plan[0].question.height, plan[0].question.width)
            if gathered and (questions + len(plan) > asking.batch_size or size + own > asking.most_picture_bytes):
                yield gathered
                gathered, questions, size = [], 0, 0
            gathered.append((plan, picture))
            questions, size = questions + len(plan), size + own
    except Exception:
        if gathered:
            yield gathered
        raise
    if gathered:
        yield gathered


def _ask_round(task: Task, pictures: list[_Plan], describer: Describer, asking: Asking) -> Iterator[int]:
    """Ask what is pending about a round of pictures; yields how many answers each batch brought.

    What fails for several pictures together is tried with each alone, which also needs least memory.
    """
    if len(pictures) > 1:
        try:
            yield from _ask_together(task, pictures, describer, asking)
            return
        except Exception:  # raised again below, by the picture that it comes from
            pictures = [
                ([item for item in plan if item.question.id not in item.log], picture) for plan, picture in pictures
            ]
    for plan, picture in pictures:
        if plan:
            yield from _ask_together(task, [(plan, picture)], describer, asking)


def _ask_together(task: Task, pictures: list[_Plan], describer: Describer, asking: Asking) -> Iterator[int]:
    """Open pictures and ask all that is pending about them; yields how many answers each batch brought."""
    sessions = describer.open_many([picture for _, picture in pictures], task.overview)
    pending = [(session, item) for session, (plan, _) in zip(sessions, pictures, strict=True) for item in plan]
    for session, item in pending:
        if (session.height, session.width) != (item.question.height, item.question.width):
            raise ValueError(
                f"{item.question.image} is {session.height}x{session.width} pixels, its record says "
                f"{item.question.height}x{item.question.width} (question {item.question.id}); prepare the data again"
            )

    def ask(batch: Sequence[tuple[Any, _Pending]], asking: Asking) -> list[Prediction]:
        return ASKERS[task.asker](describer, [Posed(session, item) for session, item in batch], asking)

    for batch, predictions in in_batches(pending, asking, ask):
        for log in dict.fromkeys(item.log for _, item in batch):
            log.append([made for made, (_, item) in zip(predictions, batch, strict=True) if item.log is log])
        yield len(batch)
