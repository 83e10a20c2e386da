"""In-distribution images, by which a score is read: ``statistics.safetensors``.

A calibration computes the features of N images. Scores that compare with in-distribution images are
fitted to half A of them. p-values and thresholds come from half B, which the fit has not seen: so its
images score like other in-distribution images.
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
from cdrl_infer.scoring.features import FeatureTable, NoisedImages, draw_noise
from cdrl_infer.scoring.gaussian import Gaussian
from cdrl_infer.scoring.registry import SCORES
from cdrl_infer.scoring.scores import Fit
from cdrl_infer.scoring.weights import weights_digest, weights_digests
from cdrl_infer.untrusted import StoredTensors, to_bytes

STATISTICS = "statistics.safetensors"
VERSION = "3"  # of the file; goes up when a feature is new or computed in another way
MAX_COUNT, MAX_DATA = 2**21, 200  # images; characters of the name of their set
MEND = "delete the file and calibrate the model again"
NUMBER, DIGESTS = r"[0-9]{1,10}", r"[0-9a-f]{64}( [0-9a-f]{64}){0,2}"


@dataclass(frozen=True, eq=False)
class ReferenceStatistics:
    """Features of in-distribution images; the scores of any name follow from them.

    Args:
        mean: (3T,) float64, the mean of `Features.all` over half A. Mean and covariance are stored, not
            computed from the table: so scores are the same wherever the file is read.
        covariance: (3T, 3T) float64, likewise.
        fitted: features of half A, N - N // 2 images.
        held_out: features of half B, N // 2 images.
        weights: digests of the weights that this belongs to, see `check_weights`.
        seed: the seed of the noise.
        data: the name of the images' set.

    Raises:
        ConfigError: values that are not finite, a covariance that is not symmetric and positive
            definite, or digests, a seed or a name that cannot be recorded.
    """

    mean: Tensor
    covariance: Tensor
    fitted: FeatureTable
    held_out: FeatureTable
    weights: tuple[str, ...]
    seed: int
    data: str
    _scores: dict[tuple[str, int], Tensor] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        check_origin(self.data, self.count, self.seed)
        if not re.fullmatch(DIGESTS, " ".join(self.weights)):
            raise ConfigError(f"expected 1 to 3 sha256 digests, got {self.weights!a:.80}")
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
        """T."""
        return max(1, self.mean.numel() // 3)

    @property
    def count(self) -> int:
        """N, the images of both halves."""
        return len(self.fitted) + len(self.held_out)

    @cached_property
    def fit(self) -> Fit:
        """Half A, for the scores that compare with in-distribution images."""
        return Fit(self.fitted, Gaussian(self.mean, self.covariance))

    def scores(self, score: str, level: int = 1) -> Tensor:
        """The scores of half B, sorted; computed once.

        Args:
            score: a name in `SCORES`.
            level: the transition t of a score that can be taken at several.

        Returns:
            (M,) float64 with M = N // 2.

        Raises:
            ConfigError: an unknown name.
            NumericalError: a score that is not finite.
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

        For an in-distribution image, each of ``1/(M + 1) … 1`` has the same chance: a conformal p-value
        (Bates et al. 2023, "Testing for outliers with conformal p-values").

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
        """The score above which p-values are at most ``fpr``, the share of false alarms.

        Args:
            score: see `scores`.
            fpr: in (0, 1).
            level: see `scores`.

        Raises:
            InputError: a share outside (0, 1), or one too small for so few images.
        """
        reference = self.scores(score, level)
        count = len(reference)
        check_share(fpr, count)
        allowed = int((_share(torch.arange(count, device="cpu"), count) <= fpr).sum())
        return float(reference[count - allowed])

    def tensors(self) -> dict[str, Tensor]:
        """The tensors by the names they are stored under."""
        halves = {"fitted": self.fitted, "held_out": self.held_out}
        tables = {f"{half}/{k}": v for half, t in halves.items() for k, v in t.columns().items()}
        return {"mean": self.mean, "covariance": self.covariance, **tables}

    def check_levels(self, num_levels: int) -> None:
        """Raise `ConfigError` unless this is of a model of that many levels."""
        if self.num_levels != num_levels:
            raise ConfigError(
                f"{STATISTICS} is of a model of {self.num_levels} levels, this one has {num_levels}"
            )

    def check_weights(self, model: CDRLModel) -> None:
        """Raise `ConfigError` unless this belongs to the model's weights.

        A calibration lists the digests of the weights it was measured with and of their roundings to
        float16 and bfloat16, so each stored variant is recognised. Any others are other weights.
        """
        found = weights_digest(model)
        if found not in self.weights:
            raise ConfigError(
                "the reference statistics are of other weights: expected the sha256 digest "
                f"{self.weights[0]:.12}… or that of a rounding to fewer bits, found {found:.12}…"
            )

    def to_bytes(self) -> bytes:
        """The content of ``statistics.safetensors``."""
        metadata = {
            "version": VERSION,
            "data": self.data,
            "count": str(self.count),
            "seed": str(self.seed),
            "weights": " ".join(self.weights),
        }
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
    """Raise `InputError` for a share of false alarms that ``held_out`` images are too few for."""
    smallest = 1 / (held_out + 1)
    if not smallest <= fpr < 1:
        raise InputError(
            f"the share of false alarms must be at least {smallest:.2g} (1 / (images + 1)) and "
            f"less than 1, got {fpr:g}; calibrate with more images for a smaller one"
        )


def fewest_images(num_levels: int) -> int:
    """The smallest N of a calibration: each half has twice as many images as features."""
    return 12 * num_levels


@default_switches()
def measure(
    model: CDRLModel,
    images: Tensor,
    *,
    data: str,
    seed: int,
    batch_size: int = 64,
    after_batch: Callable[[int], object] = lambda count: None,
) -> ReferenceStatistics:
    """Compute the features of in-distribution images, shuffled and split into halves.

    Args:
        model: its networks and schedule.
        images: (N, C, H, W) of its shape, uint8 or floats in [0, 1].
        data: the name of their set.
        seed: the seed of the halves and of the noise.
        batch_size: images at once.
        after_batch: called with the number of images of each batch.

    Raises:
        InputError: images that are too few, or too much alike.
        ConfigError: an origin that cannot be recorded, see `check_origin`.
        NumericalError: features that are not finite.
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
    )


def random_order(count: int, seed: int) -> Tensor:
    """0 … count - 1, shuffled; the same for the same seed."""
    return torch.randperm(count, generator=torch.Generator("cpu").manual_seed(seed), device="cpu")


def check_origin(data: str, count: int, seed: int) -> None:
    """Raise `ConfigError` for a name, a number of images or a seed that cannot be recorded."""
    if not 1 <= len(data) <= MAX_DATA or not data.isprintable():
        raise ConfigError(
            f"expected a printable name of the data of at most {MAX_DATA} characters, got {data!a:.60}"
        )
    if not 2 <= count <= MAX_COUNT:
        raise ConfigError(f"expected 2 to {MAX_COUNT:,} images, got {count}")
    if not 0 <= seed < 2**32:
        raise ConfigError(f"expected a seed in 0 … 2**32 - 1, got {seed}")


def read_statistics(folder: Path, num_levels: int) -> ReferenceStatistics | None:
    """The statistics in a model's folder; None if it has none.

    Args:
        folder: the model's.
        num_levels: T of the model.

    Raises:
        CheckpointError: a file that is damaged, foreign or of another version, or a link that leads out
            of the folder.
        ConfigError: values that cannot be right.
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
        )
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}; {MEND}") from None
