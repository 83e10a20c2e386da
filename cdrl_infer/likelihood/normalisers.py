"""The normalisers of a model, ``normalisers.json``: one number for each level, with how it was found.

They belong to the weights and the noise levels of the model, whose digest and options the file has.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cdrl_infer.conditions.expressions import Concept
from cdrl_infer.config import from_config
from cdrl_infer.errors import CheckpointError, ConfigError, InputError, NumericalError, listing
from cdrl_infer.likelihood.bar import LEAST_OVERLAP
from cdrl_infer.likelihood.decoder import Decoder
from cdrl_infer.likelihood.stationary import Drift
from cdrl_infer.model import CDRLModel
from cdrl_infer.networks.vae import VAEEnergy
from cdrl_infer.scoring.weights import check_digests
from cdrl_infer.untrusted import read_json

NORMALISERS = "normalisers.json"
VERSION = 1  # of the file
NORMALISE = "run `cdrl-eval --normalise --model FOLDER --data DATA`"
ERRORS = 4.0  # standard errors beyond which two estimates contradict each other
TOLERANCE = 1.0  # nats that chains which are not quite settled may differ by


@dataclass(frozen=True)
class TransitionResult:
    """The estimate of ``Δ = log(B/A)`` of a transition; see `cdrl_infer.likelihood.bar.Estimate`.

    Args:
        t: the transition t -> t-1.
        temperatures: of the path; 1 is importance sampling.
        particles: draws of y for each x_t.
        delta, error: Bennett's estimate and its standard error, nats.
        lower, upper: from the forward weights and from the reverse weights alone, nats.
        jeffreys, jeffreys_error: how far the two levels contradict each other, nats; an upper estimate.
        overlap: of the two densities, in [0, 1].
        ess_forward, ess_reverse: effective sample sizes of the weights.
        pareto_k: the larger Pareto k̂ of the two directions; None if there are too few weights.
        chains: whether the chains of level t - 1 are draws of it.
    """

    t: int
    temperatures: int
    particles: int
    delta: float
    error: float
    lower: float
    upper: float
    jeffreys: float
    jeffreys_error: float
    overlap: float
    ess_forward: float
    ess_reverse: float
    pareto_k: float | None
    chains: Drift

    @property
    def faults(self) -> list[str]:
        """Reasons not to believe the estimate; [] if there are none."""
        found = []
        if self.chains.fault:
            found.append(f"at level {self.t - 1} {self.chains.fault}")
        slack = ERRORS * math.sqrt(1 / max(self.ess_forward, 1) + 1 / max(self.ess_reverse, 1))
        crossed = self.lower - self.upper > TOLERANCE + slack
        if crossed or self.jeffreys < -TOLERANCE - ERRORS * self.jeffreys_error:
            found.append(
                f"forward and reverse contradict each other at transition {self.t}: forward weights "
                f"say at least {self.lower:.1f} nats, reverse weights at most {self.upper:.1f}"
            )
        return found


@dataclass(frozen=True)
class Normaliser:
    """``log Z_i = log ∫ exp(-E(y)) dy`` of every level i = 0 … T - 1, for one set of labels.

    Args:
        labels: the network's integers, one per attribute, 0 = not given; () without labels.
        log_z, error: nats, level 0 first; the errors are standard errors.
        lower, upper: the estimates that err to either side, two standard errors further. Where they
            cross, Bennett's takes their place.
        transitions: t = 1 … T.

    Raises:
        ConfigError: the numbers of levels differ.
    """

    labels: tuple[int, ...]
    log_z: tuple[float, ...]
    error: tuple[float, ...]
    lower: tuple[float, ...]
    upper: tuple[float, ...]
    transitions: tuple[TransitionResult, ...]

    def __post_init__(self) -> None:
        lengths = {len(self.log_z), len(self.error), len(self.lower), len(self.upper)}
        if lengths != {len(self.transitions)} or not self.transitions:
            raise ConfigError(f"expected one number for each level, found {sorted(lengths)}")

    def faults(self, level: int = 0) -> list[str]:
        """Reasons to refuse all that needs the normaliser of a level; [] if there are none.

        It depends on the transitions above the level alone. A level whose chains are wrong makes both of
        its transitions wrong, so chains come first.
        """
        results = sorted(self.transitions[level:], key=lambda result: not result.chains.fault)
        return [fault for result in results for fault in result.faults]

    @property
    def lowest(self) -> int | None:
        """The lowest level whose normaliser is not refused; None if all are."""
        return next((k for k in range(len(self.transitions)) if not self.faults(k)), None)

    def verdict(self, level: int = 0) -> str:
        """ "sound", or the first that holds of these for a level, with its reason.

        "refused"; "undecided", if there are too few chains to tell whether they are stationary;
        "bracketed": believe lower and upper, the standard error is wide.
        """
        results = self.transitions[level:]
        faults = self.faults(level)
        if faults:
            return f"refused: {faults[0]}"
        doubts = [(r.t - 1, r.chains.doubt) for r in results if r.chains.doubt]
        if doubts:
            place, doubt = doubts[0]
            return f"undecided: at level {place} {doubt}; more chains would tell"
        apart = [r.t for r in results if r.overlap < LEAST_OVERLAP]
        if apart:
            return (
                "bracketed: believe lower and upper; forward and reverse hardly overlap at transition "
                f"{listing(apart)}"
            )
        return "sound"

    def text(self) -> str:
        """The results for a terminal, one line for each transition."""
        given = f"labels {listing(self.labels)}: " if any(self.labels) else ""
        lines = [
            *(f"{given}{self._line(level)}" for level in sorted({0, self.lowest or 0})),
            "transition  log-ratio        error  contradiction  overlap  temperatures",
        ]
        for r in reversed(self.transitions):
            lines.append(
                f"{r.t} -> {r.t - 1:<5} {r.delta:>11.1f}  {r.error:>11.1f}  {r.jeffreys:>8.1f} nats  "
                f"{r.overlap:>7.2f}  {r.temperatures:>12}"
            )
        return "\n".join(lines)

    def _line(self, level: int) -> str:
        log_z, error = self.log_z[level], self.error[level]
        return (
            f"log Z of level {level} is {log_z:.1f} ± {error:.1f} nats ({self.lower[level]:.1f} … "
            f"{self.upper[level]:.1f}); {self.verdict(level)}"
        )


@dataclass(frozen=True)
class Normalisers:
    """What ``normalisers.json`` holds.

    Args:
        entries: one for each set of labels.
        weights: digests of the model's weights, see `cdrl_infer.scoring.weights`.
        schedule: the options of the noise levels.
        data: the name of the data at which half of the chains began.
        seed: of the noise.
        version: of the file.
        decoders: of each level, see `cdrl_infer.likelihood.decoder`; () if the chains began at no data.
    """

    entries: tuple[Normaliser, ...]
    weights: tuple[str, ...]
    schedule: dict[str, Any]
    data: str
    seed: int
    version: int = VERSION
    decoders: tuple[Decoder, ...] = ()

    def find(self, labels: Sequence[int]) -> Normaliser | None:
        """The normaliser for these labels; None if it is not stored."""
        return next((e for e in self.entries if e.labels == tuple(labels)), None)

    def check_weights(self, model: CDRLModel) -> None:
        """Raise `ConfigError` unless the normalisers belong to the model's weights and noise levels."""
        if self.schedule != model.schedule.config():
            raise ConfigError(
                f"the normalisers belong to other noise levels: expected {self.schedule!s:.200}, found "
                f"{model.schedule.config()}; {NORMALISE} again"
            )
        try:
            check_digests(model, self.weights, "the normalisers")
        except ConfigError as error:
            raise ConfigError(f"{error}; {NORMALISE} again") from None

    def text(self) -> str:
        """The results for a terminal, one line for each transition."""
        return "\n".join(entry.text() for entry in self.entries)

    def to_bytes(self) -> bytes:
        """The content of ``normalisers.json``."""
        return (json.dumps(asdict(self), indent=1, allow_nan=False) + "\n").encode()


