"""Small data folders of panoptic segments and of expressions, and sessions that score as they are told."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from pycocotools import mask as mask_utils
from transformers import BertConfig, BertModel, BertTokenizer

from data_pipelines.records import Region, RegionRecord, Turn
from data_pipelines.sources.id_maps import masks_of

from .eval_fakes import OpensMany, Records

LETTERS = "abcdefghijklmnopqrstuvwxyz"


def write_data(folder: Path, records: Sequence[RegionRecord], categories: Sequence[dict[str, Any]] = ()) -> Records:
    """The records as a data folder, each picture grey."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "manifest.json").write_text(json.dumps({"categories": list(categories)} if categories else {}))
    for record in records:
        Image.new("RGB", (record.width, record.height), (120, 120, 120)).save(folder / record.image)
    return Records(folder, list(records))  # type: ignore[arg-type]


def segments_record(number: int, ids: np.ndarray, names: dict[int, str], things: dict[str, bool]) -> RegionRecord:
    """A picture whose pixels are ids of segments."""
    masks = masks_of(ids)
    regions = tuple(Region(masks[key], name) for key, name in names.items())
    return RegionRecord(
        id=f"panoptic:{number}",
        source="panoptic",
        image=f"{number}.png",
        height=ids.shape[0],
        width=ids.shape[1],
        regions=regions,
        metadata={"is_thing": [things[region.name] for region in regions]},
    )


def rle_of(mask: np.ndarray) -> dict[str, Any]:
    rle = mask_utils.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": list(mask.shape), "counts": rle["counts"].decode()}


def box_rle(height: int, width: int, x0: int, y0: int, x1: int, y1: int) -> dict[str, Any]:
    mask = np.zeros((height, width), bool)
    mask[y0:y1, x0:x1] = True
    return rle_of(mask)


def expression_record(
    number: str, image: str, rle: dict[str, Any], expression: str, split: str | None = None
) -> RegionRecord:
    turns = (Turn("user", "<region1>"), Turn("assistant", expression))
    metadata = {} if split is None else {"split": split}
    return RegionRecord(f"refcoco:{number}", "refcoco", image, *rle["size"], (Region(rle, ""),), turns, metadata)


@dataclass
class ScoringSession:
    describer: ScoringDescriber
    image: str
    height: int
    width: int

    def score(
        self, texts: Sequence[str], regions: Sequence[Any], question: str, *, batch_size: int, per_token: bool = False
    ) -> np.ndarray:
        assert question.count("<mask>") == 1
        length = [len(text.split()) + 1 if per_token else 1 for text in texts]
        return np.array(
            [[self.describer.rule(self.image, region, text) for text in texts] for region in regions], float
        ) / np.array(length)


@dataclass
class ScoringDescriber(OpensMany):
    """Scores by `rule(picture's name, region, text)`."""

    rule: Callable[[str, Any, str], float]

    def open(self, image: Path, overview: str = "") -> ScoringSession:
        width, height = Image.open(image).size
        return ScoringSession(self, image.name, height, width)


SPELLING = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", "-", *LETTERS, *("##" + letter for letter in LETTERS))


def save_tiny_encoder(folder: Path, words: Sequence[str] = SPELLING) -> Path:
    """A random SentenceBERT with these pieces; by default it spells every word of small letters."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(words))
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(words), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
    )
    BertModel(config).save_pretrained(folder)
    BertTokenizer(vocab={word: index for index, word in enumerate(words)}).save_pretrained(folder)
    return folder


def model_folder(path: Path) -> Path:
    """A folder that stands for a model where a describer is passed."""
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text("{}")
    return path
