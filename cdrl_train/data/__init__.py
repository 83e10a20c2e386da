"""Data sets: uint8 images with labels, read from a named source or a path, and batches of them.

What needs torch is imported when it is first used, so that a command's help does not load it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from cdrl_train.data.registry import SOURCES as SOURCES
from cdrl_train.data.registry import Source as Source
from cdrl_train.data.registry import source_help as source_help

if TYPE_CHECKING:
    from cdrl_train.data.image_set import ImageSet as ImageSet
    from cdrl_train.data.sources import data_name as data_name
    from cdrl_train.data.sources import expected as expected
    from cdrl_train.data.sources import load_images as load_images
    from cdrl_train.data.stream import Batch as Batch
    from cdrl_train.data.stream import BatchStream as BatchStream

_HOMES = {
    **dict.fromkeys(["data_name", "expected", "load_images"], "sources"),
    **dict.fromkeys(["Batch", "BatchStream"], "stream"),
    "ImageSet": "image_set",
}


def __getattr__(name: str) -> object:
    if name in _HOMES:
        return getattr(importlib.import_module(f"cdrl_train.data.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'cdrl_train.data' has no attribute {name!r}")
