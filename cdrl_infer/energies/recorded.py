"""On a GPU: an energy network and its gradient, recorded once and then launched all together.

A network has hundreds of short operations, and launching each from Python takes longer than the
operation itself. A CUDA graph launches them at once. It holds for one derivative, in the points alone;
sampling needs no other.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from threading import Lock
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

PLAIN_CALLS = 3  # of one kind, before it is recorded: they choose algorithms and fill caches
KINDS = 4  # recordings of a network that are kept; each keeps the memory of its operations

_asked: ContextVar[bool] = ContextVar("recorded", default=False)
_of_networks: WeakKeyDictionary[nn.Module, _Kinds] = WeakKeyDictionary()
_lock = Lock()


@contextmanager
def recorded(asked: bool = True) -> Iterator[None]:
    """A block whose energies are differentiated at most once, and in the points alone."""
    token = _asked.set(asked)
    try:
        yield
    finally:
        _asked.reset(token)


def call(network: Any, y: Tensor, condition: Any) -> Tensor:
    """``network(y, condition)``, recorded where that is asked for, and possible.

    Args:
        network: an `EBMNetwork`. One that is compiled or has hooks is called as it is.
        y: (B, ...) points.
        condition: tensors, and tuples or lists of them.
    """
    wanted = _asked.get() and torch.is_grad_enabled() and y.requires_grad
    leaves = _tensors(condition) if wanted and _can_record(network, y) else None
    if leaves is not None:
        with _lock:
            recording = _recording_of(network, y, condition, leaves)
            if recording is not None:
                replayed: Tensor = _Replayed.apply(y, recording, leaves)  # type: ignore[no-untyped-call]
                return replayed
    output: Tensor = network(y, condition)
    return output


class _Kinds(NamedTuple):
    """Calls and recordings of a network, by the shapes, types and places of what it reads."""

    calls: OrderedDict[Any, int]
    recordings: OrderedDict[Any, _Recording | None]  # None: it cannot be recorded


class _Recording:
    """One kind of call; its tensors are overwritten by the next. It does not keep the network alive."""

    def __init__(self, network: Any, y: Tensor, condition: Any, leaves: list[Tensor]) -> None:
        self.y = y.detach().clone().requires_grad_(True)
        self.last: list[Tensor] = []
        self.leaves = [leaf.detach().clone() for leaf in leaves]
        copies = iter(self.leaves)
        own = _map(condition, lambda _: next(copies))
        self.replay = _capture(lambda: self._compute(network, own))

    def _compute(self, network: Any, condition: Any) -> None:
        kind = self.y.device.type
        dtype, low = torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind)
        with torch.enable_grad(), torch.autocast(kind, dtype, low, cache_enabled=False):
            f = network(self.y, condition)
            (self.grad,) = torch.autograd.grad(f.sum(), self.y)
        self.f = f.detach()

    @torch.no_grad()
    def __call__(self, y: Tensor, leaves: list[Tensor]) -> tuple[Tensor, Tensor]:
        """The output (B,) and its gradient (B, ...)."""
        self.y.copy_(y)
        if not (self.last and all(a is b for a, b in zip(self.last, leaves, strict=True))):
            for mine, given in zip(self.leaves, leaves, strict=True):
                mine.copy_(given)
            self.last = leaves
        self.replay()
        return self.f.clone(), self.grad.clone()


class _Replayed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, recording: _Recording, leaves: list[Tensor]) -> Tensor:
        f, grad = recording(y, leaves)
        ctx.save_for_backward(grad)
        return f

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor, None, None]:
        (grad,) = ctx.saved_tensors
        return outer.reshape(-1, *[1] * (grad.ndim - 1)) * grad, None, None


def _can_record(network: Any, y: Tensor) -> bool:
    """Whether the network is a plain one on a GPU."""
    if y.device.type != "cuda" or not isinstance(network, nn.Module):
        return False
    if hasattr(network, "_orig_mod") or network.training:
        return False
    if any(m._forward_hooks or m._forward_pre_hooks for m in network.modules()):
        return False  # a replay would not call them
    return not torch.cuda.is_current_stream_capturing()


def _recording_of(
    network: nn.Module, y: Tensor, condition: Any, leaves: list[Tensor]
) -> _Recording | None:
    """The recording of such a call; None while its kind is new."""
    kinds = _of_networks.setdefault(network, _Kinds(OrderedDict(), OrderedDict()))
    device = y.device.type
    key = (
        tuple((t.shape, t.dtype, t.device) for t in (y, *leaves)),
        torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device),
        tuple(t.data_ptr() for part in (network.parameters(), network.buffers()) for t in part),
    )
    if key in kinds.recordings:
        kinds.recordings.move_to_end(key)
        return kinds.recordings[key]
    kinds.calls[key] = kinds.calls.get(key, 0) + 1
    kinds.calls.move_to_end(key)
    if len(kinds.calls) > 2 * KINDS:
        kinds.calls.popitem(last=False)
    if kinds.calls[key] <= PLAIN_CALLS:
        return None
    while len(kinds.recordings) >= KINDS:
        kinds.recordings.popitem(last=False)
    try:
        kinds.recordings[key] = _Recording(network, y, condition, leaves)
    except RuntimeError:  # it reads a value of a tensor
        kinds.recordings[key] = None
    return kinds.recordings[key]


def _capture(function: Callable[[], None]) -> Callable[[], None]:
    """Record what a function launches on the GPU; the result launches it again."""
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        function()
    replay: Callable[[], None] = graph.replay
    return replay


def _tensors(condition: Any) -> list[Tensor] | None:
    """The tensors of a condition, in order; None if it has parts of other kinds."""
    found: list[Tensor] = []
    try:
        _map(condition, found.append)
    except TypeError:
        return None
    return found


def _map(condition: Any, function: Callable[[Tensor], Any]) -> Any:
    """The condition with a function applied to its tensors, in order.

    Raises:
        TypeError: it has parts other than tensors, tuples and lists.
    """
    if isinstance(condition, Tensor):
        return function(condition)
    if isinstance(condition, (tuple, list)):
        parts = [_map(part, function) for part in condition]
        return condition._make(parts) if hasattr(condition, "_make") else type(condition)(parts)
    raise TypeError(f"expected tensors, got {type(condition).__name__}")
