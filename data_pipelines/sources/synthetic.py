"""The scenes of `data_pipelines.synthetic`: COCO instances whose category names say texture, colour and shape."""

from __future__ import annotations

from collections.abc import Sequence

from data_pipelines.records import Region, Turn
from data_pipelines.sources.coco import CocoReader
from data_pipelines.staging import Unit
from data_pipelines.synthetic.vocabulary import attributes_of

ATTRIBUTE_QUESTIONS = ("What texture does {} have?", "What colour is {}?", "What shape is {}?")
"""In the order of `attributes_of`."""


class SyntheticReader(CocoReader):
    """As COCO, and each attribute of a region is asked for too."""

    def _turns(self, unit: Unit, regions: Sequence[Region]) -> Sequence[Turn]:
        turns = []
        for number, region in enumerate(regions, start=1):
            reference = f"<region{number}>"
            turns += [Turn("user", reference), Turn("assistant", region.name)]
            for question, attribute in zip(ATTRIBUTE_QUESTIONS, attributes_of(region.name), strict=True):
                if attribute:
                    turns += [Turn("user", question.format(reference)), Turn("assistant", attribute)]
        return turns
