"""Out-of-distribution scores: how odd is an image for a model? Higher = more anomalous, always."""
