"""Files that are a list of entries, each a record of its own: a JSON list, or one JSON object a line."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

from data_pipelines.records import Problem, RegionRecord, Rejection
from data_pipelines.sources.formats import FormatCheck, Outline, recognise
from data_pipelines.sources.json_stream import Item, stream_json, stream_json_lines
from data_pipelines.sources.reader import SourceReader, Unusable
from data_pipelines.sources.signatures import first_line
from data_pipelines.sources.texts import shown
from data_pipelines.staging import Key, StagingWriter, Unit

Read = tuple[RegionRecord, Sequence[Problem | Rejection]]
"""A record, and what was left out of it: annotations, or less than one."""


class EntryReader(SourceReader):
    """Reads such a file; a unit is an entry.

    Attributes:
        format: The format that the file must have (`data_pipelines.sources.formats`).
    """

    format: ClassVar[str]

    def stage(self, staging: StagingWriter) -> None:
        check = FormatCheck(self.options.annotations, self.format)
        for place, item in enumerate(self._items()):
            check.see(item)
            if not item.listed:
                continue
            if not isinstance(item.value, dict):
                staging.reject(Rejection(f"{self.name}:{place}", "entry that is no object", shown(item.value)))
                continue
            try:
                key = self._key(place, item.value)
                if not staging.add_unit(key, item.value) and not staging.add_unit(
                    self._other_key(place, key), item.value
                ):
                    raise Unusable("id stands twice", shown(key))
            except Unusable as problem:
                lost = self.annotation_count(Unit(place, item.value))
                staging.reject(Rejection(f"{self.name}:{place}", problem.reason, problem.detail, annotations=lost))
        check.finish()

    def _items(self) -> Iterator[Item]:
        line = first_line(self.options.annotations)
        is_lines = isinstance(line, dict) and recognise(Outline({"": "list"}, {"": set(line)})) == self.format
        if not is_lines:
            return stream_json(self.options.annotations)
        return (Item("", value, True) for value in stream_json_lines(self.options.annotations))

    def _key(self, place: int, entry: Mapping[str, Any]) -> Key:
        """The id of an entry: its place in the list, counted from 0; may raise `Unusable`."""
        return place

    def _other_key(self, place: int, key: Key) -> Key:
        """The id of an entry whose own id is taken already; the same, if it cannot have another."""
        return key

    def annotation_count(self, unit: Unit) -> int:
        """What is counted are the entries."""
        return 1

    def read(self, unit: Unit) -> Iterator[RegionRecord | Rejection]:
        record_id = f"{self.name}:{unit.key}"
        try:
            record, notes = self._read_entry(record_id, unit.body)
        except Unusable as problem:
            yield Rejection(record_id, problem.reason, problem.detail, annotations=self.annotation_count(unit))
            return
        for note in notes:
            if isinstance(note, Rejection):
                yield note
            else:
                yield Rejection(record_id, note.reason, note.detail, annotations=0)
        yield record

    @abstractmethod
    def _read_entry(self, record_id: str, entry: Mapping[str, Any]) -> Read:
        """The record of one entry; raises `Unusable` if there is none."""
