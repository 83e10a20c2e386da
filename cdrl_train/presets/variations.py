"""Changes to a preset that answer a question: what does this part of the recipe do?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from cdrl_infer.errors import ConfigError
from cdrl_train.config import Phase, TrainConfig
from cdrl_train.objectives import OBJECTIVES


def _changed(config: TrainConfig, missing: str, change: Callable[[Phase], Phase]) -> TrainConfig:
    """The same run with its phases changed; ConfigError if that changes nothing."""
    phases = tuple(map(change, config.phases))
    if phases == config.phases:
        raise ConfigError(f"{config.name} has no {missing} to leave out")
    return replace(config, phases=phases)


def _with(phase: Phase, **options: object) -> Phase:
    """The phase with other options of its objective; those that it does not have are passed over."""
    known = {name: value for name, value in options.items() if name in phase.objective}
    return replace(phase, objective={**phase.objective, **known})


def no_warm_start(config: TrainConfig) -> TrainConfig:
    """The first phase with chains from the first step on; it gets the steps of those before it."""
    warm, (first, *others) = _split(config)
    if not warm:
        raise ConfigError(f"{config.name} has no warm start to leave out")
    steps = first.steps + sum(phase.steps for phase in warm)
    return replace(config, phases=(replace(first, steps=steps), *others))


def no_shared_noise(config: TrainConfig) -> TrainConfig:
    """x_{t-1} and x_t of the Markov process instead of the same ε in both."""
    return _changed(config, "shared noise", lambda phase: _with(phase, coupling="markov"))


def no_score_matching(config: TrainConfig) -> TrainConfig:
    """The paper's losses alone: contrastive for the EBM, imitation for the initializer."""
    return _changed(
        config,
        "score matching beside the contrastive loss",
        lambda phase: (
            _with(phase, score_matching=0.0, regression=0.0) if _contrastive(phase) else phase
        ),
    )


def no_spectral_norm(config: TrainConfig) -> TrainConfig:
    """The energy's weights as they are."""
    if not config.spectral_norm:
        raise ConfigError(f"{config.name} has no spectral norm to leave out")
    return replace(config, spectral_norm=False)


def drl(config: TrainConfig) -> TrainConfig:
    """The ancestor (Gao et al. 2021): no initializer, so Langevin starts at x_t.

    K = 30 at half the step variance (b² = 2e-4 for the paper's 4e-4); neither shared noise nor a warm
    start.
    """
    if config.initializer is None:
        raise ConfigError(f"{config.name} has no initializer to leave out")
    _, (first, *_) = _split(config)
    objective: dict[str, object] = {"name": "drl", "coupling": "markov", "langevin_steps": 30}
    objective |= {k: first.objective[k] for k in ("step_scale", "weight") if k in first.objective}
    return replace(
        config,
        initializer=None,
        phases=(replace(first, objective=objective, steps=config.total_steps),),
        schedule=replace(config.schedule, step_size=config.schedule.step_size / 2),
        sampler=replace(config.sampler, langevin_steps=30, kernel="langevin"),
    )


def _split(config: TrainConfig) -> tuple[list[Phase], list[Phase]]:
    """The phases before the first with chains, and the others; without such a phase, the last is it."""
    phases = [*config.phases]
    start = next((k for k, phase in enumerate(phases) if _contrastive(phase)), len(phases) - 1)
    return phases[:start], phases[start:]


def _contrastive(phase: Phase) -> bool:
    """Whether the phase runs chains, beside which score matching may be kept on."""
    return OBJECTIVES[phase.name].runs_chains


VARIATIONS: dict[str, Callable[[TrainConfig], TrainConfig]] = {
    "drl": drl,
    "no-score-matching": no_score_matching,
    "no-shared-noise": no_shared_noise,
    "no-spectral-norm": no_spectral_norm,
    "no-warm-start": no_warm_start,
}
