"""The CDRL authors' checkpoints (``*.pth.tar``) -> networks and sampler options of this package.

Such a file is a pickle. It is read with ``weights_only=True``, which runs no code from it. It holds
live weights and, from ``torch_ema``, a list of their moving averages in ``parameters()`` order. We take
the averages; a spectrally normalised weight is ``W_ema / (uᵀ W_ema v)`` with the live u and v.
`ConvertedModel.ignored` names everything else in the file.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from cdrl_infer.errors import CheckpointError, ConfigError, listing
from cdrl_infer.model import Attribute, CDRLModel, ImageShape, SamplerDefaults
from cdrl_infer.networks.heads import ResidualInitializer
from cdrl_infer.networks.residual_ebm import Activation, ResidualEBM
from cdrl_infer.networks.skeleton import skeleton
from cdrl_infer.networks.unet import UNet
from cdrl_infer.schedule import NoiseSchedule
from cdrl_infer.storage.card import render
from cdrl_infer.untrusted import load_pickle

Weights = dict[str, Tensor]
Network = TypeVar("Network", bound=nn.Module)
USED = [f"{m}_{kind}" for m in ("pi", "p") for kind in ("state_dict", "ema_state_dict")]
IMAGENET = Path(__file__).parent / "imagenet_classes.txt"


@dataclass(frozen=True)
class ConvertedModel:
    """The authors' model: networks in eval mode, and sampling options.

    ::

        pipe = CDRLPipeline(load_authors_checkpoint("cifar10.pth.tar").to_model())
        pipe.save_pretrained("cifar10")  # opened by CDRLPipeline.from_pretrained

    ``score_scale`` is 2: the released code divides the energy of its last denoising step by half the
    variance of its Langevin steps, so the score counts twice there. ``ignored`` names the unused entries
    of the file. Of the live weights, only u and v are used.
    """

    ebm: ResidualEBM
    initializer: ResidualInitializer
    schedule: NoiseSchedule
    langevin_steps: int
    score_scale: float
    num_classes: tuple[int, ...]
    ignored: tuple[str, ...] = ()

    def to_model(
        self,
        class_names: Sequence[str] | None = None,
        image: tuple[int, int, int] = (3, 32, 32),
    ) -> CDRLModel:
        """The model for `CDRLPipeline` and `save_model`; it shares the networks.

        Args:
            class_names: names in the order of the training labels; by default those of ImageNet for a
                model of 1,000 classes, else "0", "1", ….
            image: (C, H, W) of the training images; the file does not tell it.

        Raises:
            ConfigError: the number of names is not that of the classes, or the networks do not take
                images of that shape.
        """
        if class_names is None:
            class_names = [str(k) for n in self.num_classes for k in range(n)]
            class_names = imagenet_classes() if len(class_names) == 1000 else class_names
        return CDRLModel(
            ebm=self.ebm,
            initializer=self.initializer,
            schedule=self.schedule,
            image=ImageShape(*image),
            labels=(Attribute("class", tuple(class_names)),) if class_names else (),
            sampler=SamplerDefaults(self.langevin_steps, score_scale=self.score_scale),
        )


def imagenet_classes() -> list[str]:
    """The 1,000 names in the order of the authors' labels; the file says where they are from."""
    return list(imagenet_names().values())


def imagenet_names() -> dict[str, str]:
    """The 1,000 names by WordNet id."""
    lines = IMAGENET.read_text(encoding="utf-8").splitlines()
    split = [line.partition(" ") for line in lines if not line.startswith("#")]
    return {wordnet: name for wordnet, _, name in split}


