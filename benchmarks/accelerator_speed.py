"""The speed of sampling and training on an accelerator, compared with a plain transcription.

`accelerator.py` runs it; see benchmarks/README.md.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from training import OURS, PLAIN, Runner, in_turns
from transcription import Transcription

from cdrl_infer.model import CDRLModel, ImageShape
from cdrl_infer.pipeline import CDRLPipeline
from cdrl_infer.version import __version__
from cdrl_train.config import TrainConfig
from cdrl_train.cost import SAMPLE_BATCH, count, stand_in_attributes
from cdrl_train.data.image_set import ImageSet
from cdrl_train.data.stream import BatchStream
from cdrl_train.engine.trainer import Trainer
from cdrl_train.networks import build_network

MATMUL = 8192  # a product of two MATMUL x MATMUL matrices, on an accelerator
LINES = 25  # of a profile


def random_images(image: ImageShape, num_classes: tuple[int, ...], n: int) -> ImageSet:
    """Noise with labels in turn, in the shape of a data set."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (n, *image.shape), generator=generator, dtype=torch.uint8)
    columns = [torch.arange(n) % size for size in num_classes]
    labels = torch.stack(columns, 1) if columns else None
    return ImageSet(pixels, labels, stand_in_attributes(num_classes))


def finished(device: torch.device) -> float:
    """The time in seconds at which the device has done its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def matrix_rate(device: torch.device, size: int) -> float:
    """Operations per second of products of large bfloat16 matrices, which is what is possible here."""
    a, b = torch.randn(2, size, size, device=device, dtype=torch.bfloat16).unbind()
    best = float("inf")
    for _ in range(10):
        started = finished(device)
        a @ b
        best = min(best, finished(device) - started)
    return 2 * size**3 / best


def spread(values: list[float]) -> dict[str, float]:
    """Median, least and greatest."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


class Speed:
    """Times the last phase with chains of a run, and its sampling.

    Args:
        config: of one phase, as `training.configured` gives it.
        image, num_classes: shape of the images, and values of each attribute.
        batch_size: images of a training step, and of a sampling batch.
        device: where to compute.
        matmul: size of the matrices that show the possible rate.
    """

    def __init__(
        self,
        config: TrainConfig,
        image: ImageShape,
        num_classes: tuple[int, ...],
        batch_size: int,
        device: torch.device,
        matmul: int = MATMUL,
    ) -> None:
        phase = replace(config.phases[-1], batch_size=batch_size)
        self.config = replace(config, phases=(phase,))
        self.image, self.num_classes = image, num_classes
        self.batch_size = batch_size
        self.device = device
        self.rate = matrix_rate(device, matmul)
        self.cost = count(self.config, image, num_classes)
        self.data = random_images(image, num_classes, 2 * batch_size)
        self.profiles: dict[str, str] = {}

    def stream(self) -> BatchStream:
        """Batches on the device."""
        return BatchStream(self.data, self.config.data, self.config.seed, self.device)

    def training(self, steps: int, rounds: int) -> dict[str, Any]:
        """Steps of the trainer and of the transcription, in turns."""
        folder = Path(tempfile.gettempdir())  # nothing is written there
        trainer = Trainer(self.config, self.stream(), folder)
        runners = {
            OURS: Runner(trainer),
            PLAIN: Runner(Transcription(self.config, self.stream())),
        }
        for _ in range(trainer.steps_until_recorded):
            trainer.train_step()
        seconds = in_turns(runners, steps, rounds)
        self.profiles["training"] = self._profile(trainer.train_step)
        work = self.cost.phases[-1]
        assert work is not None  # the phase has steps
        return self._compared(seconds, self.batch_size, work.flops / self.batch_size)

    def sampling(self, rounds: int) -> dict[str, Any]:
        """Batches of the pipeline and of the transcription, in turns, with the same networks."""
        folded = replace(self.config, spectral_norm=False)  # as in an exported model
        plain = Transcription(folded, self.stream())
        options = {"langevin_steps": self.config.sampler.langevin_steps}
        phase = self.config.phases[-1]
        plain.objective = replace(phase, objective={**phase.objective, **options}).make_objective()
        pipe = self._pipeline()
        labels: Tensor | None = None
        if self.num_classes:
            assert self.data.labels is not None
            labels = self.data.labels[: self.batch_size].to(self.device) + 1
        shape = (self.batch_size, *self.image.shape)

        def ours() -> None:
            pipe(
                num_images=self.batch_size,
                seeds=0,
                batch_size=self.batch_size,
                output_type="pt",
                draw_on="device",
                precision="auto",
                progress=False,
            )

        work: dict[str, Callable[[], object]] = {
            OURS: ours,
            PLAIN: lambda: plain.sample(shape, labels),
        }
        seconds: dict[str, list[float]] = {name: [] for name in work}
        for k in range(rounds + 1):
            for name, call in work.items():
                started = finished(self.device)
                call()
                if k:  # the first warms up
                    seconds[name].append(finished(self.device) - started)
        self.profiles["sampling"] = self._profile(ours)
        return self._compared(seconds, self.batch_size, self.cost.sample.flops / SAMPLE_BATCH)

    def _pipeline(self) -> CDRLPipeline:
        torch.manual_seed(self.config.seed)
        channels = self.image.channels
        initializer = self.config.initializer
        model = CDRLModel(
            build_network("ebm", self.config.ebm, channels, self.num_classes),
            None
            if initializer is None
            else build_network("initializer", initializer, channels, self.num_classes),
            schedule=self.config.schedule,
            image=self.image,
            labels=stand_in_attributes(self.num_classes),
            sampler=self.config.sampler,
            training={},
        )
        return CDRLPipeline(model).to(self.device)

    def _compared(
        self, seconds: dict[str, list[float]], images: int, flops: float
    ) -> dict[str, Any]:
        """Images per second, the ratio of the two, and the share of the possible rate."""
        speeds = {name: [images / s for s in spent] for name, spent in seconds.items()}
        ratios = [a / b for a, b in zip(speeds[OURS], speeds[PLAIN], strict=True)]
        return {
            "images per second": {name: spread(values) for name, values in speeds.items()},
            "faster by": spread(ratios),
            "GFLOP an image": flops / 1e9,
            "share of the rate": {
                name: statistics.median(values) * flops / self.rate
                for name, values in speeds.items()
            },
        }

    def _profile(self, call: Callable[[], object]) -> str:
        """The operations that take the most time, of one call."""
        activities = [ProfilerActivity.CPU]
        if self.device.type == "cuda":
            activities.append(ProfilerActivity.CUDA)
        with profile(activities=activities) as found:
            call()
            finished(self.device)
        key = "cuda_time_total" if self.device.type == "cuda" else "self_cpu_time_total"
        return str(found.key_averages().table(sort_by=key, row_limit=LINES))


def measure(speed: Speed, steps: int, rounds: int) -> dict[str, Any]:
    """Both comparisons, and what they were made with."""
    return {
        "made with": f"cdrl {__version__}, torch {torch.__version__}, {device_name(speed.device)}",
        "config": speed.config.name,
        "precision": speed.config.precision,
        "batch size": speed.batch_size,
        "TFLOP/s of bfloat16 matrix products": speed.rate / 1e12,
        "training": speed.training(steps, rounds),
        "sampling": speed.sampling(rounds),
    }


def device_name(device: torch.device) -> str:
    """The device as its maker calls it."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
