"""Markov transition kernels. A kernel needs a potential and a step size; it does not know levels."""

from cdrl_infer.kernels.registry import KERNELS as KERNELS
