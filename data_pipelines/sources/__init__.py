"""The sources that can be prepared, by name.

To add one, write a reader (`data_pipelines.sources.reader.SourceReader`) in a module beside this one, enter it here,
and give it its wording in `data_pipelines.prompts`.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from data_pipelines.records import Purpose
    from data_pipelines.sources.reader import SourceOptions, SourceReader


@dataclass(frozen=True)
class SourceEntry:
    """One line of the registry.

    Attributes:
        summary: What the source is, for the command line.
        reader: `module:name` below this package, imported when it is first used: a reader's class, or a function that
            chooses one, called with the source's name and the options.
        purpose: What its records are for.
    """

    summary: str
    reader: str
    purpose: Purpose = "training"


SOURCES: Mapping[str, SourceEntry] = {
    "coco": SourceEntry("COCO instances: regions with category names", "coco:CocoReader"),
    "lvis": SourceEntry(
        "LVIS v1 or v0.5: regions with names of a large vocabulary, and what is absent", "lvis:LvisReader"
    ),
    "paco": SourceEntry("PACO: objects, and parts named object:part", "paco:PacoReader"),
    "pascal-part": SourceEntry("Pascal-Part: regions named object:part", "pascal_part:open_pascal_part"),
    "partimagenet": SourceEntry("PartImageNet: regions named after object and part", "partimagenet:PartImageNetReader"),
    "visual-genome": SourceEntry("Visual Genome: regions with phrases", "visual_genome:open_visual_genome"),
    "panoptic": SourceEntry("COCO panoptic form (COCO, ADE20K): json and RGB-coded PNGs", "panoptic:PanopticReader"),
    "cityscapes": SourceEntry("Cityscapes gtFine: instanceIds, or the panoptic form", "cityscapes:open_cityscapes"),
    "custom": SourceEntry("your own COCO file: a caption, text or category per annotation", "custom:CustomReader"),
    "synthetic": SourceEntry(
        "COCO instances of synthetic scenes, with questions about attributes", "synthetic:SyntheticReader"
    ),
    "refcoco": SourceEntry("RefCOCO, original or re-exported: one expression a record", "refcoco:open_refer"),
    "refcoco+": SourceEntry("RefCOCO+ in either form: expressions without positions", "refcoco:open_refer"),
    "refcocog": SourceEntry("RefCOCOg in either form: long expressions", "refcoco:open_refer"),
    "captions": SourceEntry("COCO captions: pictures without regions", "captions:CaptionReader"),
    "vcr": SourceEntry("VCR train.jsonl: questions about a picture's objects, with reasons", "vcr:VcrReader"),
    "osprey-short-form": SourceEntry("Osprey-724K: short answers about regions", "osprey724k:OspreyReader"),
    "osprey-part-level": SourceEntry("Osprey-724K: short answers about parts", "osprey724k:OspreyReader"),
    "osprey-conversation": SourceEntry("Osprey-724K: conversations about regions", "osprey724k:OspreyReader"),
    "osprey-lvis-positive-negative": SourceEntry(
        "Osprey-724K: whether a region is of a class", "osprey724k:OspreyReader"
    ),
    "osprey-detailed-description": SourceEntry(
        "Osprey-724K: detailed descriptions of regions", "osprey724k:OspreyDescriptionReader"
    ),
    "llava": SourceEntry("LLaVA conversations about whole pictures, or without any", "llava:LlavaReader"),
    "ferret-bench": SourceEntry(
        "Ferret-Bench: questions about regions, for evaluation", "ferret_bench:FerretBenchReader", "evaluation"
    ),
    "pope": SourceEntry("POPE: yes-or-no questions about pictures, for evaluation", "pope:PopeReader", "evaluation"),
    "dlc-bench": SourceEntry(
        "DLC-Bench: regions to describe, for evaluation", "dlc_bench:DlcBenchReader", "evaluation"
    ),
}


def open_source(name: str, options: SourceOptions) -> SourceReader:
    """The reader of that source.

    Raises:
        ValueError: for an unknown name, a missing file or folder, or a file of another format.
    """
    if name not in SOURCES:
        raise ValueError(f"unknown source {name!r}; choose from {', '.join(SOURCES)}")
    module, _, maker = SOURCES[name].reader.partition(":")
    reader: SourceReader = getattr(importlib.import_module(f"{__name__}.{module}"), maker)(name, options)
    return reader
