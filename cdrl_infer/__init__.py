"""Energy-based models trained by Cooperative Diffusion Recovery Likelihood: sampling from them.

Names are imported when first used, so that ``import cdrl_infer`` costs next to nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from cdrl_infer.errors import (
    CDRLError,
    CheckpointError,
    ConfigError,
    InputError,
    NetworkError,
    NumericalError,
    PackageError,
)
from cdrl_infer.version import __version__

if TYPE_CHECKING:
    from cdrl_infer.drawing import CDRLPipelineOutput
    from cdrl_infer.model import CDRLModel
    from cdrl_infer.pipeline import CDRLPipeline
    from cdrl_infer.sampler import CooperativeSampler, LevelEnd
    from cdrl_infer.schedule import NoiseSchedule
    from cdrl_infer.scoring.detector import CDRLDetector as CDRLDetector
    from cdrl_infer.scoring.reference import ReferenceStatistics
    from cdrl_infer.scoring.scorer import ScoreOutput
    from cdrl_infer.storage.folder import load_model, save_model

__all__ = [
    "CDRLError",
    "CDRLModel",
    "CDRLPipeline",
    "CDRLPipelineOutput",
    "CheckpointError",
    "ConfigError",
    "CooperativeSampler",
    "InputError",
    "LevelEnd",
    "NetworkError",
    "NoiseSchedule",
    "NumericalError",
    "PackageError",
    "ReferenceStatistics",
    "ScoreOutput",
    "__version__",
    "load_model",
    "save_model",
]

_HOMES = {
    "CDRLDetector": "scoring.detector",  # needs scikit-learn, so that `import *` must not ask for it
    "CDRLModel": "model",
    "CDRLPipeline": "pipeline",
    "CDRLPipelineOutput": "drawing",
    "CooperativeSampler": "sampler",
    "LevelEnd": "sampler",
    "NoiseSchedule": "schedule",
    "ReferenceStatistics": "scoring.reference",
    "ScoreOutput": "scoring.scorer",
    "load_model": "storage.folder",
    "save_model": "storage.folder",
}


def __getattr__(name: str) -> object:
    if name in _HOMES:
        return getattr(importlib.import_module(f"cdrl_infer.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'cdrl_infer' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*__all__, *_HOMES})
