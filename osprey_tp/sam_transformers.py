"""Masks from clicks by the models of the Segment Anything family in transformers, loaded from a local folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from PIL import Image
from torch.utils._pytree import tree_leaves

from osprey_tp.outside import OWN_FILES_ALONE, one_line, read_json
from osprey_tp.prompted_masks import PromptedImage, widened_pixels
from osprey_tp.segmenters import VIT_SIZES

HIERA_SIZES = {(96, 12): "Hiera-T", (96, 16): "Hiera-S", (112, 24): "Hiera-B+", (144, 48): "Hiera-L"}
"""Published sizes of SAM 2 by the width of the first stage and the number of blocks."""


@dataclass(frozen=True)
class Family:
    """A kind of model: its name for the user, its classes in transformers.

    `least_iou` is the model's own estimate that a mask must reach where everything is asked for, as its authors'
    generators of masks have it.
    """

    name: str
    model: str
    processor: str
    least_iou: float


_SAM_2 = Family("SAM 2", "Sam2Model", "Sam2Processor", 0.8)
_SAM_3 = Family("SAM 3", "Sam3TrackerModel", "Sam3TrackerProcessor", 0.8)
_EDGE = Family("EdgeTAM", "EdgeTamModel", "Sam2Processor", 0.8)
FAMILIES: Mapping[str, Family] = {
    "sam": Family("Segment Anything", "SamModel", "SamProcessor", 0.88),
    "sam_hq": Family("SAM-HQ", "SamHQModel", "SamHQProcessor", 0.88),
    "sam2": _SAM_2,
    "sam2_video": _SAM_2,
    "sam3_tracker": _SAM_3,
    "sam3_video": _SAM_3,
    "edgetam": _EDGE,
    "edgetam_video": _EDGE,
}
"""By the `model_type` of the folder's config.json. Folders published for video hold the model for pictures too."""


class TransformersSegmenter:
    """Segments with a loaded model; one picture is embedded once, each click costs the light mask decoder only."""

    def __init__(self, model: Any, processor: Any, family: Family) -> None:
        self._model = model.eval()
        self._processor = processor
        self._family = family
        self.description = f"{family.name} {_size(model)}".strip() + f", {model.num_parameters() / 1e6:.1f}M parameters"

    @classmethod
    def from_folder(cls, folder: Path, device: str = "cpu") -> TransformersSegmenter:
        """Loads a folder as `save_pretrained` writes it, with its processor; nothing is fetched.

        Raises:
            ValueError: If the folder holds no complete model of the family.
        """
        family = FAMILIES[_model_type(folder)]
        try:
            processor = getattr(transformers, family.processor).from_pretrained(folder, **OWN_FILES_ALONE)
            model, loading = getattr(transformers, family.model).from_pretrained(
                folder, dtype=torch.float32, output_loading_info=True, **OWN_FILES_ALONE
            )
        except Exception as error:  # a foreign folder can make transformers raise anything
            raise ValueError(f"{folder} is not a whole folder of {family.name}: {one_line(error)}") from error
        if missing := sorted(loading["missing_keys"]):
            raise ValueError(
                f"{folder} is not a whole folder of {family.name}: it lacks {len(missing)} weights, {missing[0]} …"
            )
        return cls(model.to(device), processor, family)

    def open(self, image: Image.Image) -> TransformersImage:
        """Embeds an RGB picture."""
        inputs = self._processor(images=widened_pixels(image), return_tensors="pt").to(self._model.device)
        with torch.inference_mode():
            embeddings = self._model.get_image_embeddings(inputs["pixel_values"])
        return TransformersImage(self._model, self._processor, inputs, embeddings, image.size, self._family.least_iou)


class TransformersImage(PromptedImage):
    """A picture embedded by a model of transformers.

    Args:
        model: The model.
        processor: Its processor, which enlarges masks.
        inputs: What the processor made of the picture.
        embeddings: What the model made of that; a pair with the intermediate ones for SAM-HQ.
        size: (width, height) of the picture in source pixels.
        least_iou: See `PromptedImage`.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        inputs: Mapping[str, torch.Tensor],
        embeddings: Any,
        size: tuple[int, int],
        least_iou: float,
    ) -> None:
        square = inputs["pixel_values"].shape[-2:]
        self._original = inputs["original_sizes"][0].tolist()
        # SAM pads the resized picture to a square; its successors squeeze the picture into one.
        resized = inputs["reshaped_input_sizes"][0].tolist() if "reshaped_input_sizes" in inputs else list(square)
        shown = (resized[0] / square[0], resized[1] / square[1])
        super().__init__(size[1], size[0], shown, least_iou, model.device)
        self._model, self._processor = model, processor
        self._resized = resized
        self._scale = torch.tensor(
            [resized[1] / self._original[1], resized[0] / self._original[0]], device=model.device
        )
        self._embeddings: dict[str, Any] = {"image_embeddings": embeddings}
        if isinstance(embeddings, tuple):
            self._embeddings = {"image_embeddings": embeddings[0], "intermediate_embeddings": embeddings[1]}
        self.nbytes = sum(tensor.nbytes for tensor in tree_leaves(self._embeddings))

    def _decode(
        self, points: torch.Tensor | None, labels: torch.Tensor | None, boxes: torch.Tensor | None, several: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        prompts: dict[str, torch.Tensor] = {}
        if points is not None and labels is not None:
            prompts.update(input_points=(points * self._scale)[None], input_labels=labels[None])
        if boxes is not None:
            prompts.update(input_boxes=(boxes * self._scale.repeat(2))[None])
        outputs = self._model(**self._embeddings, **prompts, multimask_output=several)
        return outputs.pred_masks[0], outputs.iou_scores[0]

    def _enlarge(self, logits: torch.Tensor) -> torch.Tensor:
        return self._processor.post_process_masks(
            [logits[None, None]], original_sizes=[self._original], reshaped_input_sizes=[self._resized]
        )[0][0, 0]


def _model_type(folder: Path) -> str:
    """The `model_type` of a folder's configuration; `ValueError` if it is none of `FAMILIES`."""
    try:
        config = read_json(folder / "config.json")
        model_type = config["model_type"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{folder} is no model folder: its config.json names no model_type") from error
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise ValueError(
            f"{folder} holds a model of the type {one_line(repr(model_type))}; expected one of {', '.join(FAMILIES)}"
        )
    return model_type


def _size(model: Any) -> str:
    """The published name of a model's size; empty if it has none."""
    vision = model.config.vision_config
    if (backbone := getattr(vision, "backbone_config", None)) is not None:
        stages = getattr(backbone, "embed_dim_per_stage", [0]), getattr(backbone, "blocks_per_stage", [0])
        return HIERA_SIZES.get((stages[0][0], sum(stages[1])), "")
    return VIT_SIZES.get(vision.hidden_size, "")