def read_normalisers(folder: Path, num_levels: int) -> Normalisers | None:
    """Read the normalisers from a model's folder; None if there is no such file.

    Args:
        folder: the folder of the model.
        num_levels: T of the model.

    Raises:
        CheckpointError: the file is damaged or of another version, or it is a link out of the folder.
        ConfigError: the file has invalid values.
    """
    path = folder / NORMALISERS
    if not path.is_file():
        return None
    config = read_json(folder, NORMALISERS)
    if config.get("version") != VERSION:
        raise CheckpointError(
            f"{path}: expected normalisers of version {VERSION}, found "
            f"{config.get('version')!a:.20}; delete the file and {NORMALISE} again"
        )
    found = from_config(Normalisers, config, str(path))
    lengths = {len(entry.log_z) for entry in found.entries} | {len(found.decoders) or num_levels}
    if lengths != {num_levels} or any(one.is_plain for one in found.decoders[1:]):
        raise ConfigError(
            f"{path}: expected {num_levels} normalisers and decoders, one per level, found others; "
            f"delete the file and {NORMALISE} again"
        )
    return found


def concept_offsets(model: CDRLModel, concepts: Sequence[Concept], name: str) -> Tensor:
    """``log Z(c) - log Z(∅)`` of each concept and level, (k, T) float32, nats, level 0 first.

    Args:
        model: has the normalisers.
        concepts: k concepts of the model.
        name: the model's name in messages.

    Raises:
        InputError, ConfigError, NumericalError: see `sound_normaliser`.
    """
    none = [0] * len(model.labels)
    rows = []
    for concept in concepts:
        row = [*none]
        row[concept.attribute] = concept.label
        rows.append(sound_normaliser(model, row, name).log_z)
    table = torch.tensor(rows, dtype=torch.float64)
    return (table - torch.tensor(sound_normaliser(model, none, name).log_z)).float()


