"""Markov transition kernels; they know nothing but an energy."""
