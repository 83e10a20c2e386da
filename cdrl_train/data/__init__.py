"""Data sets: everything becomes uint8 images and labels."""
