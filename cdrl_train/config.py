"""The options of a training run: typed, checked before any work, stored with the run."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cdrl_infer.config import from_config
from cdrl_infer.device import Precision
from cdrl_infer.errors import CheckpointError, ConfigError, InputError
from cdrl_infer.files import replaced_file
from cdrl_infer.model import SamplerDefaults
from cdrl_infer.schedule import NoiseSchedule
from cdrl_infer.untrusted import read_json
from cdrl_train.assignments import (
    differences,
    group,
    head_or_backbone,
    parse,
    phase_or_objective,
)
from cdrl_train.objectives import OBJECTIVES, Objective

Storage = Literal["float32", "float16"]
AUTO = "auto"  # an option that the device or the data decide
TOP_LEVEL = ("ebm", "initializer", "phases", "schedule", "sampler", "data")  # groups of options


def _within(name: str, value: float, low: float, high: float = math.inf) -> None:
    if not low <= value <= high:
        limits = f"at least {low:g}" if high == math.inf else f"in [{low:g}, {high:g}]"
        raise ConfigError(f"{name} must be {limits}, got {value}")


@dataclass(frozen=True)
class DataConfig:
    """The images, and how they become network input in [-1, 1].

    Args:
        source: where the images are, unless the user says so, see `cdrl_train.data.load_images`; "": the
            user has to say.
        attributes: names of the attributes to condition on; null: all of them; []: none, for an
            unconditional model.
        hold_out: names of classes to leave out of training, or their numbers, from 0; a name counts
            before a number. ``cdrl-eval --metrics ood`` then tells them from the others.
        in_memory_mib: data sets of up to this many MiB are kept as uint8 on the training device; larger
            ones are mapped from the disk.
        grey: make grey images of coloured ones; grey ones that are stored in colour become grey anyway.
        dequantise: add uniform noise of one grey level before scaling.
        image_size: height and width that images are scaled to; null: their own, or for a folder of large
            or different pictures a size that the run chooses and tells.
        resize: "crop" the sides of pictures that have other proportions, or "pad" them with black.
        flip: mirror each image left-right with probability ½; null: if the mean image is symmetric.
        label_dropout: probability that a label is hidden, for each attribute independently. The model
            then also learns to draw without labels, and with some of them.
    """

    source: str = ""
    attributes: tuple[str, ...] | None = None
    hold_out: tuple[str | int, ...] | str | int = ()
    in_memory_mib: int = 2048
    grey: bool = False
    dequantise: bool = True
    image_size: tuple[int, int] | None = None
    resize: Literal["crop", "pad"] = "crop"
    flip: bool | None = False
    label_dropout: float = 0.1

    def __post_init__(self) -> None:
        _within("in_memory_mib", self.in_memory_mib, 0)
        _within("label_dropout", self.label_dropout, 0, 1)
        if isinstance(self.hold_out, str | int):
            object.__setattr__(self, "hold_out", (self.hold_out,))
        for size in self.image_size or ():
            _within("image_size", size, 1, 4096)

    @property
    def classes_out(self) -> tuple[str | int, ...]:
        """`hold_out`, also if it is one class."""
        assert isinstance(self.hold_out, tuple)  # since `__post_init__`
        return self.hold_out


@dataclass(frozen=True)
class Phase:
    """One phase of training: what it minimises, how long and how fast.

    Args:
        objective: ``{"name": NAME, **options}``, a name in `cdrl_train.objectives.OBJECTIVES`; options
            that are left out get their defaults.
        steps: optimizer steps; 0 skips the phase.
        batch_size: images per step, of all processes together.
        ebm_lr, initializer_lr: peak learning rates of the two networks.
        objective_lr: peak learning rate of what the objective owns; null: ``ebm_lr``.
        lr_warmup_steps: steps over which the learning rates rise linearly.
        initializer_lr_start: the share of its peak at which the initializer's learning rate starts.
        final_lr: the learning rates fall along a cosine to this share of their peak; 1 = constant.
        label: what to call the phase in ``--set``, logs and cards; "": the objective's name.
    """

    objective: dict[str, Any]
    steps: int
    batch_size: int
    ebm_lr: float
    initializer_lr: float
    objective_lr: float | None = None
    lr_warmup_steps: int = 0
    initializer_lr_start: float = 0.0
    final_lr: float = 1.0
    label: str = ""

    def __post_init__(self) -> None:
        for name in ("steps", "lr_warmup_steps", "ebm_lr", "initializer_lr"):
            _within(name, getattr(self, name), 0, 1e12)
        _within("objective_lr", self.objective_lr or 0.0, 0, 1e12)
        _within("batch_size", self.batch_size, 1, 1e6)
        for name in ("initializer_lr_start", "final_lr"):
            _within(name, getattr(self, name), 0, 1)
        options = {"name": self.objective.get("name"), **self.make_objective().config}
        own = {field.name for field in dataclasses.fields(self)} - {"objective"}
        if clash := sorted(own & options.keys()):
            raise ConfigError(
                f"the option {clash[0]!r} of the objective {self.name!r} is also an option of every "
                "phase; give it another name"
            )
        if "." in self.label or self.label in TOP_LEVEL:
            raise ConfigError(
                f"label must have no dot and be no option of a run, got {self.label!r}; choose another"
            )
        object.__setattr__(self, "objective", options)

    @property
    def name(self) -> str:
        """The name of the objective."""
        return str(self.objective["name"])

    def make_objective(self) -> Objective:
        """A fresh objective.

        Raises:
            ConfigError: an unknown name or option.
        """
        options = dict(self.objective)
        kind = OBJECTIVES.find(options.pop("name", None), "objective")
        return from_config(kind, options, f"objective {self.objective['name']!r}")

    def learning_rates(self, step: int) -> dict[str, float]:
        """Of "ebm", "initializer" and "objective" at a step of the phase, 0 the first."""
        risen = (step + 1) / self.lr_warmup_steps if self.lr_warmup_steps else 1.0
        progress = step / max(1, self.steps)
        fall = self.final_lr + (1 - self.final_lr) * 0.5 * (1 + math.cos(math.pi * progress))
        own = self.ebm_lr if self.objective_lr is None else self.objective_lr
        return {
            "ebm": self.ebm_lr * min(1.0, risen) * fall,
            "initializer": self.initializer_lr * min(1.0, self.initializer_lr_start + risen) * fall,
            "objective": own * min(1.0, risen) * fall,
        }


@dataclass(frozen=True)
class TrainConfig:
    """Everything that defines a run except its data and its folder.

    Args:
        name: name of the preset, with its variations, or any other name.
        ebm: ``{"class": ..., **constructor arguments}``; ``in_channels`` and ``num_classes`` come from
            the data.
        initializer: the same; null for a run without an initializer.
        phases: the phases of training, in order.
        schedule: the noise levels.
        sampler: the defaults written into the exported model.
        data: the images.
        spectral_norm: normalise the EBM's layers in training (folded on export).
        ema_decay: decay of the averages of all weights; the averages are exported.
        grad_clip: largest gradient norm, for each network by itself.
        precision: "bfloat16" runs convolutions in bfloat16 (autocast); losses stay float32. "auto":
            the faster of the two on the device, by a short measurement; a run keeps its answer.
        accumulate: each process works on its share of a batch in this many parts, to save memory.
        compile: run Langevin and the initializer through ``torch.compile``. Score matching is not:
            a compiled network cannot be differentiated twice.
        cuda_graphs: on one GPU, record the operations of a step and launch them together, which is
            faster for small networks. Without effect on a CPU, with several processes, ``accumulate``,
            ``compile``, or images that do not fit into ``data.in_memory_mib``.
        stored_as: type of the exported weights; float16 halves the file.
        max_grad_norm: a step counts as diverged when the norm of a network's gradient reaches it,
            before clipping. Objectives have limits of their own.
        retries: how often a run that diverges returns to its last checkpoint and continues at half
            the learning rates before it stops.
        log_every, sample_every, checkpoint_every: steps between log lines, previews and checkpoints.
        contradiction_every: steps between estimates of how many nats adjacent levels contradict each
            other, a curve of the report; 0: none. `cdrl_infer.likelihood.contradiction` has the cost.
        checkpoint_minutes: save at least this often.
        keep_checkpoints: number of checkpoints to keep.
        seed: seed of everything random.
    """

    name: str
    ebm: dict[str, Any]
    initializer: dict[str, Any] | None
    phases: tuple[Phase, ...]
    schedule: NoiseSchedule = NoiseSchedule()
    sampler: SamplerDefaults = SamplerDefaults()
    data: DataConfig = DataConfig()
    spectral_norm: bool = False
    ema_decay: float = 0.999
    grad_clip: float = 1.0
    precision: Precision = "float32"
    accumulate: int = 1
    compile: bool = False
    cuda_graphs: bool = True
    stored_as: Storage = "float32"
    max_grad_norm: float = 1e6
    retries: int = 3
    log_every: int = 100
    sample_every: int = 2000
    checkpoint_every: int = 1000
    contradiction_every: int = 0
    checkpoint_minutes: float = 5.0
    keep_checkpoints: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("log_every", "sample_every", "checkpoint_every", "keep_checkpoints"):
            _within(name, getattr(self, name), 1)
        for name in ("grad_clip", "checkpoint_minutes"):
            _within(name, getattr(self, name), 1e-6)
        for name in ("max_grad_norm", "retries", "contradiction_every"):
            _within(name, getattr(self, name), 0)
        _within("ema_decay", self.ema_decay, 0, 1 - 1e-9)
        _within("seed", self.seed, 0, 2**32 - 1)
        if not self.phases:
            raise ConfigError("phases must have at least one entry, got none")
        _within("accumulate", self.accumulate, 1, min(p.batch_size for p in self.phases))
        for phase in self.phases:
            try:
                phase.make_objective().check(self.ebm, self.initializer, self.schedule)
            except ConfigError as error:
                raise ConfigError(f"the objective {phase.name!r} {error}") from None
        self.sampler.check_levels(self.schedule.num_levels)

    @property
    def labels(self) -> tuple[str, ...]:
        """What the phases are called; the same name again gets a number, ``"drl"``, ``"drl-2"`` …"""
        names = [phase.label or phase.name for phase in self.phases]
        counts = [names[: k + 1].count(name) for k, name in enumerate(names)]
        return tuple(n if c == 1 else f"{n}-{c}" for n, c in zip(names, counts, strict=True))

    @property
    def total_steps(self) -> int:
        """Steps of all phases."""
        return sum(phase.steps for phase in self.phases)

    @property
    def total_images(self) -> int:
        """Images of all steps."""
        return sum(phase.steps * phase.batch_size for phase in self.phases)

    def phase_at(self, step: int) -> tuple[int, int]:
        """Which phase a step belongs to, and the step's number within it; both count from 0."""
        last = 0
        for k, phase in enumerate(self.phases):
            if step < phase.steps:
                return k, step
            step, last = step - phase.steps, k if phase.steps else last
        return last, step + self.phases[last].steps

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as JSON holds them."""
        values: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        return values

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TrainConfig:
        """The options from plain values; the inverse of `to_dict`.

        Raises:
            ConfigError: a key that does not exist, or a value of another type.
        """
        return from_config(cls, values, "config")

    @classmethod
    def read(cls, file: Path) -> TrainConfig:
        """The options in a JSON file, as ``cdrl-train --print-config`` and a run write it.

        Raises:
            InputError: no such file, or other content; ConfigError as in `from_dict`.
        """
        try:
            values = read_json((real := file.resolve()).parent, real.name)
        except (CheckpointError, ConfigError) as error:
            raise InputError(f"{file}: expected options in JSON, found none ({error})") from error
        try:
            return cls.from_dict(values)
        except ConfigError as error:
            raise ConfigError(f"{file}: {error}") from None

    def to_json(self) -> str:
        """The text that `read` takes, without a last line end."""
        return json.dumps(self.to_dict(), indent=2)

    def write(self, file: Path) -> None:
        """Write a file for `read`; it appears whole or not at all.

        Raises:
            OSError: it cannot be written.
        """
        with replaced_file(file) as new:
            new.write_text(self.to_json() + "\n", encoding="utf-8")

    def by_label(self) -> dict[str, Any]:
        """`to_dict` with each phase under its label, together with the options of its objective."""
        values = self.to_dict()
        phases = zip(self.labels, values.pop("phases"), strict=True)
        return values | {label: {**phase.pop("objective"), **phase} for label, phase in phases}

    def adopting(self, held: TrainConfig) -> TrainConfig:
        """A copy that leaves nothing open that the options of a run, ``held``, say.

        The name of the data does not count: whether data are the same is seen by their content.
        """
        names = [n for n in ("flip", "image_size") if getattr(self.data, n) is None]
        found = {name: getattr(held.data, name) for name in ("source", *names)}
        changes: dict[str, Any] = {"data": dataclasses.replace(self.data, **found)}
        if self.precision == "auto":
            changes["precision"] = held.precision
        if self.ebm.get("data_variance") == AUTO and "data_variance" in held.ebm:
            changes["ebm"] = {**self.ebm, "data_variance": held.ebm["data_variance"]}
        return dataclasses.replace(self, **changes)

    def assignments(self, base: TrainConfig) -> list[str]:
        """The ``"KEY=VALUE"`` that `override` needs to make this of ``base``."""
        if base.labels == self.labels:
            return differences(base.by_label(), self.by_label(), "")
        return differences(base.to_dict(), self.to_dict(), "")  # all phases as one value

    def override(self, assignments: list[str]) -> TrainConfig:
        """A copy with assignments such as ``"cooperative.steps=100"`` applied.

        A key is a path of names: ``seed``, ``schedule.step_size``. ``ebm.widths`` is the backbone's if
        the network has a backbone and no such option itself. A phase is named by its label or objective,
        ``cooperative.ebm_lr``, ``cooperative.langevin_steps``, or by its place, ``phases.1.ebm_lr``.

        Raises:
            ConfigError: an assignment without "=", an unknown key or a value of the wrong type.
        """
        values = self.to_dict()
        for assignment in assignments:
            path, equals, text = assignment.partition("=")
            if not equals:
                raise ConfigError(f"expected KEY=VALUE, got {assignment!r}")
            *parents, last = path.strip().split(".")
            for names in (self.labels, [phase.name for phase in self.phases]):
                if parents and parents[0] in names:
                    parents[:1] = ["phases", str([*names].index(parents[0]))]
            target = group(values, parents, path)
            if parents[:1] == ["phases"] and len(parents) == 2:
                target = phase_or_objective(target, last, path)
            elif parents in (["ebm"], ["initializer"]):
                target = head_or_backbone(parents[0], target, last)
            target[last] = parse(text)
        return TrainConfig.from_dict(values)
