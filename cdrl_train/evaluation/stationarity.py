"""Whether the energies of a model are densities: chains that start at data must stay there."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from cdrl_infer.energies.neural import NeuralEnergy
from cdrl_infer.likelihood.stationary import ERRORS, LIMIT, STARTS_LIMIT
from cdrl_infer.options import SamplingOptions
from cdrl_infer.pipeline import CDRLPipeline
from cdrl_infer.processes import Arrays, Processes
from cdrl_infer.proposals import proposal_of
from cdrl_infer.random import PerImageRandom
from cdrl_infer.sampler import LevelEnd
from cdrl_train.data.image_set import same_labels
from cdrl_train.evaluation.chains import KINDS, Chains, Starts, run_chains, starts_at_data
from cdrl_train.evaluation.report import Result
from cdrl_train.evaluation.sampling import RealImages, Steps, balanced_labels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COMPARED = (
    256  # images whose energies give the mean and the standard deviation, if there are so many
)
LEAPFROG = 3  # gradients per move
OF_CHAINS = "standard error over the chains"


@dataclass
class Stationarity:
    """HMC chains at every level, from noised images and from the model's own samples.

    Args:
        pipe: the model.
        reference: the real images.
        place: the name of these images in reports.
        langevin_steps: K of the model's own samples; None for the model's.
        chains: number of chains from data, and of chains from samples.
        moves: number of HMC moves of each chain.
        found: the chains, once `results` has run them.
    """

    pipe: CDRLPipeline
    reference: RealImages
    place: str
    langevin_steps: Steps | None = None
    chains: int = 16
    moves: int = 200
    found: list[Chains] = field(default_factory=list)

    def results(self, processes: Processes) -> list[Result]:
        """One result per transition and kind of chain, and the one that drifts most."""
        levels = self.pipe.model.schedule.num_levels
        # At t = T the recovery energy is the marginal one, so those chains are run once.
        jobs = [(t, kind) for kind in KINDS for t in range(levels, 0, -1)]
        jobs.remove((levels, "recovery"))
        own = self._own()

        def part(start: int, stop: int) -> Arrays:
            ran = self._run(*jobs[start], own)
            return {
                "data": ran.data[None],
                "traces": ran.traces[None],
                "largest": ran.largest[None],
                "numbers": np.array([[ran.acceptance, ran.step_scale]]),
            }

        title = f"{self.moves} moves of {2 * self.chains} chains"
        rows = processes.each_batch(len(jobs), 1, part, title, unit="energy")
        from_data = np.arange(2 * self.chains) < self.chains
        self.found = [
            Chains(t, kind, data, traces, from_data, largest, *map(float, numbers))
            for (t, kind), data, traces, largest, numbers in zip(
                jobs, rows["data"], rows["traces"], rows["largest"], rows["numbers"], strict=True
            )
        ]
        self.found.insert(levels, replace(self.found[0], kind="recovery"))
        each = [self._result(chains) for chains in self.found]
        worst = max(each, key=lambda result: abs(result.value))
        summary = Result(
            "stationarity",
            "largest drift of HMC chains from data, in sd of the energy",
            worst.values,
            worst.error,
            worst.error_is,
            n=self.chains,
            by=f"HMC, {self.moves} moves",
            depends_on=("chains",),
            args={"of": worst.name, "verdict": self.verdict},
        )
        return [*each, summary]

    @property
    def verdict(self) -> str:
        """``stationary``, or which energies are not and why, or which have too few chains to tell."""
        judged = [(f"{chains.kind} t = {chains.t}", chains.judged) for chains in self.found]
        faults = [f"{name}: {drift.fault}" for name, drift in judged if drift.fault]
        doubts = [f"{name}: {drift.doubt}" for name, drift in judged if drift.doubt]
        if faults:
            return f"not stationary ({'; '.join(faults)})"
        if doubts:
            return f"undecided ({'; '.join(doubts)}); more chains would tell"
        return f"stationary: no chains from data drift by more than {LIMIT} sd"

    def _run(self, t: int, kind: str, own: dict[int, Starts]) -> Chains:
        """The chains of one transition; they depend on the seed and nothing else."""
        schedule, count = self.pipe.model.schedule, self.chains
        level = schedule.level(t, self.pipe.device)
        compared = min(COMPARED, self.reference.count)
        x, labels = self._real(compared)
        seeds = [self.reference.seed + 10_000 * t + k for k in range(compared)]
        noised = starts_at_data(x, level, PerImageRandom.from_seeds(seeds, self.pipe.device))
        with torch.no_grad():
            energies = NeuralEnergy(self.pipe.model.ebm, labels)(noised.y, level)
        both = labels
        if labels is not None:
            both = torch.cat([labels[:count], self._own_labels(labels)])
        return run_chains(
            NeuralEnergy(self.pipe.model.ebm, both),
            schedule,
            t,
            kind,
            Starts(noised.y[:count], noised.x_t[:count]),
            own[t],
            energies=energies.double().cpu().numpy(),
            moves=self.moves,
            leapfrog_steps=LEAPFROG,
            seeds=[self.reference.seed + 10_000 * t + 5_000 + k for k in range(2 * count)],
        )

    def _real(self, count: int) -> tuple[Tensor, Tensor | None]:
        """Images in [-1, 1], and their labels if they are the model's; else no label is given."""
        data, device = self.reference.data, self.pipe.device
        index = self.reference.index(0)[:count]
        x = data.scaled(index).to(device)
        attributes = self.pipe.model.labels
        if not attributes:
            return x, None
        if same_labels(attributes, data) and data.labels is not None:
            return x, data.labels[index].to(device) + 1
        return x, torch.zeros(count, len(attributes), dtype=torch.int64, device=device)

    def _own_labels(self, like: Tensor) -> Tensor:
        """(chains, A) labels of the model's samples: balanced, or none if the data have none."""
        if not bool(like.any()):
            return torch.zeros_like(like[:1]).expand(self.chains, -1)
        sizes = [len(attribute.values) for attribute in self.pipe.model.labels]
        return balanced_labels(sizes, self.chains).to(like.device) + 1

    @torch.no_grad()
    def _own(self) -> dict[int, Starts]:
        """The model's samples at every level, by transition."""
        model, device = self.pipe.model, self.pipe.device
        _, labels = self._real(self.chains)
        labels = None if labels is None else self._own_labels(labels)
        steps = {} if self.langevin_steps is None else {"langevin_steps": self.langevin_steps}
        sampler = SamplingOptions.of(steps).sampler(model)
        seeds = range(self.reference.seed, self.reference.seed + self.chains)
        found: dict[int, Starts] = {}
        x_t = torch.zeros(self.chains, *model.image.shape, device=device)  # the first has no pull

        def keep(end: LevelEnd) -> None:
            nonlocal x_t
            found[end.t] = Starts(end.refined * model.schedule.level(end.t).scale.to(device), x_t)
            x_t = end.refined

        sampler.sample(
            NeuralEnergy(model.ebm, labels),
            proposal_of(model, labels),
            PerImageRandom.from_seeds(seeds, device),
            model.image.shape,
            on_level_end=keep,
        )
        return found

    def _result(self, chains: Chains) -> Result:
        judged, unit = chains.judged, chains.unit
        gap, gap_error = chains.gap()
        r_hat, ess = chains.mixing()
        return Result(
            f"drift-{chains.kind}-{chains.t}",
            f"drift of {chains.kind} chains, t = {chains.t}, in sd",
            (judged.leak,),
            judged.leak_error,
            OF_CHAINS,
            n=self.chains,
            by="HMC",
            depends_on=("chains",),
            args={
                "data_energy": float(chains.data.mean()),
                "data_sd": unit,
                "drift_nats": judged.leak * unit,
                "drift_nats_error": judged.leak_error * unit,
                "late_drift": judged.drift,
                "late_drift_error": judged.drift_error,
                "starts": judged.starts,
                "starts_error": judged.starts_error,
                "samples_gap_nats": _known(gap),
                "samples_gap_nats_error": _known(gap_error),
                "r_hat": _known(r_hat),
                "ess": _known(ess),
                "largest_pixel": float(chains.largest[-1]),
                "acceptance": chains.acceptance,
                "step_scale": chains.step_scale,
            },
            in_card=False,
        )

    def detail(self) -> str:
        """A table of all chains, for a terminal."""
        head = (
            " t  chains     energy of data, nats   drift, nats      in sd   samples' gap, nats"
            "   |x| max   accepted   R-hat     ESS"
        )
        lines = [head]
        for chains in self.found:
            judged, unit = chains.judged, chains.unit
            gap, gap_error = chains.gap()
            r_hat, ess = chains.mixing()
            lines.append(
                f"{chains.t:2}  {chains.kind:9}  {chains.data.mean():9.1f} ± {unit:<8.1f}"
                f"  {judged.leak * unit:8.1f} ± {judged.leak_error * unit:<5.1f}  {judged.leak:+6.2f}"
                f"   {gap:8.1f} ± {gap_error:<6.1f}   {chains.largest[-1]:7.2f}"
                f"   {chains.acceptance:8.2f}   {r_hat:5.2f}   {ess:5.0f}"
            )
        return "\n".join([*lines, "", self.verdict])

    def draw(self, figure: Figure) -> None:
        """Draw the traces: a column per transition, a row per kind; the band is the data's mean ± sd."""
        columns = len(self.found) // len(KINDS)
        figure.set_size_inches(2.4 * columns, 2.6 * len(KINDS))
        grid = figure.subplots(len(KINDS), columns, squeeze=False)
        for place, chains in enumerate(self.found):
            axes = grid[place // columns][place % columns]
            mean = chains.data.mean()
            axes.axhspan(mean - chains.unit, mean + chains.unit, color="0.85", linewidth=0)
            for own, colour in ((True, "tab:orange"), (False, "tab:blue")):
                rows = chains.traces[:, chains.from_data != own]
                axes.plot(rows, color=colour, linewidth=0.5, alpha=0.4)
                axes.plot(rows.mean(1), color=colour, linewidth=1.6)
            axes.set_title(f"{chains.kind}, t = {chains.t}", fontsize=8)
            axes.tick_params(labelsize=6)
        grid[0][0].set_ylabel("energy, nats", fontsize=8)
        grid[-1][0].set_xlabel("HMC moves", fontsize=8)
        figure.suptitle(
            "blue: from noised images; orange: from the model's samples; grey: the data, mean ± sd",
            fontsize=8,
        )

    def conditions(self) -> dict[str, str]:
        """The chains, for readers."""
        return {
            "chains": (
                f"HMC of {LEAPFROG} leapfrog steps with acceptance, {self.moves} moves, {self.chains} "
                f"chains from noised images of {self.place} and {self.chains} from the model's samples; "
                f"drift = mean energy of the last quarter less that at the start; limits {LIMIT} sd, "
                f"{STARTS_LIMIT} sd between the two starts, and {ERRORS} standard errors; "
                f"{self.verdict}"
            )
        }

    def settings(self) -> dict[str, Any]:
        """The chains, for programs."""
        return {
            "chains": self.chains,
            "moves": self.moves,
            "leapfrog_steps": LEAPFROG,
            "limit": LIMIT,
            "starts_limit": STARTS_LIMIT,
            "errors": ERRORS,
            "verdict": self.verdict,
        }


def _known(value: float) -> float | None:
    """The value for JSON; None for NaN, as of R-hat from too few moves."""
    return value if math.isfinite(value) else None
