"""What images are asked to show: labels, guidance, concepts."""
