"""The base class of objectives: an objective computes the losses of a batch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from torch import Tensor, nn

from cdrl_infer.config import Configurable
from cdrl_infer.energies.neural import NeuralEnergy
from cdrl_infer.errors import ConfigError
from cdrl_infer.model import ImageShape
from cdrl_infer.networks.registry import ENERGIES, INITIALIZERS
from cdrl_infer.proposals import InitializerProposal, proposal_class, proposal_of
from cdrl_infer.random import RandomSource
from cdrl_infer.schedule import Level, NoiseSchedule
from cdrl_infer.storage.card import METHOD
from cdrl_train.spectral import evaluating

if TYPE_CHECKING:
    from cdrl_train.data.stream import Batch


@dataclass(frozen=True)
class Models:
    """The networks of a run, for an objective.

    Args:
        ebm: the energy network in training, with spectral norm if the run uses it.
        frozen_ebm: a copy for Langevin chains, without gradients and with the norms folded in. The
            trainer updates it before each step of an objective that `runs_chains`.
        initializer: the network of the proposal; None for a run without an initializer.
        schedule: the noise levels.
    """

    ebm: Any
    frozen_ebm: Any
    initializer: Any
    schedule: NoiseSchedule

    def energy(self, labels: Tensor | None) -> NeuralEnergy:
        """The energy in training; labels (B, A), 0 = not given, None for an unconditional model."""
        return NeuralEnergy(self.ebm, labels)

    def frozen_energy(self, labels: Tensor | None) -> NeuralEnergy:
        """The energy for Langevin chains."""
        return NeuralEnergy(self.frozen_ebm, labels)

    def proposal(self, labels: Tensor | None) -> Any:
        """The proposal, see `cdrl_infer.proposals.proposal_of`."""
        return proposal_of(self, labels)

    def evaluating(self) -> AbstractContextManager[None]:
        """A context that turns off the dropout of the energy network."""
        return evaluating(self.ebm)


@dataclass(frozen=True)
class Losses:
    """The losses of a batch.

    Args:
        totals: the losses () by name. The trainer minimises their sum and logs each as ``loss/NAME``.
        by_level: values (B,) per image without gradients, by name. The trainer logs their means by
            transition as ``NAME/t``.
        observed: values () without gradients that belong to no transition, logged as ``NAME``.
    """

    totals: dict[str, Tensor]
    by_level: dict[str, Tensor] = field(default_factory=dict)
    observed: dict[str, Tensor] = field(default_factory=dict)

    @property
    def total(self) -> Tensor:
        """The sum of the totals, ()."""
        first, *others = self.totals.values()
        for other in others:
            first = first + other
        return first


class Limit(NamedTuple):
    """A bound on a result. A step that reaches it counts as diverged.

    Args:
        result: a name in `Losses.by_level`. The limit applies to the mean over a transition's images.
        value: the bound on ``result / unit``.
        unit: see ``value``.
        option: the option that sets ``value``, for the message.
        text: the name of the number in the message, with ``{}`` for the transition.
        advice: what users can change.
    """

    result: str
    value: float
    unit: float
    option: str
    text: str
    advice: str


class Objective(Configurable, nn.Module, ABC):
    """The losses of one phase of training.

    The arguments of the constructor are the options of the phase's ``objective``. An objective may have
    parameters and networks of its own. The trainer trains them at ``objective_lr``, and averages, clips
    and saves them like those of the model. See docs/extending.md for an example.

    Attributes:
        runs_chains: whether `losses` uses `Models.frozen_ebm`.
        needs_initializer: whether the run must have an initializer that gives a mean given x_t.
        needs_density: whether the run's proposal must have a density.
        needs_normaliser: whether the energy must have a ``log_normaliser``, as `TiltedEnergy`, and the
            schedule one level.
        one_process: whether the objective keeps tensors from step to step (its buffers, which are saved),
            so that several processes, or parts of a batch, cannot share a step.
        recordable: whether `losses` does the same operations in every step and reads no value of a
            tensor, so that a GPU can replay them.
        method: what the card calls a model whose last phase it was, and the method's paper.
        titles: the titles of the charts in ``report.html``, by the names in `Losses.by_level` and
            `Losses.observed`.
    """

    runs_chains: ClassVar[bool] = False
    needs_initializer: ClassVar[bool] = False
    needs_density: ClassVar[bool] = False
    needs_normaliser: ClassVar[bool] = False
    one_process: ClassVar[bool] = False
    recordable: ClassVar[bool] = True
    method: ClassVar[tuple[str, str]] = METHOD
    titles: ClassVar[dict[str, str]] = {}

    def build(self, image: ImageShape, num_classes: tuple[int, ...]) -> None:
        """Build the networks whose sizes depend on the data. Training calls this once, at the start.

        Args:
            image: the shape of one image.
            num_classes: number of values of each attribute; () for unlabelled data.
        """
        return

    def check(
        self, ebm: dict[str, Any], initializer: dict[str, Any] | None, schedule: NoiseSchedule
    ) -> None:
        """Check the other options of a run, before any work.

        Args:
            ebm, initializer: the options of the networks, see `cdrl_train.config.TrainConfig`.
            schedule: the noise levels.

        Raises:
            ConfigError: the objective cannot train these networks. The message goes on after "the
                objective NAME".
        """
        if self.needs_initializer or self.needs_density:
            _check_proposal(self, initializer)
        if self.needs_normaliser:
            _check_normaliser(ebm, initializer, schedule)

    def begin(self, earlier: Sequence[Objective], models: Models) -> None:
        """Use what earlier phases learnt. Training calls this before the first step of the phase.

        The objective may give the networks other weights; their averages then start anew.

        Args:
            earlier: the objectives of the earlier phases, in order.
            models: the networks.
        """
        return

    @abstractmethod
    def losses(self, models: Models, batch: Batch, level: Level, random: RandomSource) -> Losses:
        """The losses of a batch. Every image has its own level.

        To count the cost, this also runs on the meta device, so it must not read values of tensors.

        Args:
            models: the networks.
            batch: images x (B, C, H, W) in [-1, 1] and labels (B, A) or None.
            level: the constants of each image's transition; ``level.t`` is (B,).
            random: normal and uniform numbers for the batch.
        """

    def limits(self, num_values: int) -> Sequence[Limit]:
        """The limits of the divergence guard.

        Args:
            num_values: C * H * W of an image.
        """
        return ()

    def summary(self) -> str:
        """A few words for the model card; empty by default."""
        return ""


def _check_proposal(objective: Objective, initializer: dict[str, Any] | None) -> None:
    """Raise `ConfigError` unless the proposal has what the objective needs of it."""
    if initializer is None:
        needed, mend = "an initializer", "give one, or use 'drl'"
        if objective.needs_density:
            needed = "a proposal with a density"
            mend = 'give one, such as {"class": "MixtureDistribution"}'
        raise ConfigError(f"needs {needed}, and initializer is null; {mend}")
    found = initializer.get("class")
    proposal = proposal_class(INITIALIZERS.find(found, "initializer"))
    if objective.needs_density and not hasattr(proposal, "log_prob"):
        raise ConfigError(
            f"needs a proposal with a density, got the initializer {found!r:.60}; use a "
            "'MixtureDistribution' or a 'GaussianDistribution'"
        )
    if objective.needs_initializer and not issubclass(proposal, InitializerProposal):
        raise ConfigError(
            f"needs an initializer that gives a mean for each x_t, got {found!r:.60}; use a "
            "'ResidualInitializer', or the objective 'snl'"
        )


def _check_normaliser(
    ebm: dict[str, Any], initializer: dict[str, Any] | None, schedule: NoiseSchedule
) -> None:
    """Raise `ConfigError` unless an energy on one level has a number for its log-normaliser."""
    if not hasattr(ENERGIES.find(ebm.get("class"), "ebm"), "num_given"):
        raise ConfigError(
            f"needs an energy with a normaliser of its own, got {ebm.get('class')!r:.60}; use a "
            "'TiltedEnergy'"
        )
    if schedule.num_levels != 1:
        raise ConfigError(
            f"needs schedule.num_levels=1, since the energy has one normaliser, got "
            f"{schedule.num_levels}; 'normalised' learns one per level"
        )
    base = ebm.get("base")
    ours = base.get("num_given", 0) if isinstance(base, dict) else 0
    theirs = (initializer or {}).get("num_given", 0)
    if ours != theirs:
        raise ConfigError(
            f"needs the same given values in energy and proposal, got ebm.base.num_given={ours} and "
            f"initializer.num_given={theirs}; set both to the same number"
        )
