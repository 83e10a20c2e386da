"""The divergence guard: which figures of a step are watched, and what a run does when one blows up."""

from __future__ import annotations

from typing import Any, NamedTuple

from cdrl_infer.errors import NumericalError
from cdrl_train.config import TrainConfig


class Watched(NamedTuple):
    """What one kind of figure is, and what to change when it blows up."""

    text: str
    limit: str  # the option of `TrainConfig`; "" = finite is enough
    advice: str


KINDS = {
    "loss": Watched("the loss of the {}", "", "lower its rate or raise warm_up"),
    "grad_norm": Watched(
        "the gradient norm of the {}", "max_grad_norm", "lower its rate or raise warm_up"
    ),
    "energy_gap": Watched(
        "|E(y⁺) - E(y⁻)| per pixel of transition {}",
        "max_energy_gap",
        "lower cooperative.ebm_rate, or raise cooperative.langevin_steps or score_matching",
    ),
    "displacement": Watched(
        "how far Langevin moves a pixel in transition {}",
        "max_displacement",
        "lower cooperative.step_scale or ebm_rate",
    ),
}


class Symptom(NamedTuple):
    """A figure that is not below its limit, or not a number."""

    kind: str  # of `KINDS`
    of: str  # a network, or a transition
    value: float
    limit: float

    def __str__(self) -> str:
        watched = KINDS[self.kind]
        limit = f", the limit ({watched.limit}) {self.limit:g}" if watched.limit else ""
        return f"{watched.text.format(self.of)} is {self.value:.3g}{limit}"


class Diverged(NumericalError):
    """A step whose figures blew up; no weight has changed in it."""

    def __init__(self, step: int, symptoms: list[Symptom]) -> None:
        self.step = step
        self.symptoms = symptoms
        more = f" (and {len(symptoms) - 1} more)" if len(symptoms) > 1 else ""
        super().__init__(f"diverged at step {step}: {symptoms[0]}{more}")

    @property
    def advice(self) -> str:
        """What to change."""
        return KINDS[self.symptoms[0].kind].advice

    def record(self) -> dict[str, Any]:
        """The details, as the log holds them: JSON has no NaN, so values are texts."""
        return {
            "step": self.step,
            "event": "diverged",
            "symptoms": {
                f"{s.kind}/{s.of}": {"value": f"{s.value:.6g}", "limit": f"{s.limit:g}"}
                for s in self.symptoms
            },
        }


class Guard:
    """Collects the figures of a step that are out of bounds, and counts the times a run went back.

    The first figure of a step is the one nearest the cause: energies come before losses, and these
    before gradients.
    """

    def __init__(self, config: TrainConfig) -> None:
        self.limits = {
            kind: float(getattr(config, watched.limit)) if watched.limit else float("inf")
            for kind, watched in KINDS.items()
        }
        self.retries = config.retries
        self.halvings = 0  # part of the training state
        self._symptoms: list[Symptom] = []

    @property
    def rate_scale(self) -> float:
        """``2^-halvings``: what both networks' rates are multiplied by."""
        return 0.5**self.halvings

    def watch(self, kind: str, of: str, value: float) -> None:
        """Note a figure of this step, which is not negative and the same on every process."""
        if not value < self.limits[kind]:
            self._symptoms.append(Symptom(kind, of, value, self.limits[kind]))

    def settle(self, step: int) -> None:
        """End a step's figures: to be called before weights change.

        Args:
            step: how many were done before.

        Raises:
            Diverged: a figure was out of bounds.
        """
        symptoms, self._symptoms = self._symptoms, []
        if symptoms:
            raise Diverged(step, symptoms)
