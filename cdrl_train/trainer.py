"""The training loop: two phases on one state that can be stopped and resumed at any step."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.optim.swa_utils import AveragedModel

from cdrl_infer.energies.neural import NeuralEnergy
from cdrl_infer.errors import CheckpointError, NumericalError
from cdrl_infer.files import replaced_file
from cdrl_infer.kernels.langevin import Langevin
from cdrl_infer.proposals import InitializerProposal
from cdrl_infer.random import BatchRandom
from cdrl_infer.schedule import Level
from cdrl_train import checkpoints, objectives
from cdrl_train.config import CooperativeConfig, PhaseConfig, TrainConfig
from cdrl_train.data import Batch, BatchStream
from cdrl_train.networks import build_network
from cdrl_train.spectral import add_spectral_norm, evaluating

Phase = Literal["warm_start", "cooperative"]
STATE_FORMAT = 1


class Metrics:
    """Running means between two lines of the log, by name."""

    def __init__(self) -> None:
        self.sums: dict[str, float] = {}
        self.counts: dict[str, int] = {}

    def add(self, name: str, value: float, count: int = 1) -> None:
        """Add ``count`` observations whose sum is ``value``."""
        self.sums[name] = self.sums.get(name, 0.0) + value
        self.counts[name] = self.counts.get(name, 0) + count

    def add_by_level(self, name: str, values: Tensor, t: Tensor, levels: int) -> None:
        """Add values (B,) under ``name/t``."""
        for k in range(1, levels + 1):
            chosen = values[t == k]
            if len(chosen):
                self.add(f"{name}/{k}", float(chosen.sum()), len(chosen))

    def take(self) -> dict[str, float]:
        """The means, and start anew."""
        means = {name: self.sums[name] / self.counts[name] for name in self.sums}
        self.sums, self.counts = {}, {}
        return means


class Trainer:
    """Trains an EBM and its initializer on a stream of batches.

    Args:
        config: the run.
        stream: the data, on the device to train on.
        folder: of the run; gets ``metrics.jsonl`` and ``checkpoints/``.
    """

    def __init__(
        self,
        config: TrainConfig,
        stream: BatchStream,
        folder: Path,
    ) -> None:
        self.config = config
        self.stream = stream
        self.folder = folder
        self.device = stream.device
        self.schedule = config.schedule
        self.sigma_1 = float(self.schedule.level(1).noise_variance.sqrt())

        self.data_fingerprint = stream.data.fingerprint()
        torch.manual_seed(config.seed)
        ebm, initializer = self.build()
        if config.spectral_norm:
            add_spectral_norm(ebm)
        self.ebm, self.initializer = self._place(ebm), self._place(initializer)
        average = _ema(config.ema_decay)
        self.ebm_ema = AveragedModel(self.ebm, multi_avg_fn=average).eval()
        self.initializer_ema = AveragedModel(self.initializer, multi_avg_fn=average).eval()

        self.generator = torch.Generator(self.device).manual_seed(config.seed)
        self.step = 0  # over both phases
        self.images_seen = 0
        self.seconds = 0.0  # spent in steps, before and after resuming
        self.optimizers = self._new_optimizers()
        self.metrics = Metrics()

    def build(self) -> tuple[nn.Module, nn.Module]:
        """Fresh networks of this run, without spectral norm: the EBM and the initializer."""
        channels = self.stream.images.shape[1]
        return (
            build_network("ebm", self.config.ebm, channels, self.stream.data.num_classes),
            build_network(
                "initializer", self.config.initializer, channels, self.stream.data.num_classes
            ),
        )

    def _place(self, network: Any) -> Any:
        return network.to(device=self.device, memory_format=torch.channels_last)

    # -- phases ---------------------------------------------------------------------------------

    @property
    def phase(self) -> Phase:
        """Which phase the next step belongs to."""
        return "warm_start" if self.step < self.config.warm_start.steps else "cooperative"

    @property
    def total_steps(self) -> int:
        """Steps of both phases together."""
        return self.config.warm_start.steps + self.config.cooperative.steps

    def _phase_config(self) -> tuple[PhaseConfig, int]:
        if self.phase == "warm_start":
            return self.config.warm_start, self.step
        return self.config.cooperative, self.step - self.config.warm_start.steps

    def _new_optimizers(self) -> tuple[torch.optim.Optimizer, torch.optim.Optimizer]:
        return (
            torch.optim.Adam(self.ebm.parameters()),
            torch.optim.AdamW(self.initializer.parameters(), weight_decay=0.0),
        )

    def _set_rates(self, phase: PhaseConfig, step: int) -> None:
        rise = min(1.0, (step + 1) / phase.warm_up) if phase.warm_up else 1.0
        progress = step / max(1, phase.steps)
        fall = phase.final_rate + (1 - phase.final_rate) * 0.5 * (1 + math.cos(math.pi * progress))
        rates = (phase.ebm_rate, phase.initializer_rate)
        for optimizer, rate in zip(self.optimizers, rates, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = rate * rise * fall

    # -- one step -------------------------------------------------------------------------------

    def train_step(self) -> dict[str, float]:
        """One optimiser step of each network; returns the two losses.

        Raises:
            NumericalError: a loss or a gradient is not finite, or the energies have diverged. The
                weights are then still those before the step.
        """
        phase, step = self._phase_config()
        if step == 0 and self.phase == "cooperative":
            self.optimizers = self._new_optimizers()
        self._set_rates(phase, step)
        batch = self.stream.next(phase.batch_size, self.generator)
        t = torch.randint(
            1,
            self.schedule.num_levels + 1,
            (phase.batch_size,),
            generator=self.generator,
            device=self.device,
        )
        level = self.schedule.level(t, self.device)
        random = BatchRandom(phase.batch_size, self.generator)
        pair = objectives.noised_pair(batch.x, level, phase.coupling, random)
        with torch.autocast(
            self.device.type, torch.bfloat16, enabled=self.config.precision == "bfloat16"
        ):
            if isinstance(phase, CooperativeConfig):
                losses = self._cooperative_losses(phase, batch, pair, level, random)
            else:
                losses = self._warm_start_losses(batch, pair, level)
        self._update(*losses)
        self.step += 1
        self.images_seen += phase.batch_size
        return {
            "loss/ebm": float(losses[0].detach()),
            "loss/initializer": float(losses[1].detach()),
        }

    def _energy(self, labels: Tensor | None) -> NeuralEnergy:
        return NeuralEnergy(self.ebm, labels)

    def _warm_start_losses(
        self, batch: Batch, pair: objectives.NoisedPair, level: Level
    ) -> tuple[Tensor, Tensor]:
        proposal = InitializerProposal(self.initializer, batch.labels)
        matching = objectives.score_matching_loss(self._energy(batch.labels), pair, level)
        regression = objectives.regression_loss(proposal, pair, level)
        self._report("score_matching", matching.per_image, level)
        self._report("regression", regression.per_image, level)
        return matching.value, regression.value

    def _cooperative_losses(
        self,
        phase: CooperativeConfig,
        batch: Batch,
        pair: objectives.NoisedPair,
        level: Level,
        random: BatchRandom,
    ) -> tuple[Tensor, Tensor]:
        proposal = InitializerProposal(self.initializer, batch.labels)
        mean = proposal.mean(pair.x_t, level)
        with _frozen(self.ebm), parametrize.cached():
            refined = objectives.refine(
                self._energy(batch.labels),
                mean,
                Langevin(step_scale=phase.step_scale),
                phase.langevin_steps,
                pair.x_t,
                level,
                random,
            )
        positive = self._energy(batch.labels)(pair.y, level)
        with evaluating(self.ebm):
            negative = self._energy(batch.labels)(refined.end, level)
        weight = objectives.contrastive_weight(level, self.sigma_1, phase.weight)
        contrast = objectives.contrastive_loss(positive, negative, weight)
        imitation = objectives.imitation_loss(mean, refined)
        self._report("energy_gap", contrast.per_image, level)
        self._report("imitation", imitation.per_image, level)
        moved = (refined.end - refined.start).square().flatten(1).sum(1).sqrt()
        self._report("displacement", moved, level)
        self._check_gap(contrast.per_image, level)

        ebm_loss, initializer_loss = contrast.value, imitation.value
        if phase.score_matching:
            matching = objectives.score_matching_loss(self._energy(batch.labels), pair, level)
            self._report("score_matching", matching.per_image, level)
            ebm_loss = ebm_loss + phase.score_matching * matching.value
        if phase.regression:
            regression = objectives.regression_loss(proposal, pair, level)
            self._report("regression", regression.per_image, level)
            initializer_loss = initializer_loss + phase.regression * regression.value
        return ebm_loss, initializer_loss

    def _check_gap(self, gap: Tensor, level: Level) -> None:
        pixels = self.stream.images[0].numel()
        for t in sorted(set(level.t.tolist())):
            size = float(gap[level.t == t].abs().mean()) / pixels
            if not size < self.config.max_energy_gap:
                raise NumericalError(
                    f"diverged at step {self.step}: |E(y⁺) - E(y⁻)| of transition {t} is {size:.3g} "
                    f"nats per pixel, the limit (max_energy_gap) {self.config.max_energy_gap:g}"
                )

    def _update(self, ebm_loss: Tensor, initializer_loss: Tensor) -> None:
        pairs = (
            ("ebm", self.ebm, ebm_loss),
            ("initializer", self.initializer, initializer_loss),
        )
        for (name, network, loss), optimizer in zip(pairs, self.optimizers, strict=True):
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            norm = float(nn.utils.clip_grad_norm_(network.parameters(), self.config.clip))
            if not (math.isfinite(norm) and math.isfinite(float(loss.detach()))):
                raise NumericalError(
                    f"step {self.step}: the {name}'s loss is {float(loss.detach()):.3g} and its "
                    f"gradient norm {norm:.3g}; lower its rate or raise warm_up"
                )
            self.metrics.add(f"grad_norm/{name}", norm)
        for optimizer in self.optimizers:
            optimizer.step()
        self.ebm_ema.update_parameters(self.ebm)
        self.initializer_ema.update_parameters(self.initializer)

    def _report(self, name: str, per_image: Tensor, level: Level) -> None:
        self.metrics.add_by_level(name, per_image, level.t, self.schedule.num_levels)

    # -- the loop -------------------------------------------------------------------------------

    def fit(
        self,
        on_log: Callable[[dict[str, float]], None] | None = None,
        on_sample: Callable[[Trainer], object] | None = None,
        until: int | None = None,
    ) -> None:
        """Train to the end (or to step ``until``), saving on the way and at the end.

        Raises:
            NumericalError: training diverged; the last good state is on disk, and the text says where.
        """
        end = self.total_steps if until is None else min(until, self.total_steps)
        self.folder.mkdir(parents=True, exist_ok=True)
        saved_at = time.monotonic()
        while self.step < end:
            started = time.perf_counter()
            phase = self.phase
            try:
                losses = self.train_step()
            except NumericalError as error:
                kept = checkpoints.newest(self.folder / "checkpoints")
                raise NumericalError(f"{error}; last good state: {kept or 'none yet'}") from error
            spent = time.perf_counter() - started
            self.seconds += spent
            self.metrics.add("seconds_per_step", spent)
            for name, value in losses.items():
                self.metrics.add(name, value)
            last = self.step == end
            if self.step % self.config.log_every == 0 or last or self.phase != phase:
                self._log(phase, on_log)
            due = time.monotonic() - saved_at > 60 * self.config.checkpoint_minutes
            if self.step % self.config.checkpoint_every == 0 or due or last:
                self.save()
                saved_at = time.monotonic()
            if on_sample is not None and (self.step % self.config.sample_every == 0 or last):
                on_sample(self)

    def _log(self, phase: Phase, on_log: Callable[[dict[str, float]], None] | None) -> None:
        means = self.metrics.take()
        line: dict[str, Any] = {
            "step": self.step,
            "phase": phase,
            "images": self.images_seen,
            "hours": round(self.seconds / 3600, 4),
            **{name: float(f"{value:.6g}") for name, value in sorted(means.items())},
        }
        with open(self.folder / "metrics.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        if on_log is not None:
            on_log(line)

    # -- state ----------------------------------------------------------------------------------

    def save(self) -> Path:
        """Write the whole state; resuming from it continues to the bit on the same device."""
        return checkpoints.save(
            self.folder / "checkpoints", self.step, self.state(), self.config.keep_checkpoints
        )

    def state(self) -> dict[str, Any]:
        """Everything the next step depends on."""
        return {
            "format": STATE_FORMAT,
            "data": self.data_fingerprint,
            "step": self.step,
            "images_seen": self.images_seen,
            "seconds": self.seconds,
            "stream": self.stream.state(),
            "generator": self.generator.get_state(),
            "global_generator": _global_generator(self.device).get_state(),
            "metrics": {"sums": self.metrics.sums, "counts": self.metrics.counts},
            "ebm": self.ebm.state_dict(),
            "initializer": self.initializer.state_dict(),
            "ebm_ema": self.ebm_ema.state_dict(),
            "initializer_ema": self.initializer_ema.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """The inverse of `state`.

        Raises:
            CheckpointError: another format, or tensors that do not fit this run's networks.
        """
        if state.get("format") != STATE_FORMAT:
            raise CheckpointError(
                f"training state has format {state.get('format')}, this version reads {STATE_FORMAT}"
            )
        if state["data"] != self.data_fingerprint:
            raise CheckpointError(
                f"this run was trained on data with fingerprint {state['data']}, the data given has "
                f"{self.data_fingerprint}; resume with the same images"
            )
        try:
            for name in ("ebm", "initializer", "ebm_ema", "initializer_ema"):
                getattr(self, name).load_state_dict(state[name])
            for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(saved)
        except (RuntimeError, KeyError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
            raise CheckpointError(
                f"the training state does not fit this run's options: {reason}"
            ) from error
        self.step, self.images_seen = state["step"], state["images_seen"]
        self.seconds = state["seconds"]
        self.stream.load_state(state["stream"])
        self.generator.set_state(state["generator"])
        _global_generator(self.device).set_state(state["global_generator"])
        self.metrics.sums = dict(state["metrics"]["sums"])
        self.metrics.counts = dict(state["metrics"]["counts"])

    def resume(self) -> bool:
        """Continue from the newest checkpoint of the folder, if there is one."""
        path = checkpoints.newest(self.folder / "checkpoints")
        if path is not None:
            self.load_state(checkpoints.load(path))
        self._forget_later_lines()
        return path is not None

    def _forget_later_lines(self) -> None:
        """Drop the log's lines of steps that were lost with a killed run and will be done again."""
        log = self.folder / "metrics.jsonl"
        if log.is_file():
            rows = log.read_text(encoding="utf-8").splitlines(keepends=True)
            kept = [r for r in rows if r.endswith("\n") and json.loads(r)["step"] <= self.step]
            with replaced_file(log) as new:
                new.write_text("".join(kept), encoding="utf-8")


def _global_generator(device: torch.device) -> torch.Generator:
    """The generator that layers such as dropout draw from."""
    return (
        torch.cuda.default_generators[device.index or 0]
        if device.type == "cuda"
        else (torch.default_generator)
    )


def _ema(decay: float) -> Callable[..., None]:
    """``W_ema ← d W_ema + (1-d) W`` with ``d = min(decay, (1+n)/(10+n))``: young averages forget fast."""

    @torch.no_grad()
    def update(averaged: list[Tensor], current: list[Tensor], count: Tensor) -> None:
        n = int(count)
        torch._foreach_lerp_(averaged, current, 1 - min(decay, (1 + n) / (10 + n)))

    return update


@contextmanager
def _frozen(network: nn.Module) -> Iterator[None]:
    """Evaluation mode and no gradient for the weights: only the input's is wanted."""
    with evaluating(network):
        network.requires_grad_(False)
        try:
            yield
        finally:
            network.requires_grad_(True)
