"""How well scores tell images of the data from others, beside baselines computed in the same run.

``python benchmarks/ood.py --data fashion_mnist.npz``; see benchmarks/README.md.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from classifier import Recipe, SmallCNN, load_or_train
from numpy.typing import NDArray
from ood_autoencoder import (
    AutoencoderRecipe,
    Trained,
    count_values,
    load_or_train_autoencoder,
    weights_digest,
)
from ood_baselines import (
    EXPLAINED,
    PYTORCH_OOD,
    RIDGE,
    ClassifierOutputs,
    Detector,
    PixelGaussian,
    classifier_detectors,
    pytorch_ood_detectors,
)
from ood_report import (
    WANTED_ON,
    aims,
    details_table,
    measure,
    metric_table,
    overview_table,
    row_as_json,
    summary_table,
)
from ood_sets import Bytes, generator, make_sets, pasted, read_sets
from options import DATA, MODEL, draws, writes
from quality import Extracts, Features, check_same_shape, model_digest
from report import check_target, table, write_json
from torch import Tensor

from cdrl_infer.cli import command
from cdrl_infer.errors import InputError
from cdrl_infer.files import replaced_file
from cdrl_infer.pipeline import CDRLPipeline
from cdrl_infer.scoring import SCORES
from cdrl_infer.scoring.features import FeatureTable, NoisedImages, draw_noise
from cdrl_infer.scoring.reference import (
    STATISTICS,
    VERSION,
    ReferenceStatistics,
    read_statistics,
)
from cdrl_infer.storage.folder import find_model
from cdrl_infer.version import __version__
from cdrl_train.calibrate import calibrate, choose
from cdrl_train.data.image_set import ImageSet
from cdrl_train.data.sources import data_name, load_images
from cdrl_train.evaluation.ood_metrics import (
    CONVENTION,
    METRICS,
    Floats,
    Interval,
    interval,
    pixel_auroc,
    resamplings,
    sklearn_metrics,
)

DEFAULT = "combined"
SIZE = "compressed size"
ALARM = 0.05  # the p-value below which the calibration check calls an image anomalous
HEAT, ERROR = "heat map", "autoencoder's error map"


@dataclass(frozen=True)
class ModelScores:
    """Images -> every score of the model, and the compressed size; each image is measured once."""

    pipe: CDRLPipeline
    statistics: ReferenceStatistics
    digest: str  # of model and statistics
    batch_size: int

    names = (*SCORES, SIZE)

    def __call__(self, images: Bytes) -> Floats:
        """(N, C, H, W) -> (N, one for each of ``names``)."""
        model, fit = self.pipe.model, self.statistics.fit
        noise = draw_noise(model.schedule, model.image.shape, self.statistics.seed)
        rows = []
        for part in torch.from_numpy(images).split(self.batch_size):
            features = FeatureTable.of(NoisedImages.of(model, part / 255, noise))
            columns = [score(features, fit=fit) for score in SCORES.values()]
            rows.append(torch.stack([*columns, features.compressed_size], dim=1))
        return torch.cat(rows).numpy()


@dataclass(frozen=True)
class HeatMaps:
    """Images -> the model's heat maps."""

    pipe: CDRLPipeline
    digest: str  # of model and seed
    seed: int
    batch_size: int

    def __call__(self, images: Bytes) -> NDArray[np.float32]:
        """(N, C, H, W) -> (N, H, W)."""
        output = self.pipe.score(
            torch.from_numpy(images),
            "energy",
            seed=self.seed,
            return_map=True,
            batch_size=self.batch_size,
            progress=False,
        )
        return torch.as_tensor(output.maps).numpy()


def false_alarms(scores: Floats, statistics: ReferenceStatistics) -> dict[str, tuple[float, float]]:
    """The share of images of the data, scored (N, …) by `ModelScores`, whose p-value is below `ALARM`,
    and its standard error: of N images and of those that the p-values were made of.
    """
    found = {}
    for k, name in enumerate(SCORES):
        p = statistics.p_values(name, torch.from_numpy(scores[:, k].copy()))
        sizes = 1 / len(scores) + 1 / len(statistics.held_out)
        found[name] = (float((p < ALARM).double().mean()), (ALARM * (1 - ALARM) * sizes) ** 0.5)
    return found


def training_minutes(training: dict[str, Any]) -> float | None:
    """How long a model says that it was trained; None where it does not."""
    hours = training.get("hours")
    return 60 * hours if isinstance(hours, (int, float)) and hours > 0 else None


