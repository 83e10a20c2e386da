"""The subject of a benchmark: a model, and the data to compare it with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from classifier import Recipe, judge_warning, load_or_train
from kept import kept
from numpy.typing import NDArray
from torch import Tensor

from cdrl_infer.cli import command
from cdrl_infer.pipeline import CDRLPipeline
from cdrl_infer.storage.folder import find_model
from cdrl_infer.version import __version__
from cdrl_train.data.image_set import ImageSet
from cdrl_train.data.sources import load_images
from cdrl_train.evaluation.classifier import Classifier
from cdrl_train.evaluation.request import check_labels, check_shape
from cdrl_train.evaluation.sampling import Samples, balanced_labels, model_digest

Bytes = NDArray[np.uint8]
Steps = int | tuple[int, ...]
VERSIONS = {"cdrl": __version__, "torch": torch.__version__}
MADE_WITH = ", ".join(f"{name} {version}" for name, version in VERSIONS.items())


def steps_name(steps: Steps) -> str:
    """``K = 5``, or ``K = 0,5,5`` for one K per transition, the noisiest first."""
    return f"K = {','.join(map(str, steps)) if isinstance(steps, tuple) else steps}"


def file_name(steps: Steps) -> str:
    """``K5`` or ``K0-5-5``."""
    return steps_name(steps).replace("K = ", "K").replace(",", "-")


def parse_steps(text: str, default: Steps) -> Steps:
    """``"5"``, ``"0,5,5"``, or ``"model"``: the model's default."""
    return default if text == "model" else command.parse_steps(text)


@dataclass(frozen=True)
class Subject:
    """A model, and the training and test images of the data.

    Args:
        digest: the digest of the model.
    """

    pipe: CDRLPipeline
    digest: str
    train: ImageSet
    test: ImageSet

    @classmethod
    def load(cls, model: str | None, data: str, device: str, labels: bool = True) -> Subject:
        """Read the model and the data.

        Args:
            model: a bundled name or a folder.
            data: see the option ``--data`` of `cdrl-train`.
            device: where the model runs.
            labels: whether the model must have the labels of the data.

        Raises:
            InputError: the model or the data are missing, or they do not fit each other.
        """
        folder = find_model(model)
        pipe = CDRLPipeline.from_pretrained(folder).to(device)
        train, test = load_images(data, "train"), load_images(data, "test")
        check_shape(pipe.model, pipe.name, test)
        if labels:
            check_labels(pipe.model.labels, test)
        return cls(pipe, model_digest(folder), train, test)

    def judge(self, cache: Path, recipe: Recipe) -> tuple[Classifier, float, str | None]:
        """The judge, the share of test images that it recognises, and a warning if the share is small."""
        judge, real = load_or_train(cache, self.train, self.test, recipe, progress=True)
        return judge, real, judge_warning(real)

    def steps(self, text: str) -> Steps:
        """K from the command line; "model" stands for the model's default."""
        return parse_steps(text, self.pipe.model.sampler.langevin_steps)

    @property
    def title(self) -> str:
        """The name of the model, for the head of a report."""
        return f"Model {self.pipe.name} ({self.digest})"

    def facts(self, **of_model: Any) -> dict[str, Any]:
        """Model, versions and data, for the JSON."""
        return {
            "model": {"name": self.pipe.name, "digest": self.digest, **of_model},
            "versions": VERSIONS,
            "data": {"train": self.train.fingerprint(), "test": self.test.fingerprint()},
        }


@dataclass(frozen=True)
class SamplePools:
    """Samples of a model with balanced labels, with a cache on disk that grows.

    Args:
        digest: the digest of the model, for the names of the files.
    """

    pipe: CDRLPipeline
    digest: str
    cache: Path
    batch_size: int = 64
    progress: bool = False

    def labels(self, count: int) -> Tensor:
        """(N, A) indices."""
        sizes = [len(attribute.values) for attribute in self.pipe.model.labels]
        return balanced_labels(sizes, count)

    def images(self, steps: Steps, repeat: int, count: int, scale: float = 1.0) -> Bytes:
        """(N, C, H, W): the first ``count`` samples of a repeat.

        Args:
            steps: K.
            repeat: r.
            count: N.
            scale: the guidance scale.

        Raises:
            InputError: the model does not draw the samples on the disk any more.
        """
        samples = Samples(
            self.pipe, langevin_steps=steps, guidance_scale=scale, batch_size=self.batch_size
        )
        guided, title = "", f"{steps_name(steps)}, repeat {repeat}"
        if scale != 1:
            guided, title = f"-g{scale:g}", f"guidance scale {scale:g}, {title}"
        return kept(
            self.cache / f"samples-{self.digest}{guided}-{file_name(steps)}-repeat{repeat}.npy",
            count,
            lambda start, stop: samples.draw(repeat, start, stop),
            np.dtype((np.uint8, self.pipe.model.image.shape)),
            4 * self.batch_size,
            title if self.progress else None,
        )
