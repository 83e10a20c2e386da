"""The objectives of training by name; docs/extending.md shows how to add one."""

from cdrl_infer.registry import Registry
from cdrl_train.objectives.base import Limit, Losses, Models, Objective

OBJECTIVES: Registry[type[Objective]] = Registry(
    "objective",
    {
        "score_matching": "cdrl_train.objectives.score_matching:ScoreMatching",
        "drl": "cdrl_train.objectives.drl:RecoveryLikelihood",
        "cooperative": "cdrl_train.objectives.cooperative:Cooperative",
        "autoencoder": "cdrl_train.objectives.autoencoder:Autoencoding",
        "mpdr": "cdrl_train.objectives.mpdr:ManifoldRecovery",
        "persistent": "cdrl_train.objectives.persistent:Persistent",
        "reconstruction": "cdrl_train.objectives.manifold:Reconstruction",
        "manifold": "cdrl_train.objectives.manifold:Manifold",
        "snl": "cdrl_train.objectives.snl:SelfNormalised",
        "normalised": "cdrl_train.objectives.normalised:Normalised",
        "snelbo": "cdrl_train.objectives.snelbo:SelfNormalisedELBO",
        "nce": "cdrl_train.objectives.nce:NoiseContrastive",
    },
)

__all__ = ["OBJECTIVES", "Limit", "Losses", "Models", "Objective"]
