"""One class is left out of training and is the anomaly: how well does each method find it?

The images of the data are the test images of the other classes, all of them; the anomalies are all test
images of the class that was left out. AUPR is average precision with anomalies as positives, as in Yoon
et al. 2023 (MPDR). No method sees the class that is left out, nor any test image, before the evaluation:
numbers of steps are fixed before training, and the averaged weights at the end are the model.
``--validate`` is for choosing options: it trains on the first five sixths of the training images and
evaluates on the last sixth, so that the test images stay unseen. Choose with other classes than you
report.

A run that is in the results file is not repeated, and a model that was trained is not trained again.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from numpy.typing import NDArray
from ood_beside import in_batches
from report import table
from torch import Tensor, nn

from cdrl_infer.cli.command import OneLineErrors
from cdrl_infer.device import usual_device
from cdrl_infer.errors import InputError, listing
from cdrl_infer.model import ImageShape
from cdrl_infer.networks.autoencoder import Decoder, Encoder, SphereNetwork
from cdrl_infer.pipeline import CDRLPipeline
from cdrl_infer.storage.folder import load_model
from cdrl_train.config import DataConfig, TrainConfig
from cdrl_train.data.sources import load_for, load_images
from cdrl_train.data.stream import BatchStream
from cdrl_train.dry_run import time_phase
from cdrl_train.evaluation.ood_metrics import separation
from cdrl_train.presets import preset
from cdrl_train.run import train

VAE_STEPS, VAE_BATCH, VAE_RATE = 6000, 128, 1e-3
FITTED = 2_000  # training images that a calibration uses
TRAININGS = {
    "mpdr-s": "mpdr-mnist",
    "mpdr-r": "mpdr-r-mnist",
    "cdrl": "mnist",
    "drl": "mnist+drl",
    "vae": "",
}
METHODS = {  # what is trained, and what is its score
    "mpdr-s": ("mpdr-s", "energy"),
    "mpdr-r": ("mpdr-r", "energy"),
    "autoencoder": ("mpdr-s", "reconstruction"),
    "vae": ("vae", "bound"),
    "cdrl-combined": ("cdrl", "combined"),
    "cdrl-energy": ("cdrl", "energy"),
    "drl": ("drl", "energy"),
}
PUBLISHED = {  # AUPR for the digits 1, 4, 5, 7, 9; see docs/mpdr.md for the sources
    "VAE, published": (0.063, 0.337, 0.325, 0.148, 0.104),
    "latent EBM, published": (0.336, 0.630, 0.619, 0.463, 0.413),
    "hierarchical VAE + joint latent EBM, published": (0.722, 0.949, 0.980, 0.941, 0.935),
    "MPDR-S, published (unverified)": (0.764, 0.823, 0.741, 0.857, 0.478),
    "MPDR-R, published (unverified)": (0.844, 0.711, 0.757, 0.850, 0.569),
}
DIGITS = ("1", "4", "5", "7", "9")
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Setting:
    """What all runs share.

    Args:
        source: the data.
        out: folder for runs and results.
        minutes: training time of a run; None: the steps of its preset.
        validate: whether ``source`` is the validation data.
        images: the largest number of kept test images to score, and the same share of the others.
        changes: assignments for all runs with a preset, as in ``--set``.
    """

    source: str
    out: Path
    minutes: float | None
    validate: bool
    images: int | None
    changes: tuple[str, ...]

    def key(self, method: str, digit: str, seed: int) -> dict[str, Any]:
        """What identifies a run in the results file."""
        return {
            "method": method,
            "digit": digit,
            "seed": seed,
            "minutes": self.minutes,
            "validate": self.validate,
            "images": self.images,
            "changes": list(self.changes),
        }

    def folder(self, training: str, digit: str, seed: int) -> Path:
        """Where a run is kept."""
        time_ = "" if self.minutes is None else f"-{self.minutes:g}min"
        words = [training, f"without-{digit}", f"seed{seed}", *self.changes]
        name = "-".join(words).replace("/", "_") + time_ + ("-validation" if self.validate else "")
        return self.out / "runs" / name


def validation_data(source: str, out: Path) -> Path:
    """An .npz whose test split is the last sixth of a source's training images, and train the others."""
    name = Path(source).stem.replace(":", "-")  # it tells the names of the classes
    file = out / f"validation-{name}.npz"
    if not file.is_file():
        data = load_images(source, "train")
        if data.labels is None:
            raise InputError(f"{source}: expected images with labels, to leave a class out")
        cut, pixels, labels = len(data) * 5 // 6, data.images.numpy(), data.labels[:, 0].numpy()
        out.mkdir(parents=True, exist_ok=True)
        np.savez(
            file,
            train_images=pixels[:cut].transpose(0, 2, 3, 1),
            train_labels=labels[:cut],
            test_images=pixels[cut:].transpose(0, 2, 3, 1),
            test_labels=labels[cut:],
        )
    return file


