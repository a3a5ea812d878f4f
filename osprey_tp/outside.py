"""What comes from outside and is neither a picture, a mask nor weights: JSON, YAML, paths.

`osprey_tp.images`, `osprey_tp.masks` and `osprey_tp.weights` are the doors for the rest. Behind each, what was read is
what it should be; in front of it, everything ends in a `ValueError` or an `OSError` of one line.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Any

OWN_FILES_ALONE: Mapping[str, Any] = MappingProxyType({"local_files_only": True, "trust_remote_code": False})
"""For `from_pretrained` of transformers: nothing is fetched, and no code that lies in a folder is executed."""

LONGEST_SHOWN = 300
"""Characters of somebody else's text that an error repeats."""

_DEEPEST_YAML = 50  # levels; the time to parse grows with their square


def one_line(text: object, longest: int = LONGEST_SHOWN) -> str:
    """A text, or what an exception says, as part of an error: on one line, of bounded length."""
    words = " ".join(str(text).split()) or type(text).__name__
    return words if len(words) <= longest else f"{words[:longest]} …"


def of_record(record_id: object) -> str:
    """Which record an error is about, at its end: an id is somebody else's text, too."""
    return f"(record {one_line(record_id)})"


def first_line(error: BaseException) -> str:
    """The first line of what an exception says, or its kind if it says nothing."""
    return (str(error) or type(error).__name__).splitlines()[0]


def is_unicode(text: str) -> bool:
    """Whether a text can be written: JSON and pickles can hold halves of surrogate pairs, which cannot."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def require_unicode(text: str, name: str) -> None:
    """Raise ValueError, naming it, for a text that is not Unicode."""
    if not is_unicode(text):
        raise ValueError(f"{name} is not Unicode: it holds half a character, such as one of an emoji that was cut")


def parse_json(content: str | bytes, name: str) -> Any:
    """The value of a JSON text.

    Args:
        content: The text, or its bytes.
        name: What it is called in errors.

    Raises:
        ValueError: if it is no JSON, or nested so deeply that it cannot be followed.
    """
    try:
        return json.loads(content)
    except RecursionError:
        raise ValueError(f"{name} is no JSON (it is nested too deeply)") from None
    except ValueError as error:
        raise ValueError(f"{name} is no JSON ({one_line(error)})") from None


def read_json(path: Path) -> Any:
    """The value of a JSON file in UTF-8.

    Raises:
        ValueError: as `parse_json`.
        OSError: if the file cannot be read.
    """
    return parse_json(path.read_bytes(), str(path))


def parse_yaml(text: str, name: str) -> Any:
    """The value of a YAML text that holds plain values alone.

    Aliases are refused, since a few lines of them stand for more values than any memory holds, and deep nesting.

    Args:
        text: The text.
        name: What it is called in errors.

    Raises:
        ValueError: if it is no such text.
    """
    import yaml

    try:
        depth = 0
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            if isinstance(event, yaml.AliasEvent):
                raise ValueError("it has aliases (*name); write their values out")
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > _DEEPEST_YAML:
                raise ValueError(f"it is nested more than {_DEEPEST_YAML} levels deep")
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(f"{name} is not valid YAML: {one_line(error)}") from None


def read_yaml(path: Path) -> Any:
    """The value of a YAML file in UTF-8; as `parse_yaml`.

    Raises:
        ValueError: if it is no such file.
        OSError: if the file cannot be read.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not valid YAML: {one_line(error)}") from None
    return parse_yaml(text, str(path))


def confined_path(root: Path, relative: str) -> Path:
    """The file at `relative` below `root`.

    Raises:
        ValueError: if the path is empty, absolute, or leaves the root by `..` or through a symbolic link.
        OSError: if a name is longer than the file system takes.
    """
    path = PurePosixPath(relative.replace("\\", "/"))
    if not relative or "\0" in relative or path.is_absolute() or ".." in path.parts or Path(relative).drive:
        raise ValueError(f"image path {one_line(repr(relative))} is not a relative path inside the image folder {root}")
    try:
        resolved = (root / path).resolve()
    except RuntimeError:  # how Python before 3.13 tells of symbolic links in a circle
        raise ValueError(f"image path {one_line(repr(relative))} is a circle of symbolic links") from None
    if not resolved.is_relative_to(root.resolve()):
        raise ValueError(
            f"image path {one_line(repr(relative))} leaves the image folder {root} through a symbolic link"
        )
    return resolved