def autoencoder_label(trained: Trained, values: int, model: float | None) -> str:
    """What was compared, in time and size; loud where the time is not the model's."""
    minutes = trained.seconds / 60
    own = "not in its config" if model is None else f"{model:.1f} minutes by its config"
    equal = model is not None and abs(minutes - model) <= 0.02 * model
    return (
        f"Autoencoder: {count_values(trained.network):,} values (the model: {values:,}), trained "
        f"{minutes:.1f} minutes (the model: {own}){'' if equal else ', NOT AN EQUAL TIME'}; "
        f"{trained.images:,} images seen, float32, {trained.threads} threads"
    )


@click.command("ood.py", cls=command.OneLineErrors, context_settings={"show_default": True})
@MODEL
@DATA
@click.option(
    "--outside",
    "sources",
    metavar="NAME=DATA",
    multiple=True,
    help="Another set, as mnist=mnist.npz; its test images, of the model's size. Repeatable.",
)
@click.option("--n", "count", type=click.IntRange(20), default=2000, help="Images of each set.")
@click.option(
    "--seed",
    type=click.IntRange(0, 2**32 - 1),
    default=0,
    help="Of the sets made and of the scores' noise.",
)
@click.option("--bootstrap", type=click.IntRange(20), default=1000, help="Resamplings.")
@click.option(
    "--reference-images",
    type=click.IntRange(2),
    help="Training images that the scores are fitted to. [5000, or all if fewer]",
)
@click.option(
    "--autoencoder-minutes",
    type=click.FloatRange(0, min_open=True),
    help="How long to train it. [as long as the model, by its config]",
)
@click.option("--map-images", type=click.IntRange(2), default=500, help="Of the patched ones.")
@draws("Scores, autoencoder, classifier; an interrupted run goes on from there.")
@writes("ood.json")
@click.option(
    "--markdown",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("ood.md"),
    help="What is printed, and all metrics with intervals.",
)
def main(out: Path, markdown: Path, **options: Any) -> None:
    """AUROC, AUPR and FPR95 of every score and of baselines, on many kinds of odd images."""
    check_target("--out", out)
    check_target("--markdown", markdown)
    text, more, results = evaluate(**options)
    click.echo(text)
    write_json(out, results)
    with replaced_file(markdown) as temporary:
        temporary.write_text(f"{text}\n\n{more}\n", encoding="utf-8")


