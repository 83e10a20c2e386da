"""Load a model, save it, move it and describe it: the part of the pipeline that draws nothing."""

from __future__ import annotations

import copy
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from cdrl_infer.arguments import Progress, progress_bar
from cdrl_infer.device import default_switches, usable_device
from cdrl_infer.errors import InputError, listing, quoted, shown
from cdrl_infer.habits import ATTRIBUTES, LOADING, options_of, refuse_unknown
from cdrl_infer.model import CDRLModel
from cdrl_infer.storage import hub
from cdrl_infer.storage.folder import load_model, save_model

Loaded = TypeVar("Loaded", bound="LoadedModel")
COLOURS = {1: "grey", 3: "colour"}


class LoadedModel:
    """A model in the memory of a device.

    Args:
        model: its networks are frozen and put in eval mode and channels-last layout.
        name: the model's name in messages and metadata.
    """

    @default_switches()
    def __init__(self, model: CDRLModel, name: str = "custom") -> None:
        self.model = model
        self.name = name
        self.device = torch.device("cpu")
        self._progress: Progress = None
        for network in self.model.networks.values():
            if any(tensor.is_inference() for tensor in network.parameters()):  # made in such a mode
                own = {name: tensor.clone() for name, tensor in network.state_dict().items()}
                network.load_state_dict(own, assign=True)
            network.eval().requires_grad_(False)
        self.to("cpu")

    @classmethod
    def from_pretrained(
        cls: type[Loaded],
        model: str | os.PathLike[str] | None = None,
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        local_files_only: bool = False,
        variant: str | None = None,
        subfolder: str | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        **others: Any,
    ) -> Loaded:
        """Load a model: bundled (by name; None: "fashion-mnist"), a folder, or from the Hub.

        A bundled model goes before a folder of the same name, and a folder before a repository; write
        ``./name`` for the folder.

        Args:
            model: the name of a bundled model, a folder, or a repository ``"user/model"``.
            revision: branch, tag or commit of a repository. The next three are for repositories too.
            token: gives access to private repositories; by default that of ``hf auth login``.
            cache_dir: where downloads are kept; by default in ``HF_HOME``.
            local_files_only: use the cache and no network.
            variant: which weights, such as ``"fp16"`` for ``model.fp16.safetensors``.
            subfolder: the place of the model in the folder or repository.
            dtype: of the networks; only float32 is accepted, since with fewer bits the small steps along
                the energy's gradient are lost in rounding. A variant of fewer bits loads as float32.
            device: where to put the networks; by default the CPU.
            others: refused. The error says what an argument of diffusers is called here.

        Raises:
            CheckpointError, ConfigError: see `cdrl_infer.storage.folder.load_model`.
            NetworkError: the Hub could not be reached and the cache does not hold the model.
            InputError: an argument that is not valid.
        """
        refuse_unknown(others, options_of(cls.from_pretrained), LOADING)
        check_dtype(dtype)
        place = usable_device("cpu" if device is None else device)
        texts = {"revision": revision, "variant": variant, "subfolder": subfolder}
        for name, text in {"model": model, "cache_dir": cache_dir, **texts}.items():
            kinds = (str,) if name in texts else (str, os.PathLike)
            if text is not None and not isinstance(text, kinds):
                raise InputError(f"{name} must be a text, got {quoted(text)}")
        found = hub.find(
            model,
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            variant=variant,
            subfolder=subfolder,
        )
        return cls(load_model(found.folder, variant=variant), name=found.name).to(place)

    def save_pretrained(
        self, folder: str | os.PathLike[str], *, variant: str | None = None
    ) -> None:
        """Write a folder for `from_pretrained`; see `cdrl_infer.storage.folder.save_model`."""
        save_model(self.model, folder, variant=variant)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        token: str | bool | None = None,
        revision: str | None = None,
        create_pr: bool = False,
        commit_message: str | None = None,
        variant: str | None = None,
        overwrite_card: bool = False,
    ) -> str:
        """Upload the model to ``user/model`` in one commit; returns the commit's address.

        See `cdrl_infer.storage.hub.push` for the arguments and errors.
        """
        hub.check_push(repo_id, revision=revision, create_pr=create_pr)
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / "model"
            self.save_pretrained(folder, variant=variant)
            pushed = hub.push(
                folder,
                repo_id,
                private=private,
                token=token,
                revision=revision,
                create_pr=create_pr,
                commit_message=commit_message,
                overwrite_card=overwrite_card,
            )
        return pushed.url

    @default_switches()
    def to(self: Loaded, device: torch.device | str, dtype: torch.dtype | None = None) -> Loaded:
        """Move the networks and return self.

        Args:
            device: such as ``"cuda"``.
            dtype: as for `from_pretrained`.

        Raises:
            InputError: there is no such device here, or the dtype is not float32.
        """
        check_dtype(device if isinstance(device, torch.dtype) else dtype)
        place = usable_device("cpu" if isinstance(device, torch.dtype) else device)
        for network in self.model.networks.values():
            network.to(device=place, memory_format=torch.channels_last)
        self.device = place
        return self

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the networks, float32."""
        return torch.float32

    @property
    def components(self) -> dict[str, Any]:
        """The parts of the model by name: ebm, initializer (None for DRL) and schedule."""
        model = self.model
        return {"ebm": model.ebm, "initializer": model.initializer, "schedule": model.schedule}

    @property
    def config(self) -> dict[str, Any]:
        """The model's options, as ``config.json`` holds them; changing the dict changes nothing."""
        names = {"_class_name": type(self).__name__, "_name_or_path": self.name}
        return {**names, **copy.deepcopy(self.model.config())}

    def set_progress_bar_config(self, **options: Any) -> None:
        """Choose how the bars of all calls look, by options of ``tqdm``; no options: as at first.

        ::

            pipe.set_progress_bar_config(disable=True)
            pipe.set_progress_bar_config(desc="drawing", leave=False)

        A call that is given ``progress`` goes its own way.

        Raises:
            InputError: tqdm has no such option.
        """
        progress_bar({**options, "disable": True})  # raises for an unknown one
        self._progress = options or None

    def __repr__(self) -> str:
        model = self.model
        labels = [
            f"{shown(one.name, 40)}: {listing((shown(v, 40) for v in one.values), 10)}"
            for one in model.labels
        ]
        image, steps = model.image, model.sampler.langevin_steps
        colour = COLOURS.get(image.channels, f"{image.channels} channels")
        sizes = {
            role: sum(p.numel() for p in network.parameters())
            for role, network in model.networks.items()
        }
        parts = ", ".join(f"{role} {size:,}" for role, size in sizes.items())
        statistics = model.statistics
        rows = {
            "classes": "; ".join(labels) or "none: unconditional",
            "images": f"{image.height} x {image.width} (height x width), {colour}",
            "levels": f"{model.schedule.num_levels}, with K = {steps} Langevin steps",
            "parameters": f"{sum(sizes.values()):,} ({parts})",
            "device": f"{self.device}, {self.dtype}".replace("torch.", ""),
            "calibrated": "no"
            if statistics is None
            else f"on {statistics.count:,} images of {shown(statistics.data, 60)}",
        }
        head = f"{type(self).__name__} {shown(self.name, 80)!r}"
        return "\n".join([head, *(f"  {name + ':':11} {text}" for name, text in rows.items())])

    if not TYPE_CHECKING:  # type checkers would allow every name

        def __getattr__(self, name: str) -> Any:
            text = f"{type(self).__name__!r} object has no attribute {name!r}"
            hint = f"; {ATTRIBUTES[name]}" if name in ATTRIBUTES else ""
            raise AttributeError(text + hint)


def check_dtype(dtype: object) -> None:
    """Raise InputError unless the dtype is None or float32."""
    if dtype is not None and dtype is not torch.float32:
        raise InputError(
            f"dtype must be torch.float32, in which energies are computed, got {quoted(dtype)}; "
            "for a smaller download choose a variant"
        )
