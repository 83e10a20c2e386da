"""Seconds of a training step on one process and on several processes of this machine.

``python benchmarks/scaling.py --measure toy-2d --measure fashion-mnist`` uses it. Each process runs
``python benchmarks/two_processes.py JOB.json`` in the environment of `torchrun`.
"""

from __future__ import annotations

import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch

from cdrl_infer.errors import CDRLError
from cdrl_infer.model import ImageShape
from cdrl_infer.processes import end_process
from cdrl_train.config import TrainConfig
from cdrl_train.cost import stand_in_attributes
from cdrl_train.data.image_set import ImageSet
from cdrl_train.data.stream import BatchStream
from cdrl_train.engine.distributed import make_accelerator
from cdrl_train.engine.trainer import Trainer

EXCHANGES = 10  # all-reduces timed, after one to warm up


class Spent(NamedTuple):
    """Measured seconds, one per observation; with several processes, from the first process."""

    steps: list[float]  # seconds of a training step
    exchanges: list[float]  # seconds of an all-reduce of the gradients; empty for one process


@dataclass(frozen=True)
class Measured:
    """The times of one preset on one process and on P processes.

    Args:
        processes: P.
        batch_size: images per step of all processes together.
        exchanged: G, bytes of gradients.
        one, several: seconds of each step of each round.
        exchanges: seconds of an all-reduce of G bytes.
    """

    processes: int
    batch_size: int
    exchanged: int
    one: list[float]
    several: list[float]
    exchanges: list[float]

    @property
    def bandwidth(self) -> float:
        """W, the bytes per second of a ring all-reduce: ``2 (P - 1)/P · G / t``."""
        share = (self.processes - 1) / self.processes
        return 2 * share * self.exchanged / statistics.median(self.exchanges)


def measure(
    config: TrainConfig,
    image: ImageShape,
    num_classes: tuple[int, ...],
    exchanged: int,
    *,
    processes: int = 2,
    steps: int = 10,
    rounds: int = 3,
    tell: Callable[[str], object] = lambda text: None,
) -> Measured:
    """Time steps of a run's last phase on noise: the same batch on 1 and on P processes of one thread.

    Args:
        config: the run.
        image, num_classes: the shape of the images and the attributes of the data.
        exchanged: G, bytes of gradients.
        processes: P.
        steps: timed steps per round, after one step to warm up.
        rounds: number of rounds; each starts new processes.
        tell: called with a message for each round.

    Raises:
        CDRLError: a process failed; the message is the last line that it wrote.
    """
    job = {
        "config": config.to_dict(),
        "image": asdict(image),
        "num_classes": list(num_classes),
        "exchanged": exchanged,
        "steps": steps,
    }
    one, several, exchanges = [], [], []
    for k in range(rounds):
        one += run(job, 1).steps
        spent = run(job, processes)
        several += spent.steps
        exchanges += spent.exchanges
        tell(f"{config.name}: round {k + 1} of {rounds}")
    return Measured(processes, config.phases[-1].batch_size, exchanged, one, several, exchanges)


def run(job: dict[str, object], processes: int) -> Spent:
    """Start new processes that do a job together."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        file = Path(folder) / "job.json"
        file.write_text(json.dumps(job), encoding="utf-8")
        started = []
        for rank, group in enumerate(ranks(processes)):
            process = subprocess.Popen(
                [sys.executable, __file__, str(file)],
                env={**os.environ, **(group if processes > 1 else {}), "OMP_NUM_THREADS": "1"},
                stdout=stack.enter_context(said(file, rank).open("w", encoding="utf-8")),
                stderr=subprocess.STDOUT,
            )
            stack.callback(process.wait)
            stack.callback(process.kill)  # the others wait for one that has failed
            started.append(process)
        while any(process.poll() is None for process in started):
            if any(process.returncode for process in started):
                break
            time.sleep(0.05)
        for rank, process in enumerate(started):
            if process.returncode:
                text = said(file, rank).read_text(encoding="utf-8")
                last = (text.strip().splitlines() or ["it said nothing"])[-1]
                raise CDRLError(f"a process ended with code {process.returncode}: {last}")
        return Spent(**json.loads(file.with_suffix(".out").read_text(encoding="utf-8")))


def ranks(processes: int) -> list[dict[str, str]]:
    """The environment of each process, as `torchrun` sets it, with a free port to meet at."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(server.getsockname()[1])}
    count = str(processes)
    return [
        {
            "RANK": rank,
            "LOCAL_RANK": rank,
            "WORLD_SIZE": count,
            "LOCAL_WORLD_SIZE": count,
            **meeting,
        }
        for rank in map(str, range(processes))
    ]


def said(job: Path, rank: int) -> Path:
    """The text that a process wrote."""
    return job.with_name(f"{rank}.log")


def work(file: Path) -> None:
    """Do a job as one of its processes; the first process writes the results next to the job file."""
    torch.set_num_threads(1)
    job = json.loads(file.read_text(encoding="utf-8"))
    config = TrainConfig.from_dict(job["config"])
    config = replace(config, phases=config.phases[-1:])
    image, num_classes = ImageShape(**job["image"]), tuple(job["num_classes"])
    batch_size, generator = config.phases[0].batch_size, torch.Generator().manual_seed(0)
    images = torch.randint(256, (batch_size, *image.shape), generator=generator, dtype=torch.uint8)
    labels = torch.zeros(batch_size, len(num_classes), dtype=torch.int64) if num_classes else None
    data = ImageSet(images, labels, stand_in_attributes(num_classes))
    accelerator = make_accelerator(config.precision, torch.device("cpu"))
    stream = BatchStream(data, config.data, config.seed, "cpu")
    trainer = Trainer(config, stream, file.parent, accelerator=accelerator)
    trainer.train_step()
    steps = []
    for _ in range(job["steps"]):
        started = time.perf_counter()
        trainer.train_step()
        steps.append(time.perf_counter() - started)
    exchanges = []
    if accelerator.num_processes > 1:
        gradients = torch.zeros(job["exchanged"] // 4)
        for _ in range(EXCHANGES + 1):
            accelerator.wait_for_everyone()
            started = time.perf_counter()
            torch.distributed.all_reduce(gradients)
            exchanges.append(time.perf_counter() - started)
    if accelerator.is_main_process:
        found = {"steps": steps, "exchanges": exchanges[1:]}
        file.with_suffix(".out").write_text(json.dumps(found), encoding="utf-8")
    accelerator.wait_for_everyone()
    accelerator.end_training()


if __name__ == "__main__":
    work(Path(sys.argv[1]))
    end_process(0)
