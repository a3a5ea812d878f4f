"""One evaluation from beginning to end: ask, score, write `metrics.json` and `report.html`.

```
out/
  run.json                    what was asked of which model and data; a run goes on only where these are the same
  predictions.jsonl           one answer a line
  predictions_shuffled.jsonl  the region-blind control, if asked for
  metrics.json                all scores, with everything that is needed to make them again
  report.html                 the page to look at
```
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from eval.asking import GREEDY, Asking, Describer
from eval.checksums import file_checksum, folder_checksum, package_versions
from eval.intervals import CONFIDENCE, RESAMPLES, SEED
from eval.metrics import Answers, Scoring, ScoringOptions, by_region_size, score, select_answers, summarise
from eval.open_questions import with_references
from eval.predictions import Prediction, read_predictions
from eval.questions import Question, Records, collect_questions
from eval.runner import CONTROL_FILE, PREDICTIONS_FILE, ask_all
from eval.tasks import TASKS, Task

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
        references: file of reference answers, see `eval.open_questions`.
        contexts: file that tells the judge what pictures show, see `eval.open_questions`.
        device, dtype: where and in which precision the model runs; by default as `RegionDescriber` chooses.
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
    references: Path | None = None
    contexts: Path | None = None
    device: str | None = None
    dtype: str | None = None


def evaluate(
    settings: Settings,
    *,
    records: Records | None = None,
    describer: Describer | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Run one evaluation; returns what `metrics.json` holds.

    Args:
        settings: what to do.
        records: instead of opening `settings.data`.
        describer: instead of loading `settings.model`.
        progress: show progress on stderr.

    Raises:
        ValueError: data, predictions, model and question do not fit each other; answers so far are kept.
        OSError: a file is missing or cannot be written.
    """
    from osprey_tp.prompts import require_one_region

    task = TASKS[settings.task]
    if not (settings.data / "manifest.json").is_file():
        raise FileNotFoundError(
            f"{settings.data} holds no manifest.json; prepare the data with `python -m data_pipelines prepare`"
        )
    if settings.question is not None:
        if not task.question:
            raise ValueError(f"every record of {task.name} brings its own question; leave out --question")
        require_one_region(settings.question)
    questions = collect_questions(task, records or _open_records(settings.data), settings.question)
    if settings.references is not None:
        questions = with_references(questions, settings.references)
    judge = _judge(settings, progress) if "judge" in task.resources else None
    scored_by = ScoringOptions(settings.profile, settings.sentence_bert, judge, settings.contexts)
    if settings.predictions is None:
        asking = _ask(settings, task, questions, describer, progress)
        source, tiling = settings.out / PREDICTIONS_FILE, asking["tiling"]
        origin = {"model": asking["model"], "decoding": asking["decoding"]}
    else:
        source, tiling = settings.predictions, None
        origin = {"predictions": {"file": source.name, "checksum": file_checksum(source)}}

    asked = questions[: settings.limit]
    predictions = _read(source, asked, complete=True, limited=settings.limit is not None)
    answers = _answers(asked, predictions, tiling)
    scoring = score(task, answers, scored_by)
    metrics = _describe(settings, task, answers, scoring) | origin
    if settings.predictions is None and settings.shuffle_seed is not None:
        metrics["control"] = _score_control(settings, task, questions, scored_by)
    _write_text(settings.out / METRICS_FILE, json.dumps(metrics, indent=2, ensure_ascii=False, allow_nan=False) + "\n")

    from eval.evaluation_report import evaluation_page

    page = evaluation_page(metrics, task, asked, predictions, scoring)
    _write_text(settings.out / REPORT_FILE, page)
    return metrics


def _judge(settings: Settings, progress: bool) -> Judge | None:
    """The judge, whose key must be there before anything is asked."""
    if settings.judge is None:
        return None
    from data_pipelines.generation.endpoint import Endpoint
    from eval.judge import REPLIES_FILE, Judge

    endpoint = Endpoint(settings.judge, settings.judge_key_variable, settings.judge_concurrency)
    endpoint.key()
    return Judge(endpoint, settings.judge_model or "", settings.out / REPLIES_FILE, progress)


def _open_records(folder: Path) -> Records:
    from data_pipelines.records import RecordFolder

    records: Records = RecordFolder.open(folder)
    return records


def _ask(
    settings: Settings,
    task: Task,
    questions: Sequence[Question],
    describer: Describer | None,
    progress: bool,
) -> dict[str, Any]:
    """Answer what has no answer yet; returns the model, the decoding settings and the tiling that sizes refer to."""
    if settings.model is None:
        raise ValueError("give --model DIR to ask, or --predictions FILE to score answers that are there")
    max_new_tokens = settings.max_new_tokens or task.max_new_tokens
    if describer is None:
        from osprey_tp.sessions import RegionDescriber

        describer = RegionDescriber.from_pretrained(settings.model, settings.device, settings.dtype)
    model = {"folder": settings.model.name, "checksum": folder_checksum(settings.model)}
    _continue_run(
        settings.out / RUN_FILE,
        {
            "task": task.name,
            "question": settings.question or task.question,
            "max_new_tokens": max_new_tokens,
            "model": model["checksum"],
            "data": folder_checksum(settings.data),
            "shuffle_seed": settings.shuffle_seed,
        },
    )
    processor = getattr(describer, "processor", None)
    tiling = None if processor is None else processor.image_processor.tiling
    asking = Asking(settings.batch_size, max_new_tokens, tiling)
    ask_all(
        task,
        questions,
        describer,
        settings.out,
        asking,
        limit=settings.limit,
        shuffle_seed=settings.shuffle_seed,
        progress=progress,
    )
    decoding = {**GREEDY, "max_new_tokens": max_new_tokens, "batch_size": settings.batch_size}
    return {"model": model, "decoding": decoding, "tiling": tiling}


def _continue_run(path: Path, run: dict[str, Any]) -> None:
    """Refuse to add answers to those of another run; the control may be added later."""
    before = json.loads(path.read_text("utf-8")) if path.is_file() else {}
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
    _write_text(path, json.dumps(run, indent=2, ensure_ascii=False) + "\n")


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
    if predictions and all(question.references for question in questions):
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
        key: replace(prediction, prediction=references[prediction.shown_region or key][0])
        for key, prediction in predictions.items()
    }


def _describe(settings: Settings, task: Task, answers: Answers, scoring: Scoring) -> dict[str, Any]:
    return {
        "task": task.name,
        "profile": settings.profile,
        "question": settings.question or task.question or "every record's own",
        "counts": {
            "regions": len(answers.ids),
            "images": len(set(answers.images)),
            "empty_answers": sum(not text.strip() for text in answers.texts),
        },
        "metrics": summarise(scoring, answers),
        "by_region_size": by_region_size(scoring, answers),
        "not_measured": scoring.not_measured,
        "notes": scoring.notes,
        "intervals": {"confidence": CONFIDENCE, "bootstrap_over": "images", "resamples": RESAMPLES, "seed": SEED},
        "limit": settings.limit,
        "data": {"folder": settings.data.name, "checksum": folder_checksum(settings.data)},
        "versions": package_versions(),
        **scoring.details,
    } | (
        {}
        if settings.references is None
        else {"references": {"file": settings.references.name, "checksum": file_checksum(settings.references)}}
    )


def _write_text(path: Path, text: str) -> None:
    """Write aside, then rename, so that no half-written file is left behind."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(path.name + ".part")
    aside.write_text(text, encoding="utf-8")
    aside.replace(path)
