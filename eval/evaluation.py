"""One evaluation from beginning to end: ask, score, write `metrics.json` and `report.html`.

```
out/
  run.json                    what was asked of which model and data, and how answers were decoded; a run goes on only
                              where these are the same
  predictions.jsonl           one answer a line
  predictions_shuffled.jsonl  the region-blind control, if asked for
  metrics.json                all scores, with everything that is needed to make them again
  report.html                 the page to look at
  compare.json, compare.html  what changed since another run, if asked for
```
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from eval.asking import GREEDY, Asking, Describer
from eval.categories import by_category
from eval.checksums import folder_checksum, package_versions
from eval.comparison import check_comparable
from eval.intervals import CONFIDENCE, RESAMPLES, SEED
from eval.loading import load_describer, open_records, require_prepared, room_for_pictures, source_of
from eval.metrics import Answers, Scoring, ScoringOptions, by_region_size, score, select_answers, summarise
from eval.open_questions import with_references
from eval.predictions import Prediction, line_of, read_predictions
from eval.questions import Question, Records, collect_questions
from eval.runner import CONTROL_FILE, PREDICTIONS_FILE, ask_all
from eval.sampling import Sampling
from eval.task_options import TaskOptions, tailored
from eval.tasks import NEEDS, TASKS, VERBATIM, Task, each_of
from eval.team import Step, Team
from osprey_tp.files import sha256_of, write_text
from osprey_tp.loading_options import LoadingOptions
from osprey_tp.outside import read_json

if TYPE_CHECKING:
    from eval.judge import Judge

RUN_FILE = "run.json"
METRICS_FILE = "metrics.json"
REPORT_FILE = "report.html"


@dataclass(frozen=True)
class Settings:
    """What an evaluation is told.

    Attributes:
        task: key of `eval.tasks.TASKS`.
        data: folder of prepared records.
        out: folder of the results.
        model: model folder; not needed with `predictions`.
        predictions: predictions of anybody to score instead of asking a model.
        limit: only the first so many regions.
        batch_size: regions asked at a time.
        shuffle_seed: seed of the region-blind control; None for none.
        question: another question than the task's, with one `<mask>`.
        max_new_tokens: longest answer; the task's by default.
        profile: key of `eval.profiles.PROFILES`.
        sentence_bert: folder of a SentenceBERT model.
        judge: address of the endpoint of a judge, such as http://127.0.0.1:8000/v1.
        judge_model: the judge's name there.
        judge_key_variable: environment variable that holds the judge's key.
        judge_concurrency: most requests to the judge at a time.
        judge_timeout: seconds that one attempt may take.
        references: file of reference answers, see `eval.open_questions`.
        contexts: file that tells the judge what pictures show, see `eval.open_questions`.
        loading: where and in which precision the model runs, and how much of a picture it reads.
        sampling: how answers are drawn; greedy by default.
        workers: threads that decode pictures ahead.
        compare: results of another run of the same task on the same data, to compare with.
        task_options: options of single tasks.
    """

    task: str
    data: Path
    out: Path
    model: Path | None = None
    predictions: Path | None = None
    limit: int | None = None
    batch_size: int = 16
    shuffle_seed: int | None = None
    question: str | None = None
    max_new_tokens: int | None = None
    profile: str = "clean"
    sentence_bert: Path | None = None
    judge: str | None = None
    judge_model: str | None = None
    judge_key_variable: str = "OPENAI_API_KEY"
    judge_concurrency: int = 8
    judge_timeout: float = 120.0
    references: Path | None = None
    contexts: Path | None = None
    loading: LoadingOptions = field(default_factory=LoadingOptions)
    sampling: Sampling | None = None
    workers: int = 0
    compare: Path | None = None
    task_options: TaskOptions = field(default_factory=TaskOptions)

    @property
    def provides(self) -> frozenset[str]:
        """Which of `eval.tasks.NEEDS` these settings meet."""
        given = {"judge": self.judge, "references": self.references}
        return frozenset(name for name, value in given.items() if value is not None)


def evaluate(
    settings: Settings,
    *,
    records: Records | None = None,
    describer: Describer | None = None,
    load: Callable[[], Describer] | None = None,
    progress: bool = True,
    team: Team | None = None,
) -> dict[str, Any] | None:
    """Run one evaluation; returns what `metrics.json` holds, None in all processes of a team but the first.

    Args:
        settings: what to do.
        records: instead of opening `settings.data`.
        describer: instead of loading `settings.model`.
        load: loads the model, instead of `eval.loading.load_describer`.
        progress: show progress on stderr.
        team: processes that share the questions; this one alone by default.

    Raises:
        ValueError: data, predictions, model and question do not fit each other; answers so far are kept. Or answers of
            a file are empty; they were scored as they are.
        OSError: a file is missing or cannot be written, or another process failed.
    """
    task, team = TASKS[settings.task], team or Team()
    _check_files(settings, task)
    records = records or open_records(settings.data)
    task = tailored(task, settings.task_options, records, settings.data, open_records)
    _check(settings, task, team)
    questions = _questions(settings, task, records)
    judge = _judge(settings, progress) if "judge" in task.needs else None
    scored_by = ScoringOptions(settings.profile, settings.sentence_bert, judge, settings.contexts)
    if settings.predictions is None:
        with team.step(str(settings.out)) as step:
            asking = _ask(settings, task, questions, describer, load, progress, step)
        if not team.first:
            return None
        source, tiling = settings.out / PREDICTIONS_FILE, asking["tiling"]
        origin = {"model": asking["model"], "decoding": asking["decoding"]}
    else:
        source, tiling = settings.predictions, None
        origin = {"predictions": {"file": source.name, "checksum": sha256_of(source)}}

    asked = questions[: settings.limit]
    predictions = _read(source, asked, complete=True, limited=settings.limit is not None)
    answers = _answers(asked, predictions, tiling)
    if settings.predictions is not None:
        _keep(settings, answers)
    scoring = score(task, answers, scored_by)
    metrics = _describe(settings, task, answers, scoring) | origin
    if settings.predictions is None and settings.shuffle_seed is not None:
        metrics["control"] = _score_control(settings, task, questions, scored_by)
    write_text(settings.out / METRICS_FILE, json.dumps(metrics, indent=2, ensure_ascii=False, allow_nan=False) + "\n")

    from eval.evaluation_report import evaluation_page

    page = evaluation_page(metrics, task, asked, predictions, scoring)
    write_text(settings.out / REPORT_FILE, page)
    if settings.compare is not None:
        _compare(settings, task, answers, scoring, scored_by)
    if settings.predictions is not None:
        _require_answers(answers, settings)
    return metrics


def _check_files(settings: Settings, task: Task) -> None:
    """Refuse a question and a folder that cannot be used before the records are read."""
    from osprey_tp.prompts import require_one_region

    require_prepared(settings.data)
    if settings.question is not None:
        if not task.question:
            raise ValueError(f"every record of {task.name} brings its own question; leave out --question")
        require_one_region(settings.question)


def _check(settings: Settings, task: Task, team: Team) -> None:
    """Refuse settings that do not fit each other before anything is asked."""
    if settings.shuffle_seed is not None and not task.can_shuffle:
        raise ValueError(f"{task.name} has no control with shuffled regions; leave --shuffle-regions out")
    if settings.predictions is not None and team.size > 1:
        raise ValueError(
            f"answers that are there are scored by one process, not by {team.size}; start without torchrun"
        )
    if settings.predictions is not None and (settings.out / RUN_FILE).exists():
        own = settings.out / PREDICTIONS_FILE
        if not (own.exists() and settings.predictions.exists() and own.samefile(settings.predictions)):
            raise ValueError(f"{settings.out} holds answers of a model ({RUN_FILE}); give another --out")
    if settings.sampling is not None and task.asker != "answers":
        raise ValueError(f"{task.name} ranks candidates and draws no answers; leave --sample out")
    lacking = [need for need in task.needs if need not in settings.provides]
    if lacking:
        raise ValueError(f"{task.name} needs {' and '.join(NEEDS[need] for need in lacking)}")
    if settings.compare is not None:
        check_comparable(settings.compare, task.name, folder_checksum(settings.data))


def _keep(settings: Settings, answers: Answers) -> None:
    """Put the answers of a file beside their scores, where another run can be compared with them."""
    assert settings.predictions is not None
    path = settings.out / PREDICTIONS_FILE
    if not (path.exists() and path.samefile(settings.predictions)):
        write_text(path, "".join(map(line_of, answers.predictions)))


def _questions(settings: Settings, task: Task, records: Records) -> list[Question]:
    """What is asked, with the right answers of `settings.references` if there is such a file."""
    if settings.references is None:
        return collect_questions(task, records, settings.question)
    if task.asked_with_references is not None:
        task = replace(task, questions=each_of(task.questions, task.asked_with_references))
    return with_references(collect_questions(task, records, settings.question), settings.references)


def _judge(settings: Settings, progress: bool) -> Judge:
    """The judge, whose key must be there before anything is asked."""
    from data_pipelines.generation.endpoint import Endpoint
    from eval.judge import REPLIES_FILE, Judge

    endpoint = Endpoint(
        settings.judge or "", settings.judge_key_variable, settings.judge_concurrency, settings.judge_timeout
    )
    endpoint.key()
    return Judge(endpoint, settings.judge_model or "", settings.out / REPLIES_FILE, progress)


def _require_answers(answers: Answers, settings: Settings) -> None:
    empty = [question.id for question, text in zip(answers.questions, answers.texts, strict=True) if not text.strip()]
    if empty:
        raise ValueError(
            f"{settings.predictions} has {len(empty)} empty answers among {len(answers.ids)}, the first {empty[0]}; "
            f"they are scored as they are in {settings.out}"
        )


def _compare(settings: Settings, task: Task, answers: Answers, scoring: Scoring, scored_by: ScoringOptions) -> None:
    from eval.comparison import COMPARISON_FILE, COMPARISON_PAGE, compare, described_run
    from eval.comparison_report import comparison_page

    assert settings.compare is not None
    before = _read(settings.compare / PREDICTIONS_FILE, answers.questions, complete=False, limited=True)
    if len(before) < len(answers.ids):
        raise ValueError(
            f"{settings.compare} answers {len(before)} of the {len(answers.ids)} questions of {settings.out}; "
            f"compare runs over the same questions, such as both with --limit {max(1, len(before))}"
        )
    answers_before = Answers(answers.questions, list(before.values()), answers.region_cells)
    runs = described_run(settings.compare), described_run(settings.out)
    found = compare(task, runs, (answers_before, answers), (score(task, answers_before, scored_by), scoring))
    write_text(settings.out / COMPARISON_FILE, json.dumps(found, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    write_text(settings.out / COMPARISON_PAGE, comparison_page(found, task, answers.questions))


def _ask(
    settings: Settings,
    task: Task,
    questions: Sequence[Question],
    describer: Describer | None,
    load: Callable[[], Describer] | None,
    progress: bool,
    step: Step,
) -> dict[str, Any]:
    """Answer what has no answer yet; returns the model, the decoding settings and the tiling that sizes refer to."""
    if settings.model is None:
        raise ValueError("give --model DIR to ask, or --predictions FILE to score answers that are there")
    max_new_tokens = settings.max_new_tokens or task.max_new_tokens
    decoding = dict(GREEDY) if settings.sampling is None else settings.sampling.described()
    if describer is None:
        describer = load() if load else load_describer(settings.model, **asdict(settings.loading))
    model: dict[str, Any] = {"folder": settings.model.name}
    if settings.loading.that_change_answers:
        model["loading"] = settings.loading.that_change_answers
    if step.team.first:
        model["checksum"] = folder_checksum(settings.model)
        _continue_run(
            settings.out / RUN_FILE,
            {
                "task": task.name,
                "question": settings.question or task.question,
                "max_new_tokens": max_new_tokens,
                "decoding": decoding,
                "loading": settings.loading.that_change_answers,
                "model": model["checksum"],
                "data": folder_checksum(settings.data),
                "shuffle_seed": settings.shuffle_seed,
                "options": dict(task.settings),
            },
        )
    processor = getattr(describer, "processor", None)
    tiling = None if processor is None else processor.image_processor.tiling
    asking = Asking(
        settings.batch_size,
        max_new_tokens,
        tiling,
        sampling=settings.sampling,
        most_picture_bytes=room_for_pictures(describer),
    )
    ask_all(
        task,
        questions,
        describer,
        settings.out,
        asking,
        limit=settings.limit,
        shuffle_seed=settings.shuffle_seed,
        progress=progress,
        workers=settings.workers,
        step=step,
    )
    decoding = {**decoding, "max_new_tokens": max_new_tokens, "batch_size": settings.batch_size}
    return {"model": model, "decoding": decoding, "tiling": tiling}


def _continue_run(path: Path, run: dict[str, Any]) -> None:
    """Refuse to add answers to those of another run; the control may be added later."""
    before = {"decoding": dict(GREEDY), "loading": {}} | read_json(path) if path.is_file() else {}
    if before and run["shuffle_seed"] is None:
        run = run | {"shuffle_seed": before.get("shuffle_seed")}
    differing = [
        name
        for name, value in run.items()
        if name in before and before[name] != value and (name, before[name]) != ("shuffle_seed", None)
    ]
    if differing:
        raise ValueError(
            f"{path.parent} holds answers of another run (different: {', '.join(differing)}); "
            "give another --out, or remove that folder"
        )
    write_text(path, json.dumps(run, indent=2, ensure_ascii=False) + "\n")


def _read(path: Path, questions: Sequence[Question], *, complete: bool, limited: bool = False) -> dict[str, Prediction]:
    """The predictions of a file for the questions, in the order of the questions.

    A file may answer more than a run with a limit asks; without one, an unknown id is an error.
    """
    found = {prediction.id: prediction for prediction in read_predictions(path)}
    ids = [question.id for question in questions]
    if limited:
        found = {key: found[key] for key in ids if key in found}
    texts = {key: prediction.prediction for key, prediction in found.items()}
    return {key: found[key] for key in select_answers(texts, ids, str(path), complete=complete)}


def _answers(questions: Sequence[Question], predictions: dict[str, Prediction], tiling: Any) -> Answers:
    asked = [question for question in questions if question.id in predictions]
    cells = []
    for question in asked:
        given = predictions[question.id].region_cells if tiling is None else question.cells(tiling)
        cells.append(np.nan if given is None else float(given))
    return Answers(asked, [predictions[question.id] for question in asked], cells)


def _score_control(
    settings: Settings, task: Task, questions: Sequence[Question], scored_by: ScoringOptions
) -> dict[str, Any]:
    """Scores of the answers about shuffled regions; regions without another one in their picture are left out."""
    asked = questions[: settings.limit]
    predictions = _read(settings.out / CONTROL_FILE, asked, complete=False, limited=settings.limit is not None)
    left_out = len(asked) - len(predictions)
    described: dict[str, Any] = {
        "what": "the same questions, each shown the mask of another region of the same picture",
        "shuffle_seed": settings.shuffle_seed,
        "counts": {"regions": len(predictions), "left_out_single_region": left_out},
        "metrics": {},
        "expected": {},
    }
    if predictions:
        answers = _answers(questions, predictions, None)
        scoring = score(task, answers, scored_by)
        described |= {"metrics": summarise(scoring, answers), **scoring.details}
        right_about_shown = _answers(questions, _right_about_shown(questions, predictions), None)
        expected = score(task, right_about_shown, scored_by)
        described["expected"] = {name: row["value"] for name, row in summarise(expected, right_about_shown).items()}
    return described


def _right_about_shown(questions: Sequence[Question], predictions: dict[str, Prediction]) -> dict[str, Prediction]:
    """The control's predictions as if each were the right answer about the region that was shown.

    What they score is what a model that reads regions perfectly scores in the control; it exceeds chance where regions
    of one picture are alike.
    """
    references = {question.id: question.references for question in questions}
    return {
        key: replace(prediction, prediction=references[prediction.shown_region or key][0], scores=())
        for key, prediction in predictions.items()
    }


def _describe(settings: Settings, task: Task, answers: Answers, scoring: Scoring) -> dict[str, Any]:
    return {
        "task": task.name,
        "profile": VERBATIM if task.kind == VERBATIM else settings.profile,
        "question": settings.question or task.question or "every record's own",
        "counts": {
            "regions": len(answers.ids),
            "images": len(set(answers.images)),
            "empty_answers": sum(not text.strip() for text in answers.texts),
        },
        "headline": task.headline,
        "metrics": summarise(scoring, answers),
        "by_region_size": by_region_size(scoring, answers),
        "by_category": by_category(scoring, answers, task.headline),
        "not_measured": scoring.not_measured,
        "notes": scoring.notes,
        "options": dict(task.settings),
        "intervals": {"confidence": CONFIDENCE, "bootstrap_over": "images", "resamples": RESAMPLES, "seed": SEED},
        "limit": settings.limit,
        "data": {
            "folder": settings.data.name,
            "source": source_of(settings.data),
            "checksum": folder_checksum(settings.data),
        },
        "versions": package_versions(),
        **scoring.details,
        **_reference_file(settings),
    }


def _reference_file(settings: Settings) -> dict[str, Any]:
    path = settings.references
    return {} if path is None else {"references": {"file": path.name, "checksum": sha256_of(path)}}
