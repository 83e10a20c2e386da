"""A baseline: an autoencoder with the size and the training time of the model."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from cdrl_infer.files import replaced_file
from cdrl_train.data.image_set import ImageSet
from cdrl_train.evaluation.extractors import digest_of

SAVE_EVERY = 60.0  # seconds


@dataclass(frozen=True)
class AutoencoderRecipe:
    """The options of the autoencoder; the name of its cached file depends on them.

    Args:
        values: the wanted number of parameters; the width is chosen to come nearest.
        seconds: training time, without the time to save.
    """

    values: int
    seconds: float
    latent: int = 64
    batch_size: int = 64
    learning_rate: float = 1e-3
    seed: int = 0


class Autoencoder(nn.Module):
    """Two strided convolutions encode an image to ``latent`` numbers; nearest upsampling decodes them."""

    def __init__(self, shape: Sequence[int], width: int, latent: int) -> None:
        super().__init__()
        channels, height, width_0 = shape
        sizes = [(height, width_0)]
        for _ in range(2):
            sizes.append(((sizes[-1][0] + 1) // 2, (sizes[-1][1] + 1) // 2))
        rows, columns = sizes[-1]
        wide = 2 * width

        def conv(a: int, b: int, stride: int = 1) -> nn.Conv2d:
            return nn.Conv2d(a, b, 3, stride, padding=1)

        self.encoder = nn.Sequential(
            *(conv(channels, width), nn.SiLU(), conv(width, width, 2), nn.SiLU()),
            *(conv(width, wide), nn.SiLU(), conv(wide, wide, 2), nn.SiLU()),
            *(nn.Flatten(), nn.Linear(wide * rows * columns, latent)),
        )
        self.decoder = nn.Sequential(
            *(nn.Linear(latent, wide * rows * columns), nn.SiLU()),
            nn.Unflatten(1, (wide, rows, columns)),
            *(
                nn.Upsample(size=sizes[1]),
                conv(wide, wide),
                nn.SiLU(),
                conv(wide, width),
                nn.SiLU(),
            ),
            *(nn.Upsample(size=sizes[0]), conv(width, width), nn.SiLU(), conv(width, channels)),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) in [0, 1] -> the reconstruction, of the same shape."""
        restored: Tensor = self.decoder(self.encoder(x))
        return restored


def count_values(*networks: nn.Module) -> int:
    """The number of parameters."""
    return sum(p.numel() for network in networks for p in network.parameters())


def autoencoder_of(shape: Sequence[int], recipe: AutoencoderRecipe) -> Autoencoder:
    """A new autoencoder whose number of parameters is nearest to the wanted number."""

    def values(width: int) -> int:
        with torch.device("meta"):
            return count_values(Autoencoder(shape, width, recipe.latent))

    width = 1
    while values(width) < recipe.values:
        width += 1
    if width > 1 and recipe.values - values(width - 1) < values(width) - recipe.values:
        width -= 1
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        return Autoencoder(shape, width, recipe.latent).to(memory_format=torch.channels_last)


@dataclass(frozen=True)
class Trained:
    """A trained autoencoder, and how it was trained.

    Args:
        network: the autoencoder.
        digest: the digest of its weights.
        images: number of training images, with repeats.
        seconds: training time.
        threads: number of threads at the end of training.
    """

    network: Autoencoder
    digest: str
    images: int
    seconds: float
    threads: int
    name: ClassVar[str] = "autoencoder"

    def __call__(self, images: NDArray[np.uint8]) -> NDArray[np.float64]:
        """(N, C, H, W) -> (N,) squared error of the reconstruction."""
        return self.error_maps(torch.from_numpy(images)).double().sum((1, 2)).numpy()

    @torch.no_grad()
    def error_maps(self, images: Tensor) -> Tensor:
        """(N, C, H, W) uint8 -> (N, H, W) squared error, summed over channels, values in [0, 1]."""
        maps = [(self.network(x) - x).square().sum(1) for x in (p / 255 for p in images.split(250))]
        return torch.cat(maps)


