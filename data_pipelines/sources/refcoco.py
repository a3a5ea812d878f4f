"""RefCOCO, RefCOCO+ and RefCOCOg as re-exported in `finetune_refcoco_train_with_mask.json` and its like.

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
from data_pipelines.sources.reader import Unusable
from data_pipelines.staging import Unit


class RefCocoReader(CocoReader):
    """One record an expression: the region that it means is asked about, the expression is the answer."""

    format = REFCOCO_REEXPORT

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
