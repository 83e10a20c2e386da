"""What in-distribution images score, to read a score by: ``statistics.safetensors``.

Half of the images (A) gives the Gaussian of the features, the other half (B) the distribution of every
score, so that the scores of B are those of images the fit has not seen, like those to be read by them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from safetensors.torch import save as to_safetensors
from torch import Tensor

from cdrl_infer.errors import CheckpointError, ConfigError, InputError, NumericalError, listing
from cdrl_infer.scoring.features import NoisedImages, ScoredModel, draw_noise
from cdrl_infer.scoring.scores import SCORES, Gaussian
from cdrl_infer.untrusted import StoredTensors

STATISTICS = "statistics.safetensors"
VERSION = "2"  # of the file; goes up with every score that is new or computed in another way
MAX_COUNT, MAX_DATA = 2**21, 200  # of images, and of the characters of their set's name
PREFIX = "scores/"
MEND = "delete the file and calibrate the model again"
PLAIN = {"black": 0.0, "grey": 0.5, "white": 1.0}  # images of one brightness, for any model
# What a probe may have moved by, see `check_weights`. Measured on the bundled models: 0.3 for weights
# rounded to bfloat16, 0.07 for TF32, 2.5 after 30 training steps; at 1, p-values have moved by some
# 0.03 in the mean. docs/scoring.md has the table.
MAX_MOVED = 1.0


@dataclass(frozen=True, eq=False)
class ReferenceStatistics:
    """What in-distribution images have, and what they score.

    Args:
        mean: (3T,) float64, of E_t, log D_t and log I_t on half A; see `NoisedImages.all`.
        covariance: (3T, 3T) float64, likewise.
        scores: of half B, sorted, (M,) float64 for each name in `SCORES`, at its default level.
        seed: of the noise.
        data: the name of the images' set.
        count: N, of both halves together.
        probe: (3, 3T) float64, the features of plain images by the weights that all of this is of; see
            `probe`.

    Raises:
        ConfigError: shapes or types that do not fit, values that are not finite or not sorted, a
            covariance that is none.
    """

    mean: Tensor
    covariance: Tensor
    scores: dict[str, Tensor]
    seed: int
    data: str
    count: int
    probe: Tensor

    def __post_init__(self) -> None:
        features, held_out = self.num_levels * 3, self.count // 2
        if set(self.scores) != set(SCORES):
            raise ConfigError(
                f"expected the scores {listing(SCORES)}, got {listing(sorted(self.scores))!s:.200}"
            )
        check_origin(self.data, self.count, self.seed)
        shapes = {
            "mean": (features,),
            "covariance": (features, features),
            "probe": (len(PLAIN), features),
        }
        for name, tensor in self.tensors().items():
            shape = shapes.get(name, (held_out,))
            if tuple(tensor.shape) != shape or tensor.dtype != torch.float64:
                raise ConfigError(
                    f"expected {name} of shape {shape} in torch.float64, got {tuple(tensor.shape)} "
                    f"in {tensor.dtype}"
                )
            if not bool(tensor.isfinite().all()):
                raise ConfigError(f"{name} holds NaN or infinity, expected finite values")
        if not torch.equal(self.covariance, self.covariance.T):
            raise ConfigError("the covariance is not symmetric")
        for name, values in self.scores.items():
            if bool((values.diff() < 0).any()):
                raise ConfigError(f"{PREFIX}{name} is not sorted")
        try:
            _ = self.fit
        except InputError as error:
            raise ConfigError(str(error)) from None

    @property
    def num_levels(self) -> int:
        """T."""
        return max(1, self.mean.numel() // 3)

    @cached_property
    def fit(self) -> Gaussian:
        """The Gaussian of the features."""
        return Gaussian(self.mean, self.covariance)

    def p_values(self, score: str, values: Tensor) -> Tensor:
        """The share of in-distribution images that score higher: ``(1 + #{B >= s}) / (M + 1)``.

        For an image that is in distribution it is any of ``1/(M + 1) … 1`` with the same chance: a
        conformal p-value (Bates et al. 2023, "Testing for outliers with conformal p-values").

        Args:
            score: a name in `SCORES`, at its default level.
            values: (N,) scores.

        Returns:
            (N,) float64.
        """
        reference = self.scores[score]
        lower = torch.searchsorted(reference, values.double().contiguous())  # #{B < s}
        return self._share(len(reference) - lower)

    def threshold(self, score: str, fpr: float) -> float:
        """The score above which p-values are at most ``fpr``, the share of false alarms.

        Args:
            score: as for `p_values`.
            fpr: in (0, 1).

        Raises:
            InputError: a share that is not in (0, 1), or less than so few images can tell.
        """
        reference = self.scores[score]
        check_share(fpr, len(reference))
        allowed = int((self._share(torch.arange(len(reference))) <= fpr).sum())
        return float(reference[len(reference) - allowed])

    def _share(self, higher: Tensor) -> Tensor:
        return (1 + higher).double() / (len(next(iter(self.scores.values()))) + 1)

    def tensors(self) -> dict[str, Tensor]:
        """As they are stored, by name."""
        scores = {PREFIX + name: values for name, values in self.scores.items()}
        return {"mean": self.mean, "covariance": self.covariance, "probe": self.probe, **scores}

    def check_levels(self, num_levels: int) -> None:
        """Raise `ConfigError` unless they are of a model of that many levels."""
        if self.num_levels != num_levels:
            raise ConfigError(
                f"{STATISTICS} is of a model of {self.num_levels} levels, this one has {num_levels}"
            )

    def check_weights(self, model: ScoredModel) -> None:
        """Raise `ConfigError` unless they are of these weights, as far as plain images tell.

        What is compared is how far the features of a plain image have moved, as a Mahalanobis distance:
        no feature can have moved by more of its standard deviations, and no score that is a distance by
        more than that (the triangle inequality).

        Args:
            model: a `cdrl_infer.storage.folder.CDRLModel`.

        Raises:
            NumericalError: features that are not finite.
        """
        moved = self.fit.distance(self.mean + probe(model, self.seed) - self.probe)
        k = int(moved.argmax())
        if moved[k] > MAX_MOVED:
            raise ConfigError(
                f"the reference statistics are of other weights: expected features of a plain "
                f"{list(PLAIN)[k]} image within {MAX_MOVED:g} standard deviations of those at the "
                f"calibration, found them {float(moved[k]):.3g} away"
            )

    def to_bytes(self) -> bytes:
        """The content of ``statistics.safetensors``."""
        metadata = {
            "version": VERSION,
            "data": self.data,
            "count": str(self.count),
            "seed": str(self.seed),
        }
        tensors = {name: tensor.contiguous() for name, tensor in self.tensors().items()}
        return to_safetensors(tensors, metadata=metadata)


def check_share(fpr: float, held_out: int) -> None:
    """InputError for a share of false alarms that so many images of half B cannot tell."""
    smallest = 1 / (held_out + 1)
    if not smallest <= fpr < 1:
        raise InputError(
            f"the share of false alarms must be at least {smallest:.2g} (1 / (images + 1)) and "
            f"less than 1, got {fpr:g}; calibrate with more images for a smaller one"
        )


def fewest_images(num_levels: int) -> int:
    """N that statistics need: in each half twice as many as there are features."""
    return 12 * num_levels


def probe(model: ScoredModel, seed: int) -> Tensor:
    """Features of a black, a grey and a white image, (3, 3T): what weights are known by.

    Args:
        model: a `cdrl_infer.storage.folder.CDRLModel`.
        seed: of the noise.

    Raises:
        NumericalError: features that are not finite.
    """
    shape = model.image.shape
    images = torch.stack([torch.full(shape, value) for value in PLAIN.values()])
    features = NoisedImages.of(model, images, draw_noise(model.schedule, shape, seed)).all
    if not bool(features.isfinite().all()):
        raise NumericalError("features of plain images are not finite; check the model")
    return features


def measure(
    model: ScoredModel,
    images: Tensor,
    *,
    data: str,
    seed: int,
    batch_size: int = 64,
    after_batch: Callable[[int], object] = lambda count: None,
) -> ReferenceStatistics:
    """Fit the features of one half of the images, chosen at random, and score the other.

    Args:
        model: a `cdrl_infer.storage.folder.CDRLModel`.
        images: (N, C, H, W) of its shape, uint8 or floats in [0, 1].
        data: what to call them.
        seed: of the halves and of the noise.
        batch_size: images at once.
        after_batch: called with the number of images of each batch.

    Raises:
        InputError: too few images, or such as are too much alike.
        ConfigError: an origin that cannot be recorded, see `check_origin`.
        NumericalError: features that are not finite.
    """
    fewest = fewest_images(model.schedule.num_levels)
    if len(images) < fewest:
        raise InputError(f"calibrating needs at least {fewest} images, got {len(images)}")
    check_origin(data, len(images), seed)
    known_by = probe(model, seed)
    order = random_order(len(images), seed)
    noise = draw_noise(model.schedule, images.shape[1:], seed)
    held_out = len(images) // 2

    def noised(indices: Tensor) -> Iterator[NoisedImages]:
        for first in range(0, len(indices), batch_size):
            part = images[indices[first : first + batch_size]]
            unit = part.float() / 255 if part.dtype == torch.uint8 else part
            yield NoisedImages.of(model, unit, noise)
            after_batch(len(part))

    features = torch.cat([batch.all for batch in noised(order[held_out:])])
    if not bool(features.isfinite().all()):
        raise NumericalError("features of the images are not finite; check the model")
    covariance = features.T.cov()
    covariance = (covariance + covariance.T) / 2  # torch's is symmetric but for rounding
    fit = Gaussian(features.mean(0), covariance)
    scores: dict[str, list[Tensor]] = {name: [] for name in SCORES}
    for batch in noised(order[:held_out]):
        for name, score in SCORES.items():
            scores[name].append(score(batch, fit=fit))
    return ReferenceStatistics(
        mean=fit.mean,
        covariance=fit.covariance,
        scores={name: torch.cat(parts).sort().values for name, parts in scores.items()},
        seed=seed,
        data=data,
        count=len(images),
        probe=known_by,
    )


def random_order(count: int, seed: int) -> Tensor:
    """0 … count - 1, shuffled; the same for the same seed."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))


def check_origin(data: str, count: int, seed: int) -> None:
    """Raise `ConfigError` unless statistics can be of this: see `ReferenceStatistics`."""
    if not 1 <= len(data) <= MAX_DATA or not data.isprintable():
        raise ConfigError(
            f"expected a printable name of the data of at most {MAX_DATA} characters, got {data!a:.60}"
        )
    if not 2 <= count <= MAX_COUNT:
        raise ConfigError(f"expected 2 to {MAX_COUNT:,} images, got {count}")
    if not 0 <= seed < 2**32:
        raise ConfigError(f"expected a seed in 0 … 2**32 - 1, got {seed}")


def read_statistics(folder: Path, num_levels: int) -> ReferenceStatistics | None:
    """Those of a model's folder, None if it has none.

    Args:
        folder: of the model.
        num_levels: T of the model.

    Raises:
        CheckpointError: a file that is damaged, foreign or of another version, or leads out of the
            folder.
        ConfigError: values that cannot be.
    """
    path = folder / STATISTICS
    if not path.is_file():
        return None
    with StoredTensors(folder, STATISTICS, "reference statistics") as stored:
        found = stored.metadata()
        version = found.get("version", "none")
        if version != VERSION:
            raise CheckpointError(
                f"{path}: expected statistics of version {VERSION}, found {version!a:.20}; {MEND}"
            )
        numbers = {}
        for name in ("count", "seed"):
            text = found.get(name, "")
            if not re.fullmatch(r"[0-9]{1,10}", text):
                raise CheckpointError(
                    f"{path}: expected an integer {name}, found {text!a:.20}; {MEND}"
                )
            numbers[name] = int(text)
        features, held_out = 3 * num_levels, numbers["count"] // 2
        shapes: dict[str, tuple[int, ...]] = {
            "mean": (features,),
            "covariance": (features, features),
            "probe": (len(PLAIN), features),
            **{PREFIX + name: (held_out,) for name in SCORES},
        }
        tensors = {n: t.clone() for n, t in stored.read(shapes, ["F64"], MEND).items()}
    try:
        return ReferenceStatistics(
            mean=tensors["mean"],
            covariance=tensors["covariance"],
            probe=tensors["probe"],
            scores={name: tensors[PREFIX + name] for name in SCORES},
            data=found.get("data", ""),
            **numbers,
        )
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}; {MEND}") from None
