"""The training state: networks, averages, optimizer, random numbers and counters."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from cdrl_infer.errors import CheckpointError, shown
from cdrl_infer.model import ImageShape
from cdrl_infer.networks.base import Network
from cdrl_train.config import TrainConfig
from cdrl_train.networks import build_network
from cdrl_train.objectives import Models, Objective
from cdrl_train.spectral import add_spectral_norm, folded_state

Start = Callable[[dict[str, "Network | None"]], object]


class TrainState:
    """All that the next step depends on, except the data.

    Args:
        config: the run.
        image: the shape of one image.
        num_classes: number of values of each attribute; () for an unconditional model.
        device: where the networks are.
        start: gives the fresh networks, by role, other weights than random ones.

    Attributes:
        ebm, initializer: the networks that are trained; the initializer may be None.
        objectives: one per phase. Their buffers are saved, such as the points of persistent chains.
        trained: the modules that have parameters, by name: "ebm", "initializer", and the objectives
            by the label of their phase.
        averages: their exponential moving averages.
        frozen_ebm: a copy of the EBM for Langevin chains, without gradients and spectral norm.
        optimizer: of the current phase, one group of parameters per module.
        step, images_seen, seconds: counters over all phases.
    """

    def __init__(
        self,
        config: TrainConfig,
        image: ImageShape,
        num_classes: tuple[int, ...],
        device: torch.device,
        start: Start | None = None,
    ) -> None:
        self.config = config
        self.device = device
        torch.manual_seed(config.seed)
        ebm, initializer = build_networks(config, image, num_classes)
        if start is not None:
            start({"ebm": ebm, "initializer": initializer})
        self.frozen_ebm: Any = self._place(copy.deepcopy(ebm)).requires_grad_(False).eval()
        if config.spectral_norm:
            add_spectral_norm(ebm)
        self.ebm: Any = self._place(ebm)
        self.initializer: Any = None if initializer is None else self._place(initializer)
        self.objectives = build_objectives(config, image, num_classes)
        candidates = {
            "ebm": self.ebm,
            "initializer": self.initializer,
            **dict(zip(config.labels, map(self._place, self.objectives), strict=True)),
        }
        self.trained: dict[str, nn.Module] = {
            name: module
            for name, module in candidates.items()
            if module is not None and _learns(module)
        }
        self.averages = {
            name: _averaged(module, config.ema_decay) for name, module in self.trained.items()
        }
        self.models = Models(
            self.ebm,
            self._compiled(self.frozen_ebm),
            None if self.initializer is None else self._compiled(self.initializer),
            config.schedule,
        )
        self.generator = torch.Generator(device).manual_seed(config.seed)
        self.step = self.images_seen = 0
        self.seconds = 0.0
        self.optimizer = self._new_optimizer()

    def _place(self, network: Any) -> Any:
        return network.to(device=self.device, memory_format=torch.channels_last)

    def _compiled(self, network: nn.Module) -> Any:
        return torch.compile(network) if self.config.compile else network

    @property
    def phase(self) -> int:
        """The phase of the next step, counted from 0."""
        return self.config.phase_at(self.step)[0]

    @property
    def label(self) -> str:
        """The label of that phase."""
        return self.config.labels[self.phase]

    @property
    def objective(self) -> Objective:
        """The objective of that phase."""
        return self.objectives[self.phase]

    @property
    def active(self) -> dict[str, nn.Module]:
        """The modules that the current phase trains."""
        names = ("ebm", "initializer", self.label)
        return {name: self.trained[name] for name in names if name in self.trained}

    def _new_optimizer(self) -> torch.optim.Optimizer:
        groups = [
            {"params": [*module.parameters()], "name": name} for name, module in self.active.items()
        ]
        return torch.optim.Adam(groups, fused=True if self.device.type == "cuda" else None)

    def begin_step(self, lr_scale: float) -> None:
        """Set the learning rates; at the first step of a phase, start its objective and optimizer.

        Args:
            lr_scale: multiplies all learning rates.
        """
        k, step = self.config.phase_at(self.step)
        if step == 0:
            before = {name: copy.deepcopy(m.state_dict()) for name, m in self.active.items()}
            self.objective.begin(self.objectives[:k], self.models)
            for name, module in self.active.items():
                if not _alike(before[name], module.state_dict()):
                    self.averages[name] = _averaged(module, self.config.ema_decay)
            self.optimizer = self._new_optimizer()
        rates = self.config.phases[k].learning_rates(step)
        for group in self.optimizer.param_groups:
            group["lr"] = rates.get(group["name"], rates["objective"]) * lr_scale
        self.optimizer.zero_grad(set_to_none=True)

    def refresh_frozen(self) -> None:
        """Give the frozen EBM the weights that the EBM has now."""
        self.frozen_ebm.load_state_dict(folded_state(self.ebm))

    def renew_generator(self, state: Tensor) -> None:
        """Draw from a new generator in that state."""
        self.generator = torch.Generator(self.device)
        self.generator.set_state(state)

    def learning_rates(self) -> dict[str, float]:
        """The current learning rate of each active module."""
        return {group["name"]: group["lr"] for group in self.optimizer.param_groups}

    def apply_gradients(self) -> None:
        """One optimizer step, and the averages after it."""
        active = self.active
        self.optimizer.step()
        for name, module in active.items():
            self.averages[name].update_parameters(module)

    def state_dict(self) -> dict[str, Any]:
        """The state to save. Tensors are not copied."""
        return {
            "step": self.step,
            "images_seen": self.images_seen,
            "seconds": self.seconds,
            "generator": self.generator.get_state(),
            "networks": {name: module.state_dict() for name, module in self.trained.items()},
            "averages": {name: average.state_dict() for name, average in self.averages.items()},
            "memories": [dict(objective.named_buffers()) for objective in self.objectives],
            "optimizer": self.optimizer.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state_dict`.

        Raises:
            CheckpointError: the tensors do not fit the networks.
        """
        self.step, self.images_seen = state["step"], state["images_seen"]
        self.seconds = state["seconds"]
        try:
            for stored, modules in (
                (state["networks"], self.trained),
                (state["averages"], self.averages),
            ):
                if stored.keys() != modules.keys():
                    raise KeyError(f"it has {', '.join(stored)}")
                for name, module in modules.items():
                    module.load_state_dict(stored[name])
            for objective, memory in zip(self.objectives, state.get("memories", ()), strict=False):
                objective.load_state_dict(memory, strict=False)
            if self.config.phase_at(self.step)[1]:  # else the next step makes a new one
                self.optimizer = self._new_optimizer()
                self.optimizer.load_state_dict(state["optimizer"])
        except (RuntimeError, KeyError, ValueError) as error:
            raise CheckpointError(
                f"the training state does not fit this run's options: {shown(error)}"
            ) from error
        self.generator.set_state(state["generator"])


