"""What a training run is: typed options, checked before any work, stored with the run."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cdrl_infer.config import from_config
from cdrl_infer.errors import ConfigError, InputError
from cdrl_infer.files import replaced_file
from cdrl_infer.model import SamplerDefaults
from cdrl_infer.schedule import NoiseSchedule
from cdrl_train.objectives.losses import ContrastiveWeight, Coupling

Precision = Literal["float32", "bfloat16"]
Storage = Literal["float32", "float16"]


def _within(name: str, value: float, low: float, high: float = math.inf) -> None:
    if not low <= value <= high:
        limits = f"at least {low:g}" if high == math.inf else f"in [{low:g}, {high:g}]"
        raise ConfigError(f"{name} must be {limits}, got {value}")


@dataclass(frozen=True)
class DataConfig:
    """The images, and how they become network input in [-1, 1].

    Args:
        source: where they are, if the user does not say; see `cdrl_train.data.load_images`. "": has to
            be said.
        attributes: of the set's, those to condition on; null: all of them, []: none, an unconditional
            model.
        in_memory_mib: sets of up to this many MiB live as uint8 on the training device; larger ones
            are mapped from a disk.
        dequantise: add uniform noise of one grey level before scaling.
        flip: mirror each image left-right with probability ½.
        label_dropout: probability that a label is hidden, each attribute for itself, so that the model
            is unconditional too, and knows each attribute without the others.
    """

    source: str = ""
    attributes: tuple[str, ...] | None = None
    in_memory_mib: int = 2048
    dequantise: bool = True
    flip: bool = False
    label_dropout: float = 0.1

    def __post_init__(self) -> None:
        _within("in_memory_mib", self.in_memory_mib, 0)
        _within("label_dropout", self.label_dropout, 0, 1)


@dataclass(frozen=True)
class PhaseConfig:
    """One phase of training.

    Args:
        steps: optimiser steps; 0 skips the phase.
        batch_size: images per step, of all processes together.
        coupling: how x_t and x_{t-1} share noise, see `cdrl_train.objectives.noised_pair`.
        ebm_rate, initializer_rate: peak learning rates.
        warm_up: steps over which the rates rise linearly.
        initializer_start: the share of its peak at which the initializer's rate begins to rise.
        final_rate: the rates fall along a cosine to this share of the peak; 1 = constant.
    """

    steps: int
    batch_size: int
    coupling: Coupling
    ebm_rate: float
    initializer_rate: float
    warm_up: int = 0
    initializer_start: float = 0.0
    final_rate: float = 1.0

    def __post_init__(self) -> None:
        for name in ("steps", "warm_up", "ebm_rate", "initializer_rate"):
            _within(name, getattr(self, name), 0)
        _within("batch_size", self.batch_size, 1)
        for name in ("initializer_start", "final_rate"):
            _within(name, getattr(self, name), 0, 1)


@dataclass(frozen=True)
class CooperativeConfig(PhaseConfig):
    """The cooperative phase (CDRL, algorithm 1).

    Args:
        langevin_steps: K in training.
        step_scale: multiplies the schedule's Langevin step variance.
        weight: of the levels in the contrastive loss, see `objectives.contrastive_weight`.
        score_matching: weight of the score matching loss kept on beside the contrastive one; 0 = paper.
        regression: weight of the initializer's regression kept on beside imitation; 0 = paper.
    """

    langevin_steps: int = 15
    step_scale: float = 1.0
    weight: ContrastiveWeight = "paper"
    score_matching: float = 0.0
    regression: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("langevin_steps", "score_matching", "regression"):
            _within(name, getattr(self, name), 0)
        _within("step_scale", self.step_scale, 1e-6)


@dataclass(frozen=True)
class TrainConfig:
    """Everything that defines a run but its data and its folder.

    Args:
        name: of the preset, with its variations.
        ebm, initializer: ``{"class": ..., **constructor arguments}``, a backbone's nested in it;
            ``in_channels`` and ``num_classes`` are filled in from the data. An initializer of None: DRL.
        schedule: the noise levels.
        sampler: the defaults written into the exported model.
        spectral_norm: normalise the EBM's layers in training (folded on export).
        warm_start, cooperative: the two phases, in this order.
        ema_decay: of both networks' averages, which are what is exported.
        clip: largest gradient norm, each network for itself.
        precision: "bfloat16" runs convolutions in bfloat16 (autocast); losses stay float32.
        accumulate: each process works on its share of a batch in this many parts, to save memory.
        compile: run Langevin and the initializer through ``torch.compile``. Score matching is not:
            a compiled network cannot be differentiated twice.
        stored_as: type of the exported weights; float16 halves the file.
        max_energy_gap: a step counts as diverged when |E(y⁺) - E(y⁻)|, the mean of a level's images in
            a batch, reaches it (nats per pixel).
        max_displacement: the same for how far Langevin moves a level's images (root mean square over
            pixels; data is in [-1, 1]).
        max_grad_norm: the same for the norm of either network's gradient, before clipping.
        retries: how often a run that diverges goes back to its last checkpoint and on at half the
            rates, before it stops.
        log_every, sample_every, checkpoint_every: in steps; checkpoint_minutes: at least this often.
        keep_checkpoints: how many are kept.
        seed: of everything random.
    """

    name: str
    ebm: dict[str, Any]
    initializer: dict[str, Any] | None
    warm_start: PhaseConfig
    cooperative: CooperativeConfig
    schedule: NoiseSchedule = NoiseSchedule()
    sampler: SamplerDefaults = SamplerDefaults()
    data: DataConfig = DataConfig()
    spectral_norm: bool = False
    ema_decay: float = 0.999
    clip: float = 1.0
    precision: Precision = "float32"
    accumulate: int = 1
    compile: bool = False
    stored_as: Storage = "float32"
    max_energy_gap: float = 1e4
    max_displacement: float = 10.0
    max_grad_norm: float = 1e6
    retries: int = 3
    log_every: int = 100
    sample_every: int = 2000
    checkpoint_every: int = 1000
    checkpoint_minutes: float = 5.0
    keep_checkpoints: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("log_every", "sample_every", "checkpoint_every", "keep_checkpoints"):
            _within(name, getattr(self, name), 1)
        _within("accumulate", self.accumulate, 1)
        for name in ("clip", "checkpoint_minutes"):
            _within(name, getattr(self, name), 1e-6)
        for name in ("max_energy_gap", "max_displacement", "max_grad_norm", "retries"):
            _within(name, getattr(self, name), 0)
        _within("ema_decay", self.ema_decay, 0, 1 - 1e-9)
        _within("seed", self.seed, 0, 2**32 - 1)
        self.sampler.check_levels(self.schedule.num_levels)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as JSON holds them."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TrainConfig:
        """The inverse of `to_dict`.

        Raises:
            ConfigError: a key that does not exist, or a value of another type.
        """
        return from_config(cls, values, "config")

    @classmethod
    def read(cls, file: Path) -> TrainConfig:
        """From a file of JSON, as ``cdrl-train --print-config`` and a run write it.

        Raises:
            InputError: no such file, or other content.
            ConfigError: as in `from_dict`.
        """
        try:
            values = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(f"{file}: expected options in JSON, found none ({error})") from error
        try:
            return cls.from_dict(values)
        except ConfigError as error:
            raise ConfigError(f"{file}: {error}") from None

    def to_json(self) -> str:
        """The text that `read` takes, without a last line end."""
        return json.dumps(self.to_dict(), indent=2)

    def write(self, file: Path) -> None:
        """The inverse of `read`; the file appears whole or not at all.

        Raises:
            OSError: it cannot be written.
        """
        with replaced_file(file) as new:
            new.write_text(self.to_json() + "\n", encoding="utf-8")

    def assignments(self, base: TrainConfig) -> list[str]:
        """The ``"KEY=VALUE"`` that `override` needs to make this of ``base``."""

        def differences(old: dict[str, Any], new: dict[str, Any], path: str) -> list[str]:
            found: list[str] = []
            for key, value in new.items():
                before = old.get(key)
                if (
                    isinstance(value, dict)
                    and isinstance(before, dict)
                    and before.keys() <= value.keys()
                ):
                    found += differences(before, value, f"{path}{key}.")
                elif key not in old or before != value:
                    found.append(f"{path}{key}={json.dumps(value)}")
            return found

        return differences(base.to_dict(), self.to_dict(), "")

    def override(self, assignments: list[str]) -> TrainConfig:
        """A copy with ``"warm_start.steps=100"``-like assignments applied.

        Raises:
            ConfigError: an assignment without "=", to an unknown key or with a value of another type.
        """
        values = self.to_dict()
        for assignment in assignments:
            path, equals, text = assignment.partition("=")
            if not equals:
                raise ConfigError(f"expected KEY=VALUE, got {assignment!r}")
            *parents, last = path.strip().split(".")
            target: Any = values
            for parent in parents:
                target = target.get(parent)
                if not isinstance(target, dict):
                    raise ConfigError(f"unknown option {path!r}: there is no group {parent!r}")
            target[last] = _parse(text)
        return TrainConfig.from_dict(values)


def _parse(text: str) -> Any:
    """JSON where it is JSON, else the text itself."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text
