"""Everything that a source's reader says about a file, without writing a folder."""

import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from data_pipelines.records import RegionRecord, Rejection
from data_pipelines.sources import open_source
from data_pipelines.sources.reader import SourceOptions
from data_pipelines.staging import Staging, StagingWriter


@dataclass
class Reading:
    records: list[RegionRecord]
    rejections: list[Rejection]
    counts_in: Counter


def read_source(name: str, annotations: Path, images: Path, **options) -> Reading:
    reader = open_source(name, SourceOptions(annotations, images, **options))
    reading = Reading([], [], Counter(images=0, annotations=0))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "staging.sqlite"
        with StagingWriter(path) as writer:
            reader.stage(writer)
        staging = Staging(path)
        reader.context = staging.context
        for rejection in staging.rejections():
            reading.rejections.append(rejection)
            reading.counts_in["annotations"] += rejection.annotations
        for unit in staging.units(range(len(staging))):
            reading.counts_in["images"] += 1
            reading.counts_in["annotations"] += reader.annotation_count(unit)
            for item in reader.read(unit):
                (reading.rejections if isinstance(item, Rejection) else reading.records).append(item)
    return reading
