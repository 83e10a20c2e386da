"""Markov transition kernels: they know a potential and a step size, and nothing of levels."""

from cdrl_infer.kernels.registry import KERNELS as KERNELS
