"""Tiling: how a picture of any size becomes tiles of one size, and where its cells and tokens come from.

This module owns the geometry. It is plain arithmetic, and everything that needs a size, an order or a count asks it.

Four frames follow one another:

- *source pixels*: the picture as it was given, ``height`` x ``width``.
- *resized pixels*: the *frame* scaled, aspect kept, so that it touches two opposite sides of the canvas. The frame is
  the picture; in the square layout it is the square of the picture's longer side, with the picture in its middle,
  ``top`` and ``left`` source pixels from its edges. A coordinate in the frame times ``resized / frame`` (one ratio a
  side, because each side is rounded) is a resized coordinate.
- *canvas pixels*: ``rows * tile_size`` x ``cols * tile_size``. The resized frame lies at its top left, so resized and
  canvas coordinates are equal; the rest is padding. The canvas is cut into ``rows * cols`` tiles, row by row. When
  there is more than one, a thumbnail (the whole picture in one tile) follows as the last.
- *cells*: the patches of the vision tower, ``cells_per_side`` x ``cells_per_side`` a tile. They are numbered tile by
  tile (tiles row by row) and row by row inside a tile. The thumbnail's cells are not numbered.

Grid tables, score and rounding are those of TokenPacker-HD (Li et al., 2024, https://arxiv.org/abs/2407.02392). The
square layout is that of LLaVA-1.5 (`image_aspect_ratio` "pad"), of TokenPacker without HD and of LLaVA-STF: one tile,
no separators.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

# (rows, cols), in the order of preference among equal scores; the table for n tiles holds the grids of at most n tiles.
_GRIDS = (
    *((1, 1), (1, 2), (2, 1), (1, 3), (3, 1), (2, 2), (1, 4), (4, 1), (1, 5), (5, 1), (1, 6), (6, 1), (2, 3), (3, 2)),
    *((1, 7), (7, 1), (4, 2), (2, 4), (1, 8), (8, 1), (3, 3), (1, 9), (9, 1)),
    *((2, 5), (5, 2), (2, 6), (6, 2), (3, 4), (4, 3), (2, 7), (7, 2), (3, 5), (5, 3), (2, 8), (8, 2), (4, 4)),
    *((3, 6), (6, 3), (2, 9), (9, 2), (4, 5), (5, 4), (2, 10), (10, 2), (3, 7), (7, 3), (11, 2), (2, 11)),
    *((4, 6), (6, 4), (12, 2), (2, 12), (3, 8), (8, 3), (5, 5)),
)

MAX_TILES = (9, 16, 25)
"""Sizes of the published grid tables."""

TILE_SEPARATOR_INDEX = 0
ROW_SEPARATOR_INDEX = 1
FIRST_TILE_TOKEN_INDEX = 2


@dataclass(frozen=True)
class Tiling:
    """The rules of tiling.

    Args:
        tile_size: Side of a tile in canvas pixels.
        patch_size: Side of a cell in canvas pixels (the patch of the vision tower); divides ``tile_size``.
        scale_factor: The projector turns ``scale_factor**2`` cells into one visual token; divides ``cells_per_side``.
        max_tiles: The most tiles a picture is cut into (the thumbnail not counted); published are 9, 16 and 25, and any
            fewer than 25 can be a budget; 1 for squares.
        thumbnail: A picture of more than one tile is followed by a thumbnail.
        square: Every picture is one tile, padded to a square, and its visual tokens have no separators.

    Raises:
        ValueError: If the numbers do not fit together.
    """

    tile_size: int = 336
    patch_size: int = 14
    scale_factor: int = 2
    max_tiles: int = 9
    thumbnail: bool = True
    square: bool = False

    def __post_init__(self) -> None:
        for name in ("tile_size", "patch_size", "scale_factor", "max_tiles"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a positive whole number, not {value!r}")
        if self.square and self.max_tiles != 1:
            raise ValueError(f"max_tiles must be 1 where every picture is one square, not {self.max_tiles}")
        if self.max_tiles > max(MAX_TILES):
            raise ValueError(f"max_tiles must be at most {max(MAX_TILES)}, not {self.max_tiles}")
        if self.tile_size % self.patch_size:
            raise ValueError(f"patch_size {self.patch_size} does not divide tile_size {self.tile_size}")
        if self.cells_per_side % self.scale_factor:
            raise ValueError(
                f"scale_factor {self.scale_factor} does not divide the {self.cells_per_side} cells along a tile's side"
            )

    @property
    def cells_per_side(self) -> int:
        """Cells along one side of a tile."""
        return self.tile_size // self.patch_size

    @property
    def cells_per_tile(self) -> int:
        """Cells of one tile."""
        return self.cells_per_side**2

    @property
    def tokens_per_tile(self) -> int:
        """Visual tokens of one tile."""
        return (self.cells_per_side // self.scale_factor) ** 2

    @property
    def separators(self) -> bool:
        """Whether separators stand between tiles and after rows of them."""
        return not self.square

    @property
    def grids(self) -> tuple[tuple[int, int], ...]:
        """Candidate tile grids (rows, cols); of equal scores the first wins."""
        return tuple(grid for grid in _GRIDS if grid[0] * grid[1] <= self.max_tiles)

    @property
    def max_cells(self) -> int:
        """The most cells a picture can have."""
        return self.max_tiles * self.cells_per_tile

    def choose_grid(self, height: int, width: int) -> tuple[int, int]:
        """Tile grid (rows, cols) with the highest published score for a picture of ``height`` x ``width`` pixels."""
        _check_size(height, width)
        return max(self.grids, key=lambda grid: self._score(grid, height, width))

    def count_visual_tokens(self, rows: int, cols: int) -> int:
        """Visual tokens, separators included, of a ``rows`` x ``cols`` grid."""
        return count_visual_tokens(rows, cols, self.tokens_per_tile, self.thumbnail, separators=self.separators)

    def plan(self, height: int, width: int) -> "TilePlan":
        """Apply the rules to a picture of ``height`` x ``width`` source pixels."""
        rows, cols = self.choose_grid(height, width)
        return TilePlan(self, height, width, rows, cols)

    def _score(self, grid: tuple[int, int], height: int, width: int) -> float:
        """Share of the canvas that the picture fills, plus a tenth of the IoU of canvas and enlarged picture."""
        canvas_height, canvas_width = grid[0] * self.tile_size, grid[1] * self.tile_size
        canvas_area = canvas_height * canvas_width
        ratio = min(canvas_height / height, canvas_width / width)
        filled = round(height * ratio) * round(width * ratio) / canvas_area
        enlarged_height, enlarged_width = 1.4 * height, 1.4 * width
        overlap = min(canvas_height, enlarged_height) * min(canvas_width, enlarged_width)
        union = canvas_area + enlarged_height * enlarged_width - overlap
        return filled + 0.1 * overlap / (union + 1e-5)


@dataclass(frozen=True)
class TilePlan:
    """The rules applied to one picture of ``height`` x ``width`` source pixels, cut into ``rows`` x ``cols`` tiles."""

    tiling: Tiling
    height: int
    width: int
    rows: int
    cols: int

    def __post_init__(self) -> None:
        _check_size(self.height, self.width)
        if self.rows < 1 or self.cols < 1:
            raise ValueError(f"a tile grid has at least one row and one column, not {self.rows} x {self.cols}")
        if self.tiling.square and self.rows * self.cols != 1:
            raise ValueError(f"a square is one tile, not {self.rows} x {self.cols}")

    @property
    def canvas_height(self) -> int:
        """Canvas pixels."""
        return self.rows * self.tiling.tile_size

    @property
    def canvas_width(self) -> int:
        """Canvas pixels."""
        return self.cols * self.tiling.tile_size

    @property
    def frame_height(self) -> int:
        """Source pixels."""
        return max(self.height, self.width) if self.tiling.square else self.height

    @property
    def frame_width(self) -> int:
        """Source pixels."""
        return max(self.height, self.width) if self.tiling.square else self.width

    @property
    def top(self) -> int:
        """Rows of the frame above the picture, in source pixels; where padding is odd, one row more follows below."""
        return (self.frame_height - self.height) // 2

    @property
    def left(self) -> int:
        """Columns of the frame before the picture, in source pixels."""
        return (self.frame_width - self.width) // 2

    @cached_property
    def _resized_size(self) -> tuple[int, int]:
        return _fit(self.frame_height, self.frame_width, self.canvas_height, self.canvas_width)

    @cached_property
    def _thumbnail_size(self) -> tuple[int, int]:
        return _fit(self.height, self.width, self.tiling.tile_size, self.tiling.tile_size)

    @property
    def resized_height(self) -> int:
        """Height of the frame on the canvas, in canvas pixels."""
        return self._resized_size[0]

    @property
    def resized_width(self) -> int:
        """Width of the frame on the canvas, in canvas pixels."""
        return self._resized_size[1]

    @property
    def thumbnail_height(self) -> int:
        """Height of the picture inside the thumbnail tile, in pixels of that tile."""
        return self._thumbnail_size[0]

    @property
    def thumbnail_width(self) -> int:
        """Width of the picture inside the thumbnail tile, in pixels of that tile."""
        return self._thumbnail_size[1]

    @property
    def has_thumbnail(self) -> bool:
        """Whether a thumbnail follows the tiles."""
        return self.tiling.thumbnail and self.rows * self.cols > 1

    @property
    def num_tiles(self) -> int:
        """Tiles, thumbnail included."""
        return count_tiles(self.rows, self.cols, self.tiling.thumbnail)

    @property
    def num_cells(self) -> int:
        """Cells of the canvas, thumbnail excluded."""
        return self.rows * self.cols * self.tiling.cells_per_tile

    @property
    def cells_per_source_pixel(self) -> float:
        """How many cells a source pixel fills."""
        canvas_pixels = self.resized_height * self.resized_width / (self.frame_height * self.frame_width)
        return canvas_pixels / self.tiling.patch_size**2

    @property
    def num_visual_tokens(self) -> int:
        """Visual tokens with their separators, thumbnail included."""
        return self.tiling.count_visual_tokens(self.rows, self.cols)

    def cell_of_source_pixel(self, y: int, x: int) -> int:
        """Index of the cell that holds the centre of source pixel (y, x).

        Raises:
            ValueError: If the pixel lies outside the picture.
        """
        if not (0 <= y < self.height and 0 <= x < self.width):
            raise ValueError(f"pixel (y={y}, x={x}) lies outside the picture of {self.height} x {self.width} pixels")
        canvas_y = (self.top + y + 0.5) * self.resized_height / self.frame_height
        canvas_x = (self.left + x + 0.5) * self.resized_width / self.frame_width
        return self.cell_index(int(canvas_y // self.tiling.patch_size), int(canvas_x // self.tiling.patch_size))

    def cell_index(self, cell_row: int, cell_col: int) -> int:
        """Index of the cell in row ``cell_row`` and column ``cell_col`` of the whole canvas."""
        side = self.tiling.cells_per_side
        tile = (cell_row // side) * self.cols + cell_col // side
        return tile * self.tiling.cells_per_tile + (cell_row % side) * side + cell_col % side

    def source_box_of_cell(self, index: int) -> tuple[float, float, float, float]:
        """Part of the picture that cell ``index`` shows: (x0, y0, x1, y1) in source pixels, of no area for padding.

        Raises:
            ValueError: If there is no such cell.
        """
        if not 0 <= index < self.num_cells:
            raise ValueError(f"cell {index} does not exist; the picture has {self.num_cells} cells")
        side, patch = self.tiling.cells_per_side, self.tiling.patch_size
        tile, cell = divmod(index, self.tiling.cells_per_tile)
        canvas_y = (tile // self.cols * side + cell // side) * patch
        canvas_x = (tile % self.cols * side + cell % side) * patch
        y_ratio, x_ratio = self.frame_height / self.resized_height, self.frame_width / self.resized_width
        y0, y1 = (min(max(y * y_ratio - self.top, 0.0), self.height) for y in (canvas_y, canvas_y + patch))
        x0, x1 = (min(max(x * x_ratio - self.left, 0.0), self.width) for x in (canvas_x, canvas_x + patch))
        return x0, y0, x1, y1


def count_tiles(rows: int, cols: int, thumbnail: bool = True) -> int:
    """Tiles of a ``rows`` x ``cols`` grid, thumbnail included where pictures of several tiles have one."""
    tiles = rows * cols
    return tiles + 1 if thumbnail and tiles > 1 else tiles


def count_visual_tokens(
    rows: int, cols: int, tokens_per_tile: int, thumbnail: bool = True, *, separators: bool = True
) -> int:
    """Visual tokens of a ``rows`` x ``cols`` grid: tiles, thumbnail and separators (`visual_token_layout`)."""
    of_tiles = count_tiles(rows, cols, thumbnail) * tokens_per_tile
    if not separators:
        return of_tiles
    tile_separators = rows * (cols - 1)
    row_separators = rows + count_tiles(rows, cols, thumbnail) - rows * cols
    return of_tiles + tile_separators + row_separators


def visual_token_layout(
    rows: int,
    cols: int,
    tokens_per_tile: int,
    thumbnail: bool = True,
    shown: Sequence[int] | None = None,
    *,
    separators: bool = True,
) -> np.ndarray:
    """Order of visual tokens and separators of one picture.

    Tiles of a row are joined by the tile separator and closed by the row separator. With more than one tile, the
    thumbnail, where there is one, and another row separator follow. Without separators, tile follows tile.

    Args:
        rows: Of the tile grid.
        cols: Of the tile grid.
        tokens_per_tile: Visual tokens of a tile.
        thumbnail: Pictures of several tiles have one.
        shown: Tiles of the grid that are shown, ascending; all by default. Nothing stands for the others: those of a
            row that are shown are neighbours, and a row of which none is shown has no separator.
        separators: Whether there are any; squares have none.

    Returns:
        int64, as long as `count_visual_tokens` where all tiles are shown: indices into the sequence [tile separator,
        row separator, token 0 of the first shown tile, token 1 of it, ...], thumbnail last.
    """
    if shown is not None and len(shown) < rows * cols:
        return _layout_of_shown(cols, tokens_per_tile, thumbnail and rows * cols > 1, shown)
    num_tokens = count_tiles(rows, cols, thumbnail) * tokens_per_tile
    tiles = FIRST_TILE_TOKEN_INDEX + np.arange(num_tokens, dtype=np.int64).reshape(-1, tokens_per_tile)
    if not separators:
        return tiles.reshape(-1)
    grid = tiles[: rows * cols].reshape(rows, cols, tokens_per_tile)
    ends = np.full((rows, cols, 1), TILE_SEPARATOR_INDEX, dtype=np.int64)
    ends[:, -1] = ROW_SEPARATOR_INDEX
    layout = np.concatenate([grid, ends], axis=2).reshape(-1)
    if len(tiles) == rows * cols:
        return layout
    return np.concatenate([layout, tiles[-1], [ROW_SEPARATOR_INDEX]])


def _layout_of_shown(cols: int, tokens_per_tile: int, thumbnail: bool, shown: Sequence[int]) -> np.ndarray:
    tokens = FIRST_TILE_TOKEN_INDEX + np.arange((len(shown) + thumbnail) * tokens_per_tile, dtype=np.int64)
    tiles = tokens.reshape(-1, tokens_per_tile)
    parts = [np.empty(0, dtype=np.int64)]
    for place, tile in enumerate(shown):
        goes_on = place + 1 < len(shown) and shown[place + 1] // cols == tile // cols
        separator = TILE_SEPARATOR_INDEX if goes_on else ROW_SEPARATOR_INDEX
        parts += [tiles[place], np.array([separator])]
    if thumbnail:
        parts += [tiles[-1], np.array([ROW_SEPARATOR_INDEX])]
    return np.concatenate(parts)


def _fit(height: int, width: int, box_height: int, box_width: int) -> tuple[int, int]:
    """Size of a picture scaled into a box, aspect kept; halves round to even and no side falls below one pixel."""
    height_ratio, width_ratio = box_height / height, box_width / width
    if height_ratio <= width_ratio:
        return box_height, min(box_width, max(1, round(width * height_ratio)))
    return min(box_height, max(1, round(height * width_ratio))), box_width


def _check_size(height: int, width: int) -> None:
    if height < 1 or width < 1:
        raise ValueError(f"a picture has at least one pixel, not {height} x {width} (height x width)")