def evaluate(
    model: str | None,
    data: str,
    sources: Sequence[str],
    count: int,
    seed: int,
    bootstrap: int,
    reference_images: int | None,
    autoencoder_minutes: float | None,
    map_images: int,
    batch_size: int,
    device: str,
    cache: Path,
    recipe: Recipe = Recipe(),  # noqa: B008 - a frozen dataclass
) -> tuple[str, str, dict[str, Any]]:
    """What the command prints, what it writes beside that, and the JSON."""
    sklearn_metrics()  # missing, it would be missed after hours
    folder = find_model(model)
    pipe = CDRLPipeline.from_pretrained(folder).to(device)
    own_minutes = training_minutes(pipe.model.training)
    minutes = autoencoder_minutes or own_minutes
    if minutes is None:
        raise InputError(
            "--autoencoder-minutes is needed: the model's config does not tell its training time"
        )
    train, test = load_images(data, "train"), load_images(data, "test")
    check_same_shape(pipe, test)
    if 2 * count > len(test):
        raise InputError(
            f"--n must be at most {len(test) // 2}, half of the test images (others are made of the "
            f"second half), got {count}"
        )
    inside, base = test.images[:count].numpy(), test.images[count : 2 * count].numpy()
    sets = read_sets(sources, pipe.model.image.shape, count, seed) + make_sets(base, seed)
    usual = choose(train.images, reference_images, seed)
    cache.mkdir(parents=True, exist_ok=True)

    digest = model_digest(folder)
    statistics = reference_statistics(pipe, usual, data_name(data), seed, batch_size, cache, digest)
    reference = statistics_digest(statistics)
    scores = ModelScores(pipe, statistics, f"{digest}-{reference}", batch_size)
    values = count_values(pipe.model.ebm, pipe.model.initializer)
    plan = AutoencoderRecipe(values, 60 * minutes)
    trained = load_or_train_autoencoder(cache, train, plan, progress=True)
    judge = None
    if train.labels is not None:
        judge = load_or_train(cache, train, test, recipe, progress=True)
    gaussian = PixelGaussian.fit(train.images)
    for name, images in (("test images", inside), *((s.name, s.images) for s in sets)):
        Features(scores, cache, progress=True)(images, name)
    detectors = [
        *model_detectors(from_cache(scores, cache)),
        Detector("pixel Gaussian", "unsupervised", gaussian.distance),
        Detector("PCA residual", "unsupervised", gaussian.residual),
        Detector("autoencoder", "unsupervised", from_cache(trained, cache)),
        *(judge_detectors(judge[0], train, cache) if judge else []),
    ]
    rows = list(measure(detectors, inside, sets, bootstrap, seed))
    default = next(row for row in rows if row.detector.name == DEFAULT)
    best = max(
        (row for row in rows if row.detector.kind == "unsupervised"),
        key=lambda row: row.mean(sets).value,
    )
    reached = aims(default, best, sets)
    alarms = false_alarms(from_cache(scores, cache)(inside), statistics)

    patched, masks = (each[:map_images] for each in pasted(base, generator(seed, "patched")))
    heat = HeatMaps(pipe, f"maps-{digest}-{seed}", seed, batch_size)
    maps = {
        HEAT: Features(heat, cache, progress=True)(patched, "heat maps"),
        ERROR: trained.error_maps(torch.from_numpy(patched)).numpy(),
    }
    pixels = map_figures(maps, masks, bootstrap, seed)

    knows = ""
    if judge:
        knows = (
            f" Classifier: trained on the labels too, knows {100 * judge[1]:.1f} % of test images."
        )
        if not any(row.detector.name.startswith(PYTORCH_OOD) for row in rows):
            knows += " pytorch-ood's detectors are left out: it is not installed or does not work."
    missing = [name for name in WANTED_ON if name not in (s.name for s in sets)]
    text = "\n".join(
        [
            f"Model {pipe.name} ({digest}); reference statistics {reference} of {statistics.count} "
            f"training images, seed {seed} ({stored_ones(pipe.model.statistics, statistics)}); cdrl "
            f"{__version__}, torch {torch.__version__}.",
            "",
            f"n = {count}: the first test images against as many others, made (seed {seed}) of the test "
            "images after them or drawn from other sets; + marks additional sets. Brackets: 95 % of "
            f"{bootstrap} bootstrap resamplings of the images, the same for all detectors; nothing is "
            "trained or fitted anew.",
            *(["", f"Not given: {', '.join(missing)} (--outside)."] if missing else []),
            "",
            f"{CONVENTION}. Higher = more anomalous throughout.",
            "",
            f"Baselines are fitted to the {len(train)} training images. Compressed size: of the PNG. "
            f"Pixel Gaussian: full covariance, ridge {RIDGE:g} of the mean variance. PCA residual: "
            f"without {gaussian.components} components, {100 * EXPLAINED:.0f} % of the variance. "
            f"{autoencoder_label(trained, values, own_minutes)}.{knows}",
            "",
            overview_table(rows, sets),
            "",
            summary_table(rows, sets, default),
            "",
            details_table(default, best, sets, count),
            "",
            f"Aims of the score {DEFAULT}:",
            "",
            *(f"* {'reached' if yes else 'NOT REACHED'}: {aim}" for aim, yes in reached),
            "",
            f"Test images with p < {ALARM:g} (expected: {100 * ALARM:g} %); ± standard error, of that "
            "many images and reference scores:",
            "",
            table(
                ["score", "false alarms, %"],
                [[k, f"{100 * v:.1f} ± {100 * error:.1f}"] for k, (v, error) in alarms.items()],
            ),
            "",
            f"Pixels of a pasted patch against the image's others, mean over {len(masks)} images:",
            "",
            table(["map", "pixel AUROC"], list(pixels.items())),
        ]
    )
    more = "\n\n".join(metric_table(k, rows, sets) for k in range(len(METRICS)))
    results = {
        "model": {"name": pipe.name, "digest": digest, "values": values},
        "statistics": {
            "digest": reference,
            "images": statistics.count,
            "stored": stored_ones(pipe.model.statistics, statistics),
        },
        "versions": {"cdrl": __version__, "torch": torch.__version__},
        "data": {"train": train.fingerprint(), "test": test.fingerprint()},
        "n": count,
        "seed": seed,
        "bootstrap": bootstrap,
        "sets": [
            {
                "name": s.name,
                "additional": not s.named,
                "n": len(s.images),
                "sha256": hashlib.sha256(s.images.tobytes()).hexdigest()[:16],
            }
            for s in sets
        ],
        "autoencoder": {
            "values": count_values(trained.network),
            "minutes": trained.seconds / 60,
            "model_minutes": own_minutes,
            "images": trained.images,
            "threads": trained.threads,
        },
        "classifier": judge[1] if judge else None,
        "detectors": [row_as_json(row, sets) for row in rows],
        "best_unsupervised": best.detector.name,
        "aims": [{"aim": aim, "reached": yes} for aim, yes in reached],
        "false_alarms": {k: {"share": v, "error": error} for k, (v, error) in alarms.items()},
        "pixel_auroc": {name: found._asdict() for name, found in pixels.items()},
    }
    return text, more, results


