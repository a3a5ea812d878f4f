"""PACO: `paco_lvis_v1_{train,val,test}.json`.

```
{"images": as in LVIS, "categories": [{"id": 1, "name": "mug"}, {"id": 2, "name": "mug:handle"}],
 "annotations": [{"id": 10, "obj_ann_id": 10, "category_id": 1, ...},
                 {"id": 11, "obj_ann_id": 10, "category_id": 2, ...}]}
   ─► RegionRecord("paco:1", regions=(mug, mug:handle), metadata={"object_ids": ["", "10"], ...as in LVIS})
```
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from data_pipelines.records import Region
from data_pipelines.sources.formats import PACO
from data_pipelines.sources.lvis import LvisReader
from data_pipelines.sources.reader import as_key
from data_pipelines.staging import Unit


class PacoReader(LvisReader):
    """As LVIS; metadata "object_ids" has the id of the object that each region is a part of, "" for objects.

    Attributes such as colour and material are not read.
    """

    format = PACO

    def _metadata(self, unit: Unit, regions: Sequence[Region]) -> Mapping[str, Any]:
        annotations = self._annotations_of(unit, regions)
        return {
            **super()._metadata(unit, regions),
            "object_ids": [_object_of(annotation) for annotation in annotations],
        }


def _object_of(annotation: Mapping[str, Any]) -> str:
    owner = as_key(annotation.get("obj_ann_id"))
    return "" if owner is None or owner == annotation["id"] else str(owner)
