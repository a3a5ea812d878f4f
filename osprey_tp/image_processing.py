"""Image processor: pictures to tiles, regions to the coverage of cells.

`osprey_tp.tiling` decides every size, `osprey_tp.images` reads every form of a picture, `osprey_tp.masks` every form
of a region, and `osprey_tp.coverage` finds the cells below it. Three choices differ between the published model and the
recommended one:

========================  ==========================================  =============================================
choice                    published                                   recommended
========================  ==========================================  =============================================
``resize_mode``           ``published``: normalise, then bilinear     ``antialiased``: bicubic with antialiasing,
                          without antialiasing                        then normalise
``thumbnail_source``      ``canvas``: the padded canvas, squeezed     ``image``: the picture itself
``region_pooling``        ``published``: cells with a centre pixel    ``area``: exact share of each cell's area
========================  ==========================================  =============================================

Padding is 0 after normalisation, the mean colour, in both.

`picture_layout` ``square`` is what published checkpoints without high resolution see: the picture in the middle of a
square whose padding is the mean colour in whole numbers (`expand2square` in `llava/mm_utils.py`), resized by Pillow
with antialiasing, as CLIP's own processor does, then normalised.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as tvF
from transformers.image_processing_backends import TorchvisionBackend
from transformers.image_processing_utils import BatchFeature
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD, PILImageResampling, SizeDict
from transformers.processing_utils import ImagesKwargs, Unpack

from osprey_tp.configuration import require_choices
from osprey_tp.coverage import area_coverage, area_shape, published_coverage, published_shape
from osprey_tp.images import MAX_PIXELS, load_image
from osprey_tp.masks import Region, to_runs
from osprey_tp.run_lengths import Runs
from osprey_tp.tiling import TilePlan, Tiling

_DECIDED_BY_TILING = ("do_resize", "size", "do_center_crop", "crop_size", "do_pad", "pad_size")
_PIXELS_AT_A_TIME = 1 << 22
_COVERAGE = {"area": area_coverage, "published": published_coverage}
_SHAPE = {"area": area_shape, "published": published_shape}


class OspreyTPImageProcessorKwargs(ImagesKwargs, total=False):
    """Settings of the image processor beyond those of every image processor.

    Attributes:
        tile_size: Side of a tile in pixels.
        patch_size: Side of a cell in pixels.
        scale_factor: A visual token stands for ``scale_factor**2`` cells.
        picture_layout: ``tiles`` or ``square``.
        max_tiles: 9, 16 or 25; 1 for squares.
        resize_mode: ``antialiased`` or ``published``.
        thumbnail_source: ``image``, ``canvas`` or ``none`` (no thumbnail).
        region_pooling: ``area`` or ``published``.
        spatial_side: Side in pixels of the square that holds a region's shape, for models with a spatial token; 0 for
            models without.
    """

    tile_size: int
    patch_size: int
    scale_factor: int
    picture_layout: str
    max_tiles: int
    resize_mode: str
    thumbnail_source: str
    region_pooling: str
    spatial_side: int


class OspreyTPImageProcessor(TorchvisionBackend):
    """Cuts pictures into normalised tiles and turns regions into the coverage of cells.

    Settings are those of `OspreyTPImageProcessorKwargs`, ``image_mean``, ``image_std`` and ``resample`` (the filter of
    the antialiased resize). They are attributes, are saved with `save_pretrained`, and may be given to a call.

    Raises:
        ValueError: If a setting is unknown, does not fit the others, or is one that tiling decides.
    """

    valid_kwargs = OspreyTPImageProcessorKwargs
    model_input_names = [  # noqa: RUF012
        *("pixel_values", "tile_grids", "region_coverage", "region_image_index", "region_shapes")
    ]
    image_mean = OPENAI_CLIP_MEAN
    image_std = OPENAI_CLIP_STD
    resample = PILImageResampling.BICUBIC
    tile_size = 336
    patch_size = 14
    scale_factor = 2
    picture_layout = "tiles"
    max_tiles = 9
    resize_mode = "antialiased"
    thumbnail_source = "image"
    region_pooling = "area"
    spatial_side = 0

    def __init__(self, **kwargs: Unpack[OspreyTPImageProcessorKwargs]) -> None:
        unknown = set(kwargs) - set(self.valid_kwargs.__annotations__) - {"image_processor_type", "processor_class"}
        if unknown:
            raise ValueError(f"unknown settings of the image processor: {', '.join(sorted(unknown))}")
        super().__init__(**kwargs)  # type: ignore[misc]
        self._validate_preprocess_kwargs(**{name: getattr(self, name) for name in self._valid_kwargs_names})

    @property
    def tiling(self) -> Tiling:
        """The rules of tiling that the settings describe."""
        return _tiling({name: getattr(self, name) for name in self._valid_kwargs_names})

    @property
    def tokens_per_region(self) -> int:
        """Tokens of the prompt that stand for a region."""
        return 2 if self.spatial_side else 1

    def num_visual_tokens(self, height: int, width: int) -> int:
        """Visual tokens, separators included, of a picture of ``height`` x ``width`` source pixels."""
        return self.tiling.plan(height, width).num_visual_tokens

    def preprocess(
        self,
        images: Any,
        regions: Sequence[Any] | None = None,
        **kwargs: Unpack[OspreyTPImageProcessorKwargs],
    ) -> BatchFeature:
        """Prepare pictures and their regions.

        Args:
            images: One picture or a list of them, each in any form that `osprey_tp.images.load_image` reads.
            regions: For each picture the list of its regions, each in any form that `osprey_tp.masks.to_mask` reads,
                in source pixels. For one picture outside a list, the list of its regions.
            **kwargs: Settings for this call alone, and ``return_tensors``.

        Returns:
            ``pixel_values`` float32 (tiles of all pictures, 3, tile_size, tile_size), a picture's tiles row by row and
            then its thumbnail when it has more than one tile; ``tile_grids`` int64 (pictures, 2), rows and columns of
            tiles. When regions are given, also ``region_coverage`` float32 (regions of all pictures, cells of the
            picture with most cells), zero beyond a picture's own cells, and ``region_image_index`` int64 (regions,);
            with ``spatial_side`` also ``region_shapes`` float32 (regions, spatial_side, spatial_side).

        Raises:
            ValueError: If a picture or region cannot be used; the message names it by its number.
        """
        return super().preprocess(images, regions, **kwargs)

    def cover_regions(self, regions: Sequence[Sequence[Region]], plans: Sequence[TilePlan]) -> dict[str, torch.Tensor]:
        """Coverage of regions alone, for pictures whose tiles are not needed (again).

        Args:
            regions: For each picture the list of its regions.
            plans: How each picture is tiled.

        Returns:
            ``region_coverage``, ``region_image_index`` and ``region_shapes`` as in `preprocess`.

        Raises:
            ValueError: If a region cannot be used; the message names it by its number.
        """
        return _cover_regions(regions, plans, self.region_pooling, self.spatial_side)

    def _validate_preprocess_kwargs(self, **kwargs: Any) -> None:  # type: ignore[override]
        for name in _DECIDED_BY_TILING:
            if kwargs.get(name) is not None:
                raise ValueError(f"{name} cannot be set: tiling decides every size")
        for name in ("do_rescale", "do_normalize", "do_convert_rgb"):
            if kwargs.get(name) is False:
                raise ValueError(f"{name}=False is not supported: tiles are normalised RGB")
        require_choices(kwargs)
        if kwargs["spatial_side"] < 0:
            raise ValueError(f"spatial_side must be a number of pixels, or 0, not {kwargs['spatial_side']!r}")
        _tiling(kwargs)

    def _preprocess_image_like_inputs(  # type: ignore[override]
        self, images: Any, regions: Sequence[Any] | None, **kwargs: Any
    ) -> BatchFeature:
        if not isinstance(images, (list, tuple)):
            images = [images]
            regions = None if regions is None else [regions]
        tiling = _tiling(kwargs)
        pictures = self._load(images, kwargs["device"])
        plans = [tiling.plan(*picture.shape[-2:]) for picture in pictures]
        _require_not_too_long(plans)
        side = tiling.tile_size
        tiles = torch.zeros(sum(plan.num_tiles for plan in plans), 3, side, side, device=kwargs["device"])
        of_pictures = tiles.split([plan.num_tiles for plan in plans])
        for picture, plan, of_picture in zip(pictures, plans, of_pictures, strict=True):
            self._fill(of_picture, picture, plan, kwargs)
        data = {
            "pixel_values": tiles,
            "tile_grids": torch.tensor([(plan.rows, plan.cols) for plan in plans], dtype=torch.int64).reshape(-1, 2),
        }
        if regions is not None:
            data |= _cover_regions(regions, plans, kwargs["region_pooling"], kwargs["spatial_side"])
        return BatchFeature(data, tensor_type=kwargs["return_tensors"])

    def _load(self, images: Sequence[Any], device: Any) -> list[torch.Tensor]:
        """Pictures as uint8 (3, height, width), source pixels."""
        pictures = []
        for index, image in enumerate(images):
            try:
                picture = load_image(image)
            except ValueError as error:
                raise ValueError(f"picture {index}: {error}") from error
            pictures.append(tvF.pil_to_tensor(picture).to(device))
        return pictures

    def _fill(self, tiles: torch.Tensor, picture: torch.Tensor, plan: TilePlan, settings: dict[str, Any]) -> None:
        """Cut a picture and write its tiles.

        Args:
            tiles: Zeros, float32 (plan.num_tiles, 3, tile_size, tile_size); written tile by tile, so that what is
                being normalised stays in the processor's cache.
            picture: uint8 (3, height, width), source pixels; in memory with the channels last, as decoders leave it,
                which is also what torch resizes fastest.
            plan: How it is cut.
            settings: Of the call.
        """
        normalisation = self._normalisation(settings, tiles.device)
        if plan.tiling.square:
            normalisation(_squared(picture, plan, settings["image_mean"], settings["resample"]), tiles[0])
            return
        antialias = settings["resize_mode"] == "antialiased"
        resample = settings["resample"] if antialias else PILImageResampling.BILINEAR
        if not antialias:
            picture = normalisation(picture)

        def resized(source: torch.Tensor, height: int, width: int) -> torch.Tensor:
            return self.resize(source, SizeDict(height=height, width=width), resample, antialias=antialias)

        side = plan.tiling.tile_size
        on_canvas = resized(picture, plan.resized_height, plan.resized_width)
        for number in range(plan.rows * plan.cols):
            top, left = side * (number // plan.cols), side * (number % plan.cols)
            normalisation(on_canvas[:, top : top + side, left : left + side], tiles[number])
        if plan.has_thumbnail:
            of_canvas = settings["thumbnail_source"] == "canvas"
            source = _padded(normalisation(on_canvas), plan) if of_canvas else picture
            normalisation(resized(source, plan.thumbnail_height, plan.thumbnail_width), tiles[-1])

    def _normalisation(self, settings: dict[str, Any], device: torch.device) -> "_Normalisation":
        mean, std = (
            torch.tensor(settings[name], device=device)[:, None, None] * (1.0 / self.rescale_factor)
            for name in ("image_mean", "image_std")
        )
        return _Normalisation(mean, std)


@dataclass(frozen=True)
class _Normalisation:
    """Pixels from 0 to 255 -> float32 of mean 0 and deviation 1 over the tower's training pictures.

    Attributes:
        mean: (3, 1, 1), of pixels from 0 to 255.
        std: (3, 1, 1), alike.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __call__(self, pixels: torch.Tensor, tile: torch.Tensor | None = None) -> torch.Tensor:
        """Normalise pixels (3, h, w) unless they are floats, which are already; into a tile, from its top left."""
        target = None if tile is None else tile[:, : pixels.shape[-2], : pixels.shape[-1]]
        if pixels.dtype == torch.uint8:
            return torch.sub(pixels, self.mean, out=target).div_(self.std)
        return pixels if target is None else target.copy_(pixels)


