"""One training step, for any objective, on one process or several."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from cdrl_infer.errors import CheckpointError, ConfigError
from cdrl_infer.model import ImageShape
from cdrl_infer.random import BatchRandom
from cdrl_train.config import Phase, TrainConfig
from cdrl_train.data.stream import BatchStream
from cdrl_train.engine.distributed import average_gradients, make_accelerator, precision_of, shares
from cdrl_train.engine.guard import Guard
from cdrl_train.engine.log import Log
from cdrl_train.engine.metrics import Metrics, Results, Sum
from cdrl_train.engine.recording import PLAIN_STEPS, Recorder
from cdrl_train.engine.state import Start, TrainState
from cdrl_train.objectives import OBJECTIVES, Losses
from cdrl_train.spectral import normalised, power_iteration

if TYPE_CHECKING:
    from accelerate import Accelerator

FORMAT = 3


class Trainer:
    """Trains the networks of a run on a stream of batches.

    Every process holds all networks, draws the random numbers of the whole batch and works on its
    share of the images; see `cdrl_train.engine.distributed`. The number of processes changes nothing
    but rounding (and which units dropout hides).

    Args:
        config: the run.
        stream: the data, on the device to train on.
        folder: folder of the run, the same for all processes; only the main process writes there.
        tell: called on the main process with messages for the user.
        accelerator: by `make_accelerator`, which is also the default.
        start: see `TrainState`.

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
        start: Start | None = None,
    ) -> None:
        self.accelerator = accelerator or make_accelerator(config.precision, stream.device)
        if config.precision == "auto":
            config = replace(config, precision=precision_of(self.accelerator))
        self.config = config
        self.is_main: bool = self.accelerator.is_main_process
        _check_sharing(config, self.accelerator.num_processes)
        self.tell = tell if self.is_main else _keep_quiet
        self.stream = stream
        self.folder = folder
        self.log = Log(folder)
        self.device = stream.device
        self.image = ImageShape(*stream.images.shape[1:])
        self.shares = [
            shares(
                phase.batch_size,
                process=self.accelerator.process_index,
                processes=self.accelerator.num_processes,
                parts=config.accumulate,
                name=f"{label}.batch_size",
            )
            if phase.steps
            else []
            for label, phase in zip(config.labels, config.phases, strict=True)
        ]
        self.data_fingerprint = stream.data.fingerprint()
        num_classes = stream.data.num_classes
        self.state = TrainState(config, self.image, num_classes, self.device, start)
        self._compute = (
            Recorder(self._gradients, self.state, self.tell) if self.recorded else self._gradients
        )
        self.metrics = Metrics()
        self.guard = Guard(config.retries)
        self.saved_step: int | None = None  # the newest on the disk
        if not self.is_main:
            self.seed_global_generator()

    @property
    def recorded(self) -> bool:
        """Whether steps are recorded as CUDA graphs: see `TrainConfig.cuda_graphs`."""
        return (
            self.config.cuda_graphs
            and self.device.type == "cuda"
            and self.stream.images.device.type == "cuda"
            and self.accelerator.num_processes == 1
            and self.config.accumulate == 1
            and not self.config.compile
        )

    @property
    def steps_until_recorded(self) -> int:
        """Steps of a phase until its steps are replayed; 0 if they never are."""
        return PLAIN_STEPS + 1 if self.recorded else 0

    @property
    def step(self) -> int:
        """Steps done, over all phases."""
        return self.state.step

    @property
    def phase(self) -> Phase:
        """The phase of the next step."""
        return self.config.phases[self.state.phase]

    def train_step(self) -> dict[str, float]:
        """One optimizer step; returns the losses by name.

        Raises:
            Diverged: a result that the guard watches is out of bounds. The weights are then as they
                were before the step; the random state and spectral norm's vectors are not.
        """
        state, phase = self.state, self.phase
        state.begin_step(self.guard.lr_scale)
        means = self._update(self._compute(self.stream.take(phase.batch_size)))
        state.step += 1
        state.images_seen += phase.batch_size
        return means

    def _gradients(self, index: Tensor) -> Results:
        """Leave the gradients of a batch at the parameters; returns what was observed."""
        state, parts = self.state, self.shares[self.state.phase]
        power_iteration(state.ebm)
        if state.objective.runs_chains:
            state.refresh_frozen()
        drawn = state.generator.get_state() if len(parts) > 1 else None
        results = Results(self.config.schedule.num_levels, self.device)
        for rows in parts:
            if drawn is not None:  # every part draws the noise of the whole batch
                state.generator.set_state(drawn)
            with normalised(state.ebm), self.accelerator.autocast():
                losses = self._losses(index, rows, results)
            (losses.total / len(parts)).backward()  # type: ignore[no-untyped-call]
        return results

    def _losses(self, index: Tensor, rows: slice, results: Results) -> Losses:
        """The objective's losses of these rows of a batch, each image at a level of its own."""
        state, batch_size = self.state, len(index)
        batch = self.stream.load(index, state.generator, rows)
        t = torch.randint(
            1,
            self.config.schedule.num_levels + 1,
            (batch_size,),
            generator=state.generator,
            device=self.device,
        )[rows]
        level = self.config.schedule.level(t, self.device)
        random = BatchRandom(batch_size, state.generator, rows)
        losses = state.objective.losses(state.models, batch, level, random)
        for name, value in losses.totals.items():
            results.add(f"loss/{name}", value)
        for name, per_image in losses.by_level.items():
            results.add_by_level(name, per_image, level.t)
        for name, value in losses.observed.items():
            results.add(name, value)
        return losses

    def _update(self, results: Results) -> dict[str, float]:
        """Apply the gradients, unless the guard objects; returns the losses of the whole batch."""
        state = self.state
        active = state.active
        average_gradients(self.accelerator, active.values())
        limit = self.config.grad_clip
        clipped = {name: _clipped(m, limit, self.device) for name, m in active.items()}
        found, norms = results.shared(self.accelerator, clipped)
        losses = {key: found.pop(key).mean for key in list(found) if key.startswith("loss/")}
        self._watch(found, losses, norms)
        state.apply_gradients()
        for key, result in found.items():
            self.metrics.add(key, result.total, result.size)
        rates = state.learning_rates()
        for name, norm in norms.items():
            self.metrics.add(f"grad_norm/{name}", norm)
            self.metrics.add(f"lr/{name}", rates[name])
        return losses

    def _watch(
        self, found: dict[str, Sum], losses: dict[str, float], norms: dict[str, float]
    ) -> None:
        """Show the results of a step to the guard. They are the same on every process."""
        for limit in self.state.objective.limits(math.prod(self.image.shape)):
            for key, result in found.items():
                name, _, t = key.partition("/")
                if name == limit.result:
                    self.guard.watch(limit, t, result.mean / limit.unit)
        for key, loss in losses.items():
            self.guard.watch_loss(key.removeprefix("loss/"), loss)
        for name, norm in norms.items():
            self.guard.watch_gradient(name, norm, self.config.max_grad_norm)
        self.guard.settle(self.step)

    def state_dict(self) -> dict[str, Any]:
        """Everything the next step depends on; of several processes, on this one."""
        return {
            "format": FORMAT,
            "data": self.data_fingerprint,
            **self.state.state_dict(),
            "stream": self.stream.state(),
            "global_generators": [self.global_generator.get_state()],
            "metrics": {"sums": self.metrics.sums, "counts": self.metrics.counts},
            "halvings": self.guard.halvings,
            "log_lines": len(self.log.rows()),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`.

        Raises:
            CheckpointError: another format, other data, more steps than the run has, or tensors that
                do not fit its networks.
        """
        self._check(state)
        self.state.load_state_dict(state)
        self.stream.load_state(state["stream"])
        own, generators = self.accelerator.process_index, state["global_generators"]
        if own < len(generators):
            self.global_generator.set_state(generators[own])
        else:  # the run had fewer processes
            self.seed_global_generator()
        self.metrics.sums = dict(state["metrics"]["sums"])
        self.metrics.counts = dict(state["metrics"]["counts"])
        self.guard.halvings = state["halvings"]
        self.saved_step = self.step

    def _check(self, state: dict[str, Any]) -> None:
        """Raise `CheckpointError` for a state of another run, before anything is changed."""
        if state.get("format") != FORMAT:
            raise CheckpointError(
                f"expected a training state of format {FORMAT}, found {state.get('format')}; continue "
                "the run with the version of this package that started it"
            )
        if state["data"] != self.data_fingerprint:
            raise CheckpointError(
                f"this run was trained on data with fingerprint {state['data']}, the data given has "
                f"{self.data_fingerprint}; resume with the same images"
            )
        if state["step"] > self.config.total_steps:
            raise CheckpointError(
                f"the training state is that of step {state['step']}, the options end the run at step "
                f"{self.config.total_steps}; raise the steps of a phase"
            )

    @property
    def global_generator(self) -> torch.Generator:
        """The generator that layers such as dropout draw from."""
        if self.device.type != "cuda":
            return torch.default_generator
        index = torch.cuda.current_device() if self.device.index is None else self.device.index
        return torch.cuda.default_generators[index]

    def seed_global_generator(self) -> None:
        """Seed it for this process: dropout is the one thing that each process draws for itself."""
        own = 1_000_003 * self.accelerator.process_index
        self.global_generator.manual_seed(self.config.seed + own + self.step)


def _check_sharing(config: TrainConfig, processes: int) -> None:
    """Raise `ConfigError` if a phase that needs the whole batch at once would get only a part."""
    for label, phase in zip(config.labels, config.phases, strict=True):
        if (
            OBJECTIVES[phase.name].one_process
            and phase.steps
            and (processes, config.accumulate) != (1, 1)
        ):
            raise ConfigError(
                f"{label}: the objective {phase.name} keeps values from step to step, so it needs "
                f"one process and accumulate=1, got {processes} and {config.accumulate}"
            )


def _keep_quiet(text: str) -> None:
    """On all processes but the main one."""


def _clipped(module: nn.Module, limit: float, device: torch.device) -> Tensor:
    """Scale the gradient down to that norm; returns the norm () that it had, 0 without any gradient."""
    return nn.utils.clip_grad_norm_(module.parameters(), limit).to(device)
