"""RefCOCO, RefCOCO+ and RefCOCOg as REFER published them: `refs(unc).p`, `refs(google).p`, `refs(umd).p`.

```
refs(unc).p     [{"ref_id": 7, "ann_id": 3, "image_id": 581857, "split": "testA",
                  "sentences": [{"sent_id": 21, "sent": "the lady with the blue shirt", "raw": ..., "tokens": [...]}]}]
instances.json  COCO instances with the annotations and pictures that the references point to
   ─► RegionRecord("refcoco:7-21", regions=(Region(mask, "person"),), turns=(user "<region1>", assistant "the ..."))
```
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

from data_pipelines.records import RegionRecord, Rejection, Turn
from data_pipelines.sources.coco import CocoReader
from data_pipelines.sources.formats import FormatCheck
from data_pipelines.sources.json_stream import stream_json
from data_pipelines.sources.plain_pickle import load_plain_pickle
from data_pipelines.sources.plain_text import plain_text
from data_pipelines.sources.reader import Unusable, as_key
from data_pipelines.sources.signatures import is_pickle, looks_like
from data_pipelines.sources.texts import shown
from data_pipelines.staging import Key, StagingWriter, Unit
from osprey_tp.outside import is_unicode

_MOST_SENTENCES = 1000
_LONGEST_SENTENCE = 10_000
"""Characters."""


class ReferReader(CocoReader):
    """One record an expression: the region that it means is asked about, the expression is the answer.

    The answer is `sent`, as the published evaluations use it; `raw`, as people typed it, is in the metadata. A unit is
    an annotation that some reference points to; what is counted are the expressions.
    """

    splits: ClassVar[tuple[str, ...]] = ("train", "val", "test", "testA", "testB")
    extra_inputs: ClassVar[Mapping[str, str]] = {"instances": "the instances.json that came with the references"}

    @property
    def _instances(self) -> Path:
        return self.extra_input("instances", self.options.annotations.parent / "instances.json")

    def input_files(self) -> list[Path]:
        return [self.options.annotations, self._instances]

    def stage(self, staging: StagingWriter) -> None:
        pictures = self._stage_references(staging, self._references())
        entries: dict[str, Any] = {}
        categories = []
        check = FormatCheck(self._instances, self.format)
        wanted = {unit for _, unit in staging.orphans()}
        for item in stream_json(self._instances):
            check.see(item)
            if item.key == "categories" and item.listed:
                categories.append(item.value)
                continue
            key = as_key(item.value.get("id")) if isinstance(item.value, dict) else None
            if item.key == "images" and key in pictures:
                entries[str(key)] = item.value
            elif item.key == "annotations" and key is not None and key in wanted:
                staging.add_unit(key, item.value)
        check.finish()
        staging.set_context("images", entries)
        staging.set_context("categories", categories)
        for own, annotation in staging.orphans():
            staging.reject(
                Rejection(f"{self.name}:{own}", "expression of an unknown annotation", f"ann_id {annotation!r}")
            )

    def _references(self) -> list[Any]:
        path = self.options.annotations
        if path.is_dir():
            there = ", ".join(sorted(file.name for file in path.glob("refs*.p"))[:8])
            found = f"a folder; give a file of references in it: {there}" if there else looks_like(path)
            raise ValueError(f"{path} is not an original REFER file: this looks like {found}")
        if path.is_file() and not is_pickle(path):
            raise ValueError(f"{path} is not an original REFER file: it is no pickle")
        references = load_plain_pickle(path)
        if not isinstance(references, list):
            raise ValueError(
                f"{path} is not an original REFER file: it holds a {type(references).__name__}, not a list"
            )
        if not any(isinstance(entry, dict) and {"ref_id", "ann_id", "sentences"} <= set(entry) for entry in references):
            raise ValueError(f"{path} is not an original REFER file: nothing in it has ref_id, ann_id and sentences")
        return references

    def _stage_references(self, staging: StagingWriter, references: list[Any]) -> set[Key]:
        """Stage the expressions of the split that was asked for, each under its annotation; the pictures' ids."""
        pictures: set[Key] = set()
        seen: set[str] = set()
        for reference in references:
            split = reference.get("split") if isinstance(reference, dict) else None
            seen.add(split if isinstance(split, str) else "")
            if self.options.split not in (None, split):
                continue
            try:
                pictures.add(self._stage_reference(staging, reference))
            except Unusable as problem:
                own = as_key(reference.get("ref_id")) if isinstance(reference, dict) else None
                record_id = f"{self.name}:{'?' if own is None else own}"
                staging.reject(Rejection(record_id, problem.reason, problem.detail))
        if self.options.split not in (None, *seen):
            there = ", ".join(sorted(name[:20] for name in seen if name)[:8])
            raise ValueError(f"{self.options.annotations} has no split {self.options.split}; it has {there}")
        return pictures

    def _stage_reference(self, staging: StagingWriter, reference: Any) -> Key:
        """Stage every expression of one reference; the id of its picture."""
        if not isinstance(reference, dict):
            raise Unusable("reference that is no dictionary", shown(reference))
        own, annotation, image = (as_key(reference.get(name)) for name in ("ref_id", "ann_id", "image_id"))
        if own is None or annotation is None or image is None:
            raise Unusable("reference without its ids", f"ref_id {own!r}, ann_id {annotation!r}, image_id {image!r}")
        sentences = reference.get("sentences")
        if not isinstance(sentences, list) or not 1 <= len(sentences) <= _MOST_SENTENCES:
            raise Unusable("reference without its sentences", shown(sentences))
        split = reference.get("split")
        body = {"ref_id": own, "image_id": image, "split": as_key(split[:20]) if isinstance(split, str) else None}
        for sentence in sentences:
            number = as_key(sentence.get("sent_id")) if isinstance(sentence, dict) else None
            if number is None:
                staging.reject(Rejection(f"{self.name}:{own}-?", "sentence without an id", shown(sentence)))
                continue
            texts = {name: _short_text(sentence.get(name)) for name in ("sent", "raw")}
            if not staging.add_annotation(f"{own}-{number}", annotation, {**body, "sent_id": number, **texts}):
                staging.reject(Rejection(f"{self.name}:{own}-{number}", "sentence id stands twice"))
        return image

    def read(self, unit: Unit) -> Iterator[RegionRecord | Rejection]:
        annotation = unit.body
        ids = [f"{self.name}:{sentence['ref_id']}-{sentence['sent_id']}" for sentence in unit.annotations]
        try:
            entry = self.context["images"].get(str(annotation.get("image_id")))
            if not isinstance(entry, dict):
                raise Unusable("annotation of an unknown picture", f"image_id {shown(annotation.get('image_id'))}")
            picture = self._picture(entry)
            region, notes = self._region(annotation, picture)
        except Unusable as problem:
            yield from (Rejection(own, problem.reason, problem.detail) for own in ids)
            return
        yield from (Rejection(ids[0], note.reason, note.detail, annotations=0) for note in notes)
        for own, sentence in zip(ids, unit.annotations, strict=True):
            try:
                if sentence["image_id"] != annotation["image_id"]:
                    detail = f"{sentence['image_id']!r} and {annotation['image_id']!r}"
                    raise Unusable("reference and annotation name different pictures", detail)
                answer = plain_text(sentence["sent"])
            except Unusable as problem:
                yield Rejection(own, problem.reason, problem.detail)
                continue
            turns = (Turn("user", "<region1>"), Turn("assistant", answer))
            metadata = _metadata_of(sentence, annotation)
            yield RegionRecord(own, self.name, picture.path, picture.height, picture.width, (region,), turns, metadata)

    def _name(self, annotation: Mapping[str, Any]) -> str:
        """The category's name where the file has one; the expression does not need it."""
        return self._category_name(annotation)


def _short_text(value: Any) -> str | None:
    return value if isinstance(value, str) and len(value) <= _LONGEST_SENTENCE and is_unicode(value) else None


def _metadata_of(sentence: Mapping[str, Any], annotation: Mapping[str, Any]) -> dict[str, Any]:
    metadata = {
        "split": sentence["split"],
        "ref_id": sentence["ref_id"],
        "sentence_id": sentence["sent_id"],
        "category_id": as_key(annotation.get("category_id")),
        "raw": sentence["raw"],
    }
    return {name: value for name, value in metadata.items() if value is not None}
