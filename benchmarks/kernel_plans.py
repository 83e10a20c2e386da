"""Plans for kernels (numbers of steps), and their warm-ups and samples, with a cache on disk."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
from kept import kept
from numpy.typing import NDArray
from report import write_json
from subject import SamplePools
from torch import Tensor, nn

from cdrl_infer.errors import InputError
from cdrl_infer.kernels.base import Kernel
from cdrl_infer.kernels.hmc import HMC
from cdrl_infer.options import find_kernel
from cdrl_infer.pipeline import CDRLPipeline
from cdrl_train.evaluation.sampling import pixels

ADAPT_IMAGES = 16
NAMES = ("langevin", "mala", "hmc")


class Plan(NamedTuple):
    """A kernel and the number of its steps at each transition."""

    name: str  # in the tables
    kernel: Kernel[Any]
    budget: int  # gradients per transition that it may take
    steps: int

    @property
    def adapts(self) -> bool:
        """Whether a warm-up finds its step sizes."""
        return self.steps > 0 and self.kernel.optimal_acceptance is not None


def plan(name: str, budget: int, leapfrog_steps: int) -> Plan:
    """The plan with the most steps K that cost at most ``budget`` gradients per transition.

    Langevin costs K gradients, MALA 1 + K and HMC 1 + L K; the 1 is for the start of the chain.

    Raises:
        InputError: the budget is too small for one step.
    """
    kernel = HMC(leapfrog_steps) if name == "hmc" else find_kernel(name)
    per_step = kernel.leapfrog_steps if isinstance(kernel, HMC) else 1
    steps = (budget - (kernel.optimal_acceptance is not None)) // per_step
    if steps < 1:
        raise InputError(
            f"--gradients {budget} allows no step of {name}: expected at least {1 + per_step}"
        )
    return Plan(f"hmc, L = {per_step}" if name == "hmc" else name, kernel, budget, steps)


class Counter:
    """Counts gradients of the energy, per image."""

    images = 0

    def __call__(self, network: nn.Module, inputs: Any, output: Tensor) -> None:
        """A forward hook."""
        self.images += len(output)


@contextmanager
def counted_gradients(pipe: CDRLPipeline) -> Iterator[Counter]:
    """Count the gradients in the block."""
    counter = Counter()
    handle = pipe.model.ebm.register_forward_hook(counter)
    try:
        yield counter
    finally:
        handle.remove()


@dataclass(frozen=True)
class WarmUp:
    """The result and the cost of adapting the step sizes, for t = T … 1."""

    step_scale: list[float]
    acceptance: list[float]
    gradients: int  # total number; a gradient of one image counts as one
    seconds: float


@dataclass(frozen=True)
class Bench:
    """Adapts step sizes and draws samples with the labels and seeds of `SamplePools`; caches both."""

    pools: SamplePools

    def warm_up(self, asked: Plan) -> WarmUp:
        """The step scales of a plan."""
        pipe = self.pools.pipe
        file = self.pools.cache / f"adapted-{self.pools.digest}-{asked.kernel}-K{asked.steps}.json"
        if not file.is_file():
            start = time.perf_counter()
            with counted_gradients(pipe) as counter:
                found = pipe.adapt_step_scale(
                    asked.kernel,
                    langevin_steps=asked.steps,
                    num_images=ADAPT_IMAGES,
                    class_labels=self.pools.labels(ADAPT_IMAGES).tolist(),
                )
            seconds = time.perf_counter() - start
            result = WarmUp(list(found.step_scale), list(found.acceptance), counter.images, seconds)
            write_json(file, asdict(result))
        return WarmUp(**json.loads(file.read_text(encoding="utf-8")))

    def samples(self, asked: Plan, step_scale: Sequence[float] | None, count: int) -> NDArray[Any]:
        """(N,) records: image, energy, acceptance (T,), and the image's share of a chunk's seconds
        and gradients.
        """
        pools, pipe = self.pools, self.pools.pipe
        labels = pools.labels(count).tolist()
        row = np.dtype(
            [
                ("image", np.uint8, pipe.model.image.shape),
                ("energy", np.float32),
                ("acceptance", np.float32, (pipe.model.schedule.num_levels,)),
                ("seconds", np.float64),
                ("gradients", np.float64),
            ]
        )

        def draw(start: int, stop: int) -> NDArray[Any]:
            began = time.perf_counter()
            with counted_gradients(pipe) as counter:
                output = pipe(
                    class_labels=labels[start:stop],
                    seeds=range(start, stop),
                    kernel=asked.kernel,
                    langevin_steps=asked.steps,
                    step_scale=step_scale,
                    batch_size=pools.batch_size,
                    output_type="pt",
                    progress=False,
                )
            rows = np.empty(stop - start, row)
            rows["image"] = pixels(output)
            rows["energy"] = output.energies
            rows["acceptance"] = output.info.acceptance
            rows["seconds"] = (time.perf_counter() - began) / len(rows)
            rows["gradients"] = counter.images / len(rows)
            return rows

        key = json.dumps([str(asked.kernel), asked.steps, step_scale])
        sha = hashlib.sha256(key.encode()).hexdigest()[:12]
        file = pools.cache / f"kernel-{pools.digest}-K{asked.steps}-{sha}.npy"
        title = f"{asked.name}, K = {asked.steps}" if pools.progress else None
        return kept(file, count, draw, row, 4 * pools.batch_size, title)
