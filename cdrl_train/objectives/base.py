"""What an objective is: losses of a batch, and all that the rest of training asks of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from torch import Tensor, nn

from cdrl_infer.config import Configurable
from cdrl_infer.energies.neural import NeuralEnergy
from cdrl_infer.model import ImageShape
from cdrl_infer.proposals import InitializerProposal
from cdrl_infer.random import RandomSource
from cdrl_infer.schedule import Level, NoiseSchedule
from cdrl_train.spectral import evaluating

if TYPE_CHECKING:
    from cdrl_train.data.stream import Batch


@dataclass(frozen=True)
class Models:
    """The networks of a run, as an objective sees them.

    Args:
        ebm: the energy network that is trained, with spectral norm if the run has it.
        frozen_ebm: the same weights without gradients and with the norms folded in, for Langevin
            chains. The trainer brings it up to date at each step of an objective that `runs_chains`.
        initializer: the network of the proposal; None where the run has none.
        schedule: the noise levels.
    """

    ebm: Any
    frozen_ebm: Any
    initializer: Any
    schedule: NoiseSchedule

    def energy(self, labels: Tensor | None) -> NeuralEnergy:
        """The energy that learns; labels (B, A), 0 = not given, None for an unconditional model."""
        return NeuralEnergy(self.ebm, labels)

    def frozen_energy(self, labels: Tensor | None) -> NeuralEnergy:
        """The energy to run chains on."""
        return NeuralEnergy(self.frozen_ebm, labels)

    def proposal(self, labels: Tensor | None) -> InitializerProposal:
        """Where chains start: around the mean that the initializer predicts from x_t."""
        return InitializerProposal(self.initializer, labels)

    def evaluating(self) -> AbstractContextManager[None]:
        """Inside the block the energy network has no dropout."""
        return evaluating(self.ebm)


@dataclass(frozen=True)
class Losses:
    """What an objective makes of a batch.

    Args:
        totals: numbers () to minimise, by name. The trainer minimises their sum and logs each as
            ``loss/NAME``.
        by_level: values (B,) per image without a graph, by name. The trainer logs their means by
            transition as ``NAME/t``.
    """

    totals: dict[str, Tensor]
    by_level: dict[str, Tensor] = field(default_factory=dict)

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
        result: a name in `Losses.by_level`; the mean of a transition's images is compared.
        value: the bound, in ``unit``.
        unit: the result is divided by it first.
        option: the option that sets ``value``, for the message.
        text: what the number is, with ``{}`` for the transition.
        advice: what to change when it is reached.
    """

    result: str
    value: float
    unit: float
    option: str
    text: str
    advice: str


class Objective(Configurable, nn.Module, ABC):
    """The losses of one phase of training.

    The constructor's arguments are the options of the phase's ``objective``. Parameters and networks
    that an objective assigns to itself are trained at ``objective_lr``, averaged, clipped and saved
    like those of the model. See docs/extending.md for an example.

    Attributes:
        runs_chains: whether `losses` uses `Models.frozen_ebm`.
        needs_initializer: whether a run without an initializer is refused.
        titles: of the charts in ``report.html``, by the names in `Losses.by_level`.
    """

    runs_chains: ClassVar[bool] = False
    needs_initializer: ClassVar[bool] = False
    titles: ClassVar[dict[str, str]] = {}

    def build(self, image: ImageShape, num_classes: tuple[int, ...]) -> None:
        """Make the networks whose sizes depend on the data; called once, before training.

        Args:
            image: the shape of one image.
            num_classes: number of values of each attribute; () for unlabelled data.
        """
        return

    def begin(self, earlier: Sequence[Objective]) -> None:
        """Take over what earlier phases learnt; called before the first step of the phase.

        Args:
            earlier: the objectives of the phases before, in order.
        """
        return

    @abstractmethod
    def losses(self, models: Models, batch: Batch, level: Level, random: RandomSource) -> Losses:
        """The losses of a batch. Every image has a level of its own.

        The function also runs on the meta device, to count what it costs: it may not read values.

        Args:
            models: the networks.
            batch: images x (B, C, H, W) in [-1, 1] and labels (B, A) or None.
            level: the constants of each image's transition; ``level.t`` is (B,).
            random: normal and uniform numbers for the batch.
        """

    def limits(self, num_values: int) -> Sequence[Limit]:
        """What the divergence guard watches, for images of so many values."""
        return ()

    def summary(self) -> str:
        """A few words for the model card; by default nothing."""
        return ""