def sound_normaliser(model: CDRLModel, labels: Sequence[int], name: str) -> Normaliser:
    """The model's normaliser for these labels, if those of all levels may be believed.

    Args:
        model: has the normalisers.
        labels: the network's integers, one per attribute.
        name: the model's name in messages.

    Raises:
        InputError, ConfigError: see `stored_normaliser`.
        NumericalError: level 0 is refused; the message has the reason.
    """
    found = stored_normaliser(model, labels, name)
    faults = found.faults()
    if faults:
        given = f" for the labels {listing(labels)}" if any(labels) else ""
        raise NumericalError(f"the normaliser of {name!r}{given} is refused: {faults[0]}")
    return found


def stored_normaliser(model: CDRLModel, labels: Sequence[int], name: str) -> Normaliser:
    """The model's normaliser for these labels, believed or not.

    Raises:
        InputError: the model has no normalisers, or none for these labels, or is a VAE.
        ConfigError: they belong to other weights.
    """
    refuse_bounds(model)
    stored = model.normalisers
    if stored is None:
        raise InputError(
            f"{name!r} has no normalisers, which make its energy a density; {NORMALISE}"
        )
    stored.check_weights(model)
    found = stored.find(labels)
    if found is None:
        known = listing(entry.labels for entry in stored.entries)
        raise InputError(
            f"{name!r} has normalisers for the labels {known} (0 = not given), got {tuple(labels)}; "
            f"{NORMALISE} --per-class, or leave the labels out"
        )
    return found


def refuse_bounds(model: CDRLModel) -> None:
    """Raise `InputError` for a VAE, whose energy has no normaliser."""
    if isinstance(model.ebm, VAEEnergy):
        raise InputError(
            "the energy of a VAE is a bound of the likelihood of black and white pixels already, not a "
            "density up to a constant: it has no normaliser to compute; use pipe.energy(images)"
        )
