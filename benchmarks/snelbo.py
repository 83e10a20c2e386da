"""A VAE with an energy as its prior against the plain VAE, on binarised MNIST.

``python benchmarks/snelbo.py --data mnist.npz``; see benchmarks/README.md.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import NamedTuple

import click
import numpy as np
import torch
from report import check_target, plus_minus, save_picture, table
from torch import Tensor

from cdrl_infer.cli.command import OneLineErrors
from cdrl_infer.likelihood.bar import effective_sample_size, log_mean_exp
from cdrl_infer.model import CDRLModel
from cdrl_infer.networks.vae import VAEEnergy, bernoulli, gaussian
from cdrl_infer.pipeline import CDRLPipeline
from cdrl_infer.random import BatchRandom
from cdrl_infer.storage.folder import load_model, save_model
from cdrl_train.data.sources import load_images
from cdrl_train.data.stream import BatchStream
from cdrl_train.engine.trainer import Trainer
from cdrl_train.export import to_model
from cdrl_train.objectives.snelbo import binarised
from cdrl_train.presets import preset

PRIORS = ("gaussian", "energy")
BINARISED = 17  # the seed that makes the test images black and white
BATCH = 1_000
PRIOR_DRAWS = 100_000  # for log Z
DRAWS = 4  # of the encoder for each image, for the lower bound
TIGHT_IMAGES, TIGHT_DRAWS = 1_000, 100  # for log p(x) by importance sampling (Burda et al. 2016)
ROW = 12  # samples in a row of the picture
HEADER = (
    "prior",
    "ELBO",
    "log p(x\\|z)",
    "KL to the prior",
    "log p(x), 100 draws",
    "b - log Z",
    "ESS/N",
)


class Result(NamedTuple):
    """Means over test images, nats per image, and what the prior's normaliser is worth."""

    elbo: float
    reconstruction: float
    divergence: float
    tight: float  # log-mean-exp of `TIGHT_DRAWS` weights p(x, z)/q(z|x)
    error: float  # b - log Ẑ, nats; 0 for a Gaussian prior
    share: float  # ESS/N of the weights behind log Ẑ


def train(data: str, prior: str, seed: int, steps: int | None) -> CDRLModel:
    """Train the preset with a prior, with nothing kept on the disk."""
    changes = [f"ebm.prior={prior}", f"seed={seed}"]
    if steps is not None:
        start = steps // 4
        changes += [f"warm_start.steps={start}", f"snelbo.steps={steps - start}"]
    config = preset("snl-vae-mnist").override(changes)
    images = load_images(data, "train", attributes=config.data.attributes)
    stream = BatchStream(images, config.data, seed, "cpu")
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(config, stream, Path(folder))
        for _ in range(config.total_steps):
            trainer.train_step()
        return to_model(trainer)


def weights(model: CDRLModel, x: Tensor, draws: int, seed: int) -> tuple[Tensor, Tensor]:
    """``log p(x|z)`` and ``log p(z) - log q(z|x)`` with the model's own b, of draws of q, (B, draws)."""
    vae: VAEEnergy = model.ebm
    condition = vae.condition(model.schedule.level(1))
    mean, log_scale = (each.repeat_interleave(draws, 0) for each in vae.encode(x))
    noise = torch.randn(mean.shape, generator=torch.Generator().manual_seed(seed))
    z = mean + log_scale.exp() * noise
    log_q = gaussian(noise) - log_scale.sum(1)
    likelihood = bernoulli(x.repeat_interleave(draws, 0), vae.decode(z))
    log_prior = gaussian(z) + vae.tilt(z, condition)
    return likelihood.reshape(-1, draws), (log_prior - log_q).reshape(-1, draws)