def _tiling(settings: Mapping[str, Any]) -> Tiling:
    """The rules of tiling that settings of the image processor describe."""
    names = ("tile_size", "patch_size", "scale_factor", "max_tiles")
    return Tiling(
        **{name: settings[name] for name in names},
        thumbnail=settings["thumbnail_source"] != "none",
        square=settings["picture_layout"] == "square",
    )


def _require_not_too_long(plans: Sequence[TilePlan]) -> None:
    """Raise ValueError for a picture so long that its square takes too many pixels even when it is a tile wide."""
    for number, plan in enumerate(plans):
        if plan.tiling.square and plan.frame_height * plan.tiling.tile_size > MAX_PIXELS:
            raise ValueError(
                f"picture {number}: {plan.height} x {plan.width} pixels (height x width) are too long for a square; "
                f"cut it to {MAX_PIXELS // plan.tiling.tile_size} pixels"
            )


def _padded(picture: torch.Tensor, plan: TilePlan) -> torch.Tensor:
    """(3, resized_height, resized_width) -> (3, canvas_height, canvas_width), zero beyond; in memory channels last."""
    canvas = picture.new_zeros(plan.canvas_height, plan.canvas_width, 3).permute(2, 0, 1)
    canvas[:, : plan.resized_height, : plan.resized_width] = picture
    return canvas


