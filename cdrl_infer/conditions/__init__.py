"""What the images shall show: labels, guidance, expressions of concepts."""
