"""Options of single tasks: what of a task they change, before anything is asked.

`tailored` is the door: a task, the options and the data in, the task as it is run out. What it changed is in the
task's `settings`, which `run.json` and `metrics.json` keep.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval.candidates import DEFAULT_SCORE, CandidateScore
from eval.checksums import folder_checksum
from eval.questions import Question, Records
from eval.tasks import Task
from eval.vocabulary import (
    Vocabulary,
    read_vocabulary,
    vocabulary_of_categories,
    vocabulary_of_names,
)
from osprey_tp.files import sha256_of
from osprey_tp.outside import read_json

if TYPE_CHECKING:
    from data_pipelines.records import RegionRecord

NAMES = "names"
OPENER = Callable[[Path], Records]

TAKEN_BY: Mapping[str, tuple[str, ...]] = {
    "candidates": ("referring-classification", "open-vocab-segmentation"),
    "classes": ("open-vocab-segmentation",),
    "objects": ("grounding",),
    "proposals": ("grounding",),
}
"""Which tasks take which option; `split` is taken by all."""


@dataclass(frozen=True)
class TaskOptions:
    """What is said of a single task.

    Attributes:
        split: only records of this split, by their metadata.
        candidates: `names`, or a file of classes: rank these by likelihood instead of asking for free text.
        candidate_score: log-likelihood summed over the tokens of a candidate, or their mean.
        classes: file of the classes of open-vocabulary segmentation.
        objects: folder of records whose regions are the candidates of grounding.
        proposals: COCO results whose segmentations are the candidates of grounding.
    """

    split: str | None = None
    candidates: str | None = None
    candidate_score: CandidateScore = DEFAULT_SCORE
    classes: Path | None = None
    objects: Path | None = None
    proposals: Path | None = None

    def for_task(self, name: str) -> TaskOptions:
        """Only what the task takes."""
        dropped = {option: None for option, tasks in TAKEN_BY.items() if name not in tasks}
        return replace(self, **dropped)  # type: ignore[arg-type]


def add_task_options(parser: argparse.ArgumentParser) -> None:
    """The arguments that `task_options` reads."""
    group = parser.add_argument_group("options of single tasks")
    group.add_argument("--split", metavar="NAME", help="only records of this split, such as testA")
    group.add_argument(
        "--candidates",
        metavar="names|FILE",
        help="rank these by likelihood instead of asking for free text: the categories of the data, or a file with a "
        "class a line, synonyms separated by commas (referring-classification, open-vocab-segmentation)",
    )
    group.add_argument(
        "--candidate-score",
        choices=("sum", "mean"),
        default=DEFAULT_SCORE,
        help="log-likelihood of a candidate: of the whole answer, or the mean over its tokens (%(default)s)",
    )
    group.add_argument(
        "--classes", type=Path, metavar="FILE", help="classes of open-vocab-segmentation, in the form of --candidates"
    )
    group.add_argument(
        "--objects", type=Path, metavar="DIR", help="grounding: records whose regions are the candidates"
    )
    group.add_argument(
        "--proposals", type=Path, metavar="FILE", help="grounding: COCO results whose masks are the candidates"
    )


def task_options(arguments: argparse.Namespace) -> TaskOptions:
    """What was given on the command line."""
    return TaskOptions(**{name: getattr(arguments, name) for name in TaskOptions.__dataclass_fields__})


def tailored(task: Task, options: TaskOptions, records: Records, data: Path, open_records: OPENER) -> Task:
    """The task with its options applied.

    Args:
        task: of the registry.
        options: what was said.
        records: the data.
        data: their folder.
        open_records: opens the folder of objects.

    Raises:
        ValueError: an option is of another task, a file cannot be used, or data and vocabulary do not fit.
    """
    for name, tasks in TAKEN_BY.items():
        if getattr(options, name) is not None and task.name not in tasks:
            raise ValueError(f"--{name} is an option of {' and '.join(tasks)}, not of {task.name}")
    if options.split is not None:
        task = _of_split(task, options.split, records)
    if task.name == "grounding":
        return _with_candidate_regions(task, options, records, open_records)
    if task.name == "open-vocab-segmentation" or options.candidates is not None:
        return _with_vocabulary(task, options, records, data)
    return task


def _changed(task: Task, change: Callable[[Question], Question], **settings: Any) -> Task:
    """The task with every question changed, and what is written down about it."""
    made = task.questions

    def questions(record: RegionRecord, image_path: Path, text: str) -> Iterator[Question]:
        yield from map(change, made(record, image_path, text))

    return replace(task, questions=questions, settings={**task.settings, **settings})


def _of_split(task: Task, split: str, records: Records) -> Task:
    there = {str(record.metadata.get("split")) for record in records if record.metadata.get("split")}
    if split not in there:
        raise ValueError(f"no record is of split {split!r}; the data have {', '.join(sorted(there)) or 'no splits'}")
    made = task.questions

    def questions(record: RegionRecord, image_path: Path, text: str) -> Iterator[Question]:
        if record.metadata.get("split") == split:
            yield from made(record, image_path, text)

    return replace(task, questions=questions, settings={**task.settings, "split": split})


def _with_candidate_regions(task: Task, options: TaskOptions, records: Records, open_records: OPENER) -> Task:
    from eval.grounding import Candidates, objects_by_picture, picture_key, read_proposals, regions_by_picture

    candidates = Candidates(regions_by_picture(records))
    settings: dict[str, Any] = {"candidates": candidates.source}
    sources = []
    if options.objects is not None:
        candidates.objects = objects_by_picture(open_records(options.objects), options.objects)
        sources.append(f"objects of {options.objects.name}")
        settings["objects"] = folder_checksum(options.objects)
    if options.proposals is not None:
        candidates.proposals = read_proposals(options.proposals)
        if not {picture_key(image) for image in candidates.own} & candidates.proposals.keys():
            raise ValueError(f"{options.proposals} has proposals in none of the pictures of the data")
        sources.append(f"proposals of {options.proposals.name}")
        settings["proposals"] = sha256_of(options.proposals)
    if sources:
        candidates.source = settings["candidates"] = " and ".join(sources)

    def change(question: Question) -> Question:
        complete = candidates.complete(question)
        return replace(complete, facts={**complete.facts, "candidates_source": candidates.source})

    return _changed(task, change, **settings)


def _with_vocabulary(task: Task, options: TaskOptions, records: Records, data: Path) -> Task:
    vocabulary = _vocabulary(options, records, data)
    facts: dict[str, Any] = {"vocabulary": vocabulary}
    settings: dict[str, Any] = {"classes": len(vocabulary), "vocabulary": vocabulary.checksum}
    if options.candidates is not None:
        facts["candidate_score"] = settings["candidate_score"] = options.candidate_score
        task = replace(
            task,
            asker="candidates",
            scorers=tuple(SCORERS_OF_CANDIDATES.get(name, name) for name in ("candidates", *task.scorers)),
            headline="top_1",
        )

    def change(question: Question) -> Question:
        named = {"name": question.category, **question.facts}
        return replace(question, facts={**named, **facts})

    return _changed(task, change, **settings)


SCORERS_OF_CANDIDATES = {"segments_by_similarity": "segments_by_likelihood"}
"""Scorers that give way to others where candidates were ranked."""


def _vocabulary(options: TaskOptions, records: Records, data: Path) -> Vocabulary:
    """The classes of the file that was given; else the data's own categories; else the names that occur in them."""
    names = dict.fromkeys(region.name for record in records for region in record.regions)
    categories = read_json(data / "manifest.json").get("categories", [])
    files = [options.classes] if options.classes is not None else []
    if options.candidates not in (None, NAMES):
        files.append(Path(str(options.candidates)))
    if len(set(files)) > 1:
        raise ValueError(f"--classes {files[0]} and --candidates {files[1]} name different classes; give one of them")
    if files:
        return _with_things(read_vocabulary(files[0]), records, categories)
    if len(categories) > 1:
        found = vocabulary_of_categories(categories, f"the categories of {data.name}")
        if all(found.place_of(name) is not None for name in names if name.strip()):
            return _with_things(found, records, categories)
    return _with_things(vocabulary_of_names(names, f"the names that occur in {data.name}"), records, categories)


def _with_things(vocabulary: Vocabulary, records: Records, categories: list[Any]) -> Vocabulary:
    """Which classes are of things, as the categories or else the records say."""
    said: dict[int, bool] = {}
    for record in records:
        metadata = getattr(record, "metadata", {})
        for region, is_thing in zip(record.regions, metadata.get("is_thing", ()), strict=False):
            _note(said, vocabulary.place_of(region.name), is_thing)
    for category in categories:
        if isinstance(category, dict) and category.get("isthing") is not None:
            _note(said, vocabulary.place_of(str(category.get("name", ""))), bool(category["isthing"]))
    return replace(vocabulary, things=tuple(said.get(place) for place in range(len(vocabulary))))


def _note(said: dict[int, bool], place: int | None, is_thing: bool) -> None:
    if place is not None:
        said[place] = is_thing
