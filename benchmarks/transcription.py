"""A plain transcription of a training step with Langevin chains, to compare the trainer's speed with.

It has the same networks and the same mathematics, without optimisations for speed; see `Transcription`.
It is not a second trainer: it saves no state, has no divergence guard and runs on one process.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from parts import AVERAGES, BACKWARD, DATA, LANGEVIN, LOSSES, NORMS, PROPOSAL, UPDATE
from torch import Tensor, nn

from cdrl_infer.proposals import posterior_mean
from cdrl_infer.schedule import Level
from cdrl_train.config import TrainConfig
from cdrl_train.data.stream import BatchStream
from cdrl_train.networks import build_network
from cdrl_train.spectral import add_spectral_norm, power_iteration


def in_default_layout(network: nn.Module) -> nn.Module:
    """Undo a network's channels-last layout: its first convolution gets contiguous images."""
    for name, layer in network.named_modules():
        if name.rpartition(".")[2] == "stem":
            layer.register_forward_pre_hook(lambda _, inputs: (inputs[0].contiguous(),))
    return network


class Transcription:
    """The last phase of a run, "cooperative" or "drl", step by step.

    It computes in float32 and the default layout. Every pass through the EBM computes its conditioning
    again and, with spectral norm, W / σ(W). Langevin differentiates the network in training, with its
    weights in the graph. It updates the averages tensor by tensor.

    It draws random numbers in the trainer's order, so tests can compare a step value by value.

    Args:
        config: the run; its precision, `accumulate` and `compile` are ignored.
        stream: the data of the run.
        whole_backward: Langevin calls ``backward()``, which also computes the gradients of all weights,
            instead of the gradient in y alone.
    """

    def __init__(
        self, config: TrainConfig, stream: BatchStream, *, whole_backward: bool = False
    ) -> None:
        self.config = config
        self.phase = config.phases[-1]
        self.objective: Any = self.phase.make_objective()
        self.stream = stream
        self.whole_backward = whole_backward
        channels, num_classes = stream.images.shape[1], stream.data.num_classes
        torch.manual_seed(config.seed)
        self.ebm: Any = build_network("ebm", config.ebm, channels, num_classes)
        self.initializer: Any = None
        if config.initializer is not None:
            options = config.initializer
            self.initializer = build_network("initializer", options, channels, num_classes)
        if config.spectral_norm:
            add_spectral_norm(self.ebm)
        self.networks = [
            in_default_layout(network).to(stream.device)
            for network in (self.ebm, self.initializer)
            if network is not None
        ]
        self.averages = copy.deepcopy(self.networks)
        self.optimizers = [torch.optim.Adam(network.parameters()) for network in self.networks]
        self.generator = torch.Generator(stream.device).manual_seed(config.seed)
        self.sigma_1 = config.schedule.level(1).noise_variance.sqrt().to(stream.device)
        self.step = 0
        self.watch: Callable[[str], AbstractContextManager[Any]] = lambda part: nullcontext()

    def train_step(self) -> dict[str, float]:
        """One optimizer step of each network; returns the losses."""
        objective, schedule = self.objective, self.config.schedule
        self._set_learning_rates()
        with self.watch(DATA):
            x, labels = self.stream.next(self.phase.batch_size, self.generator)
            t = torch.randint(
                1,
                schedule.num_levels + 1,
                (self.phase.batch_size,),
                generator=self.generator,
                device=x.device,
            )
            level = schedule.level(t, x.device)
            noise = self._noise(x)
            previous = _each(level.alpha) * x + _each(level.sigma_bar) * noise
            if objective.coupling == "shared":
                x_t = _each(level.alpha_in) * x + _each(level.sigma_bar_in) * noise
            else:
                added = _each(level.noise_variance)
                x_t = (1 - added).sqrt() * previous + added.sqrt() * self._noise(x)
            y_plus = _each(level.scale) * previous
        with self.watch(NORMS):
            power_iteration(self.ebm)  # once a step, as in the trainer
            self.ebm.eval()
        mean = y_0 = x_t
        if self.initializer is not None:
            with self.watch(PROPOSAL):
                mean = self.initializer(x_t, self.initializer.condition(level, labels))
                y_0 = mean.detach() + _each(level.proposal_variance.sqrt()) * self._noise(x)
        with self.watch(LANGEVIN):
            y_minus = self._langevin(y_0, x_t, level, labels)
        for network in self.networks:
            network.zero_grad()

        with self.watch(LOSSES):
            losses = {"loss/ebm": self._ebm_loss(y_plus, y_minus, noise, level, labels)}
        if self.initializer is not None:
            moved = y_minus - (mean + (y_0 - mean).detach())
            loss = moved.square().mean()
            if objective.regression:
                error = mean - posterior_mean(x, x_t, level)
                regression = (error.square() / _each(level.noise_variance)).mean()
                loss = loss + objective.regression * regression
            losses["loss/initializer"] = loss
        for loss in losses.values():
            with self.watch(BACKWARD):
                loss.backward()

        with self.watch(UPDATE):
            for network, optimizer in zip(self.networks, self.optimizers, strict=True):
                nn.utils.clip_grad_norm_([*network.parameters()], self.config.grad_clip)
                optimizer.step()
        with self.watch(AVERAGES):
            self._average()
        self.step += 1
        return {name: loss.item() for name, loss in losses.items()}

    def sample(self, shape: tuple[int, int, int, int], labels: Tensor | None) -> Tensor:
        """Draw images (B, C, H, W) in [-1, 1], in float32 and the default layout.

        From x_T down, each transition proposes and makes K steps of the sampler's defaults; at the end
        Tweedie's formula takes the noise of level 0 away.

        Args:
            shape: of the images.
            labels: (B, A) integers, 0 = not given; None for an unconditional model.
        """
        x = self._noise(torch.empty(shape, device=self.stream.device))
        schedule = self.config.schedule
        for t in range(schedule.num_levels, 0, -1):
            level = schedule.level(torch.full(shape[:1], t, device=x.device), x.device)
            with torch.no_grad():
                y = x
                if self.initializer is not None:
                    mean = self.initializer(x, self.initializer.condition(level, labels))
                    y = mean + _each(level.proposal_variance.sqrt()) * self._noise(x)
            x = self._langevin(y, x, level, labels) / _each(level.scale)
        y = (x * _each(level.scale)).requires_grad_(True)
        (score,) = torch.autograd.grad(self._log_density(y, level, labels).sum(), y)
        clean: Tensor = x + _each(level.sigma_bar**2 * level.scale) * score
        return clean / _each(level.alpha)

    def _noise(self, x: Tensor) -> Tensor:
        return torch.randn(x.shape, generator=self.generator, device=x.device, dtype=torch.float32)

    def _log_density(self, y: Tensor, level: Level, labels: Tensor | None) -> Tensor:
        """(B,) nats."""
        f: Tensor = self.ebm(y, self.ebm.condition(level, labels))
        return f if self.ebm.output_unit == "nats" else f / level.step_variance

    def _langevin(self, y: Tensor, x_t: Tensor, level: Level, labels: Tensor | None) -> Tensor:
        """``y ← y + ½ s_t² ∇_y log p(y | x_t) + s_t ε``, K times."""
        s2 = _each(level.step_variance) * self.objective.step_scale
        for _ in range(self.objective.langevin_steps):
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
        """``mean_w [log p(y⁻) - log p(y⁺)]``, plus score matching if the run uses it."""
        if self.objective.weight == "paper":
            weight = level.step_variance * self.sigma_1 / level.noise_variance.sqrt()
        else:
            weight = level.scale * level.sigma_bar
        positive = self._log_density(y_plus, level, labels)
        negative = self._log_density(y_minus, level, labels)
        loss = (weight * (negative - positive)).mean()
        if self.objective.score_matching:
            y = y_plus.detach().requires_grad_(True)
            total = self._log_density(y, level, labels).sum()
            (score,) = torch.autograd.grad(total, y, create_graph=True)
            error = _each(level.scale * level.sigma_bar) * score + noise
            loss = loss + self.objective.score_matching * error.square().mean()
        return loss

    def _set_learning_rates(self) -> None:
        phase = self.phase
        risen = (self.step + 1) / phase.lr_warmup_steps if phase.lr_warmup_steps else 1.0
        progress = self.step / max(1, phase.steps)
        fall = phase.final_lr + (1 - phase.final_lr) * (1 + math.cos(math.pi * progress)) / 2
        rises = (min(1.0, risen), min(1.0, phase.initializer_lr_start + risen))
        rates = (phase.ebm_lr, phase.initializer_lr)
        for optimizer, rate, rise in zip(self.optimizers, rates, rises, strict=False):
            for group in optimizer.param_groups:
                group["lr"] = rate * rise * fall

    @torch.no_grad()
    def _average(self) -> None:
        """``W_ema ← d W_ema + (1-d) W``; the first call copies W."""
        decay = min(self.config.ema_decay, (1 + self.step) / (10 + self.step)) if self.step else 0.0
        for average, network in zip(self.averages, self.networks, strict=True):
            for kept, value in zip(average.parameters(), network.parameters(), strict=True):
                kept.mul_(decay).add_(value, alpha=1 - decay)


def _each(value: Tensor) -> Tensor:
    """(B,) -> (B, 1, 1, 1)."""
    return value.reshape(-1, 1, 1, 1)
