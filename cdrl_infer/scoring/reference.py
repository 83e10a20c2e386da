"""The reference statistics of a model, ``statistics.safetensors``; a calibration computes them.

A calibration computes the features of N in-distribution images. Half A of the images fits the scores
that compare with in-distribution images. p-values and thresholds come from half B. The fit has not seen
half B, so its images score like other in-distribution images.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from cdrl_infer.device import default_switches
from cdrl_infer.errors import CheckpointError, ConfigError, InputError, NumericalError
from cdrl_infer.model import CDRLModel
from cdrl_infer.registry import is_name
from cdrl_infer.scoring.features import FeatureTable, NoisedImages, draw_noise
from cdrl_infer.scoring.gaussian import Gaussian
from cdrl_infer.scoring.registry import SCORES
from cdrl_infer.scoring.scores import Fit
from cdrl_infer.scoring.weights import check_digests, weights_digests
from cdrl_infer.untrusted import StoredTensors, to_bytes

STATISTICS = "statistics.safetensors"
VERSION = "3"  # the version of the file; it increases when a feature is new or changes
MAX_COUNT, MAX_DATA = 2**21, 200  # number of images; characters in the name of the data
MEND = "delete the file and calibrate the model again"
NUMBER, DIGESTS = r"[0-9]{1,10}", r"[0-9a-f]{64}( [0-9a-f]{64}){0,2}"


@dataclass(frozen=True, eq=False)
class ReferenceStatistics:
    """Features of in-distribution images; every score can be computed from them.

    Args:
        mean: (3T,) float64, the mean of `Features.all` over half A. The file stores the mean and the
            covariance, so that scores are the same on every machine.
        covariance: (3T, 3T) float64, the covariance of `Features.all` over half A.
        fitted: the features of half A, N - N // 2 images.
        held_out: the features of half B, N // 2 images.
        weights: digests of the model's weights, see `check_weights`.
        seed: the seed of the noise.
        data: the name of the data.
        score: the model's own score, which is taken unless a user names another; None: that of its
            energy's class.

    Raises:
        ConfigError: a value is not finite, the covariance is not symmetric and positive definite, or a
            digest, the seed or the name is invalid.
    """

    mean: Tensor
    covariance: Tensor
    fitted: FeatureTable
    held_out: FeatureTable
    weights: tuple[str, ...]
    seed: int
    data: str
    score: str | None = None
    _scores: dict[tuple[str, int], Tensor] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        check_origin(self.data, self.count, self.seed)
        if not re.fullmatch(DIGESTS, " ".join(self.weights)):
            raise ConfigError(f"expected 1 to 3 sha256 digests, got {self.weights!a:.80}")
        if self.score is not None and not is_name(self.score):
            raise ConfigError(f"expected the name of a score, got {self.score!a:.60}")
        for name, tensor in self.tensors().items():
            if not bool(tensor.isfinite().all()):
                raise ConfigError(f"{name} holds NaN or infinity, expected finite values")
        if not torch.equal(self.covariance, self.covariance.T):
            raise ConfigError("the covariance is not symmetric")
        try:
            _ = self.fit
        except InputError as error:
            raise ConfigError(str(error)) from None

    @property
    def num_levels(self) -> int:
        """T, the number of transitions."""
        return max(1, self.mean.numel() // 3)

    @property
    def count(self) -> int:
        """N, the number of images in both halves."""
        return len(self.fitted) + len(self.held_out)

    @cached_property
    def fit(self) -> Fit:
        """Half A, for the scores that compare with in-distribution images."""
        return Fit(self.fitted, Gaussian(self.mean, self.covariance))

    def scores(self, score: str, level: int = 1) -> Tensor:
        """The sorted scores of half B.

        Args:
            score: a name in `SCORES`.
            level: the transition t, for a score that is `Score.levelled`.

        Returns:
            (M,) float64 with M = N // 2.

        Raises:
            ConfigError: the name is unknown.
            NumericalError: a score is not finite.
        """
        if (score, level) not in self._scores:
            values = SCORES.find(score)(self.held_out, level, self.fit)
            if not bool(values.isfinite().all()):
                raise NumericalError(
                    f"the score {score!r} of the calibration's images is not finite; check the score"
                )
            self._scores[score, level] = values.double().sort().values
        return self._scores[score, level]

    def p_values(self, score: str, values: Tensor, level: int = 1) -> Tensor:
        """The share of in-distribution images that score higher: ``(1 + #{B >= s}) / (M + 1)``.

        For an in-distribution image, the values ``1/(M + 1) … 1`` are equally likely. It is a conformal
        p-value (Bates et al. 2023, "Testing for outliers with conformal p-values").

        Args:
            score: see `scores`.
            values: (N,) scores.
            level: see `scores`.

        Returns:
            (N,) float64.
        """
        reference = self.scores(score, level)
        lower = torch.searchsorted(reference, values.double().contiguous())  # #{B < s}
        return _share(len(reference) - lower, len(reference))

    def threshold(self, score: str, fpr: float, level: int = 1) -> float:
        """The threshold for a share of false alarms: scores above it have p-values of at most ``fpr``.

        Args:
            score: see `scores`.
            fpr: the share of false alarms, in (0, 1).
            level: see `scores`.

        Raises:
            InputError: the share lies outside (0, 1), or is too small for the number of images.
        """
        reference = self.scores(score, level)
        count = len(reference)
        check_share(fpr, count)
        allowed = int((_share(torch.arange(count, device="cpu"), count) <= fpr).sum())
        return float(reference[count - allowed])

    def tensors(self) -> dict[str, Tensor]:
        """The tensors by their names in the file."""
        halves = {"fitted": self.fitted, "held_out": self.held_out}
        tables = {f"{half}/{k}": v for half, t in halves.items() for k, v in t.columns().items()}
        return {"mean": self.mean, "covariance": self.covariance, **tables}

    def check_levels(self, num_levels: int) -> None:
        """Raise `ConfigError` unless the model has ``num_levels`` levels."""
        if self.num_levels != num_levels:
            raise ConfigError(
                f"{STATISTICS} is for a model of {self.num_levels} levels, this one has {num_levels}"
            )

    def check_weights(self, model: CDRLModel) -> None:
        """Raise `ConfigError` unless the calibration was made with the model's weights.

        A calibration stores the digests of its weights and of their roundings to float16 and bfloat16. So
        it recognises each stored variant of the model.
        """
        check_digests(model, self.weights, "the reference statistics")

    def to_bytes(self) -> bytes:
        """The content of ``statistics.safetensors``."""
        metadata = {
            "version": VERSION,
            "data": self.data,
            "count": str(self.count),
            "seed": str(self.seed),
            "weights": " ".join(self.weights),
        }
        if self.score is not None:
            metadata["score"] = self.score
        layout = torch.contiguous_format
        tensors = {k: tensor.clone(memory_format=layout) for k, tensor in self.tensors().items()}
        return to_bytes(tensors, metadata)


def _share(higher: Tensor, count: int) -> Tensor:
    return (1 + higher).double() / (count + 1)


def stored_shapes(num_levels: int, count: int) -> dict[str, tuple[int, ...]]:
    """The shapes of the stored tensors by name, for T levels and N images."""
    shapes: dict[str, tuple[int, ...]] = {
        "mean": (3 * num_levels,),
        "covariance": (3 * num_levels, 3 * num_levels),
    }
    for half, rows in (("fitted", count - count // 2), ("held_out", count // 2)):
        for column in fields(FeatureTable):
            per_image = column.name == "compressed_size"
            shapes[f"{half}/{column.name}"] = (rows,) if per_image else (rows, num_levels)
    return shapes


def check_share(fpr: float, held_out: int) -> None:
    """Raise `InputError` if ``held_out`` images are too few for this share of false alarms."""
    smallest = 1 / (held_out + 1)
    if not smallest <= fpr < 1:
        raise InputError(
            f"the share of false alarms must be at least {smallest:.2g} (1 / (images + 1)) and "
            f"less than 1, got {fpr:g}; calibrate with more images for a smaller one"
        )


def fewest_images(num_levels: int) -> int:
    """The smallest N of a calibration. Each half then has twice as many images as features."""
    return 12 * num_levels


@default_switches()
def measure(
    model: CDRLModel,
    images: Tensor,
    *,
    data: str,
    seed: int,
    score: str | None = None,
    batch_size: int = 64,
    after_batch: Callable[[int], object] = lambda count: None,
) -> ReferenceStatistics:
    """Shuffle in-distribution images, split them into halves, and compute their features.

    Args:
        model: has the networks and the schedule.
        images: (N, C, H, W) of the model's shape, uint8 or floats in [0, 1].
        data: the name of the data.
        seed: the seed of the halves and of the noise.
        score: the model's own score, see `ReferenceStatistics`.
        batch_size: number of images at once.
        after_batch: called after each batch with its number of images.

    Raises:
        InputError: there are too few images, or the images are too similar.
        ConfigError: the name, the number of images or the seed is invalid, see `check_origin`.
        NumericalError: a feature is not finite.
    """
    fewest = fewest_images(model.schedule.num_levels)
    if len(images) < fewest:
        raise InputError(f"calibrating needs at least {fewest} images, got {len(images)}")
    check_origin(data, len(images), seed)
    noise = draw_noise(model.schedule, images.shape[1:], seed)

    def table(indices: Tensor) -> FeatureTable:
        tables = []
        for first in range(0, len(indices), batch_size):
            part = images[indices[first : first + batch_size]]
            unit = part.float() / 255 if part.dtype == torch.uint8 else part
            tables.append(FeatureTable.of(NoisedImages.of(model, unit, noise)))
            if not tables[-1].finite:
                raise NumericalError("features of the images are not finite; check the model")
            after_batch(len(part))
        return FeatureTable.join(tables)

    order = random_order(len(images), seed)
    fitted = table(order[len(images) // 2 :])
    gaussian = Gaussian.of(fitted.all)
    return ReferenceStatistics(
        mean=gaussian.mean,
        covariance=gaussian.covariance,
        fitted=fitted,
        held_out=table(order[: len(images) // 2]),
        weights=weights_digests(model),
        seed=seed,
        data=data,
        score=score,
    )


def random_order(count: int, seed: int) -> Tensor:
    """The integers 0 … count - 1 in random order; the same seed gives the same order."""
    return torch.randperm(count, generator=torch.Generator("cpu").manual_seed(seed), device="cpu")


def check_origin(data: str, count: int, seed: int) -> None:
    """Raise `ConfigError` for an invalid name of the data, number of images or seed."""
    if not 1 <= len(data) <= MAX_DATA or not data.isprintable():
        raise ConfigError(
            f"the name of the data must have 1 to {MAX_DATA} printable characters, got {data!a:.60}"
        )
    if not 2 <= count <= MAX_COUNT:
        raise ConfigError(f"expected 2 to {MAX_COUNT:,} images, got {count}")
    if not 0 <= seed < 2**32:
        raise ConfigError(f"expected a seed in 0 … 2**32 - 1, got {seed}")


def read_statistics(folder: Path, num_levels: int) -> ReferenceStatistics | None:
    """Read the statistics from a model's folder; None if there is no such file.

    Args:
        folder: the folder of the model.
        num_levels: T of the model.

    Raises:
        CheckpointError: the file is damaged, of another kind or of another version, or it is a link that
            leads out of the folder.
        ConfigError: the file has invalid values.
    """
    path = folder / STATISTICS
    if not path.is_file():
        return None
    with StoredTensors(folder, STATISTICS, "reference statistics") as stored:
        metadata = stored.metadata()
        version = metadata.get("version", "none")
        if version != VERSION:
            raise CheckpointError(
                f"{path}: expected statistics of version {VERSION}, found {version!a:.20}; {MEND}"
            )
        found = {}
        for name, form in (("count", NUMBER), ("seed", NUMBER), ("weights", DIGESTS)):
            found[name] = metadata.get(name, "")
            if not re.fullmatch(form, found[name]):
                kind = "an integer" if form == NUMBER else "sha256 digests as"
                raise CheckpointError(
                    f"{path}: expected {kind} {name}, found {found[name]!a:.20}; {MEND}"
                )
        shapes = stored_shapes(num_levels, int(found["count"]))
        tensors = {n: t.clone() for n, t in stored.read(shapes, ["F64"], MEND).items()}
    names = [column.name for column in fields(FeatureTable)]
    try:
        return ReferenceStatistics(
            mean=tensors["mean"],
            covariance=tensors["covariance"],
            fitted=FeatureTable(**{name: tensors[f"fitted/{name}"] for name in names}),
            held_out=FeatureTable(**{name: tensors[f"held_out/{name}"] for name in names}),
            weights=tuple(found["weights"].split()),
            seed=int(found["seed"]),
            data=metadata.get("data", ""),
            score=metadata.get("score"),
        )
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}; {MEND}") from None
