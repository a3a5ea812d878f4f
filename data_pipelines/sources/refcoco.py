"""RefCOCO, RefCOCO+ and RefCOCOg, original or re-exported as `finetune_refcoco_train_with_mask.json` and its like.

```
{"images": [{"id": 7, "file_name": "COCO_train2014_000000581857.jpg", "caption": "the lady with the blue shirt", ...}],
 "annotations": [{"id": 3, "image_id": 7, "segmentation": ..., "category_id": 1}], "categories": [...]}
   ─► RegionRecord("refcoco:7", regions=(Region(mask),), turns=(user "<region1>", assistant "the lady with ..."))
```
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from data_pipelines.records import Region, Turn
from data_pipelines.sources.coco import CocoReader
from data_pipelines.sources.formats import REFCOCO_REEXPORT
from data_pipelines.sources.reader import SourceOptions, SourceReader, Unusable
from data_pipelines.sources.signatures import is_pickle
from data_pipelines.staging import Unit

_ORIGINS = ("original_id", "dataset_name")


def open_refer(name: str, options: SourceOptions) -> SourceReader:
    """The reader of the re-export, or of the original pickle or folder."""
    path = options.annotations
    if path.is_dir() or path.suffix == ".p" or is_pickle(path):
        from data_pipelines.sources.refer import ReferReader

        return ReferReader(name, options)
    return RefCocoReader(name, options)


class RefCocoReader(CocoReader):
    """One record an expression: the region that it means is asked about, the expression is the answer.

    Metadata "original_id" and "dataset_name" are those of the picture's entry, where it has them.
    """

    format = REFCOCO_REEXPORT

    def _metadata(self, unit: Unit, regions: Sequence[Region]) -> Mapping[str, Any]:
        return {name: unit.body[name] for name in _ORIGINS if isinstance(unit.body.get(name), (int, str))}

    def _turns(self, unit: Unit, regions: Sequence[Region]) -> Sequence[Turn]:
        caption = unit.body.get("caption")
        if not isinstance(caption, str) or not caption.strip():
            raise Unusable("expression without text", repr(caption))
        if len(regions) != 1:
            raise Unusable("expression with several regions", f"{len(regions)} annotations")
        return (Turn("user", "<region1>"), Turn("assistant", caption.strip()))

    def _name(self, annotation: Mapping[str, Any]) -> str:
        """The category's name where the file has one; the expression does not need it."""
        return self._category_name(annotation)
