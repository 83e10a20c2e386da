"""Conditions on the images to draw: labels, guidance, concepts."""
