"""Measuring a trained model: how good its samples are, and what its scores tell apart."""