def convert(
    path: str | Path,
    *,
    image_size: int = 32,
    licence: str | None = None,
    datasets: Sequence[str] = (),
) -> tuple[CDRLModel, tuple[str, ...]]:
    """A checkpoint of the authors as a model with a card, and the unused entries of the file.

    Args:
        path: the ``.pth.tar`` file.
        image_size: height and width of the images; the file does not tell it.
        licence, datasets: for the card; see `cdrl_infer.storage.card.render`.

    Raises:
        CheckpointError, ConfigError: see `load_authors_checkpoint`.
    """
    converted = load_authors_checkpoint(path)
    channels = converted.ebm.config["in_channels"]
    model = converted.to_model(image=(channels, image_size, image_size))
    name = Path(path).name
    text = f"""Converted from `{name}`, a checkpoint of the authors' released code, by

    cdrl-hub convert {name} FOLDER

The weights are the averages (EMA) with the spectral norm folded in. As in that code, the score of the
last denoising step counts twice (`score_scale`). Ignored: {listing(converted.ignored) or "nothing"}.
"""
    model.model_card = render(
        model, name.split(".")[0], facts={}, text=text, licence=licence, datasets=datasets
    )
    return model, converted.ignored


def load_authors_checkpoint(
    path: str | Path, *, activation: Activation = "leaky_relu"
) -> ConvertedModel:
    """Read a checkpoint of the CDRL authors' released code; all sizes come from its tensors.

    Args:
        path: the ``.pth.tar`` file.
        activation: of the EBM; the file does not tell it. Every released model has "leaky_relu".

    Raises:
        CheckpointError: the file is no such checkpoint or is damaged, or a weight is not finite.
        ConfigError: the activation is unknown, or our networks cannot have these sizes.
    """
    path = Path(path)
    content = _read(path)
    ignored = [str(key) for key in content if isinstance(key, str) and key not in USED]
    ebm_weights = _averaged(content, "pi", path)
    unet_weights = _averaged(content, "p", path)
    ebm = _build_ebm(ebm_weights, activation, path)
    initializer = _build_initializer(unet_weights, path)
    if ebm.num_classes != initializer.num_classes:
        raise CheckpointError(
            f"expected the same classes in EBM and initializer, found {ebm.num_classes} and "
            f"{initializer.num_classes} in {path}: the file mixes two models"
        )
    return ConvertedModel(
        ebm=ebm,
        initializer=initializer,
        schedule=NoiseSchedule(),
        langevin_steps=15,
        score_scale=2.0,
        num_classes=ebm.num_classes,
        ignored=tuple(sorted(ascii(key)[1:-1] for key in ignored)),
    )


def _read(path: Path) -> dict[str, Any]:
    """The content of the file; its tensors stay on the disk."""
    expected = "expected a checkpoint of the CDRL authors (.pth.tar)"
    if not path.is_file():
        raise CheckpointError(f"expected a checkpoint file, found nothing at {path}")
    try:
        content = load_pickle(path, mmap=True)
    except pickle.UnpicklingError as error:
        if code := re.search(r"GLOBAL:? ([\w.]{1,100})", str(error)):
            raise CheckpointError(
                f"{expected} with tensors alone, found code in {path} ({code[1]}): the file is "
                "refused and none of its code was run; take it from its authors"
            ) from error
        raise CheckpointError(f"{expected}, could not read {path}: download it again") from error
    except Exception as error:  # a foreign or truncated file can raise any error
        raise CheckpointError(
            f"{expected}, could not read {path} ({_shorten(error) or type(error).__name__}): "
            "download it again"
        ) from error
    parts = content if isinstance(content, dict) else {}
    missing = [key for key in USED if not isinstance(parts.get(key), dict)]
    if missing:
        names = [ascii(key) for key in parts if isinstance(key, str)]
        found = listing(names) or type(content).__name__
        raise CheckpointError(
            f"{expected} with {listing(USED)}; {path} lacks {listing(missing)} and holds "
            f"{_shorten(found)}"
        )
    return parts


