"""On a GPU: the operations of a training step, recorded once and then launched all together.

A step of a small network is many short operations, and launching each from Python takes longer than the
operation itself. A CUDA graph launches them at once. It holds for differentiation twice, which
`torch.compile` does not.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

from cdrl_train.engine.metrics import Results

if TYPE_CHECKING:
    from cdrl_train.engine.state import TrainState

T = TypeVar("T")
ALL = 2**62
PLAIN_STEPS = 3  # of a phase, before its step is recorded: they choose algorithms and fill caches


def aside(function: Callable[[], T], device: torch.device) -> T:
    """Call a function on a stream of its own, as recording will use it."""
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        result = function()
    torch.cuda.current_stream(device).wait_stream(stream)
    return result


class Recorder:
    """Calls a function that computes the gradients of a batch, and later replays what it did.

    The operations and their random numbers are those of the function, so a replay gives the same
    gradients. A function that cannot be recorded, because it reads a value of a tensor, is called as it
    is from then on.

    Args:
        compute: indices (B,) of a batch -> what the step observed; it leaves the gradients at the
            parameters, and draws from the state's generator.
        state: the networks and the generator.
        tell: gets a message when a step cannot be recorded.
    """

    def __init__(
        self,
        compute: Callable[[Tensor], Results],
        state: TrainState,
        tell: Callable[[str], object],
    ) -> None:
        self.compute = compute
        self.state = state
        self.tell = tell
        self._phase: int | None = None
        self._plain = 0
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, index: Tensor) -> Results:
        """The step for a batch; the result is overwritten by the next call."""
        if self._phase != self.state.phase:
            self._phase, self._graph = self.state.phase, None
            self._plain = PLAIN_STEPS if self.state.objective.recordable else ALL
        if self._plain:
            self._plain -= 1
            return aside(lambda: self.compute(index), self.state.device)
        if self._graph is None:
            try:
                self._graph = self._record(index)
            except RuntimeError as error:
                self._give_up(error)
                return self.compute(index)
        self._index.copy_(index.pin_memory(), non_blocking=True)
        self._graph.replay()
        for parameter, gradient in self._gradients:
            parameter.grad = gradient
        return self._results

    def _record(self, index: Tensor) -> torch.cuda.CUDAGraph:
        """Record the function; this computes nothing."""
        self._before = self.state.generator.get_state()
        self._index = index.to(self.state.device)
        graph = torch.cuda.CUDAGraph()
        graph.register_generator_state(self.state.generator)
        torch.cuda.synchronize(self.state.device)
        with torch.cuda.graph(graph):
            self._results = self.compute(self._index)
        modules = self.state.active.values()
        self._gradients = [
            (p, p.grad) for module in modules for p in module.parameters() if p.grad is not None
        ]
        return graph

    def _give_up(self, error: RuntimeError) -> None:
        """Call the function itself for the rest of the phase."""
        self._plain = ALL
        self.state.renew_generator(self._before)
        reason = str(error).splitlines()[0]
        self.tell(f"{self.state.label}: its step is not recorded as a CUDA graph ({reason})")
