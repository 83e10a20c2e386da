"""The feature extractors by name; `cdrl_train.evaluation.extractors.Extractor` shows how to add one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cdrl_infer.registry import Registry

if TYPE_CHECKING:
    from cdrl_train.evaluation.extractors import Extractor

EXTRACTORS: Registry[type[Extractor]] = Registry(
    "extractor",
    {
        "inception-v3-compat": "cdrl_train.evaluation.inception:Inception",
        "cifar10-resnet56": "cdrl_train.evaluation.resnet:CifarResNet",
        "efficientnet-lite0": "cdrl_train.evaluation.efficientnet:EfficientNetLite0",
    },
)