def _shorten(value: object, limit: int = 100) -> str:
    text = str(value).replace("\n", " ")
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _averaged(content: dict[str, Any], model: str, path: Path) -> Weights:
    """EMA weights by the authors' names without ``module.``, with the spectral norm folded in."""
    live = content[f"{model}_state_dict"]
    averages = content[f"{model}_ema_state_dict"].get("shadow_params")
    names = [name for name in live if not str(name).endswith(("weight_u", "weight_v"))]
    count = len(averages) if isinstance(averages, list) else "none"
    if count != len(names):
        raise CheckpointError(
            f"expected {len(names)} averaged weights in {model}_ema_state_dict['shadow_params'], "
            f"one per parameter of {model}_state_dict, found {count} in {path}"
        )
    weights: Weights = {}
    left = path.stat().st_size
    for name, average in zip(names, averages, strict=True):
        try:
            left -= average.numel() * average.element_size()
            if average.shape != live[name].shape:
                raise ValueError(f"shapes {tuple(average.shape)} and {tuple(live[name].shape)}")
            if left < 0 or not average.is_floating_point():
                raise ValueError("not floats, or more numbers than the file can hold")
            weights[_plain(name)] = _folded(live, name, average.to(torch.float32, copy=True))
        except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"expected an average that fits {model} {name!r} and, if it ends in weight_orig, "
                f"its weight_u and weight_v, found {_shorten(error)} in {path}"
            ) from error
        if not bool(weights[_plain(name)].isfinite().all()):
            raise CheckpointError(
                f"expected finite weights, found NaN or infinity in {model} {name} of {path}: use "
                "an earlier checkpoint"
            )
    return weights


def _plain(name: str) -> str:
    """The name without ``module.`` (data parallelism) and ``_orig`` (spectral norm)."""
    return re.sub(r"^module\.|(?<=\.weight)_orig$", "", name)


def _folded(live: dict[str, Tensor], name: str, average: Tensor) -> Tensor:
    """``W / (uᵀ W v)`` for a spectrally normalised weight, else W."""
    if not name.endswith("weight_orig"):
        return average
    u, v = (live[name.removesuffix("orig") + vector] for vector in "uv")
    return average / torch.dot(u, average.flatten(1) @ v)