def reference_statistics(
    pipe: CDRLPipeline,
    images: Tensor,
    data: str,
    seed: int,
    batch_size: int,
    cache: Path,
    digest: str,
) -> ReferenceStatistics:
    """Those of images (N, C, H, W), whatever the model has stored; kept in the cache.

    A model's own may be of test images, which would then judge themselves.
    """
    sha = hashlib.sha256(images.numpy().tobytes()).hexdigest()[:12]
    folder = cache / f"statistics-{VERSION}-{digest}-{sha}-seed{seed}"
    found = read_statistics(folder, pipe.model.schedule.num_levels)
    if found is None:
        found = calibrate(pipe, images, data=data, seed=seed, batch_size=batch_size, progress=True)
        folder.mkdir(exist_ok=True)
        with replaced_file(folder / STATISTICS) as temporary:
            temporary.write_bytes(found.to_bytes())
    return found


def stored_ones(stored: ReferenceStatistics | None, used: ReferenceStatistics) -> str:
    """How those stored with the model compare; rounding does not count."""
    if stored is None:
        return "none are stored with the model"
    same = (stored.seed, stored.count) == (used.seed, used.count) and all(
        torch.allclose(stored.tensors()[name], values, rtol=1e-3, atol=1e-3)
        for name, values in used.tensors().items()
    )
    return f"those stored with the model are {'the same' if same else 'others'}"


def statistics_digest(statistics: ReferenceStatistics) -> str:
    """Of what they hold; the bytes of their file can differ for the same."""
    sha = hashlib.sha256(f"{VERSION} {statistics.count} {statistics.seed}".encode())
    for name, tensor in sorted(statistics.tensors().items()):
        sha.update(name.encode() + tensor.numpy().tobytes())
    return sha.hexdigest()[:12]


def from_cache(extractor: Extracts, cache: Path) -> Callable[[Bytes], NDArray[Any]]:
    """The same numbers, from the disk where they are there: under the digests of what computes them
    and of the images.
    """
    features = Features(extractor, cache)
    return lambda images: features(images, "")


def model_detectors(scores: Callable[[Bytes], Floats]) -> list[Detector]:
    """Each score of the model, and the compressed size."""
    return [
        Detector(name, "unsupervised" if name == SIZE else "score", lambda x, k=k: scores(x)[:, k])
        for k, name in enumerate(ModelScores.names)
    ]


def judge_detectors(network: SmallCNN, train: ImageSet, cache: Path) -> list[Detector]:
    """The classifier's, and pytorch-ood's where they are installed and there is one attribute."""
    outputs = ClassifierOutputs(network, weights_digest(network))
    kept = from_cache(outputs, cache)
    found = classifier_detectors(outputs, kept)
    if train.labels is None or train.labels.shape[1] != 1:
        return found
    return found + pytorch_ood_detectors(outputs, kept, train.images, train.labels[:, 0])


def map_figures(
    maps: dict[str, NDArray[Any]], masks: NDArray[np.bool_], bootstrap: int, seed: int
) -> dict[str, Interval]:
    """Mean pixel AUROC of each map, and of the first less the second, over the same resamplings."""
    values = {name: pixel_auroc(each, masks) for name, each in maps.items()}
    values[f"{HEAT} less {ERROR}"] = values[HEAT] - values[ERROR]
    draws = resamplings(len(masks), bootstrap, generator(seed, "maps")) / len(masks)
    return {name: interval(float(v.mean()), draws @ v) for name, v in values.items()}


if __name__ == "__main__":
    main()
