"""Named runs and their variations."""

from __future__ import annotations

import dataclasses
from typing import Any

from cdrl_infer.errors import ConfigError, did_you_mean, listing
from cdrl_infer.model import SamplerDefaults
from cdrl_infer.schedule import NoiseSchedule
from cdrl_train.config import CooperativeConfig, DataConfig, PhaseConfig, TrainConfig


def toy_2d() -> TrainConfig:
    """The checkerboard in the plane: no data file, minutes on one core, a density to compare with."""
    return TrainConfig(
        name="toy-2d",
        ebm={"class": "MLPEnergy", "width": 64, "num_blocks": 3, "data_variance": 1 / 3},
        initializer={
            "class": "ResidualInitializer",
            "backbone": {"class": "MLP", "width": 32, "num_blocks": 2},
        },
        schedule=NoiseSchedule(num_levels=8, logsnr_max=5.0, step_rule="curvature", step_size=0.4),
        sampler=SamplerDefaults(langevin_steps=15),
        data=DataConfig(source="checkerboard"),
        warm_start=PhaseConfig(
            steps=4_000,
            batch_size=256,
            coupling="markov",
            ebm_rate=2e-3,
            initializer_rate=2e-3,
            warm_up=100,
            final_rate=0.05,
        ),
        cooperative=CooperativeConfig(
            steps=500,
            batch_size=256,
            coupling="markov",
            ebm_rate=1e-4,
            initializer_rate=1e-4,
            warm_up=50,
            final_rate=0.05,
            langevin_steps=15,
            weight="noise",
            score_matching=1.0,
        ),
        log_every=250,
        sample_every=4_500,
    )


def _patch_initializer(widths: list[int], num_blocks: int, embedding_dim: int) -> dict[str, Any]:
    backbone = {"widths": widths, "num_blocks": num_blocks, "patch_size": 2}
    return {
        "class": "ResidualInitializer",
        "backbone": {"class": "PatchUNet", **backbone, "embedding_dim": embedding_dim},
    }


def fashion_mnist() -> TrainConfig:
    """The bundled model: class-conditional Fashion-MNIST on a small machine, warm start first."""
    return TrainConfig(
        name="fashion-mnist",
        ebm={
            "class": "InnerProductEnergy",
            "backbone": {
                "class": "PatchUNet",
                "widths": [64, 112],
                "num_blocks": 2,
                "patch_size": 2,
                "embedding_dim": 128,
            },
            "data_variance": 0.68,
        },
        initializer=_patch_initializer([24, 48], num_blocks=1, embedding_dim=64),
        schedule=NoiseSchedule(logsnr_max=6.0, step_rule="curvature", step_size=0.4),
        sampler=SamplerDefaults(langevin_steps=5),
        data=DataConfig(
            source="torchvision:FashionMNIST", dequantise=True, flip=False, label_dropout=0.1
        ),
        warm_start=PhaseConfig(
            steps=11_000,
            batch_size=32,
            coupling="markov",
            ebm_rate=2e-3,
            initializer_rate=2e-3,
            warm_up=100,
            final_rate=0.05,
        ),
        cooperative=CooperativeConfig(
            steps=2_000,
            batch_size=32,
            coupling="markov",
            ebm_rate=1e-4,
            initializer_rate=1e-4,
            warm_up=100,
            langevin_steps=5,
            weight="noise",
            score_matching=1.0,
        ),
        precision="bfloat16",
        stored_as="float16",
    )


def coloured_fashion_mnist() -> TrainConfig:
    """The bundled model to compose with: garment × colour × background, each label hidden by half."""
    base = fashion_mnist()
    return dataclasses.replace(
        base,
        name="coloured-fashion-mnist",
        ebm={**base.ebm, "data_variance": 0.51},
        # What is to be drawn is decided by the proposals at the noisy levels: with colours and hidden
        # labels, the small initializer of the grey model names a quarter of the garments right.
        initializer=_patch_initializer([48, 96], num_blocks=2, embedding_dim=128),
        data=dataclasses.replace(
            base.data, source="coloured:torchvision:FashionMNIST", label_dropout=0.5
        ),
        warm_start=dataclasses.replace(base.warm_start, steps=13_000),
        cooperative=dataclasses.replace(base.cooperative, steps=5_000, final_rate=0.1),
    )