def options(setting: Setting, training: str, digit: str, seed: int) -> TrainConfig:
    """The options of a run with a preset, without labels, and with steps for the time it may take."""
    own = [f"data.hold_out={digit}", "data.attributes=[]", f"seed={seed}", *setting.changes]
    config = preset(TRAININGS[training]).override(own)
    if setting.minutes is None:
        return config
    device = torch.device(usual_device())
    shape = ImageShape(*load_for(setting.source, config.data).images.shape[1:])
    seconds = sum(
        time_phase(config, k, shape, (), device, 5.0).seconds * phase.steps
        for k, phase in enumerate(config.phases)
    )
    factor = 60 * setting.minutes / seconds
    phases = [replace(p, steps=max(1, round(p.steps * factor))) for p in config.phases]
    return replace(config, phases=tuple(phases))


def trained(setting: Setting, training: str, digit: str, seed: int) -> CDRLPipeline:
    """The model of a run, trained unless it is there."""
    run = setting.folder(training, digit, seed)
    if not (run / "model").is_dir():
        held = run / "config.json"
        config = (
            TrainConfig.read(held) if held.is_file() else options(setting, training, digit, seed)
        )
        train(
            config,
            setting.source,
            run,
            device=None,
            trackers=[],
            resuming="auto",
            init_from=None,
            repo_id=None,
            private=None,
        )
    return CDRLPipeline(load_model(run / "model"), name=run.name).to(usual_device())


class SmallVAE(nn.Module):
    """A VAE on the networks of the autoencoder; its pixels are Gaussian with one learnt width."""

    def __init__(self, channels: int, size: tuple[int, int], width: int = 32, latent: int = 32):
        super().__init__()
        self.encoder = Encoder(channels, width, 128, size)
        self.leave = nn.Linear(128, 2 * latent)
        self.decoder = Decoder(channels, width, latent, size)
        self.log_width = nn.Parameter(torch.tensor(-1.0))

    def bound(self, u: Tensor, noise: Tensor) -> Tensor:
        """Minus the evidence lower bound (B,) in nats, with the noise (B, D) of the latent."""
        mean, log_std = self.leave(self.encoder(u)).float().chunk(2, 1)
        kl = 0.5 * (mean.square() + (2 * log_std).exp() - 1 - 2 * log_std).sum(1)
        decoded = self.decoder(mean + log_std.exp() * noise).float()
        error = (u - decoded).square().flatten(1).sum(1)
        values = u[0].numel()
        total: Tensor = kl + 0.5 * error * (-2 * self.log_width).exp() + values * self.log_width
        return total


def trained_vae(setting: Setting, digit: str, seed: int) -> SmallVAE:
    """The VAE of a run, trained unless it is there."""
    config = DataConfig(hold_out=digit, attributes=(), dequantise=False)
    file = setting.folder("vae", digit, seed) / "vae.pt"
    data = load_for(setting.source, config)
    torch.manual_seed(seed)
    height, width = data.images.shape[2:]
    device = usual_device()
    model = SmallVAE(data.images.shape[1], (height, width)).to(device)
    if file.is_file():
        model.load_state_dict(torch.load(file, weights_only=True, map_location=device))
        return model
    stream = BatchStream(data, config, seed, device)
    generator = torch.Generator(device).manual_seed(seed)
    optimizer, started = torch.optim.Adam(model.parameters(), VAE_RATE), time.monotonic()
    for step in range(VAE_STEPS):
        spent = (time.monotonic() - started) / 60
        done = step / VAE_STEPS if setting.minutes is None else spent / setting.minutes
        if done >= 1:
            break
        for group in optimizer.param_groups:
            group["lr"] = VAE_RATE * (1 - 0.95 * done)
        x = stream.next(VAE_BATCH, generator).x
        optimizer.zero_grad()
        noise = torch.randn(len(x), 32, generator=generator, device=device)
        with torch.autocast(device, torch.bfloat16):
            loss = model.bound(x, noise).mean()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save(model.state_dict(), file)
    return model


