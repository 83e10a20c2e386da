"""SiLU and its derivatives, against PyTorch's own and against differences."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cdrl_infer.networks.activations import curvature, silu


def points() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return 3 * torch.randn(40, generator=generator, dtype=torch.float64)


def test_values_and_both_derivatives_are_right() -> None:
    x = points().requires_grad_(True)
    assert torch.equal(silu(x), torch.nn.functional.silu(x))
    assert torch.autograd.gradcheck(silu, (x,))
    assert torch.autograd.gradgradcheck(silu, (x,))


def test_the_second_derivative_is_that_of_differences() -> None:
    x, h = points(), 1e-4
    differences = (silu(x + h) - 2 * silu(x) + silu(x - h)) / h**2
    torch.testing.assert_close(curvature(x), differences, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_loss_with_a_gradient_in_it_has_the_gradient_of_pytorchs_own(dtype: torch.dtype) -> None:
    found = []
    for function in (silu, torch.nn.functional.silu):
        x = points().to(dtype).requires_grad_(True)
        (inner,) = torch.autograd.grad(function(x).sum(), x, create_graph=True)
        (outer,) = torch.autograd.grad(inner.float().square().sum(), x)
        found.append(outer)
    tolerance = 1e-5 if dtype is torch.float32 else 3e-2
    torch.testing.assert_close(found[0], found[1], rtol=tolerance, atol=tolerance)


def test_it_is_not_differentiated_three_times() -> None:
    x = points().requires_grad_(True)
    (first,) = torch.autograd.grad(silu(x).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x, create_graph=True)
    with pytest.raises(RuntimeError):
        torch.autograd.grad(second.sum(), x)
