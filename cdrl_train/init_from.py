"""Start a run with the networks of a trained model: what fits is copied, the rest is told and new."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cdrl_infer.errors import InputError, listing
from cdrl_infer.model import Attribute, CDRLModel
from cdrl_infer.networks.base import Network
from cdrl_infer.networks.layers import LabelEmbedding, OneHotEmbedding
from cdrl_infer.networks.registry import NETWORKS
from cdrl_infer.storage.folder import bundled_models, load_model
from cdrl_infer.storage.hub import find
from cdrl_train.config import TrainConfig
from cdrl_train.objectives import OBJECTIVES
from cdrl_train.objectives.cooperative import Cooperative
from cdrl_train.presets.variations import drl

FROM_DATA = ("in_channels", "num_classes")  # arguments of networks
BEFORE_LABELS = ("embed2", "embed_noise")  # the layers to whose output label embeddings are added


def open_model(name: str) -> CDRLModel:
    """The model of that name: bundled, a folder or a repository of the Hub.

    Raises:
        CDRLError: as for `CDRLPipeline.from_pretrained`.
    """
    return load_model(find(name).folder)


def absolute_model(name: str) -> str:
    """The same model, also from another folder."""
    return (
        name if name in bundled_models() or not Path(name).exists() else str(Path(name).absolute())
    )


def with_networks_of(model: CDRLModel, config: TrainConfig) -> TrainConfig:
    """The options with the networks, the noise levels and the sampler of a model.

    Raises:
        InputError: the last phase needs an initializer, the model has none, and DRL cannot stand in.
    """
    if model.initializer is None and config.initializer is not None:
        if OBJECTIVES[config.phases[-1].name] is not Cooperative:
            raise InputError(
                f"the preset {config.name} goes on from a model with an initializer, and this one has "
                "none; choose another model, or leave the preset out"
            )
        config = drl(config)
    trained = model.training.get("config")
    normed = isinstance(trained, dict) and trained.get("spectral_norm") is True
    return replace(
        config,
        ebm=_options("ebm", model.ebm),
        initializer=model.initializer and _options("initializer", model.initializer),
        schedule=model.schedule,
        sampler=model.sampler,
        spectral_norm=normed,
    )


def _options(role: str, network: Any) -> dict[str, Any]:
    """The options that build such a network again, without those that come from the data."""
    config = {"class": NETWORKS[role].checked_name(type(network)), **network.config}
    if isinstance(config.get("backbone"), Mapping):
        config["backbone"] = _without(config["backbone"])
    return _without(config)


def _without(config: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in config.items() if name not in FROM_DATA}


@torch.no_grad()
def start_from(
    model: CDRLModel,
    networks: Mapping[str, Network | None],
    labels: Sequence[Attribute],
    tell: Callable[[str], object],
) -> None:
    """Copy a model's weights into the fresh networks of a run, by name and shape.

    A label of the same name keeps its embedding. Another one starts as a label of the model that the run
    does not have, because labels that start apart are learnt sooner than labels that start alike. If none
    is left, it starts as "not given". So every label starts as something that the model knows.

    Args:
        model: the trained model.
        networks: those of the run by role, before spectral norms are added.
        labels: the attributes of the run's data.
        tell: called with what was copied and what is new.

    Raises:
        InputError: nothing fits the EBM.
    """
    for role, network in networks.items():
        source = model.networks.get(role)
        if network is None or source is None:
            if network is not source:
                tell(f"{role}: {'new' if source is None else 'left out'}, only one of both has one")
            continue
        old, new = source.state_dict(), network.state_dict()
        tables = _tables(network)
        fitting = {
            name
            for name, tensor in new.items()
            if name in old and old[name].shape == tensor.shape and not name.startswith(tables)
        }
        if not fitting and role == "ebm":
            raise InputError(
                f"nothing of the model's {type(source).__name__} fits this run's "
                f"{type(network).__name__}; leave --preset and --config out to take its networks"
            )
        for name in fitting:
            new[name].copy_(old[name])
        told = _copy_labels(model, source, network, labels)
        begun = [name for name in new if name not in fitting and not name.startswith(tables)]
        anew = f"; new, because shapes or names differ: {listing(begun, 4)}" if begun else ""
        tell(f"{role}: {len(fitting)} of {len(new)} tensors are the model's{anew}{told}")


def _tables(network: nn.Module) -> tuple[str, ...]:
    """The names of the label embeddings, each with a dot at its end."""
    kinds = (LabelEmbedding, OneHotEmbedding)
    return tuple(
        f"{name}." for name, module in network.named_modules() if isinstance(module, kinds)
    )


def _rows(table: Any) -> list[Tensor]:
    """The embeddings of the values of each attribute, (1 + values, dim), "not given" first."""
    if isinstance(table, LabelEmbedding):
        return [embedding.weight for embedding in table.tables]  # type: ignore[misc]
    return list(table.weight.T.split([n + 1 for n in table.num_classes]))


def _copy_labels(
    model: CDRLModel, source: nn.Module, network: nn.Module, labels: Sequence[Attribute]
) -> str:
    """Start the label embeddings; returns what to tell about them."""
    known: list[str] = []
    new: list[str] = []
    for name in {*_tables(network), *_tables(source)}:
        table, former = (_submodule(module, name[:-1]) for module in (network, source))
        owner = network.get_submodule(name[:-1].rpartition(".")[0])
        before = next(getattr(owner, layer) for layer in BEFORE_LABELS if hasattr(owner, layer))
        old = {} if former is None else dict(zip(model.labels, _rows(former), strict=True))
        if any(rows.shape[1:] != before.bias.shape for rows in old.values()):
            old, former = {}, None
        # What the model adds without labels stays, for attributes that the run does not have as well.
        ours = {} if table is None else dict(zip(labels, _rows(table), strict=True))
        names = {attribute.name for attribute in ours}
        before.bias += sum(
            rows[0] for attribute, rows in old.items() if attribute.name not in names
        )
        bias = getattr(former, "bias", torch.zeros(()))
        if isinstance(table, OneHotEmbedding):
            table.bias.copy_(bias)
        else:
            before.bias += bias
        for attribute, rows in ours.items():
            like = next((a for a in old if a.name == attribute.name), None)
            theirs = () if like is None else like.values
            spare = [value for value in theirs if value not in attribute.values]
            rows.copy_(old[like][0]) if like else rows.zero_()
            for k, value in enumerate(attribute.values, 1):
                (known if value in theirs else new).append(value)
                taken = value if value in theirs else next(iter(spare[:1]), None)
                if like and taken is not None:
                    rows[k].copy_(old[like][1 + theirs.index(taken)])
                    spare = [value for value in spare if value != taken]
    told = f"; its labels {listing(known, 4)} are kept" if known else ""
    return told + (f"; labels {listing(new, 4)} are new" if new else "")


def _submodule(module: nn.Module, name: str) -> nn.Module | None:
    return dict(module.named_modules()).get(name)
