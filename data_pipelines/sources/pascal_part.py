"""Pascal-Part, in the form of COCO (`train.json`) or as the original folder of `Annotations_Part/*.mat`.

```
{"images": [{"id": 1, "file_name": "2008_000008.jpg", ...}], "categories": [{"id": 1, "name": "horse:head"}],
 "annotations": as in COCO}
   ─► RegionRecord("pascal-part:1", regions=(Region(mask, "horse:head", box), ...))
```
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from data_pipelines.sources.coco import CocoReader
from data_pipelines.sources.formats import PASCAL_PART
from data_pipelines.sources.reader import SourceOptions, SourceReader


def open_pascal_part(name: str, options: SourceOptions) -> SourceReader:
    """The reader of a file of COCO's form, or of a folder of the original files."""
    if options.annotations.is_dir():
        from data_pipelines.sources.pascal_part_mat import PascalPartMatReader

        return PascalPartMatReader(name, options)
    return PascalPartReader(name, options)


class PascalPartReader(CocoReader):
    """As COCO; regions are named `object:part`, as published.

    Pictures are looked for under the path of the file and under its last part alone.
    """

    format = PASCAL_PART

    def _picture_names(self, entry: Mapping[str, Any]) -> Sequence[str]:
        names = super()._picture_names(entry)
        return [*names, *(name.rpartition("/")[2] for name in names)]
