"""Out-of-distribution scores: how odd is an image for a model? Higher = more anomalous, always."""

from cdrl_infer.scoring.registry import SCORES as SCORES