def load_or_train_autoencoder(
    cache: Path, train: ImageSet, recipe: AutoencoderRecipe, progress: bool = False
) -> Trained:
    """Train with Adam on the mean squared error; the learning rate is a cosine of the time.

    A trained autoencoder is read from ``cache``; an interrupted training continues.
    """
    key = json.dumps([train.fingerprint(), asdict(recipe)])
    file = cache / f"autoencoder-{hashlib.sha256(key.encode()).hexdigest()[:12]}.pt"
    network = autoencoder_of(train.images.shape[1:], recipe)
    optimizer = torch.optim.Adam(network.parameters(), lr=recipe.learning_rate)
    seconds, steps, threads = 0.0, 0, torch.get_num_threads()
    if file.is_file():
        state = torch.load(file, map_location="cpu", weights_only=True)
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
        seconds, steps = state["seconds"], state["steps"]
        threads = state["threads"] if seconds >= recipe.seconds else threads
    title = f"autoencoder, {recipe.seconds / 60:.3g} minutes"
    with tqdm(total=math.ceil(recipe.seconds), desc=title, unit="s", disable=not progress) as bar:
        bar.update(int(seconds))
        while seconds < recipe.seconds:
            start, end = time.perf_counter(), min(seconds + SAVE_EVERY, recipe.seconds)
            before = seconds
            while seconds < end:
                rate = 0.5 * (1 + math.cos(math.pi * seconds / recipe.seconds))
                optimizer.param_groups[0]["lr"] = recipe.learning_rate * rate
                _step(network, optimizer, _batch(train, recipe, steps))
                steps += 1
                seconds = before + time.perf_counter() - start
                bar.update(min(int(seconds), bar.total) - bar.n)
            _save(file, network, optimizer, seconds, steps)
    images = steps * recipe.batch_size
    network.eval().requires_grad_(False)
    return Trained(network, digest_of("", network.state_dict()), images, seconds, threads)


def training_minutes(training: dict[str, Any]) -> float | None:
    """The training time of a model in minutes, from its config; None if the config does not say."""
    hours = training.get("hours")
    return 60 * hours if isinstance(hours, (int, float)) and hours > 0 else None


def autoencoder_label(trained: Trained, values: int, model: float | None) -> str:
    """The times and the sizes of both, with a warning if the times differ."""
    minutes = trained.seconds / 60
    own = "not in its config" if model is None else f"{model:.1f} minutes by its config"
    equal = model is not None and abs(minutes - model) <= 0.02 * model
    return (
        f"Autoencoder: {count_values(trained.network):,} values (the model: {values:,}), trained "
        f"{minutes:.1f} minutes (the model: {own}){'' if equal else ', NOT AN EQUAL TIME'}; "
        f"{trained.images:,} images seen, float32, {trained.threads} threads"
    )


def _batch(train: ImageSet, recipe: AutoencoderRecipe, step: int) -> Tensor:
    generator = torch.Generator().manual_seed(recipe.seed * 1_000_003 + step)
    index = torch.randint(len(train), (recipe.batch_size,), generator=generator)
    return (train.images[index] / 255).contiguous(memory_format=torch.channels_last)


def _step(network: Autoencoder, optimizer: torch.optim.Optimizer, x: Tensor) -> None:
    optimizer.zero_grad()
    nn.functional.mse_loss(network(x), x).backward()  # type: ignore[no-untyped-call]
    optimizer.step()


def _save(
    file: Path, network: Autoencoder, optimizer: torch.optim.Optimizer, seconds: float, steps: int
) -> None:
    state: dict[str, Any] = {
        "network": network.state_dict(),
        "optimizer": optimizer.state_dict(),
        "seconds": seconds,
        "steps": steps,
        "threads": torch.get_num_threads(),
    }
    with replaced_file(file) as temporary, temporary.open("wb") as stream:
        torch.save(state, stream)