def mnist() -> TrainConfig:
    """Digits, with the small networks and the recipe of `fashion_mnist`."""
    base = fashion_mnist()
    return dataclasses.replace(
        base,
        name="mnist",
        ebm={**base.ebm, "data_variance": 0.92},
        data=dataclasses.replace(base.data, source="torchvision:MNIST"),
    )


def _residual_ebm(width: int, multipliers: tuple[int, ...] = (1, 2, 2, 2)) -> dict[str, Any]:
    """The paper's energy at that width; its embeddings grow with it."""
    return {
        "class": "ResidualEBM",
        "width": width,
        "num_blocks": 8,
        "width_multipliers": list(multipliers),
        "frequencies": width // 2,
        "embedding_dim": 4 * width,
        "activation": "leaky_relu",
    }


def _unet(width: int, num_blocks: int, levels: int = 3) -> dict[str, Any]:
    """The paper's initializer at that width, with attention at the last two resolutions."""
    backbone = {
        "class": "UNet",
        "widths": [width] * levels,
        "num_blocks": num_blocks,
        "attention_levels": list(range(levels - 2, levels)),
        "frequencies": width // 2,
        "embedding_dim": 4 * width,
        "dropout": 0.1,
    }
    return {"class": "ResidualInitializer", "backbone": backbone}


def cifar10() -> TrainConfig:
    """The paper's unconditional CIFAR-10 model: 8 GPUs of 32 images there, 256 images a step.

    Sizes and rates are those of the authors' released code; it adds no noise to the pixels.
    """
    return TrainConfig(
        name="cifar10",
        ebm=_residual_ebm(128),
        initializer=_unet(64, num_blocks=3),
        data=DataConfig(source="torchvision:CIFAR10", attributes=(), dequantise=False, flip=True),
        warm_start=PhaseConfig(
            steps=0, batch_size=256, coupling="markov", ebm_rate=1e-4, initializer_rate=1e-4
        ),
        cooperative=CooperativeConfig(
            steps=500_000,
            batch_size=256,
            coupling="shared",
            ebm_rate=1e-4,
            initializer_rate=1e-5,
            warm_up=10_000,
            initializer_start=0.05,
            langevin_steps=15,
            weight="paper",
        ),
        spectral_norm=True,
        ema_decay=0.9999,
    )


def cifar10_large() -> TrainConfig:
    """CDRL-large: twice the channels in both networks."""
    return dataclasses.replace(
        cifar10(),
        name="cifar10-large",
        ebm=_residual_ebm(256),
        initializer=_unet(128, num_blocks=3),
    )


def cifar10_cond() -> TrainConfig:
    """CIFAR-10 with its classes, each label hidden with probability 0.1."""
    base = cifar10()
    return dataclasses.replace(
        base, name="cifar10-cond", data=dataclasses.replace(base.data, attributes=None)
    )


def imagenet32_cond() -> TrainConfig:
    """The paper's class-conditional ImageNet 32 x 32: a block less in the U-Net, twice the steps."""
    base = cifar10_cond()
    return dataclasses.replace(
        base,
        name="imagenet32-cond",
        initializer=_unet(64, num_blocks=2),
        data=dataclasses.replace(base.data, source="imagenet32:data/imagenet32"),
        cooperative=dataclasses.replace(base.cooperative, steps=1_000_000),
    )


def celeba64() -> TrainConfig:
    """CelebA 64 x 64 with five attributes to compose, each hidden by half.

    The authors' code has no such model: these are their CIFAR-10 networks with one resolution more.
    """
    base = cifar10()
    return dataclasses.replace(
        base,
        name="celeba64",
        ebm=_residual_ebm(128, multipliers=(1, 1, 2, 2, 2)),
        initializer=_unet(64, num_blocks=3, levels=4),
        data=DataConfig(
            source="torchvision:CelebA",
            attributes=("Male", "Smiling", "Young", "Black_Hair", "Eyeglasses"),
            dequantise=False,
            flip=True,
            label_dropout=0.5,
        ),
    )