def _squared(picture: torch.Tensor, plan: TilePlan, mean: Sequence[float], resample: int) -> torch.Tensor:
    """The picture in the middle of a square, resized to a tile, to the last digit as Pillow resizes the whole square.

    Pillow resizes columns first, each row on its own, then rows. The square is never made: it is as large as the
    longer side of the picture is long both ways.

    Args:
        picture: uint8 (3, height, width), source pixels.
        plan: Of one tile.
        mean: Of the channels, 0 to 1; its whole part of 255 is the colour of the padding.
        resample: Filter, as Pillow numbers them.

    Returns:
        uint8 (3, tile_size, tile_size), on the device of the picture.
    """
    side, frame = plan.tiling.tile_size, plan.frame_height
    colour = np.array([int(channel * 255) for channel in mean], dtype=np.uint8)
    pixels = picture.permute(1, 2, 0).cpu().numpy()
    narrowed = np.broadcast_to(colour, (frame, side, 3)).copy()
    at_a_time = max(1, _PIXELS_AT_A_TIME // frame)
    for first in range(0, plan.height, at_a_time):
        rows = pixels[first : first + at_a_time]
        padded = np.broadcast_to(colour, (len(rows), frame, 3)).copy()
        padded[:, plan.left : plan.left + plan.width] = rows
        top = plan.top + first
        narrowed[top : top + len(rows)] = np.asarray(Image.fromarray(padded).resize((side, len(rows)), resample))
    square = Image.fromarray(narrowed).resize((side, side), resample)
    return tvF.pil_to_tensor(square).to(picture.device)


def _cover_regions(
    regions: Sequence[Any], plans: Sequence[TilePlan], pooling: str, spatial_side: int
) -> dict[str, torch.Tensor]:
    """Coverage, picture number and, if asked for, shape of all regions, in order."""
    if len(regions) != len(plans):
        raise ValueError(f"{len(plans)} pictures, {len(regions)} lists of regions; each picture needs its own list")
    for picture, of_picture in enumerate(regions):
        if isinstance(of_picture, (str, Mapping)) or not isinstance(of_picture, Iterable):
            raise ValueError(f"picture {picture}: its regions must be a list, not {type(of_picture).__name__}")
    runs = [
        [_runs(region, plan, f"picture {picture}, region {number}") for number, region in enumerate(of_picture)]
        for picture, (plan, of_picture) in enumerate(zip(plans, regions, strict=True))
    ]
    counts = [len(of_picture) for of_picture in runs]
    coverage = torch.zeros(sum(counts), max((plan.num_cells for plan in plans), default=0))
    for of_picture, plan, rows in zip(runs, plans, coverage.split(counts), strict=True):
        if of_picture:
            rows[:, : plan.num_cells] = torch.from_numpy(_COVERAGE[pooling](of_picture, plan))
    image_index = torch.arange(len(plans)).repeat_interleave(torch.tensor(counts, dtype=torch.int64))
    covered = {"region_coverage": coverage, "region_image_index": image_index}
    if not spatial_side:
        return covered
    shapes = [_SHAPE[pooling](region, spatial_side) for of_picture in runs for region in of_picture]
    stacked = np.array(shapes, dtype=np.float32).reshape(-1, spatial_side, spatial_side)
    return covered | {"region_shapes": torch.from_numpy(stacked)}


def _runs(region: Region, plan: TilePlan, name: str) -> Runs:
    try:
        return to_runs(region, plan.height, plan.width)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
