"""What a run costs, counted without running it: parameters, operations, bytes and memory.

One training step of each phase and the sampling of one batch are carried out on the meta device, where
tensors have shapes and no values, by the functions that train and sample; a dispatch mode counts. So
sizes that no machine here could hold cost a second or two.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from cdrl_infer.energies.neural import NeuralEnergy
from cdrl_infer.kernels.langevin import Langevin
from cdrl_infer.model import Attribute, ImageShape, check_sizes
from cdrl_infer.proposals import make_proposal
from cdrl_infer.sampler import CooperativeSampler
from cdrl_infer.schedule import Level
from cdrl_train.config import PhaseConfig, TrainConfig
from cdrl_train.networks import build_network
from cdrl_train.objectives import losses as objectives

SAMPLE_BATCH = 64  # what `CDRLPipeline` draws at once
PER_VALUE = 4 * 4  # bytes: a weight, its average and Adam's two moments
Losses = Callable[[], tuple[Tensor, Tensor]]  # of the EBM and the initializer


@dataclass(frozen=True)
class Work:
    """Counted over some operations.

    Args:
        flops: of convolutions and products of matrices, a multiplication and an addition being two.
        moved: bytes that all operations read and write when none is fused with another.
        peak: the most bytes that new tensors held at any moment, without the operations' own scratch
            and, in training, beyond `Cost.state`.
    """

    flops: int
    moved: int
    peak: int


@dataclass(frozen=True)
class Cost:
    """Of a run; everything in float32, of which bfloat16 halves the activations.

    Args:
        ebm, initializer: how many values each network has.
        state: bytes that live as long as the run: weights, averages, Adam's moments, Langevin's twin
            of the EBM, and its weights by spectral norm.
        warm_start, cooperative: one step of the phase with its whole batch on one device, without what
            the optimisers do; None for a phase of no steps.
        sample: `SAMPLE_BATCH` images, drawn at once.
        exchanged: bytes of gradients that the processes of a run have to sum at each step.
    """

    ebm: int
    initializer: int
    state: int
    warm_start: Work | None
    cooperative: Work | None
    sample: Work
    exchanged: int

    def flops(self, config: TrainConfig) -> int:
        """Of the whole run."""
        phases = ((self.warm_start, config.warm_start), (self.cooperative, config.cooperative))
        return sum(work.flops * phase.steps for work, phase in phases if work is not None)


class Tally(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the `Work` of what runs inside: ``with Tally() as tally: …``.

    Operations are counted by the formulas of `torch.utils.flop_counter`. (Its own mode follows modules
    as well, and for that refuses the gradient in an input, which is all that Langevin wants.)
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flops = self.moved = self.live = self.peak = 0
        self._storages: weakref.WeakSet[Any] = weakref.WeakSet()

    @property
    def work(self) -> Work:
        """So far."""
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
    """A `RandomSource` without numbers: shapes on the meta device."""

    def __init__(self, batch_size: int) -> None:
        self.batch_size = batch_size

    def normal(self, shape: Sequence[int]) -> Tensor:
        """(B, *shape)."""
        return torch.empty(self.batch_size, *shape, device="meta")

    def uniform(self) -> Tensor:
        """(B,)."""
        return torch.empty(self.batch_size, device="meta")


def count(config: TrainConfig, image: ImageShape, num_classes: tuple[int, ...]) -> Cost:
    """What a run on images of that shape and these attributes costs.

    Raises:
        ConfigError: networks that cannot be built, or not for these images.
    """
    bench = _Bench(config, image, num_classes)
    ebm, initializer = (
        sum(p.numel() for p in network.parameters()) if network else 0
        for network in (bench.ebm, bench.initializer)
    )
    # Spectral norms are reckoned: torch needs seconds to put them on a network without values.
    twins, vectors = 1, 0
    if config.spectral_norm:
        matrices = [layer.weight.flatten(1) for layer in bench.ebm.spectral_norm_layers()]
        twins, vectors = 2, sum(sum(matrix.shape) for matrix in matrices)
    warm, cooperative = config.warm_start, config.cooperative
    return Cost(
        ebm=ebm,
        initializer=initializer,
        state=PER_VALUE * (ebm + initializer) + 4 * (twins * ebm + vectors),
        warm_start=bench.warm_start_step() if warm.steps else None,
        cooperative=_by_steps(cooperative.langevin_steps, bench.cooperative_step)
        if cooperative.steps
        else None,
        sample=_sample(bench),
        exchanged=4 * (ebm + initializer),
    )


def stand_in_attributes(num_classes: tuple[int, ...]) -> tuple[Attribute, ...]:
    """Attributes of so many values each, named by numbers."""
    return tuple(
        Attribute(str(k), tuple(str(value) for value in range(count)))
        for k, count in enumerate(num_classes)
    )


class _Bench:
    """A run's networks on the meta device, and what is done with them."""

    def __init__(
        self, config: TrainConfig, image: ImageShape, num_classes: tuple[int, ...]
    ) -> None:
        self.config, self.image, self.num_classes = config, image, num_classes
        self.ebm: Any = self._network("ebm", config.ebm)
        self.chain: Any = self._network("ebm", config.ebm).requires_grad_(False)
        self.initializer: Any = None
        if config.initializer is not None:
            self.initializer = self._network("initializer", config.initializer)

    def _network(self, role: str, options: dict[str, Any]) -> Any:
        with torch.device("meta"):
            network: Any = build_network(role, options, self.image.channels, self.num_classes)
        check_sizes(role, network, self.image, stand_in_attributes(self.num_classes))
        return network.to(memory_format=torch.channels_last)

    def labels(self, batch_size: int) -> Tensor | None:
        """(B, A), None for an unconditional model."""
        if not self.num_classes:
            return None
        return torch.zeros(batch_size, len(self.num_classes), dtype=torch.int64, device="meta")

    def warm_start_step(self) -> Work:
        """One step of the warm start, as in `Trainer.train_step`."""
        phase = self.config.warm_start

        def losses() -> tuple[Tensor, Tensor]:
            pair, level, labels = self._batch(phase)
            matching = objectives.score_matching_loss(NeuralEnergy(self.ebm, labels), pair, level)
            proposal = make_proposal(self.initializer, labels)
            return matching.value, objectives.regression_loss(proposal, pair, level).value

        return self._measured(losses)

    def cooperative_step(self, langevin_steps: int) -> Work:
        """One step of the cooperative phase, as in `Trainer.train_step`, for that K."""
        phase = self.config.cooperative

        def losses() -> tuple[Tensor, Tensor]:
            pair, level, labels = self._batch(phase)
            random, energy = Shapes(len(pair.x)), NeuralEnergy(self.ebm, labels)
            proposal = make_proposal(self.initializer, labels)
            mean = proposal.mean(pair.x_t, level)
            chain = NeuralEnergy(self.chain, labels)
            refined = objectives.refine(
                chain,
                proposal,
                mean,
                Langevin(),
                level.step_variance,
                langevin_steps,
                pair.x_t,
                level,
                random,
            )
            matching = None
            if phase.score_matching:
                matching = objectives.score_matching_loss(energy, pair, level)
            positive = energy(pair.y, level) if matching is None else matching.energy
            negative = energy(refined.end, level)
            weight = objectives.contrastive_weight(level, 1.0, phase.weight)
            ebm_loss = objectives.contrastive_loss(positive, negative, weight).value
            initializer_loss = objectives.imitation_loss(mean, refined).value
            if matching is not None:
                ebm_loss = ebm_loss + matching.value
            if phase.regression:
                regression = objectives.regression_loss(proposal, pair, level)
                initializer_loss = initializer_loss + regression.value
            return ebm_loss, initializer_loss

        return self._measured(losses)

    def sampling(self, levels: int, langevin_steps: int) -> Work:
        """`SAMPLE_BATCH` images through that many levels and the last denoising."""
        schedule = replace(self.config.schedule, num_levels=levels)
        labels = self.labels(SAMPLE_BATCH)
        tally = Tally()
        with tally:
            CooperativeSampler(schedule, langevin_steps).sample(
                NeuralEnergy(self.chain, labels),
                make_proposal(self.initializer, labels),
                Shapes(SAMPLE_BATCH),
                self.image.shape,
            )
        return tally.work

    def _batch(self, phase: PhaseConfig) -> tuple[objectives.NoisedPair, Level, Tensor | None]:
        batch = phase.batch_size // self.config.accumulate
        level = self.config.schedule.level(torch.ones(batch, dtype=torch.int64), "meta")
        x = torch.empty(batch, *self.image.shape, device="meta")
        pair = objectives.noised_pair(x, level, phase.coupling, Shapes(batch))
        return pair, level, self.labels(batch)

    def _measured(self, losses: Losses) -> Work:
        """Losses and gradients of a batch; what the optimisers do is small beside them."""
        parts = self.config.accumulate
        tally = Tally()
        with tally:
            for loss in losses():
                if loss.requires_grad:
                    loss.backward()  # type: ignore[no-untyped-call]
        for network in filter(None, (self.ebm, self.initializer)):
            network.zero_grad(set_to_none=True)
        return Work(parts * tally.flops, parts * tally.moved, tally.peak)


def _by_steps(steps: int, work: Callable[[int], Work]) -> Work:
    """The work for K = ``steps`` from that for K = 1 and 2: every step costs the same."""
    if steps <= 2:
        return work(steps)
    one, two = work(1), work(2)
    return Work(
        one.flops + (steps - 1) * (two.flops - one.flops),
        one.moved + (steps - 1) * (two.moved - one.moved),
        two.peak,
    )


def _sample(bench: _Bench) -> Work:
    """Of `SAMPLE_BATCH` images."""
    config = bench.config
    steps = config.sampler.langevin_steps
    gradients = steps if isinstance(steps, tuple) else (steps,) * config.schedule.num_levels
    # T levels cost Σ_t (a + K_t g) + d: proposals, gradients, the last denoising.
    base, level, step = bench.sampling(1, 1), bench.sampling(2, 1), bench.sampling(1, 2)
    levels, more = len(gradients) - 1, sum(gradients) - len(gradients)

    def total(one: int, two: int, three: int) -> int:
        return one + levels * (two - one) + more * (three - one)

    return Work(
        total(base.flops, level.flops, step.flops),
        total(base.moved, level.moved, step.moved),
        step.peak,
    )
