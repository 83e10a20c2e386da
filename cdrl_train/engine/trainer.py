"""The training steps: two phases on one state, and the loop around them."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from cdrl_infer.energies.neural import NeuralEnergy
from cdrl_infer.errors import NumericalError
from cdrl_infer.files import remove_unfinished
from cdrl_infer.kernels.langevin import Langevin
from cdrl_infer.networks.base import Network
from cdrl_infer.proposals import IdentityProposal, InitializerProposal, make_proposal
from cdrl_infer.random import BatchRandom
from cdrl_infer.schedule import Level
from cdrl_train.config import CooperativeConfig, PhaseConfig, TrainConfig
from cdrl_train.data.stream import Batch, BatchStream
from cdrl_train.engine import checkpoints, state
from cdrl_train.engine.distributed import anywhere, average_gradients, make_accelerator, shares
from cdrl_train.engine.guard import Diverged, Guard
from cdrl_train.engine.log import Log
from cdrl_train.engine.metrics import Figures, Metrics, Sum
from cdrl_train.engine.spectral import (
    add_spectral_norm,
    evaluating,
    folded_state,
    normalised,
    power_iteration,
)
from cdrl_train.networks import build_network
from cdrl_train.objectives import losses as objectives
from cdrl_train.report import write_report

if TYPE_CHECKING:
    from accelerate import Accelerator

Phase = Literal["warm_start", "cooperative"]


class Part(NamedTuple):
    """What a process works on at a time: all or some images of its share of a batch."""

    batch: Batch
    level: Level
    pair: objectives.NoisedPair
    random: BatchRandom


class Trainer:
    """Trains an EBM and its initializer on a stream of batches, on one process or several.

    Every process holds both networks, their averages and the optimizers, draws the random numbers of the
    whole batch and works on its share of the images; see `cdrl_train.engine.distributed`. How many
    processes there are changes nothing but rounding (and which units dropout hides).

    Args:
        config: the run.
        stream: the data, on the device to train on.
        folder: of the run, the same for all processes; gets ``metrics.jsonl``, ``report.html`` and
            ``checkpoints/``, all written by the main process.
        tell: hears, on the main process, what a user should know: a damaged checkpoint, a run that
            diverged.
        accelerator: by `make_accelerator`, which is also the default.

    Raises:
        ConfigError: a batch size that cannot be split, or networks that cannot be built.
    """

    def __init__(
        self,
        config: TrainConfig,
        stream: BatchStream,
        folder: Path,
        tell: Callable[[str], object] = print,
        accelerator: Accelerator | None = None,
    ) -> None:
        self.config = config
        self.accelerator = accelerator or make_accelerator(config.precision, stream.device)
        self.is_main: bool = self.accelerator.is_main_process
        self.tell = tell if self.is_main else _keep_quiet
        self.stream = stream
        self.folder = folder
        self.log = Log(folder)
        self.device = stream.device
        self.schedule = config.schedule
        self.sigma_1 = float(self.schedule.level(1).noise_variance.sqrt())

        self.shares = {
            name: shares(
                phase.batch_size,
                process=self.accelerator.process_index,
                processes=self.accelerator.num_processes,
                parts=config.accumulate,
                name=f"{name}.batch_size",
            )
            for name, phase in (
                ("warm_start", config.warm_start),
                ("cooperative", config.cooperative),
            )
            if phase.steps
        }

        self.data_fingerprint = stream.data.fingerprint()
        torch.manual_seed(config.seed)
        ebm, initializer = self.build()
        # Langevin runs on a frozen twin with the norms folded in, and nothing wrapped around it.
        self.chain: nn.Module = self._place(copy.deepcopy(ebm)).requires_grad_(False).eval()
        if config.spectral_norm:
            add_spectral_norm(ebm)
        self.ebm, self.initializer = self._place(ebm), self._place(initializer)
        self._refiner, self._proposer = self._compiled(self.chain), self._compiled(self.initializer)
        average = _ema(config.ema_decay)
        self.ebm_ema = AveragedModel(self.ebm, multi_avg_fn=average).eval()
        self.initializer_ema = AveragedModel(self.initializer, multi_avg_fn=average).eval()

        self.generator = torch.Generator(self.device).manual_seed(config.seed)
        self.step = 0  # over both phases
        self.images_seen = 0
        self.seconds = 0.0  # spent in steps, before and after resuming
        self.optimizers = self._new_optimizers()
        self.metrics = Metrics()
        self.guard = Guard(config)
        self.saved_step: int | None = None  # the newest on the disk
        self._back_at: int | None = None  # where the guard went back to last
        if not self.is_main:
            state.seed_global_generator(self)

    def build(self) -> tuple[Network, nn.Module]:
        """Fresh networks of this run, without spectral norm: the EBM and the initializer.

        Without an initializer (DRL), a module without weights takes its place in the state.
        """
        sizes = self.stream.images.shape[1], self.stream.data.num_classes
        ebm = build_network("ebm", self.config.ebm, *sizes)
        if self.config.initializer is None:
            return ebm, nn.Identity()
        return ebm, build_network("initializer", self.config.initializer, *sizes)

    def _proposal(self, labels: Tensor | None) -> InitializerProposal | IdentityProposal:
        return make_proposal(self._proposer if self.config.initializer else None, labels)

    def _place(self, network: Any) -> Any:
        return network.to(device=self.device, memory_format=torch.channels_last)

    def _compiled(self, network: nn.Module) -> Any:
        return torch.compile(network) if self.config.compile and _learns(network) else network

    # -- phases ---------------------------------------------------------------------------------

    @property
    def phase(self) -> Phase:
        """Which phase the next step belongs to."""
        return "warm_start" if self.step < self.config.warm_start.steps else "cooperative"

    @property
    def total_steps(self) -> int:
        """Steps of both phases together."""
        return self.config.warm_start.steps + self.config.cooperative.steps

    @property
    def total_images(self) -> int:
        """Images of both phases together."""
        phases = (self.config.warm_start, self.config.cooperative)
        return sum(phase.steps * phase.batch_size for phase in phases)

    def _phase_config(self) -> tuple[PhaseConfig, int]:
        if self.phase == "warm_start":
            return self.config.warm_start, self.step
        return self.config.cooperative, self.step - self.config.warm_start.steps

    def _new_optimizers(self) -> tuple[torch.optim.Optimizer, torch.optim.Optimizer]:
        return (
            torch.optim.Adam(self.ebm.parameters()),
            # A group, since a network without weights (DRL's) is no error.
            torch.optim.AdamW([{"params": [*self.initializer.parameters()]}], weight_decay=0.0),
        )

    def _set_rates(self, phase: PhaseConfig, step: int) -> None:
        begun = (step + 1) / phase.warm_up if phase.warm_up else 1.0
        rises = (min(1.0, begun), min(1.0, phase.initializer_start + begun))
        progress = step / max(1, phase.steps)
        fall = phase.final_rate + (1 - phase.final_rate) * 0.5 * (1 + math.cos(math.pi * progress))
        rates = (phase.ebm_rate, phase.initializer_rate)
        for optimizer, rate, rise in zip(self.optimizers, rates, rises, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = rate * rise * fall * self.guard.rate_scale

    # -- one step -------------------------------------------------------------------------------

    def train_step(self) -> dict[str, float]:
        """One optimiser step of each network; returns the two losses.

        Raises:
            Diverged: a figure that the guard watches blew up. The weights are then still those before
                the step; the random state and spectral norm's vectors are not.
        """
        phase, step = self._phase_config()
        if step == 0 and self.phase == "cooperative":
            self.optimizers = self._new_optimizers()
        self._set_rates(phase, step)
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        power_iteration(self.ebm)
        if isinstance(phase, CooperativeConfig):
            self.chain.load_state_dict(folded_state(self.ebm))
        index = self.stream.take(phase.batch_size)
        drawn = self.generator.get_state()
        figures = Figures(self.schedule.num_levels, self.device)
        parts = self.shares[self.phase]
        for rows in parts:
            self.generator.set_state(drawn)  # every part draws the noise of the whole batch
            with normalised(self.ebm), self.accelerator.autocast():
                part = self._part(phase, index, rows)
                if isinstance(phase, CooperativeConfig):
                    losses = self._cooperative_losses(phase, part, figures)
                else:
                    losses = self._warm_start_losses(part, figures)
            for name, loss in zip(("ebm", "initializer"), losses, strict=True):
                figures.add(f"loss/{name}", loss)
                if loss.requires_grad:  # DRL has no initializer to learn
                    (loss / len(parts)).backward()  # type: ignore[no-untyped-call]
        means = self._update(figures)
        self.step += 1
        self.images_seen += phase.batch_size
        return means

    def _part(self, phase: PhaseConfig, index: Tensor, rows: slice) -> Part:
        """The images of these rows of a batch, noised to levels of their own."""
        batch = self.stream.load(index, self.generator, rows)
        t = torch.randint(
            1,
            self.schedule.num_levels + 1,
            (phase.batch_size,),
            generator=self.generator,
            device=self.device,
        )[rows]
        level = self.schedule.level(t, self.device)
        random = BatchRandom(phase.batch_size, self.generator, rows)
        return Part(
            batch, level, objectives.noised_pair(batch.x, level, phase.coupling, random), random
        )

    def _warm_start_losses(self, part: Part, figures: Figures) -> tuple[Tensor, Tensor]:
        batch, level, pair, _ = part
        energy = NeuralEnergy(self.ebm, batch.labels)
        proposal = self._proposal(batch.labels)
        matching = objectives.score_matching_loss(energy, pair, level)
        regression = objectives.regression_loss(proposal, pair, level)
        figures.add_by_level("score_matching", matching.per_image, level.t)
        figures.add_by_level("regression", regression.per_image, level.t)
        return matching.value, regression.value

    def _cooperative_losses(
        self, phase: CooperativeConfig, part: Part, figures: Figures
    ) -> tuple[Tensor, Tensor]:
        batch, level, pair, random = part
        energy = NeuralEnergy(self.ebm, batch.labels)
        proposal = self._proposal(batch.labels)
        mean = proposal.mean(pair.x_t, level)
        refined = objectives.refine(
            NeuralEnergy(self._refiner, batch.labels),
            proposal,
            mean,
            Langevin(),
            level.step_variance * phase.step_scale,
            phase.langevin_steps,
            pair.x_t,
            level,
            random,
        )
        matching = None
        if phase.score_matching:
            matching = objectives.score_matching_loss(energy, pair, level)
        positive = energy(pair.y, level) if matching is None else matching.energy
        with evaluating(self.ebm):
            negative = energy(refined.end, level)
        weight = objectives.contrastive_weight(level, self.sigma_1, phase.weight)
        contrast = objectives.contrastive_loss(positive, negative, weight)
        imitation = objectives.imitation_loss(mean, refined)
        moved = (refined.end - refined.start).square().flatten(1).sum(1).sqrt()
        for name, per_image in (
            ("energy_positive", positive),
            ("energy_negative", negative),
            ("energy_gap", contrast.per_image),
            ("energy_gap_size", contrast.per_image.abs()),
            ("displacement", moved),
            ("imitation", imitation.per_image),
        ):
            figures.add_by_level(name, per_image, level.t)

        ebm_loss, initializer_loss = contrast.value, imitation.value
        if matching is not None:
            figures.add_by_level("score_matching", matching.per_image, level.t)
            ebm_loss = ebm_loss + phase.score_matching * matching.value
        if phase.regression:
            regression = objectives.regression_loss(proposal, pair, level)
            figures.add_by_level("regression", regression.per_image, level.t)
            initializer_loss = initializer_loss + phase.regression * regression.value
        return ebm_loss, initializer_loss

    def _update(self, figures: Figures) -> dict[str, float]:
        """Step both optimizers, unless the guard objects; returns the losses of the whole batch."""
        networks = {"ebm": self.ebm, "initializer": self.initializer}
        average_gradients(self.accelerator, networks.values())
        norms = {
            name: _clipped(network, self.config.clip) if _learns(network) else 0.0
            for name, network in networks.items()
        }
        found = figures.shared(self.accelerator)
        losses = {key: found.pop(key).mean for key in ("loss/ebm", "loss/initializer")}
        self._watch(found, losses, norms)
        for optimizer in self.optimizers:
            optimizer.step()
        self.ebm_ema.update_parameters(self.ebm)
        if _learns(self.initializer):
            self.initializer_ema.update_parameters(self.initializer)
        for key, figure in found.items():
            self.metrics.add(key, figure.total, figure.size)
        for (name, norm), optimizer in zip(norms.items(), self.optimizers, strict=True):
            self.metrics.add(f"grad_norm/{name}", norm)
            self.metrics.add(f"rate/{name}", optimizer.param_groups[0]["lr"])
        return losses

    def _watch(
        self, found: dict[str, Sum], losses: dict[str, float], norms: dict[str, float]
    ) -> None:
        """Show a step's figures to the guard: the same on every process, so all do as it says."""
        pixels = math.prod(self.stream.images.shape[1:])
        units = {
            "energy_gap_size": ("energy_gap", pixels),
            "displacement": ("displacement", pixels**0.5),
        }
        for key, figure in found.items():
            name, _, t = key.partition("/")
            if name in units:
                kind, unit = units[name]
                self.guard.watch(kind, t, figure.mean / unit)
        for key, loss in losses.items():
            self.guard.watch("loss", key.removeprefix("loss/"), abs(loss))
        for name, norm in norms.items():
            self.guard.watch("grad_norm", name, norm)
        self.guard.settle(self.step)

    # -- the loop -------------------------------------------------------------------------------

    def fit(
        self,
        on_log: Callable[[dict[str, Any]], object] | None = None,
        on_sample: Callable[[Trainer], object] | None = None,
        until: int | None = None,
        stop: Callable[[], bool] = lambda: False,
        on_step: Callable[[Trainer], object] | None = None,
    ) -> None:
        """Train to the end (or to step ``until``), saving on the way and at the end.

        The callbacks are called on the main process alone, while the others wait.

        Args:
            on_log: gets each line of the log.
            on_sample: called every ``sample_every`` steps and at the end.
            until: a step to end at.
            stop: asked between two steps; once any process says yes, the state is saved and the run
                left.
            on_step: called after every step.

        Raises:
            NumericalError: training diverged, also at lower rates; the last good state is on disk, and
                the text says where.
            CheckpointError: the disk is full or refuses a file; the state saved before is as it was.
        """
        end = self.total_steps if until is None else min(until, self.total_steps)
        if self.is_main:
            self.folder.mkdir(parents=True, exist_ok=True)
            for name in ("", "checkpoints", "samples"):
                remove_unfinished(self.folder / name)
        try:
            with checkpoints.writing_to(self.folder):
                self._fit(end, on_log, on_sample, stop, on_step)
        finally:
            if self.is_main:
                self._report()

    def _report(self) -> None:
        try:
            write_report(self.folder)
        except OSError as error:  # which must not hide why the run ended
            self.tell(f"no report of the run: {error.strerror}")

    def _fit(
        self,
        end: int,
        on_log: Callable[[dict[str, Any]], object] | None,
        on_sample: Callable[[Trainer], object] | None,
        stop: Callable[[], bool],
        on_step: Callable[[Trainer], object] | None,
    ) -> None:
        if self.saved_step is None:
            # What the guard goes back to; and a disk that is full is known at once.
            state.save(self)
        saved_at = time.monotonic()
        while self.step < end:
            due = time.monotonic() - saved_at > 60 * self.config.checkpoint_minutes
            stopping, due = anywhere(self.accelerator, stop(), due)
            if (stopping or due) and self.saved_step != self.step:
                state.save(self)
                saved_at = time.monotonic()
            if stopping:
                return
            started = time.perf_counter()
            phase = self.phase
            try:
                losses = self.train_step()
            except Diverged as error:
                self._go_back(error)
                continue
            spent = time.perf_counter() - started
            self.seconds += spent
            self.metrics.add("seconds_per_step", spent)
            for name, value in losses.items():
                self.metrics.add(name, value)
            last = self.step == end
            if self.is_main and on_step is not None:
                on_step(self)
            if self.step % self.config.log_every == 0 or last or self.phase != phase:
                self._log(phase, on_log)
            if self.step % self.config.checkpoint_every == 0 or last:
                state.save(self)
                saved_at = time.monotonic()
            sampling = last or (self.step % self.config.sample_every == 0 and not stop())
            if self.is_main and on_sample is not None and sampling:
                on_sample(self)

    def _go_back(self, error: Diverged) -> None:
        """Continue from the last checkpoint at half the rates, or give up."""
        halvings = self.guard.halvings + 1
        states = checkpoints.all_of(self.folder / "checkpoints") if self.is_main else []
        if len(states) > 1 and error.step == self._back_at:
            # The first step's figures do not depend on the rates: this state itself is bad.
            checkpoints.set_aside(states[-1])
            self.tell(f"{states[-1].name} blows up at its first step: set aside")
        found = state.newest(self)
        if found is None or halvings > self.guard.retries:
            self._append({**error.record(), "event": "stopped", "halvings": halvings - 1})
            raise NumericalError(
                f"{error}, after going back {halvings - 1} times at half the rates; {error.advice}; "
                f"last good state: {found.path if found else 'none'}"
            ) from error
        state.restore(self, found.state)
        self.guard.halvings, self._back_at = halvings, self.step
        self._append({**error.record(), "back_to": self.step, "rate_scale": self.guard.rate_scale})
        self.tell(
            f"{error}; back to step {self.step}, rates now {self.guard.rate_scale:g} of the run's "
            f"(try {halvings} of {self.guard.retries})"
        )

    def _log(self, phase: Phase, on_log: Callable[[dict[str, Any]], object] | None) -> None:
        means = self.metrics.take()
        if not self.is_main:
            return
        speed = getattr(self.config, phase).batch_size / means["seconds_per_step"]
        line: dict[str, Any] = {
            "step": self.step,
            "phase": phase,
            "images": self.images_seen,
            "hours": round(self.seconds / 3600, 4),
            "images_per_second": float(f"{speed:.4g}"),
            **{name: float(f"{value:.6g}") for name, value in sorted(means.items())},
        }
        self._append(line)
        if on_log is not None:
            on_log(line)

    def _append(self, line: dict[str, Any]) -> None:
        if self.is_main:
            self.log.append(line)


def _keep_quiet(text: str) -> None:
    """On all but the main process."""


def _learns(network: nn.Module) -> bool:
    """Whether it has weights; DRL's initializer has none."""
    return any(True for _ in network.parameters())


def _clipped(network: nn.Module, limit: float) -> float:
    """Scale the gradient down to that norm; returns the norm it had."""
    return float(nn.utils.clip_grad_norm_(network.parameters(), limit))


def _ema(decay: float) -> Callable[..., None]:
    """``W_ema ← d W_ema + (1-d) W`` with ``d = min(decay, (1+n)/(10+n))``: young averages forget fast."""

    @torch.no_grad()
    def update(averaged: list[Tensor], current: list[Tensor], count: Tensor) -> None:
        n = int(count)
        torch._foreach_lerp_(averaged, current, 1 - min(decay, (1 + n) / (10 + n)))

    return update
