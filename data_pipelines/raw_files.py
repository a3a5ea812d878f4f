"""Annotation files as they were downloaded: read as `prepare` would read them, and nothing of it kept."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data_pipelines.prepare import prepare
from data_pipelines.records import RecordFolder
from data_pipelines.sources.formats import Outline, named_with_source, recognise
from data_pipelines.sources.json_stream import stream_json
from data_pipelines.sources.signatures import json_lines_of, looks_like
from data_pipelines.validation import TokenBudget, ValidationReport, validate


def validate_annotations(
    source: str,
    annotations: Path,
    images: Path,
    *,
    include_crowd: bool = False,
    split: str | None = None,
    inputs: Mapping[str, Path] | None = None,
    segmenter: str | None = None,
    budget: TokenBudget | None = None,
    processes: int = 1,
    progress: bool = True,
) -> tuple[ValidationReport, dict[str, Any]]:
    """What would come out of a source, and what is wrong with it. The first arguments are those of `prepare`.

    Returns:
        The report on the records, and the manifest that `prepare` would write: counts, and what was left out and why.

    Raises:
        ValueError: if it is a file of another format, or no record comes out.
    """
    with tempfile.TemporaryDirectory(prefix="validate-") as folder:
        out = Path(folder) / "records"
        manifest = prepare(
            source,
            annotations,
            images,
            out,
            include_crowd=include_crowd,
            split=split,
            inputs=inputs,
            segmenter=segmenter,
            processes=processes,
            progress=progress,
        )
        records = RecordFolder.open(out, images)
        return validate(records, budget=budget, processes=processes, progress=progress), manifest


def unnamed_source(path: Path) -> ValueError:
    """The error that a file cannot be read without naming its source, with what it looks like."""
    found = looks_like(path)
    if found is None:
        outline = Outline()
        try:
            for item in stream_json(path):
                outline.see(item)
        except ValueError as error:
            found = json_lines_of(path)
            if found is None:
                return ValueError(f"{error}; name its source with --source")
        else:
            name = recognise(outline)
            found = named_with_source(name) if name else f"no known format: {outline}"
    return ValueError(f"{path} looks like {found}; validate it with --source NAME --images DIR")
