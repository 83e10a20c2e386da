"""A step of training of a DDPM of diffusers, on any device."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from cdrl_infer.device import ResolvedPrecision, autocast_to
from cdrl_train.data.image_set import ImageSet
from cdrl_train.engine.recording import PLAIN_STEPS, aside

if TYPE_CHECKING:
    from peers_ddpm import State


def rate_at(step: int, total: int, warmup: int) -> float:
    """What the learning rate is multiplied by: a linear rise, then half a cosine to 0."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


class Step:
    """Calls train by one step, with batches and noise that depend on the seed and the step alone.

    On a GPU the operations are recorded once, as a CUDA graph, and launched together.

    Args:
        state: the networks, on the device where they train.
        schedule: diffusers' scheduler that adds the noise.
        data: images with labels.
    """

    def __init__(
        self, state: State, schedule: Any, data: ImageSet, precision: ResolvedPrecision
    ) -> None:
        self.state, self.schedule, self.data = state, schedule, data
        self.precision = precision
        self.device = next(state.network.parameters()).device
        self._inputs: dict[str, Tensor] = {}
        self._graph: torch.cuda.CUDAGraph | None = None
        self._loss = torch.zeros(())
        self._calls = 0

    def __call__(self, step: int) -> Tensor:
        """The loss () of a step, on the device; the next call overwrites it."""
        given = self._draw(step)
        if self.device.type != "cuda":
            return self._compute(given)
        if not self._inputs:
            self._inputs = {name: value.to(self.device) for name, value in given.items()}
        for name, value in given.items():
            self._inputs[name].copy_(value)
        self._calls += 1
        if self._calls <= PLAIN_STEPS:
            return aside(lambda: self._compute(self._inputs), self.device)
        if self._graph is None:
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph):
                self._loss = self._compute(self._inputs)
        self._graph.replay()
        return self._loss

    def _draw(self, step: int) -> dict[str, Tensor]:
        """Noised images, noise, times, labels, learning rate, and the average's share of new weights."""
        recipe, total, labels = self.state.recipe, self.state.total, self.data.labels
        assert labels is not None  # `start` has checked
        generator = torch.Generator().manual_seed(recipe.seed * 1_000_003 + step)
        index = torch.randint(len(self.data), (recipe.batch_size,), generator=generator)
        x = self.data.images[index] / 127.5 - 1
        noise = torch.randn(x.shape, generator=generator)
        last = self.schedule.config.num_train_timesteps
        times = torch.randint(last, (recipe.batch_size,), generator=generator)
        rate = recipe.learning_rate * rate_at(step, total, recipe.warmup_steps)
        kept = min(recipe.ema_decay, (1 + step) / (10 + step))
        return {
            "noised": self.schedule.add_noise(x, noise, times),
            "noise": noise,
            "times": times,
            "labels": labels[index, 0],
            "rate": torch.tensor(rate),
            "new": torch.tensor(1 - kept),
        }

    def _compute(self, given: dict[str, Tensor]) -> Tensor:
        state, on_gpu = self.state, self.device.type == "cuda"
        noised = given["noised"].contiguous(memory_format=torch.channels_last)
        with autocast_to(self.precision, self.device):
            found = state.network(noised, given["times"], given["labels"]).sample
        loss = nn.functional.mse_loss(found.float(), given["noise"])
        state.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(state.network.parameters(), 1.0)
        rate = given["rate"]
        state.optimizer.param_groups[0]["lr"] = rate if on_gpu else rate.item()
        state.optimizer.step()
        with torch.no_grad():
            pairs = zip(state.average.parameters(), state.network.parameters(), strict=True)
            for averaged, current in pairs:
                averaged.lerp_(current, given["new"])
        return loss.detach()
