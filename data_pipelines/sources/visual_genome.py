"""Visual Genome: re-exported with masks (`vg_train_with_mask.json`), or the original `region_descriptions.json`.

```
{"images": [{"id": 1, "file_name": "VG_100K/2338989.jpg", ...}], "categories": [...],
 "annotations": [{"id": 7, "image_id": 1, "segmentation": ..., "caption": "a parked red bicycle"}]}
   ─► RegionRecord("visual-genome:1", regions=(Region(mask, "a parked red bicycle"), ...))
```
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from data_pipelines.sources.coco import CocoReader
from data_pipelines.sources.formats import VISUAL_GENOME_REEXPORT
from data_pipelines.sources.json_stream import stream_json
from data_pipelines.sources.plain_text import plain_text
from data_pipelines.sources.reader import SourceOptions, SourceReader

PICTURE_FOLDERS = ("VG_100K", "VG_100K_2")


def open_visual_genome(name: str, options: SourceOptions) -> SourceReader:
    """The reader of the re-export, or of the original file: a list of pictures with their regions."""
    first = next(iter(stream_json(options.annotations)), None)
    if first is not None and first.key == "" and isinstance(first.value, dict) and "regions" in first.value:
        from data_pipelines.sources.visual_genome_boxes import RegionDescriptionReader

        return RegionDescriptionReader(name, options)
    return VisualGenomeReader(name, options)


class VisualGenomeReader(CocoReader):
    """One record a picture; regions are named by their captions, which answer the source's own question about them.

    Pictures are looked for under the path of the file, under its last part alone, and in Visual Genome's two folders.
    """

    format = VISUAL_GENOME_REEXPORT

    def _picture_names(self, entry: Mapping[str, Any]) -> Sequence[str]:
        names = list(super()._picture_names(entry))
        for name in tuple(names):
            last = name.rpartition("/")[2]
            names += [last, *(f"{folder}/{last}" for folder in PICTURE_FOLDERS)]
        return names

    def _name(self, annotation: Mapping[str, Any]) -> str:
        return plain_text(annotation.get("caption"))