@torch.no_grad()
def log_weights(model: CDRLModel) -> Tensor:
    """``log p - log r`` of `PRIOR_DRAWS` draws of the proposal r; 0 for a Gaussian prior."""
    vae: VAEEnergy = model.ebm
    if vae.prior is None or vae.proposal is None:
        return torch.zeros(PRIOR_DRAWS)
    random = BatchRandom(PRIOR_DRAWS, torch.Generator().manual_seed(1))
    drawn = vae.proposal.draw((vae.latents,), random)
    condition = vae.condition(model.schedule.level(1)).prior
    return torch.cat(
        [vae.prior(z, condition) - vae.proposal.log_prob(z) for z in drawn.split(10_000)]
    )


@torch.no_grad()
def measure(model: CDRLModel, x: Tensor) -> Result:
    """Bounds of test images (N, D), normalised by the importance-sampling estimate of log Z."""
    tilts = log_weights(model)
    rest = float(log_mean_exp(tilts))  # log Ẑ - b
    found = [weights(model, part, DRAWS, k) for k, part in enumerate(x.split(BATCH))]
    likelihood = float(torch.cat([a for a, _ in found]).mean())
    divergence = -float(torch.cat([b for _, b in found]).mean()) + rest
    parts = x[:TIGHT_IMAGES].split(BATCH // TIGHT_DRAWS)
    tight = torch.cat(
        [log_mean_exp(sum(weights(model, part, TIGHT_DRAWS, k))) for k, part in enumerate(parts)]
    )
    return Result(
        elbo=likelihood - divergence,
        reconstruction=likelihood,
        divergence=divergence,
        tight=float(tight.mean()) - rest,
        error=-rest,
        share=float(effective_sample_size(tilts)) / len(tilts),
    )


def test_images(data: str) -> Tensor:
    """(N, D) zeros and ones; each pixel is white with a probability of its brightness."""
    images = load_images(data, "test", attributes=())
    x = images.scaled(slice(None))
    generator = torch.Generator().manual_seed(BINARISED)
    return binarised(x, "dynamic", BatchRandom(len(x), generator))


def samples(model: CDRLModel) -> list[np.ndarray]:
    """A row of the picture: samples as the decoder's probabilities."""
    pipe = CDRLPipeline(model)
    out = pipe(num_images=ROW, seeds=range(ROW), output_type="np", progress=False)
    assert isinstance(out.images, np.ndarray)
    return list((out.images * 255).round().astype(np.uint8).transpose(0, 3, 1, 2))


@click.command("snelbo.py", cls=OneLineErrors, context_settings={"show_default": True})
@click.option("--data", required=True, help="MNIST, a .npz file or torchvision:MNIST.")
@click.option("--seed", "seeds", multiple=True, type=click.IntRange(0), default=(0, 1, 2))
@click.option("--prior", "priors", multiple=True, type=click.Choice(PRIORS), default=PRIORS)
@click.option("--steps", type=click.IntRange(1), help="Of each run; by default the preset's.")
@click.option(
    "--keep",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder of trained models; those that are there are not trained again.",
)
@click.option("--picture", type=click.Path(dir_okay=False, path_type=Path))
def main(
    data: str,
    seeds: tuple[int, ...],
    priors: tuple[str, ...],
    steps: int | None,
    keep: Path | None,
    picture: Path | None,
) -> None:
    """Lower bounds on test images, mean and standard deviation over seeds; ± of one seed is left out."""
    check_target("--picture", picture)
    x, rows, drawn = test_images(data), [], []
    for prior in priors:
        results = []
        for seed in seeds:
            folder = None if keep is None else keep / f"{prior}-{seed}"
            if folder is not None and folder.is_dir():
                model = load_model(folder)
            else:
                model = train(data, prior, seed, steps)
                if folder is not None:
                    save_model(model, folder)
            results.append(measure(model, x))
            click.echo(f"{prior}, seed {seed}: {results[-1]}", err=True)
            drawn += [samples(model)] if seed == seeds[0] else []
        columns = [list(column) for column in zip(*results, strict=True)]
        cells = [plus_minus(column, 2) for column in columns[:4]]
        rows.append([prior, *cells, plus_minus(columns[4], 3), plus_minus(columns[5], 3)])
    click.echo(table(HEADER, rows))
    if picture is not None:
        save_picture(picture, drawn)


if __name__ == "__main__":
    main()
