"""The log-likelihood of a chain of levels: its normalisers, once per model, and then one forward pass."""
