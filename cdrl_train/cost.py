"""Count the cost of a run without running it: parameters, operations, bytes and memory.

The counter makes one training step of each phase and one batch of samples on the meta device, where
tensors have shapes but no values. A dispatch mode counts the operations. So counting takes seconds, even
for networks that are too large for this machine.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from cdrl_infer.model import Attribute, ImageShape, check_sizes
from cdrl_infer.sampler import CooperativeSampler
from cdrl_train.config import TrainConfig
from cdrl_train.data.stream import Batch
from cdrl_train.engine.state import build_networks, build_objectives
from cdrl_train.objectives import Models

SAMPLE_BATCH = 64  # number of images that `CDRLPipeline` draws at once
PER_VALUE = 4 * 4  # bytes: a weight, its average and Adam's two moments


@dataclass(frozen=True)
class Work:
    """The cost of some operations.

    Args:
        flops: operations in convolutions and matrix products. A multiplication and an addition are two.
        moved: bytes that all operations read and write, without fused operations.
        peak: the largest number of bytes of new tensors at any moment. It does not count `Cost.state` or
            the scratch space of operations.
    """

    flops: int
    moved: int
    peak: int


@dataclass(frozen=True)
class Cost:
    """The cost of a run in float32; bfloat16 halves the activations.

    Args:
        ebm, initializer, objectives: the number of parameters of each.
        state: bytes that the run needs all the time: weights, averages, Adam's moments, the frozen copy
            of the EBM, and its weights under spectral norm.
        phases: one step of each phase without the optimizer, with the whole batch on one device; None
            for a phase with zero steps.
        sample: one batch of `SAMPLE_BATCH` images.
        exchanged: bytes of gradients that the processes of a run sum at each step.
    """

    ebm: int
    initializer: int
    objectives: int
    state: int
    phases: tuple[Work | None, ...]
    sample: Work
    exchanged: int

    def flops(self, config: TrainConfig) -> int:
        """Operations of the whole run."""
        pairs = zip(self.phases, config.phases, strict=True)
        return sum(work.flops * phase.steps for work, phase in pairs if work is not None)


class Tally(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the `Work` of the operations in a block: ``with Tally() as tally: …``.

    It uses the formulas of `torch.utils.flop_counter`. The mode of that module also tracks modules, and
    therefore refuses gradients with respect to inputs, which Langevin needs.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flops = self.moved = self.live = self.peak = 0
        self._storages: weakref.WeakSet[Any] = weakref.WeakSet()

    @property
    def work(self) -> Work:
        """The work until now."""
        return Work(self.flops, self.moved, self.peak)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        formula = flop_registry.get(func.overloadpacket)
        if formula is not None:
            self.flops += formula(*args, **kwargs, out_val=out)
        read = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        written = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        known = {tensor.untyped_storage()._cdata for tensor in read}
        aliases = [tensor.untyped_storage()._cdata in known for tensor in written]
        if not (written and all(aliases)) or func._schema.is_mutable:  # else a view: nothing moves
            self.moved += sum(tensor.nbytes for tensor in (*read, *written))
        for tensor in written:
            storage = tensor.untyped_storage()
            if storage._cdata not in known and storage not in self._storages:
                self._storages.add(storage)
                size = storage.nbytes()
                self.live += size
                self.peak = max(self.peak, self.live)
                weakref.finalize(storage, self._free, size).atexit = False
        return out

    def _free(self, size: int) -> None:
        self.live -= size


class Shapes:
    """A `RandomSource` of tensors on the meta device, without values."""

    def __init__(self, batch_size: int) -> None:
        self.batch_size = batch_size

    def normal(self, shape: Sequence[int]) -> Tensor:
        """(B, *shape)."""
        return torch.empty(self.batch_size, *shape, device="meta")

    def uniform(self) -> Tensor:
        """(B,)."""
        return torch.empty(self.batch_size, device="meta")


def count(config: TrainConfig, image: ImageShape, num_classes: tuple[int, ...]) -> Cost:
    """The cost of a run on images of this shape with these attributes.

    Raises:
        ConfigError: the networks cannot be built, or they do not fit the images.
    """
    bench = _Bench(config, image, num_classes)
    ebm, initializer = _values(bench.models.ebm), _values(bench.models.initializer)
    own = sum(map(_values, bench.objectives))
    # This counts spectral norms by hand, because torch needs seconds to add them on the meta device.
    copies, vectors = 1, 0
    if config.spectral_norm:
        matrices = [layer.weight.flatten(1) for layer in bench.models.ebm.spectral_norm_layers()]
        copies, vectors = 2, sum(sum(matrix.shape) for matrix in matrices)
    return Cost(
        ebm=ebm,
        initializer=initializer,
        objectives=own,
        state=PER_VALUE * (ebm + initializer + own) + 4 * (copies * ebm + vectors),
        phases=tuple(
            bench.step(k) if phase.steps else None for k, phase in enumerate(config.phases)
        ),
        sample=_sample(bench),
        exchanged=4 * (ebm + initializer + own),
    )


def _values(module: nn.Module | None) -> int:
    return 0 if module is None else sum(p.numel() for p in module.parameters())


def stand_in_attributes(num_classes: tuple[int, ...]) -> tuple[Attribute, ...]:
    """Attributes with these numbers of values; the names are numbers."""
    return tuple(
        Attribute(str(k), tuple(str(value) for value in range(count)))
        for k, count in enumerate(num_classes)
    )


class _Bench:
    """The networks and objectives of a run on the meta device."""

    def __init__(
        self, config: TrainConfig, image: ImageShape, num_classes: tuple[int, ...]
    ) -> None:
        self.config, self.image, self.num_classes = config, image, num_classes
        with torch.device("meta"):
            ebm, initializer = build_networks(config, image, num_classes)
            frozen, _ = build_networks(config, image, num_classes)
            self.objectives = build_objectives(config, image, num_classes)
        attributes = stand_in_attributes(num_classes)
        for role, network in (("ebm", ebm), ("ebm", frozen), ("initializer", initializer)):
            if network is not None:
                check_sizes(role, network, image, attributes)
                network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.models = Models(ebm, frozen.requires_grad_(False), initializer, config.schedule)

    def labels(self, batch_size: int) -> Tensor | None:
        """Labels (B, A); None for an unconditional model."""
        if not self.num_classes:
            return None
        return torch.zeros(batch_size, len(self.num_classes), dtype=torch.int64, device="meta")

    def step(self, phase: int) -> Work:
        """The work of `Trainer.train_step` in a phase, without the optimizer."""
        parts = self.config.accumulate
        batch_size = self.config.phases[phase].batch_size // parts
        level = self.config.schedule.level(torch.ones(batch_size, dtype=torch.int64), "meta")
        x = torch.empty(batch_size, *self.image.shape, device="meta")
        batch, tally = Batch(x, self.labels(batch_size)), Tally()
        with tally:
            losses = self.objectives[phase].losses(self.models, batch, level, Shapes(batch_size))
            losses.total.backward()  # type: ignore[no-untyped-call]
        for module in (self.models.ebm, self.models.initializer, *self.objectives):
            if module is not None:
                module.zero_grad(set_to_none=True)
        return Work(parts * tally.flops, parts * tally.moved, tally.peak)

    def sampling(self, levels: int, langevin_steps: int) -> Work:
        """The work to draw `SAMPLE_BATCH` images with this number of levels."""
        schedule = replace(self.config.schedule, num_levels=levels)
        labels = self.labels(SAMPLE_BATCH)
        tally = Tally()
        with tally:
            CooperativeSampler(schedule, langevin_steps).sample(
                self.models.frozen_energy(labels),
                self.models.proposal(labels),
                Shapes(SAMPLE_BATCH),
                self.image.shape,
            )
        return tally.work


def _sample(bench: _Bench) -> Work:
    """The work to draw `SAMPLE_BATCH` images."""
    config = bench.config
    steps = config.sampler.langevin_steps
    gradients = steps if isinstance(steps, tuple) else (steps,) * config.schedule.num_levels
    # T levels cost Σ_t (a + K_t g) + d: a for a proposal, g for a gradient, d for the last denoising.
    base, level, step = bench.sampling(1, 1), bench.sampling(2, 1), bench.sampling(1, 2)
    levels, more = len(gradients) - 1, sum(gradients) - len(gradients)

    def total(one: int, two: int, three: int) -> int:
        return one + levels * (two - one) + more * (three - one)

    return Work(
        total(base.flops, level.flops, step.flops),
        total(base.moved, level.moved, step.moved),
        step.peak,
    )
