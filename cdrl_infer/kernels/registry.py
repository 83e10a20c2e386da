"""The transition kernels by name; `KERNELS.register` adds one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cdrl_infer.registry import Registry

if TYPE_CHECKING:
    from cdrl_infer.kernels.base import Kernel

KERNELS: Registry[type[Kernel[Any]]] = Registry(
    "kernel",
    {
        "langevin": "cdrl_infer.kernels.langevin:Langevin",
        "leimkuhler-matthews": "cdrl_infer.kernels.leimkuhler_matthews:LeimkuhlerMatthews",
        "mala": "cdrl_infer.kernels.hmc:MALA",
        "hmc": "cdrl_infer.kernels.hmc:HMC",
    },
)