def scores(
    setting: Setting, method: str, digit: str, seed: int, sets: Sequence[Tensor]
) -> list[Any]:
    """The scores of images (N, C, H, W) uint8 by a method, one array for each set."""
    training, score = METHODS[method]
    there = [images.to(usual_device()) for images in sets]
    if training == "vae":
        vae = trained_vae(setting, digit, seed).eval()
        return [
            in_batches(lambda u: vae.bound(u, u.new_zeros(len(u), 32)), images, 250)
            for images in there
        ]
    pipe = trained(setting, training, digit, seed)
    if score == "reconstruction":
        autoencoder = pipe.model.initializer
        assert isinstance(autoencoder, SphereNetwork)
        return [in_batches(autoencoder.errors, images, 250) for images in there]
    if score == "combined":
        known = load_for(setting.source, DataConfig(hold_out=digit, attributes=())).images
        pipe.calibrate(known[:FITTED], data="training images", progress=False)
    return [pipe.score(images, score, batch_size=250).scores.cpu().numpy() for images in sets]


def measured(setting: Setting, method: str, digit: str, seed: int) -> dict[str, Any]:
    """Train if need be, score the test images, and return AUPR and AUROC."""
    kept, gone = load_images(setting.source, "test").split_off([digit])
    share = 1.0 if setting.images is None else min(1.0, setting.images / len(kept))
    sets = [part.images[: max(1, round(share * len(part)))] for part in (kept, gone)]
    inside, outside = scores(setting, method, digit, seed, sets)
    auroc, aupr, _ = separation(inside, outside)
    return {
        "aupr": float(aupr),
        "auroc": float(auroc),
        "inside": len(inside),
        "outside": len(outside),
    }


def rows(
    results: Sequence[dict[str, Any]], digits: Sequence[str], metric: str = "aupr"
) -> list[list[str]]:
    """The table: AUPR (or AUROC) of each method and class, mean and standard deviation over seeds.

    Published figures follow if there are any of these digits.
    """
    found = []
    for method in METHODS:
        mine = [r for r in results if r["method"] == method]
        if mine:
            cells = [_cell([r[metric] for r in mine if r["digit"] == digit]) for digit in digits]
            found.append([method, *cells])
    if metric == "aupr" and not set(digits).isdisjoint(DIGITS):
        for name, values in PUBLISHED.items():
            known = dict(zip(DIGITS, values, strict=True))
            found.append([name, *(f"{known[d]:.3f}" if d in known else "" for d in digits)])
    return found


def _cell(values: Sequence[float]) -> str:
    if len(values) < 2:
        return "".join(f"{value:.3f}" for value in values)
    return f"{statistics.mean(values):.3f} ± {statistics.stdev(values):.3f} ({len(values)})"


@click.command(cls=OneLineErrors)
@click.option("--data", required=True, help="Images with labels: .npz or torchvision:MNIST.")
@click.option(
    "--digits",
    default=",".join(DIGITS),
    show_default=True,
    help="Classes to hold out, such as 9 or Sneaker.",
)
@click.option("--seeds", default="0", show_default=True, help="Seeds of training.")
@click.option("--methods", default=",".join(METHODS), show_default=True, help="What to measure.")
@click.option("--minutes", type=float, help="Training time of a run. [steps of its preset]")
@click.option("--validate", is_flag=True, help="Train and evaluate on training images alone.")
@click.option("--images", type=int, help="At most this many images of the kept classes. [all]")
@click.option("--set", "changes", multiple=True, help="KEY=VALUE for the runs with a preset.")
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("runs/hold-out"),
    show_default=True,
    help="Folder of the runs and of results.jsonl.",
)
def main(
    data: str,
    digits: str,
    seeds: str,
    methods: str,
    minutes: float | None,
    validate: bool,
    images: int | None,
    changes: tuple[str, ...],
    out: Path,
) -> None:
    """Train without one class, and find it."""
    chosen = methods.split(",")
    for method in chosen:
        if method not in METHODS:
            raise InputError(f"--methods must be of {listing(METHODS)}, got {method!r}")
    out.mkdir(parents=True, exist_ok=True)
    source = str(validation_data(data, out)) if validate else data
    setting = Setting(source, out, minutes, validate, images, changes)
    file = out / "results.jsonl"
    results = [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []
    for seed in (int(text) for text in seeds.split(",")):
        for digit in digits.split(","):
            for method in chosen:
                key = setting.key(method, digit, seed)
                if any(key.items() <= result.items() for result in results):
                    continue
                result = key | measured(setting, method, digit, seed)
                results.append(result)
                with file.open("a", encoding="utf-8") as stream:
                    stream.write(json.dumps(result) + "\n")
                click.echo(f"{method} without {digit}, seed {seed}: AUPR {result['aupr']:.3f}")
    same = [
        r for r in results if setting.key(r["method"], r["digit"], r["seed"]).items() <= r.items()
    ]
    classes = digits.split(",")
    click.echo(table(["AUPR", *classes], rows(same, classes)))
    click.echo("\n" + table(["AUROC", *classes], rows(same, classes, "auroc")))


if __name__ == "__main__":
    main()
