"""COCO files: a user's own masks in, regions with their captions out.

```
{"images": [{"id": 1, "file_name": "a.jpg", "height": 360, "width": 640}],
 "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "segmentation": {"size": [360, 640], "counts": "..."},
                  "bbox": [x, y, width, height], "area": 812, "iscrowd": 0, "score": 0.97,
                  "caption": "a valve with a red handle"}],
 "categories": [{"id": 1, "name": "valve"}]}
```

What comes from outside is hostile until `osprey_tp.masks` has read it.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from app.found import Found
from app.state import Shape
from osprey_tp.masks import to_mask
from osprey_tp.outside import one_line, parse_json
from osprey_tp.run_lengths import finite_numbers

MOST_REGIONS = 512
LONGEST_TEXT = 2000  # characters of a caption
UNNAMED = "object"
"""The category of regions that have none: COCO's tools want one for each annotation."""


def read_coco(content: str | bytes, picture: str, height: int, width: int) -> list[Found]:
    """The regions that a COCO file has of a picture.

    Args:
        content: Of the file: an object with `images` and `annotations`, or a list of results
            (`[{"image_id", "segmentation", "score"}]`) of one picture. Segmentations are polygons or run-length
            encodings, compressed or not; without one, the `bbox` counts. What has neither is left out.
        picture: Name of the picture's file.
        height: Of the picture in source pixels.
        width: Of the picture in source pixels.

    Raises:
        ValueError: If the file is no COCO file, has several pictures of which none or several can be meant, has masks
            of another size or more than `MOST_REGIONS`, or if one cannot be used; the message names the annotation.
    """
    data = _parse(content)
    if isinstance(data, list):
        annotations, names = _of_one_picture(data), {}
    else:
        image = _image(data, picture, height, width)
        annotations = [each for each in _objects(data, "annotations") if each.get("image_id") == image.get("id")]
        names = _category_names(data)
    if not annotations:
        raise ValueError("the file has no annotation of this picture")
    if len(annotations) > MOST_REGIONS:
        raise ValueError(f"the file has {len(annotations)} annotations of this picture; give at most {MOST_REGIONS}")
    found = (_region(entry, number, names, height, width) for number, entry in enumerate(annotations, start=1))
    return [region for region in found if region is not None]


def write_coco(regions: Sequence[Found], picture: str, height: int, width: int, about: str = "") -> str:
    """Regions of a picture as a COCO file.

    Args:
        regions: Annotations 1, 2, ... in this order.
        picture: Name of the picture's file.
        height: Of the picture in source pixels.
        width: Of the picture in source pixels.
        about: How the file was made.
    """
    categories = {name: number for number, name in enumerate(dict.fromkeys(map(_category, regions)), start=1)}
    annotations = [
        {
            "id": number,
            "image_id": 1,
            "category_id": categories[_category(region)],
            "segmentation": region.shape.rle,
            "bbox": [x0, y0, x1 - x0, y1 - y0],
            "area": region.area,
            "iscrowd": 0,
            "score": round(region.shape.score, 4),
            **({"caption": region.caption} if region.caption else {}),
        }
        for number, region in enumerate(regions, start=1)
        for x0, y0, x1, y1 in [region.box]
    ]
    data = {
        "info": {"description": about},
        "images": [{"id": 1, "file_name": picture, "height": height, "width": width}],
        "annotations": annotations,
        "categories": [{"id": number, "name": name} for name, number in categories.items()],
    }
    return json.dumps(data, ensure_ascii=False, indent=1)


def _category(region: Found) -> str:
    return region.category or UNNAMED


def _parse(content: str | bytes) -> Any:
    try:
        text = content.decode("utf-8-sig") if isinstance(content, bytes) else content
        data = parse_json(text, "the file")
    except ValueError:
        raise ValueError("the file is no JSON in UTF-8; a COCO file of masks is needed") from None
    if not isinstance(data, list | dict) or (isinstance(data, dict) and "annotations" not in data):
        raise ValueError('the file is no COCO file: it has no "annotations"')
    return data


