"""`predictions.jsonl`: one answer a line, appended durably, so that a killed run goes on where it was.

A line holds at least `id` and `prediction`; anybody's predictions in this form can be scored. The
id of a question about one region is `<record id>#<region number>`, with regions numbered from 1 as in `<region1>`.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from osprey_tp.outside import parse_json


@dataclass(frozen=True)
class Prediction:
    """One answer about one region.

    Attributes:
        id: `<record id>#<region number>`.
        prediction: the answer as the model gave it.
        question: what was asked, with `<mask>` for the region.
        references: right answers.
        image: path relative to the data's image root.
        area_share: share of the picture's pixels that the region covers, 0 to 1.
        region_cells: area of the region in cells of the model's canvas; None where the tiling is not known.
        scores: log-likelihoods, where the task ranks candidates; what they belong to is the task's own.
        shown_region: id of the region that the model was shown, if that was another one (the region-blind control).
    """

    id: str
    prediction: str
    question: str = ""
    references: tuple[str, ...] = ()
    image: str = ""
    area_share: float | None = None
    region_cells: float | None = None
    shown_region: str | None = None
    scores: tuple[float, ...] = ()


class PredictionLog:
    """Appends predictions to a file and knows which ids it already holds. Use it as a context manager.

    A last line that a kill cut short is removed at opening; its answer will be asked for again. Every append reaches
    the disk before it returns. The file is locked while it is open, so that two runs cannot write to it.

    Raises:
        ValueError: another line is broken, an id stands twice, or another process has the file open for writing.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("ab", buffering=0)
        try:
            _lock(self._file)
            _remove_broken_last_line(path)
            self.predictions = {item.id: item for item in read_predictions(path)}
        except BaseException:
            self._file.close()
            raise

    def append(self, predictions: Sequence[Prediction]) -> None:
        """Write the lines and wait until they are on the disk.

        Raises:
            OSError: naming the file, if they cannot be written; it is then as it was.
        """
        end = self._file.seek(0, os.SEEK_END)
        lines = "".join(line_of(prediction) for prediction in predictions).encode("utf-8")
        try:
            while lines:
                lines = lines[self._file.write(lines) :]
            os.fsync(self._file.fileno())
        except OSError as error:
            self._file.truncate(end)
            raise OSError(
                f"{self.path} cannot be written: {error.strerror}; answers so far are kept: mend this and give the "
                "same command again"
            ) from error
        self.predictions.update({prediction.id: prediction for prediction in predictions})

    def __contains__(self, prediction_id: str) -> bool:
        return prediction_id in self.predictions

    def __enter__(self) -> PredictionLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


def line_of(prediction: Prediction) -> str:
    """The prediction as a line of the file, with its end."""
    return json.dumps(asdict(prediction), ensure_ascii=False) + "\n"


def _lock(file: BinaryIO) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ValueError(
            f"{file.name} is being written by another process; wait until it has ended, or give another --out"
        ) from None
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):  # a file system without locks
            raise


def read_predictions(path: Path) -> list[Prediction]:
    """Every prediction of the file, in its order.

    Raises:
        ValueError: a line is no JSON object with text `id` and `prediction`, or an id stands twice.
    """
    predictions: list[Prediction] = []
    first_line: dict[str, int] = {}
    duplicates: list[str] = []
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            prediction = _parse(line, f"{path}, line {number}")
            if prediction.id in first_line:
                duplicates.append(f"{prediction.id} (lines {first_line[prediction.id]} and {number})")
            first_line.setdefault(prediction.id, number)
            predictions.append(prediction)
    if duplicates:
        raise ValueError(
            f"{path}: {len(duplicates)} ids stand twice, the first {duplicates[0]}; keep one line for each id"
        )
    return predictions


def _parse(line: bytes, place: str) -> Prediction:
    fields = parse_json(line, place)
    if not isinstance(fields, dict):
        raise ValueError(f'{place} holds {type(fields).__name__}; needed is an object with "id" and "prediction"')
    for name in ("id", "prediction"):
        if not isinstance(fields.get(name), str):
            raise ValueError(f'{place} has no text "{name}" (got {fields.get(name)!r:.60})')
    for name in ("area_share", "region_cells"):
        if not isinstance(fields.get(name), int | float | None):
            raise ValueError(f'{place}: "{name}" is {fields[name]!r:.60}; needed is a number, or leave it out')
    known = {name: fields[name] for name in Prediction.__dataclass_fields__ if fields.get(name) is not None}
    references, scores = known.get("references", []), known.get("scores", [])
    if not isinstance(references, list):
        raise ValueError(f'{place}: "references" is {references!r:.60}; needed is a list of texts, or leave it out')
    texts = {name: known[name] for name in ("id", "prediction", "question", "image", "shown_region") if name in known}
    for name, text in [*texts.items(), *(("references", text) for text in references)]:
        if not isinstance(text, str) or any("\ud800" <= character <= "\udfff" for character in text):
            raise ValueError(f'{place}: "{name}" is {text!r:.60}; needed is a text in Unicode, or leave it out')
    try:
        columns = {"references": tuple(references), "scores": tuple(map(float, scores))}
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f'{place}: "scores" is {scores!r:.60}; needed is a list of numbers, or leave it out') from None
    return Prediction(**known | columns)


def _remove_broken_last_line(path: Path) -> None:
    with path.open("r+b") as file:
        content = file.read()
        if content and not content.endswith(b"\n"):
            file.truncate(content.rfind(b"\n") + 1)
            os.fsync(file.fileno())
