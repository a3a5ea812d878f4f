"""Regions that were found in a picture rather than pointed at: by the segmenter, or in a user's own file."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from app.state import Shape
from osprey_tp.mask_selection import distinct_masks
from osprey_tp.run_lengths import Runs


@dataclass(frozen=True)
class Found:
    """A region of a picture, and what is known about it.

    Attributes:
        shape: Where it is.
        box: (x0, y0, x1, y1) in source pixels, the far ends exclusive.
        area: Source pixels inside.
        category: As the user's file calls it, or as the model does if it was asked for that; "" if nobody said.
        caption: The model's answer about it, or the user's file's; "" if there is none.
    """

    shape: Shape
    box: tuple[int, int, int, int]
    area: int
    category: str = ""
    caption: str = ""

    @classmethod
    def of(cls, shape: Shape, category: str = "", caption: str = "") -> "Found":
        """With the box and the area that the shape has."""
        runs = Runs.of_rle(shape.rle, *shape.rle["size"])
        return cls(shape, runs.box, runs.area, category, caption)

    @property
    def label(self) -> str:
        """What there is to say about it: the caption, after the category where that says something else."""
        said = [self.category, self.caption]
        return self.caption if self.category == self.caption.rstrip(".") else ": ".join(filter(None, said))

    def saying(self, caption: str, *, is_category: bool) -> "Found":
        """The same with the model's answer; a category that the user gave stays."""
        category = caption.rstrip(".") if is_category and not self.category else self.category
        return replace(self, caption=caption, category=category)


@dataclass(frozen=True)
class Chosen:
    """Regions that were found, and how many others were left out as too small or as doubles of better ones."""

    regions: tuple[Found, ...]
    small: int = 0
    doubles: int = 0

    def __str__(self) -> str:
        """As a user reads it: `12 regions (3 small ones and 1 double left out)`."""
        left_out = [
            f"{count} {one if count == 1 else several}"
            for count, one, several in (
                (self.small, "small one", "small ones"),
                (self.doubles, "double", "doubles"),
            )
            if count
        ]
        noun = "region" if len(self.regions) == 1 else "regions"
        note = f" ({' and '.join(left_out)} left out)" if left_out else ""
        return f"{len(self.regions)} {noun}{note}"


def choose(regions: Iterable[Found], least_area: float = 1.0) -> Chosen:
    """Those of at least so many source pixels, of several nearly equal ones the one with the best score, in order."""
    given = tuple(regions)
    large = tuple(region for region in given if region.area >= max(1.0, least_area))
    kept = distinct_masks([region.shape.rle for region in large], [region.shape.score for region in large])
    regions = tuple(large[index] for index in sorted(kept))
    return Chosen(regions, len(given) - len(large), len(large) - len(regions))