def _objects(data: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
    """A list of objects in the file; an empty one where it is missing."""
    entries = data.get(key, [])
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ValueError(f'the file is no COCO file: its "{key}" are no list of objects')
    return entries


def _of_one_picture(data: list[Any]) -> list[Mapping[str, Any]]:
    results = _objects({"results": data}, "results")
    pictures = {str(entry.get("image_id")) for entry in results}
    if len(pictures) > 1:
        raise ValueError(f"the file is a list of results for {len(pictures)} pictures; keep those of this one")
    return results


def _image(data: Mapping[str, Any], picture: str, height: int, width: int) -> Mapping[str, Any]:
    """The entry of `images` that is this picture."""
    images = _objects(data, "images")
    if not images:
        raise ValueError('the file has no "images": which of its annotations are of this picture is not said')
    chosen = images
    if len(images) > 1:
        of_name = [image for image in images if _file_name(image) == picture]
        of_size = [image for image in images if (image.get("height"), image.get("width")) == (height, width)]
        chosen = of_name or of_size
    if len(chosen) != 1:
        raise ValueError(
            f"the file has {len(images)} pictures, {len(chosen) or 'none'} of them named {picture} or of "
            f"{width}x{height} pixels; keep one of them, or name the picture as the file does"
        )
    size = chosen[0].get("width"), chosen[0].get("height")
    if None not in size and size != (width, height):
        of_file = one_line(f"{size[0]}x{size[1]}", longest=40)
        raise ValueError(
            f"the file's masks are for a picture of {of_file} pixels, this one has {width}x{height}; open "
            "the picture that they were made on, or make them again on this one"
        )
    return chosen[0]


def _file_name(image: Mapping[str, Any]) -> str:
    return str(image.get("file_name", "")).replace("\\", "/").rsplit("/", 1)[-1]


def _category_names(data: Mapping[str, Any]) -> dict[str, str]:
    """Names of the categories by their ids as text; `UNNAMED` is none."""
    names = {str(entry.get("id")): _text(entry.get("name")) for entry in _objects(data, "categories")}
    return {key: name for key, name in names.items() if name != UNNAMED}


def _region(entry: Mapping[str, Any], number: int, names: Mapping[str, str], height: int, width: int) -> Found | None:
    """One annotation; None where it has no mask."""
    name = f"annotation {_text(entry['id'])}" if "id" in entry else f"annotation number {number}"
    region = _segmentation(entry.get("segmentation"), name) or _corner_box(entry.get("bbox"), name)
    if region is None:
        return None
    try:
        mask = to_mask(region, height, width, allow_empty=True)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    if not mask.any():
        return None
    score = entry.get("score", entry.get("predicted_iou", 1.0))
    score = float(score) if isinstance(score, int | float) and 0 <= score <= 1 else 1.0
    caption = _text(entry.get("caption") or entry.get("text"))
    return Found.of(Shape.of(mask, score), names.get(str(entry.get("category_id")), ""), caption)


def _segmentation(segmentation: Any, name: str) -> list[Any] | dict[str, Any] | None:
    """In one of COCO's forms alone: the other forms that masks come in may name files of this machine."""
    if not segmentation:
        return None
    if not isinstance(segmentation, list | dict):
        raise ValueError(f'{name}: its "segmentation" is a {type(segmentation).__name__}, not polygons or an encoding')
    if isinstance(segmentation, dict) and "counts" not in segmentation:
        raise ValueError(f'{name}: its "segmentation" has no "counts"')
    return segmentation


def _corner_box(box: Any, name: str) -> dict[str, list[float]] | None:
    """COCO's (x, y, width, height) as a region."""
    if not box:
        return None
    if not isinstance(box, list) or len(box) != 4 or not all(isinstance(value, int | float) for value in box):
        raise ValueError(f'{name}: its "bbox" is not 4 numbers x, y, width, height')
    x, y, across, down = finite_numbers(box, f'{name}: its "bbox"').tolist()
    return {"box": [x, y, x + across, y + down]}


def _text(value: Any) -> str:
    """On one line, of bounded length, in characters that UTF-8 has; "" for what is no text or number."""
    if not isinstance(value, str | int):
        return ""
    return " ".join(str(value).encode("utf-8", "replace").decode("utf-8").split())[:LONGEST_TEXT]
