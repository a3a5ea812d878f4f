"""DLC-Bench: regions to be described in detail, and the multiple-choice questions that a judge answers from that.

```
annotations.json   COCO instances; qa.json and class_names.json beside it, by annotation id:
{"1077": [{"question": "...", "choices": [["a zebra", "correct"], ...], "type": "recognition"}, ...]}, {"1077": "zebra"}
   ─► RegionRecord("dlc-bench:1077", regions=(Region(mask, "zebra"),), turns=(user "<region1>",),
                   metadata={"questions": [{"question": ...}, ...]})
```
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

from data_pipelines.records import RegionRecord, Rejection, Turn
from data_pipelines.sources.coco import CocoReader
from data_pipelines.sources.json_stream import stream_json
from data_pipelines.sources.reader import Picture, Unusable
from data_pipelines.sources.texts import shown
from data_pipelines.staging import StagingWriter, Unit
from osprey_tp.outside import is_unicode

_QUESTION_KEYS = {"question", "choices", "type"}


class DlcBenchReader(CocoReader):
    """One record an annotation that has questions: its region is asked about, nobody has answered.

    A region is named by class_names.json, else by its category.
    """

    extra_inputs: ClassVar[Mapping[str, str]] = {
        "qa": "the qa.json with the questions",
        "class_names": "the class_names.json with the names of the regions (may be missing)",
    }

    @property
    def _questions(self) -> Path:
        return self.extra_input("qa", self.options.annotations.with_name("qa.json"))

    @property
    def _class_names(self) -> Path | None:
        usual = self.options.annotations.with_name("class_names.json")
        return (
            self.extra_input("class_names", usual) if "class_names" in self.options.inputs or usual.exists() else None
        )

    def input_files(self) -> list[Path]:
        names = self._class_names
        return [self.options.annotations, self._questions, *([] if names is None else [names])]

    def stage(self, staging: StagingWriter) -> None:
        super().stage(staging)
        questions: dict[str, Any] = {}
        for item in stream_json(self._questions):
            if item.listed:
                questions.setdefault(item.key, []).append(item.value)
        if "" in questions or not any(map(_are_questions, questions.values())):
            raise ValueError(f"{self._questions} does not hold lists of questions by annotation id, as qa.json does")
        staging.set_context("questions", questions)
        path = self._class_names
        names = {} if path is None else {item.key: item.value for item in stream_json(path) if not item.listed}
        staging.set_context("class_names", names)

    def _read_picture(self, record_id: str, picture: Picture, unit: Unit) -> Iterator[RegionRecord | Rejection]:
        size = picture.height, picture.width
        for annotation in unit.annotations:
            own_id = f"{self.name}:{annotation['id']}"
            try:
                questions = self.context["questions"].get(str(annotation["id"]))
                if not _are_questions(questions):
                    raise Unusable("annotation without questions", shown(questions))
                region, notes = self._region(annotation, picture)
            except Unusable as problem:
                yield Rejection(own_id, problem.reason, problem.detail)
                continue
            yield from (Rejection(own_id, note.reason, note.detail, annotations=0) for note in notes)
            turns, metadata = (Turn("user", "<region1>"),), {"questions": questions}
            yield RegionRecord(own_id, self.name, picture.path, *size, (region,), turns, metadata)

    def _name(self, annotation: Mapping[str, Any]) -> str:
        name = self.context["class_names"].get(str(annotation["id"]))
        return name.strip() if isinstance(name, str) and name.strip() else self._category_name(annotation)


def _are_questions(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) > 0
        and all(isinstance(entry, dict) and set(entry) >= _QUESTION_KEYS for entry in value)
        and is_unicode(json.dumps(value, ensure_ascii=False))
    )
