"""SiLU whose derivatives are few operations, also when a loss has a gradient in it.

Score matching differentiates twice. `torch.nn.functional.silu` then takes some twenty operations, each of
which reads and writes a whole tensor; this takes ten.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor


def silu(x: Tensor) -> Tensor:
    """``x sigmoid(x)``, the same shape. It can be differentiated twice, not three times."""
    if x.requires_grad and not torch.compiler.is_compiling():  # compiled, it is differentiated once
        return cast(Tensor, _Silu.apply(x))  # type: ignore[no-untyped-call]
    return torch.nn.functional.silu(x)


class _Silu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return torch.nn.functional.silu(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return cast(Tensor, _SiluGradient.apply(x, grad))  # type: ignore[no-untyped-call]


class _SiluGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, grad: Tensor) -> Tensor:
        ctx.save_for_backward(x, grad)
        return cast(Tensor, torch.ops.aten.silu_backward(grad, x))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, grad = ctx.saved_tensors
        of_x, of_grad = ctx.needs_input_grad
        return (
            curvature(x).mul_(grad).mul_(outer) if of_x else None,
            torch.ops.aten.silu_backward(outer, x) if of_grad else None,
        )


def curvature(x: Tensor) -> Tensor:
    """The second derivative ``s (1 - s) (2 + x (1 - 2 s))`` with ``s = sigmoid(x)``."""
    s = torch.sigmoid(x)
    inner = torch.rsub(s, 1, alpha=2).mul_(x).add_(2)
    return inner.mul_(torch.addcmul(s, s, s, value=-1))
