"""The divergence guard: it stops a step whose results are out of bounds before weights change."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from cdrl_infer.errors import NumericalError
from cdrl_train.objectives import Limit

ADVICE = "lower its learning rate or raise lr_warmup_steps"


class Symptom(NamedTuple):
    """A result that is out of bounds, or not a number.

    Args:
        of: what was measured: a transition, or the name of a loss or network.
        value: what it is, in the unit of the limit.
        limit: the bound.
    """

    of: str
    value: float
    limit: Limit

    def __str__(self) -> str:
        option = self.limit.option
        bound = f", the limit ({option}) is {self.limit.value:g}" if option else ""
        return f"{self.limit.text.format(self.of)} is {self.value:.3g}{bound}"


class Diverged(NumericalError):
    """Results of a step are out of bounds; no weight has changed in it."""

    def __init__(self, step: int, symptoms: list[Symptom]) -> None:
        self.step = step
        self.symptoms = symptoms
        more = f" (and {len(symptoms) - 1} more)" if len(symptoms) > 1 else ""
        super().__init__(f"diverged at step {step}: {symptoms[0]}{more}")

    @property
    def advice(self) -> str:
        """What to change."""
        return self.symptoms[0].limit.advice

    def record(self) -> dict[str, Any]:
        """The details for the log. Values are texts, since JSON has no NaN."""
        return {
            "step": self.step,
            "event": "diverged",
            "symptoms": {
                f"{s.limit.result}/{s.of}": {
                    "value": f"{s.value:.6g}",
                    "limit": f"{s.limit.value:g}",
                }
                for s in self.symptoms
            },
        }


class Guard:
    """Collects the results of a step that are out of bounds, and counts how often a run went back.

    Show it the results in the order in which they depend on each other: an objective's own come before
    losses, losses before gradients. The message names the first.

    Args:
        retries: how often a run may go back.
    """

    def __init__(self, retries: int) -> None:
        self.retries = retries
        self.halvings = 0  # part of the training state
        self._symptoms: list[Symptom] = []

    @property
    def lr_scale(self) -> float:
        """``2^-halvings``, which multiplies all learning rates."""
        return 0.5**self.halvings

    def watch(self, limit: Limit, of: str, value: float) -> None:
        """Compare a result, which is not negative, with its limit.

        Args:
            limit: its bound.
            of: see `Symptom`.
            value: in the unit of the limit; the same on every process.
        """
        if not value < limit.value:
            self._symptoms.append(Symptom(of, value, limit))

    def watch_loss(self, name: str, value: float) -> None:
        """A loss has to be finite."""
        limit = Limit("loss", math.inf, 1, "", "the loss of the {}", ADVICE)
        self.watch(limit, name, abs(value))

    def watch_gradient(self, name: str, norm: float, largest: float) -> None:
        """The norm of a gradient has a bound."""
        text = "the gradient norm of the {}"
        self.watch(Limit("grad_norm", largest, 1, "max_grad_norm", text, ADVICE), name, norm)

    def settle(self, step: int) -> None:
        """End a step's results; call it before weights change.

        Args:
            step: number of steps done before.

        Raises:
            Diverged: a result was out of bounds.
        """
        symptoms, self._symptoms = self._symptoms, []
        if symptoms:
            raise Diverged(step, symptoms)