def _build_ebm(weights: Weights, activation: Activation, path: Path) -> ResidualEBM:
    """A `ResidualEBM` with the sizes of these weights, filled with them."""
    found = {int(m[1]) for n in weights if (m := re.match(r"module_list\.(\d{1,4})\.", n))}
    blocks = sorted(found - {0})
    # Pooling layers have no weights: after a gap in the numbers, a new resolution begins.
    first = [i for i in blocks if i - 1 not in blocks]
    try:
        stem = weights["module_list.0.weight"]
        width = stem.shape[0]
        widths = [weights[f"module_list.{i}.conv1.weight"].shape[0] for i in first]
        sizes: dict[str, Any] = {
            "in_channels": stem.shape[1],
            "width": width,
            "num_blocks": len(blocks) // len(first),
            "width_multipliers": tuple(w // width for w in widths),
            "frequencies": weights["temb_map1.weight"].shape[1] // 2,
            "embedding_dim": weights["temb_map1.weight"].shape[0],
            "num_classes": _classes(weights, "y_map.weight"),
        }
    except (LookupError, ZeroDivisionError) as error:
        raise _foreign("EBM", error, path) from error
    network = _empty(lambda: ResidualEBM(activation=activation, **sizes), weights, path)
    prefixes = {
        "temb_map1": "embed1",
        "temb_map2": "embed2",
        "y_map": "embed_labels",
        "temb_final": "head",
        "module_list.0": "stem",
        **{f"module_list.{i}": f"blocks.{k}" for k, i in enumerate(blocks)},
    }
    inner = {"g": "gain", "temb_map": "embed", "short_cut": "shortcut"}
    _fill(network, weights, prefixes, inner, path)
    return network


def _build_initializer(weights: Weights, path: Path) -> ResidualInitializer:
    """A `ResidualInitializer` with a `UNet` of the sizes of these weights, filled with them."""
    down = _positions(weights, "downs")
    attention = [at for at in down if f"downs.{at[0]}.{at[1]}.to_qkv.weight" in weights]
    levels = sorted({level for level, _ in down})
    try:
        blocks_in_last = [at for at in down if at[0] == levels[-1] and at not in attention]
        sizes: dict[str, Any] = {
            "in_channels": weights["init_conv.weight"].shape[1],
            "widths": tuple(weights[f"downs.{k}.0.conv1.weight"].shape[0] for k in levels),
            "num_blocks": len(blocks_in_last),
            "attention_levels": tuple(sorted({level for level, _ in attention})),
            "frequencies": weights["time_mlp.1.weight"].shape[1] // 2,
            "embedding_dim": weights["time_mlp.1.weight"].shape[0],
            "num_classes": _classes(weights, "y_mlp.0.weight"),
        }
    except LookupError as error:
        raise _foreign("initializer", error, path) from error
    network = _empty(lambda: ResidualInitializer(UNet(**sizes)), weights, path)
    prefixes = {
        "time_mlp.1": "embed1",
        "time_mlp.3": "embed2",
        "y_mlp.0": "embed_labels",
        "init_conv": "stem",
        "mid_block1": "middle.0",
        "mid_attn": "middle.0.attention",
        "mid_block2": "middle.1",
        "norm": "norm",
        "final_conv": "head",
    }
    for theirs, ours in (("downs", "down"), ("ups", "up")):
        count = 0
        for level, position in _positions(weights, theirs):
            prefix = f"{theirs}.{level}.{position}"
            if f"{prefix}.to_qkv.weight" in weights:  # part of the block before it
                prefixes[prefix] = f"{ours}.{count - 1}.attention"
            else:
                prefixes[prefix] = f"{ours}.{count}"
                count += 1
    inner = {"mlp.1": "modulation", "res_conv": "shortcut", "to_qkv": "qkv", "to_out": "out"}
    _fill(network.backbone, weights, prefixes, inner, path)
    return network.eval()


def _empty(make: Callable[[], Network], weights: Weights, path: Path) -> Network:
    try:
        return skeleton(make, num_stored=len(weights))
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def _positions(weights: Weights, group: str) -> list[tuple[int, int]]:
    """The ``(level, position)`` of every layer named ``group.level.position…``, in order."""
    matches = (re.match(rf"{group}\.(\d{{1,4}})\.(\d{{1,4}})\.", name) for name in weights)
    return sorted({(int(m[1]), int(m[2])) for m in matches if m})


def _classes(weights: Weights, name: str) -> tuple[int, ...]:
    """One attribute: its one-hot map has a column for each class and one for "not given"."""
    return (weights[name].shape[1] - 1,) if name in weights else ()


def _rename(name: str, prefixes: dict[str, str], inner: dict[str, str]) -> str:
    """Our name of a weight: replace its longest known prefix, and the layer right after that."""
    prefix = max((p for p in prefixes if name.startswith(p + ".")), key=len, default="")
    if not prefix:
        return name
    rest = name[len(prefix) + 1 :]
    layer = next((key for key in inner if f"{rest}.".startswith(f"{key}.")), "")
    return f"{prefixes[prefix]}.{inner.get(layer, '')}{rest[len(layer) :]}"


def _fill(
    network: nn.Module,
    weights: Weights,
    prefixes: dict[str, str],
    inner: dict[str, str],
    path: Path,
) -> None:
    """Rename the weights, check that they are exactly those of the network, and load them."""
    named = {_rename(name, prefixes, inner): value for name, value in weights.items()}
    wanted = {name: value.shape for name, value in network.state_dict().items()}
    wrong = [name for name in wanted if name not in named or named[name].shape != wanted[name]]
    extra = [name for name in named if name not in wanted]
    if wrong or extra:
        raise CheckpointError(
            f"expected the weights of a {type(network).__name__}, found missing or misshapen "
            f"{_shorten(wrong)} and unknown {_shorten(extra)} in {path}: not the authors' network"
        )
    network.load_state_dict(named, assign=True)
    network.eval()


def _foreign(model: str, error: Exception, path: Path) -> CheckpointError:
    return CheckpointError(
        f"expected the weights of the authors' {model}, found other names or shapes ({error}) in "
        f"{path}: not the authors' network"
    )
