"""A class-conditional DDPM of diffusers: its network, its training, and its samples."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from peers_ddpm_step import Step
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from cdrl_infer.device import ResolvedPrecision
from cdrl_infer.errors import InputError
from cdrl_infer.files import replaced_file
from cdrl_infer.optional import needed
from cdrl_infer.random import PerImageRandom
from cdrl_train.data.image_set import ImageSet
from cdrl_train.evaluation.extractors import digest_of
from cdrl_train.evaluation.sampling import SEED_STRIDE, balanced_labels

STATE = "ddpm.pt"
NOISE_STEPS = 1000  # of the forward process
Bytes = NDArray[np.uint8]
CPU = torch.device("cpu")


@dataclass(frozen=True)
class DDPMRecipe:
    """The network and its training; with those of diffusers' training guide where it has some.

    Args:
        widths: channels of each resolution, multiples of 8; the lowest resolution has attention.
        batch_size: number of images of a step.
        learning_rate: of AdamW; it rises linearly, and then falls to 0 as a cosine.
        warmup_steps: steps in which it rises.
        ema_decay: of the moving average of the weights, which draws.
        seed: of weights, batches and noise.
    """

    widths: tuple[int, ...] = (32, 64, 88)
    batch_size: int = 64
    learning_rate: float = 1e-3
    warmup_steps: int = 300
    ema_decay: float = 0.999
    seed: int = 0


def diffusers() -> Any:
    """The package diffusers.

    Raises:
        PackageError: it is missing.
    """
    with needed("diffusers", "a DDPM needs", "peers"):
        import diffusers as package

        package.UNet2DModel  # noqa: B018 - diffusers imports its parts when they are used
    return package


def build(recipe: DDPMRecipe, shape: tuple[int, ...], classes: int) -> nn.Module:
    """A new `UNet2DModel` for images (C, H, W) of several classes."""
    plain = len(recipe.widths) - 1
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        network: nn.Module = diffusers().UNet2DModel(
            sample_size=shape[1:],
            in_channels=shape[0],
            out_channels=shape[0],
            layers_per_block=1,
            block_out_channels=recipe.widths,
            down_block_types=("DownBlock2D",) * plain + ("AttnDownBlock2D",),
            up_block_types=("AttnUpBlock2D",) + ("UpBlock2D",) * plain,
            norm_num_groups=8,
            num_class_embeds=classes,
        )
    return network.to(memory_format=torch.channels_last)


def step_flops(recipe: DDPMRecipe, shape: tuple[int, ...], classes: int) -> int:
    """Operations of one step of training, in convolutions and matrix products."""
    with torch.device("meta"):
        network = build(recipe, shape, classes)
        x = torch.empty(recipe.batch_size, *shape)
        which = torch.zeros(recipe.batch_size, dtype=torch.long)
        with FlopCounterMode(display=False) as counter:
            network(x, which, which).sample.sum().backward()
    return int(counter.get_total_flops())


class State(NamedTuple):
    """A run of training, between two steps.

    Attributes:
        average: the network that draws.
        seconds: of training.
    """

    network: nn.Module
    average: nn.Module
    optimizer: torch.optim.Optimizer
    recipe: DDPMRecipe
    shape: tuple[int, ...]
    classes: int
    steps: int
    total: int
    seconds: float

    @property
    def share(self) -> float:
        """The share of the steps that is done."""
        return self.steps / self.total

    def save(self, folder: Path) -> None:
        """Write the run; the file appears complete or not at all."""
        values = {
            name: getattr(self, name).state_dict() for name in ("network", "average", "optimizer")
        }
        values |= {"recipe": asdict(self.recipe), "shape": self.shape, "classes": self.classes}
        values |= {"steps": self.steps, "total": self.total, "seconds": self.seconds}
        with replaced_file(folder / STATE) as temporary, temporary.open("wb") as stream:
            torch.save(values, stream)


def start(recipe: DDPMRecipe, data: ImageSet, total: int, device: torch.device = CPU) -> State:
    """A run with no step done."""
    if data.labels is None or data.labels.shape[1] != 1:
        raise InputError("a DDPM needs data with one label per image")
    return _fresh(recipe, tuple(data.images.shape[1:]), data.num_classes[0], total, device)


def _fresh(
    recipe: DDPMRecipe, shape: tuple[int, ...], classes: int, total: int, device: torch.device
) -> State:
    network, average = (build(recipe, shape, classes).to(device) for _ in range(2))
    optimizer = torch.optim.AdamW(
        network.parameters(), recipe.learning_rate, capturable=device.type == "cuda"
    )
    return State(network, average, optimizer, recipe, shape, classes, 0, total, 0.0)


def load(folder: Path, device: torch.device = CPU) -> State:
    """The run in a folder, on a device.

    Raises:
        InputError: there is none.
    """
    file = folder / STATE
    if not file.is_file():
        raise InputError(f"{folder} holds no DDPM: train one with benchmarks/peers.py train")
    values = torch.load(file, map_location="cpu", weights_only=True)
    recipe = DDPMRecipe(**values["recipe"])
    state = _fresh(recipe, tuple(values["shape"]), values["classes"], values["total"], device)
    values["optimizer"]["param_groups"][0]["capturable"] = device.type == "cuda"
    for part in ("network", "average", "optimizer"):
        getattr(state, part).load_state_dict(values[part])
    return state._replace(steps=values["steps"], seconds=values["seconds"])


def resume(
    folder: Path, recipe: DDPMRecipe, data: ImageSet, total: int, device: torch.device = CPU
) -> State:
    """The run in a folder, or a new one if there is none.

    Raises:
        InputError: the folder holds a run with other options.
    """
    new = start(recipe, data, total, device)
    if not (folder / STATE).is_file():
        return new
    old = load(folder, device)
    for name in ("recipe", "shape", "classes", "total"):
        stored, asked = getattr(old, name), getattr(new, name)
        if stored != asked:
            raise InputError(
                f"{folder} holds a run with {name} {stored}, expected {asked}: choose another --out"
            )
    return old


def train(
    state: State,
    data: ImageSet,
    folder: Path,
    seconds: float,
    save_seconds: float,
    precision: ResolvedPrecision,
    tell: Callable[[str], object] = lambda text: None,
) -> State:
    """Train until the last step, or for a time; write the run every now and then.

    Noise and batches depend on the seed and the step alone, so a run that goes on is the same run.

    Args:
        seconds: of this call.
        save_seconds: between two checkpoints.
    """
    begin = saved = time.perf_counter()
    schedule = diffusers().DDPMScheduler(num_train_timesteps=NOISE_STEPS)
    advance = Step(state, schedule, data, precision)
    earlier, first, losses = state.seconds, state.steps, torch.zeros((), device=advance.device)
    done = state.steps
    while done < state.total and time.perf_counter() - begin < seconds:
        losses += advance(done)
        done += 1
        now = time.perf_counter()
        if now - saved >= save_seconds or done == state.total:
            mean = losses.item() / (done - first)
            now = time.perf_counter()
            state = state._replace(steps=done, seconds=earlier + now - begin)
            state.save(folder)
            tell(f"step {done} of {state.total}, loss {mean:.4f}")
            saved, first, losses = now, done, torch.zeros_like(losses)
    state = state._replace(steps=done, seconds=earlier + time.perf_counter() - begin)
    state.save(folder)
    return state


@dataclass(frozen=True)
class Diffusion:
    """Draws class-conditional images with one of diffusers' schedulers; each image has its own seed.

    Args:
        state: the trained network.
        steps: evaluations of the network for an image; `NOISE_STEPS` or fewer.
        ancestral: draw with DDPM, with noise at every step, instead of DDIM.
        batch_size: number of images at once.
    """

    state: State
    steps: int
    ancestral: bool = False
    batch_size: int = 64

    @property
    def name(self) -> str:
        """``DDIM, 20 steps``."""
        return f"{'DDPM' if self.ancestral else 'DDIM'}, {self.steps} steps"

    @property
    def file_name(self) -> str:
        """``DDIM20-`` and the digest of the weights."""
        digest = digest_of("", self.state.average.state_dict())
        return f"{'DDPM' if self.ancestral else 'DDIM'}{self.steps}-{digest}"

    def draw(self, repeat: int, first: int, stop: int) -> Bytes:
        """The samples first … stop - 1 of a repeat, (N, C, H, W)."""
        labels = balanced_labels([self.state.classes], stop)[first:, 0]
        seeds = range(repeat * SEED_STRIDE + first, repeat * SEED_STRIDE + stop)
        parts = [
            self._batch(list(seeds[k : k + self.batch_size]), labels[k : k + self.batch_size])
            for k in range(0, len(labels), self.batch_size)
        ]
        return np.concatenate(parts)

    @torch.no_grad()
    def _batch(self, seeds: list[int], labels: Tensor) -> Bytes:
        package = diffusers()
        scheduler = package.DDPMScheduler(num_train_timesteps=NOISE_STEPS)
        if not self.ancestral:  # with few steps, better than the default spacing
            scheduler = package.DDIMScheduler.from_config(
                scheduler.config, timestep_spacing="trailing"
            )
        scheduler.set_timesteps(self.steps)
        random = PerImageRandom.from_seeds(seeds, "cpu")
        x = random.normal(self.state.shape).contiguous(memory_format=torch.channels_last)
        noise = {"generator": random.generators} if self.ancestral else {}
        for t in scheduler.timesteps:
            found = self.state.average(x, t, labels).sample
            x = scheduler.step(found, t, x, **noise).prev_sample
        pixels: Bytes = ((x.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).numpy()
        return pixels