def build_networks(
    config: TrainConfig, image: ImageShape, num_classes: tuple[int, ...]
) -> tuple[Network, Network | None]:
    """Fresh networks of a run without spectral norm: the EBM, and the initializer if it has one."""
    return (
        build_network("ebm", config.ebm, image.channels, num_classes),
        None
        if config.initializer is None
        else build_network("initializer", config.initializer, image.channels, num_classes),
    )


def build_objectives(
    config: TrainConfig, image: ImageShape, num_classes: tuple[int, ...]
) -> list[Objective]:
    """Fresh objectives of a run, one per phase."""
    objectives = [phase.make_objective() for phase in config.phases]
    for objective in objectives:
        objective.build(image, num_classes)
    return objectives


def _alike(old: Mapping[str, Tensor], new: Mapping[str, Tensor]) -> bool:
    """Whether two states of a module hold the same values."""
    return all(torch.equal(old[name], new[name]) for name in new)


def _learns(module: nn.Module) -> bool:
    """Whether the module has parameters."""
    return any(True for _ in module.parameters())


def _averaged(module: nn.Module, decay: float) -> AveragedModel:
    """``W_ema ← d W_ema + (1-d) W``, ``d = min(decay, (1+n)/(10+n))``: young averages forget fast."""
    average = AveragedModel(module).eval()

    @torch.no_grad()
    def update(averaged: Any, current: Any, count: Any) -> None:
        n = int(
            average.n_averaged
        )  # on the CPU; ``count`` is on the device, and reading it would wait
        torch._foreach_lerp_(averaged, current, 1 - min(decay, (1 + n) / (10 + n)))

    average.multi_avg_fn = update
    return average
