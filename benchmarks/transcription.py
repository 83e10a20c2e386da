"""The cooperative step written down as the method says it: what the trainer's own step is timed against.

The same networks and the same mathematics with nothing done for speed, see `Transcription`. Not a second
trainer: it keeps no state, watches nothing and runs on one process.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from cdrl_infer.proposals import posterior_mean
from cdrl_infer.schedule import Level
from cdrl_train.config import TrainConfig
from cdrl_train.data.stream import BatchStream
from cdrl_train.networks import build_network
from cdrl_train.spectral import add_spectral_norm, power_iteration

# The parts of a step.
DATA = "data and noise"
NORMS = "power iteration, norms, frozen twin"
PROPOSAL = "initializer: proposal"
LANGEVIN = "Langevin"
EBM_FORWARD = "EBM: losses"
EBM_BACKWARD = "EBM: gradient of its losses"
INITIALIZER_BACKWARD = "initializer: gradient of its losses"
UPDATE = "clipping, optimizers"
AVERAGES = "averages"
PARTS = (
    DATA,
    NORMS,
    PROPOSAL,
    LANGEVIN,
    EBM_FORWARD,
    EBM_BACKWARD,
    INITIALIZER_BACKWARD,
    UPDATE,
    AVERAGES,
)


def in_default_layout(network: nn.Module) -> nn.Module:
    """Undo what a network does for channels last: its first convolution gets (B, C, H, W) as it lies."""
    for name, layer in network.named_modules():
        if name.rpartition(".")[2] == "stem":
            layer.register_forward_pre_hook(lambda _, inputs: (inputs[0].contiguous(),))
    return network


class Transcription:
    """The cooperative phase of a run, step by step.

    In float32 and the default layout. Every pass through the EBM computes its conditioning and, with
    spectral norm, W / σ(W) anew. Langevin differentiates the network that is trained, with its weights in
    the graph. Averages are brought forward one tensor after the other.

    Random numbers are drawn in the trainer's order, so that a step can be compared value by value.

    Args:
        config: the run; its precision, `accumulate` and `compile` are ignored.
        stream: its data.
        whole_backward: Langevin calls ``backward()``, which makes the gradients of all weights too,
            instead of asking for that of y alone.
    """

    def __init__(
        self, config: TrainConfig, stream: BatchStream, *, whole_backward: bool = False
    ) -> None:
        self.config = config
        self.stream = stream
        self.whole_backward = whole_backward
        channels, num_classes = stream.images.shape[1], stream.data.num_classes
        torch.manual_seed(config.seed)
        self.ebm: Any = build_network("ebm", config.ebm, channels, num_classes)
        self.initializer: Any = nn.Identity()
        if config.initializer is not None:
            self.initializer = build_network(
                "initializer", config.initializer, channels, num_classes
            )
        if config.spectral_norm:
            add_spectral_norm(self.ebm)
        self.networks = [
            in_default_layout(network).to(stream.device) for network in (self.ebm, self.initializer)
        ]
        self.averages = copy.deepcopy(self.networks)
        self.optimizers = [
            torch.optim.Adam(self.ebm.parameters()),
            torch.optim.AdamW([{"params": [*self.initializer.parameters()]}], weight_decay=0.0),
        ]
        self.generator = torch.Generator(stream.device).manual_seed(config.seed)
        self.sigma_1 = config.schedule.level(1).noise_variance.sqrt().to(stream.device)
        self.step = 0
        self.watch: Callable[[str], AbstractContextManager[Any]] = lambda part: nullcontext()

    def train_step(self) -> dict[str, float]:
        """One optimiser step of each network; returns the two losses."""
        phase, schedule = self.config.cooperative, self.config.schedule
        self._set_rates()
        with self.watch(DATA):
            x, labels = self.stream.next(phase.batch_size, self.generator)
            t = torch.randint(
                1,
                schedule.num_levels + 1,
                (phase.batch_size,),
                generator=self.generator,
                device=x.device,
            )
            level = schedule.level(t, x.device)
            noise = self._noise(x)
            previous = _each(level.alpha) * x + _each(level.sigma_bar) * noise
            if phase.coupling == "shared":
                x_t = _each(level.alpha_in) * x + _each(level.sigma_bar_in) * noise
            else:
                added = _each(level.noise_variance)
                x_t = (1 - added).sqrt() * previous + added.sqrt() * self._noise(x)
            y_plus = _each(level.scale) * previous
        with self.watch(NORMS):
            power_iteration(self.ebm)  # of one step, as the trainer does it; none after
            self.ebm.eval()
        with self.watch(PROPOSAL):
            mean = x_t
            if self.config.initializer is not None:
                mean = self.initializer(x_t, self.initializer.condition(level, labels))
        y_0 = mean.detach()
        with self.watch(LANGEVIN):
            if self.config.initializer is not None:
                y_0 = y_0 + _each(level.proposal_variance.sqrt()) * self._noise(x)
            y_minus = self._langevin(y_0, x_t, level, labels)
        for network in self.networks:
            network.zero_grad()

        with self.watch(EBM_FORWARD):
            ebm_loss = self._ebm_loss(y_plus, y_minus, noise, level, labels)
        with self.watch(EBM_BACKWARD):
            ebm_loss.backward()
        moved = y_minus - (mean + (y_0 - mean).detach())
        initializer_loss = moved.square().mean()
        if phase.regression:
            error = mean - posterior_mean(x, x_t, level)
            regression = (error.square() / _each(level.noise_variance)).mean()
            initializer_loss = initializer_loss + phase.regression * regression
        if initializer_loss.requires_grad:
            with self.watch(INITIALIZER_BACKWARD):
                initializer_loss.backward()

        with self.watch(UPDATE):
            for network, optimizer in zip(self.networks, self.optimizers, strict=True):
                nn.utils.clip_grad_norm_([*network.parameters()], self.config.clip)
                optimizer.step()
        with self.watch(AVERAGES):
            self._average()
        self.step += 1
        return {"loss/ebm": ebm_loss.item(), "loss/initializer": initializer_loss.item()}

    def _noise(self, x: Tensor) -> Tensor:
        return torch.randn(x.shape, generator=self.generator, device=x.device)

    def _log_density(self, y: Tensor, level: Level, labels: Tensor | None) -> Tensor:
        """(B,) nats."""
        f: Tensor = self.ebm(y, self.ebm.condition(level, labels))
        return f if self.ebm.output_unit == "nats" else f / level.step_variance

    def _langevin(self, y: Tensor, x_t: Tensor, level: Level, labels: Tensor | None) -> Tensor:
        """``y ← y + ½ s_t² ∇_y log p(y | x_t) + s_t ε``, K times."""
        phase = self.config.cooperative
        s2 = _each(level.step_variance) * phase.step_scale
        for _ in range(phase.langevin_steps):
            y = y.detach().requires_grad_(True)
            distance = (y - x_t).square().flatten(1).sum(1)
            pull = level.recovery * distance / (2 * level.noise_variance)
            total = (self._log_density(y, level, labels) - pull).sum()
            if self.whole_backward:
                total.backward()  # type: ignore[no-untyped-call]
                grad = y.grad
            else:
                (grad,) = torch.autograd.grad(total, y)
            y = y + 0.5 * s2 * grad + s2.sqrt() * self._noise(y)
        return y.detach()

    def _ebm_loss(
        self, y_plus: Tensor, y_minus: Tensor, noise: Tensor, level: Level, labels: Tensor | None
    ) -> Tensor:
        """``mean_w [log p(y⁻) - log p(y⁺)]``, and score matching if the run keeps it on."""
        phase = self.config.cooperative
        if phase.weight == "paper":
            weight = level.step_variance * self.sigma_1 / level.noise_variance.sqrt()
        else:
            weight = level.scale * level.sigma_bar
        positive = self._log_density(y_plus, level, labels)
        negative = self._log_density(y_minus, level, labels)
        loss = (weight * (negative - positive)).mean()
        if phase.score_matching:
            y = y_plus.detach().requires_grad_(True)
            total = self._log_density(y, level, labels).sum()
            (score,) = torch.autograd.grad(total, y, create_graph=True)
            error = _each(level.scale * level.sigma_bar) * score + noise
            loss = loss + phase.score_matching * error.square().mean()
        return loss

    def _set_rates(self) -> None:
        phase = self.config.cooperative
        begun = (self.step + 1) / phase.warm_up if phase.warm_up else 1.0
        progress = self.step / max(1, phase.steps)
        fall = phase.final_rate + (1 - phase.final_rate) * (1 + math.cos(math.pi * progress)) / 2
        rises = (min(1.0, begun), min(1.0, phase.initializer_start + begun))
        rates = (phase.ebm_rate, phase.initializer_rate)
        for optimizer, rate, rise in zip(self.optimizers, rates, rises, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = rate * rise * fall

    @torch.no_grad()
    def _average(self) -> None:
        """``W_ema ← d W_ema + (1-d) W``; the first time a copy."""
        decay = min(self.config.ema_decay, (1 + self.step) / (10 + self.step)) if self.step else 0.0
        for average, network in zip(self.averages, self.networks, strict=True):
            for kept, value in zip(average.parameters(), network.parameters(), strict=True):
                kept.mul_(decay).add_(value, alpha=1 - decay)


def _each(value: Tensor) -> Tensor:
    """(B,) -> (B, 1, 1, 1)."""
    return value.reshape(-1, 1, 1, 1)
