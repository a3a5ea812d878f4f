"""PartImageNet: `train_format.json`.

```
{"images": [{"id": 1, "file_name": "n02389026_10029.JPEG", ...}], "categories": [{"id": 1, "name": "Quadruped Head"}],
 "annotations": as in COCO}
   ─► RegionRecord("partimagenet:1", regions=(Region(mask, "Quadruped Head", box), ...))
```
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from data_pipelines.sources.coco import CocoReader
from data_pipelines.sources.formats import PARTIMAGENET


class PartImageNetReader(CocoReader):
    """As COCO; regions are named `Object Part`, as published.

    Pictures are looked for under the path of the file, under its last part alone, and in ImageNet's folder of the
    class, `n02389026/n02389026_10029.JPEG`.
    """

    format = PARTIMAGENET

    def _picture_names(self, entry: Mapping[str, Any]) -> Sequence[str]:
        names = list(super()._picture_names(entry))
        for name in tuple(names):
            last = name.rpartition("/")[2]
            names += [last, f"{last.partition('_')[0]}/{last}"]
        return names
