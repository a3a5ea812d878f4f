"""From folders of records to instruction data.

```
records (+ captions of the same pictures) ─► Scene ─► request ─► endpoint ─► out.replies.jsonl, every reply as it came
    ─► once all are answered, in the order of the records: reply ─► strict reading ─► RegionRecord or Rejection ─► out
```

A run that was interrupted, or reached its budget, leaves the replies; the same command goes on from there.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from data_pipelines.generation.endpoint import Budget, Endpoint, Outcome, ask
from data_pipelines.generation.notes import Notes, collect_notes, notes_of, picture_name
from data_pipelines.generation.parsing import Unfit
from data_pipelines.generation.positive_negative import SOURCE, positive_negative_records
from data_pipelines.generation.replies import ChatRequest, Reply, ReplyLog
from data_pipelines.generation.scenes import Level, Scene, scene_of
from data_pipelines.generation.tasks import Sampling, Task, request_of
from data_pipelines.records import (
    MANIFEST_NAME,
    REGION_REFERENCE,
    RecordFolder,
    Region,
    RegionRecord,
    Rejection,
    Turn,
    read_manifest,
)
from data_pipelines.writing import BrokenRecord, RecordWriter, refuse_taken


@dataclass(frozen=True)
class Selection:
    """Which records are read, and how much of each is asked about.

    Attributes:
        max_regions: Most regions of one request, or of one record of yes/no questions.
        limit: At most so many records, from the first on.
        seed: Of every random choice.
    """

    max_regions: int
    limit: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value in (("limit", self.limit), ("most regions", self.max_regions)):
            if value is not None and value < 1:
                raise ValueError(f"the {name} is {value}; it must be at least 1")


@dataclass
class Plan:
    """Everything that one command asks for, in the order of the records; going through it again gives the same.

    Raises:
        ValueError: if the folder is one for evaluation, a captions folder has none of its pictures, or no record has
            a named region of that level.
    """

    task: Task
    level: Level
    folder: RecordFolder
    sampling: Sampling
    selection: Selection
    captions: Sequence[RecordFolder] = ()
    requests: int = field(init=False, default=0)
    regions: int = field(init=False, default=0)
    noted: int = field(init=False, default=0)
    _notes: dict[str, Notes] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        _require_training(self.folder)
        pictures = {picture_name(scene.record.image) for scene in self.scenes()}
        if not pictures:
            raise ValueError(
                f"{self.folder.path}: no record has a named region of the level {self.level}; prepare it from a source "
                "with names, or choose the other level"
            )
        self._notes = collect_notes(self.captions, pictures)
        for scene in self.scenes():
            self.requests += 1
            self.regions += len(scene.regions)
            self.noted += scene.notes != Notes()

    def entries(self) -> Iterator[tuple[Scene | None, list[Rejection]]]:
        """Each record as a scene, None if there is nothing to ask, and what is left out of it."""
        for record in islice(self.folder, self.selection.limit):
            notes = notes_of(record) + self._notes.get(picture_name(record.image), Notes())
            yield scene_of(
                record, notes, level=self.level, max_regions=self.selection.max_regions, seed=self.selection.seed
            )

    def scenes(self) -> Iterator[Scene]:
        """The scenes alone."""
        return (scene for scene, _ in self.entries() if scene is not None)

    def request(self, scene: Scene) -> ChatRequest:
        """The request about a scene."""
        return request_of(scene, self.task, self.level, self.sampling)


def generate(
    plan: Plan,
    out: str | Path,
    endpoint: Endpoint,
    replies_path: str | Path,
    *,
    budget: Budget | None = None,
    partial: bool = False,
    overwrite: bool = False,
    progress: bool = True,
) -> dict[str, Any]:
    """Ask everything of a plan that has not been answered yet, then write the folder `out`.

    Args:
        plan: What is asked.
        out: The folder of records to write; it appears when everything is answered.
        endpoint: Whom to ask.
        replies_path: Where replies are kept.
        budget: Limit of what all kept replies cost together.
        partial: Write the folder even if requests are left; they are counted as left out.
        overwrite: Replace a folder of records that is there already.
        progress: Show a progress bar on stderr.

    Returns:
        The manifest of `out`.

    Raises:
        EndpointError: if requests are left unanswered; replies are kept, and nothing is at `out`.
        ValueError: in one line, if the key is missing or no reply is usable.
    """
    from tqdm import tqdm

    refuse_taken(Path(out), overwrite)
    endpoint.key()
    with ReplyLog(replies_path) as replies:
        requests = map(plan.request, plan.scenes())
        with tqdm(total=plan.requests, desc="asking", unit="request", disable=not progress) as bar:
            outcome = ask(requests, endpoint, replies, budget, bar.update)
        if not partial:
            outcome.require_all()
        return _write(plan, Path(out), endpoint, replies, outcome, overwrite)


def dry_run(plan: Plan, replies_path: str | Path) -> str:
    """What a plan would ask: how many requests, roughly how many tokens, and one request in full. Asks nothing."""
    known = prompt = answer = 0
    with _replies_if_any(Path(replies_path)) as replies:
        for scene in plan.scenes():
            request = plan.request(scene)
            if replies is not None and request in replies:
                known += 1
                continue
            prompt += request.estimated_prompt_tokens
            answer += plan.task.estimated_reply_tokens(scene)
    example = plan.request(next(plan.scenes()))
    return "\n".join(
        [
            f"{plan.requests} requests about {plan.regions} regions, {plan.noted} of them with captions; "
            f"{known} are answered already",
            f"the others: about {prompt} tokens of prompts and {answer} of replies (4 characters a token)",
            f"the first request, about {example.id}:",
            json.dumps(example.body, indent=2, ensure_ascii=False),
        ]
    )


def generate_positive_negative(
    folder: RecordFolder, out: str | Path, selection: Selection, *, overwrite: bool = False
) -> dict[str, Any]:
    """Write yes/no questions about the categories of regions; see `positive_negative`.

    Returns:
        The manifest of `out`.

    Raises:
        ValueError: in one line, if the folder is one for evaluation or no question comes out.
    """
    _require_training(folder)
    arguments = {"task": "positive-negative", **vars(selection)}
    with RecordWriter(
        out,
        source=SOURCE,
        image_root=folder.image_root,
        arguments=arguments,
        inputs=[folder.path / MANIFEST_NAME],
        overwrite=overwrite,
    ) as writer:
        writer.counts_in["records"] = 0
        for record in islice(folder, selection.limit):
            writer.counts_in["records"] += 1
            _write_all(
                writer, positive_negative_records(record, max_regions=selection.max_regions, seed=selection.seed)
            )
    return read_manifest(Path(out))


def _write(
    plan: Plan, out: Path, endpoint: Endpoint, replies: ReplyLog, outcome: Outcome, overwrite: bool
) -> dict[str, Any]:
    with RecordWriter(
        out,
        source=plan.task.sources[plan.level],
        image_root=plan.folder.image_root,
        arguments={"level": plan.level, **vars(plan.selection), **vars(plan.sampling), "endpoint": endpoint.base_url},
        inputs=[folder.path / MANIFEST_NAME for folder in (plan.folder, *plan.captions)],
        overwrite=overwrite,
    ) as writer:
        counts = writer.counts_in
        counts.update(records=0, requests=plan.requests, requests_with_captions=plan.noted, replies=0, tokens=0)
        for scene, rejections in plan.entries():
            counts["records"] += 1
            _write_all(writer, rejections)
            if scene is None:
                continue
            request = plan.request(scene)
            reply = replies.get(request)
            if reply is None:
                writer.reject(_unanswered(scene, outcome.refused.get(request.key)))
                continue
            counts["replies"] += 1
            counts["tokens"] += reply.tokens() or 0
            _write_all(writer, records_of_reply(scene, reply, plan.task, plan.level))
    return read_manifest(out)


def records_of_reply(scene: Scene, reply: Reply, task: Task, level: Level) -> Iterator[RegionRecord | Rejection]:
    """The record that a reply gives, if it does, and what was left out of the reply."""
    record = scene.record
    try:
        if reply.finish_reason == "length":
            raise Unfit("reply cut off at its longest length")
        if reply.finish_reason == "content_filter":
            raise Unfit("reply withheld by the endpoint")
        reading = task.read(reply.text, len(scene.regions))
    except Unfit as error:
        yield Rejection(record.id, error.reason, error.detail, annotations=len(scene.regions))
        return
    for unfit in reading.unfit:
        yield Rejection(record.id, unfit.reason, unfit.detail)
    if reading.turns:
        regions, turns = _mentioned(scene.regions, reading.turns)
        source = task.sources[level]
        metadata = {name: record.metadata[name] for name in ("split",) if name in record.metadata}
        suffix = "/parts" if level == "part" else ""
        record_id = f"{source}:{record.id}{suffix}"
        yield RegionRecord(record_id, source, record.image, record.height, record.width, regions, turns, metadata)


def _mentioned(regions: Sequence[Region], turns: Sequence[Turn]) -> tuple[tuple[Region, ...], tuple[Turn, ...]]:
    """The regions that the turns speak of, and the turns with those numbered anew without gaps."""
    used = sorted({int(number) for turn in turns for number in REGION_REFERENCE.findall(turn.text)})
    new = {number: place for place, number in enumerate(used, start=1)}

    def renumbered(text: str) -> str:
        return REGION_REFERENCE.sub(lambda match: f"<region{new[int(match[1])]}>", text)

    kept = tuple(regions[number - 1] for number in used)
    return kept, tuple(Turn(turn.role, renumbered(turn.text)) for turn in turns)


def _write_all(writer: RecordWriter, items: Iterable[RegionRecord | Rejection]) -> None:
    for item in items:
        if isinstance(item, Rejection):
            writer.reject(item)
            continue
        try:
            writer.add(item)
        except BrokenRecord as error:
            writer.reject(error.rejection(item))


def _unanswered(scene: Scene, refusal: str | None) -> Rejection:
    reason = "request refused by the endpoint" if refusal else "request without an answer"
    return Rejection(scene.record.id, reason, refusal or "", annotations=len(scene.regions))


def _replies_if_any(path: Path) -> AbstractContextManager[ReplyLog | None]:
    return ReplyLog(path) if path.is_file() else nullcontext()


def _require_training(folder: RecordFolder) -> None:
    if folder.purpose != "training":
        raise ValueError(f"{folder.path} is for evaluation; training data is not made from it")