def drl() -> TrainConfig:
    """The ancestor (Gao et al. 2021) with the paper's energy for CIFAR-10."""
    return dataclasses.replace(_drl(cifar10()), name="drl")


def _drl(base: TrainConfig) -> TrainConfig:
    """No initializer, so Langevin starts at x_t; K = 30 and half the step variance (b² = 2e-4 for the
    paper's 4e-4); neither shared noise nor a warm start."""
    if base.initializer is None:
        raise ConfigError(f"{base.name} has no initializer to leave out")
    if base.warm_start.steps:
        base = _no_warm_start(base)
    return dataclasses.replace(
        base,
        initializer=None,
        schedule=dataclasses.replace(base.schedule, step_size=base.schedule.step_size / 2),
        sampler=dataclasses.replace(base.sampler, langevin_steps=30),
        cooperative=dataclasses.replace(
            base.cooperative,
            coupling="markov",
            langevin_steps=30,
            score_matching=0.0,
            regression=0.0,
        ),
    )


def _no_shared_noise(base: TrainConfig) -> TrainConfig:
    """x_{t-1} and x_t of the Markov process instead of the same ε in both."""
    if base.cooperative.coupling != "shared":
        raise ConfigError(f"{base.name} has no shared noise to leave out")
    cooperative = dataclasses.replace(base.cooperative, coupling="markov")
    return dataclasses.replace(base, cooperative=cooperative)


def _no_warm_start(base: TrainConfig) -> TrainConfig:
    """The cooperative phase from the first step on; it gets the steps of the warm start."""
    warm, cooperative = base.warm_start, base.cooperative
    if not warm.steps:
        raise ConfigError(f"{base.name} has no warm start to leave out")
    return dataclasses.replace(
        base,
        warm_start=dataclasses.replace(warm, steps=0),
        cooperative=dataclasses.replace(cooperative, steps=warm.steps + cooperative.steps),
    )


def _no_score_matching(base: TrainConfig) -> TrainConfig:
    """The paper's losses alone in the cooperative phase: contrastive for the EBM, imitation for the
    initializer."""
    cooperative = base.cooperative
    if not (cooperative.score_matching or cooperative.regression):
        raise ConfigError(
            f"{base.name} has no score matching beside the contrastive loss to leave out"
        )
    cooperative = dataclasses.replace(cooperative, score_matching=0.0, regression=0.0)
    return dataclasses.replace(base, cooperative=cooperative)


def _no_spectral_norm(base: TrainConfig) -> TrainConfig:
    """The energy's weights as they are."""
    if not base.spectral_norm:
        raise ConfigError(f"{base.name} has no spectral norm to leave out")
    return dataclasses.replace(base, spectral_norm=False)


PRESETS = {
    "toy-2d": toy_2d,
    "fashion-mnist": fashion_mnist,
    "coloured-fashion-mnist": coloured_fashion_mnist,
    "mnist": mnist,
    "cifar10": cifar10,
    "cifar10-large": cifar10_large,
    "cifar10-cond": cifar10_cond,
    "imagenet32-cond": imagenet32_cond,
    "celeba64": celeba64,
    "drl": drl,
}
VARIATIONS = {
    "drl": _drl,
    "no-score-matching": _no_score_matching,
    "no-shared-noise": _no_shared_noise,
    "no-warm-start": _no_warm_start,
    "no-spectral-norm": _no_spectral_norm,
}


def preset(name: str) -> TrainConfig:
    """The preset of that name, as ``"cifar10"``, or a variation of it, as ``"cifar10+no-shared-noise"``.

    Raises:
        ConfigError: no such preset or variation, or nothing in the preset to vary.
    """
    first, *variations = name.split("+")
    if first not in PRESETS:
        raise ConfigError(
            f"unknown preset {first!r}; known: {listing(PRESETS)}{did_you_mean(first, PRESETS)}"
        )
    config = PRESETS[first]()
    for variation in variations:
        if variation not in VARIATIONS:
            raise ConfigError(
                f"unknown variation {variation!r} of {first}; known: {listing(VARIATIONS)}"
                f"{did_you_mean(variation, VARIATIONS)}"
            )
        config = VARIATIONS[variation](config)
    return dataclasses.replace(config, name=name)
