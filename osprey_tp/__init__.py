"""osprey_tp: ask about regions of high-resolution images, and train models that answer.

`import osprey_tp` costs nothing: a public name is loaded when it is first used, and the classes are registered with
transformers' Auto classes then. `import osprey_tp.auto` registers them without using a name.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from osprey_tp.configuration import OspreyTPConfig
    from osprey_tp.describer import RegionDescriber
    from osprey_tp.image_processing import OspreyTPImageProcessor
    from osprey_tp.modeling import OspreyTPForConditionalGeneration, OspreyTPModel
    from osprey_tp.processing import OspreyTPProcessor
    from osprey_tp.sessions import ImageSession
    from osprey_tp.tiling import TilePlan, Tiling

_HOME_OF = {
    "ImageSession": "sessions",
    "OspreyTPConfig": "configuration",
    "OspreyTPForConditionalGeneration": "modeling",
    "OspreyTPImageProcessor": "image_processing",
    "OspreyTPModel": "modeling",
    "OspreyTPProcessor": "processing",
    "RegionDescriber": "describer",
    "TilePlan": "tiling",
    "Tiling": "tiling",
}

__all__ = [
    "ImageSession",
    "OspreyTPConfig",
    "OspreyTPForConditionalGeneration",
    "OspreyTPImageProcessor",
    "OspreyTPModel",
    "OspreyTPProcessor",
    "RegionDescriber",
    "TilePlan",
    "Tiling",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'osprey_tp' has no attribute {name!r}")
    home = _HOME_OF[name]
    if home != "tiling":  # pure arithmetic: usable without torch
        importlib.import_module("osprey_tp.auto")
    return getattr(importlib.import_module(f"osprey_tp.{home}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
