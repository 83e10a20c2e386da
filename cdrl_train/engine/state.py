"""The training state: all that the next step depends on, from a trainer to its folder and back."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from cdrl_infer.errors import CheckpointError, listing
from cdrl_train.engine import checkpoints
from cdrl_train.engine.distributed import by_main, gathered, main_first

if TYPE_CHECKING:
    from cdrl_train.engine.trainer import Trainer

FORMAT = 2
NETWORKS = ("ebm", "initializer", "ebm_ema", "initializer_ema")


def snapshot(trainer: Trainer) -> dict[str, Any]:
    """Everything the next step depends on; of several processes, on this one. Tensors are not copied."""
    return {
        "format": FORMAT,
        "data": trainer.data_fingerprint,
        "step": trainer.step,
        "images_seen": trainer.images_seen,
        "seconds": trainer.seconds,
        "stream": trainer.stream.state(),
        "generator": trainer.generator.get_state(),
        "global_generators": [_global_generator(trainer.device).get_state()],
        "metrics": {"sums": trainer.metrics.sums, "counts": trainer.metrics.counts},
        "halvings": trainer.guard.halvings,
        "log_lines": len(trainer.log.rows()),
        **{name: getattr(trainer, name).state_dict() for name in NETWORKS},
        "optimizers": [optimizer.state_dict() for optimizer in trainer.optimizers],
    }


def restore(trainer: Trainer, state: dict[str, Any]) -> None:
    """The inverse of `snapshot`.

    Raises:
        CheckpointError: another format, other data, more steps than the run has, or tensors that do not
            fit its networks.
    """
    _check(trainer, state)
    try:
        for name in NETWORKS:
            getattr(trainer, name).load_state_dict(state[name])
        for optimizer, saved in zip(trainer.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
    except (RuntimeError, KeyError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"the training state does not fit this run's options: {reason}"
        ) from error
    trainer.step, trainer.images_seen = state["step"], state["images_seen"]
    trainer.seconds = state["seconds"]
    trainer.stream.load_state(state["stream"])
    trainer.generator.set_state(state["generator"])
    own, generators = trainer.accelerator.process_index, state["global_generators"]
    if own < len(generators):
        _global_generator(trainer.device).set_state(generators[own])
    else:  # a process more than the run had
        seed_global_generator(trainer)
    trainer.metrics.sums = dict(state["metrics"]["sums"])
    trainer.metrics.counts = dict(state["metrics"]["counts"])
    trainer.guard.halvings = state["halvings"]
    trainer.saved_step = trainer.step


def _check(trainer: Trainer, state: dict[str, Any]) -> None:
    """What can be known before anything of the trainer is changed."""
    if state.get("format") != FORMAT:
        raise CheckpointError(
            f"training state has format {state.get('format')}, this version reads {FORMAT}"
        )
    if state["data"] != trainer.data_fingerprint:
        raise CheckpointError(
            f"this run was trained on data with fingerprint {state['data']}, the data given has "
            f"{trainer.data_fingerprint}; resume with the same images"
        )
    if state["step"] > trainer.total_steps:
        raise CheckpointError(
            f"the training state is that of step {state['step']}, the options end the run at step "
            f"{trainer.total_steps}; raise cooperative.steps or warm_start.steps"
        )


def save(trainer: Trainer) -> Path:
    """Write the whole state; resuming from it continues to the bit on the same device.

    Raises:
        CheckpointError: the disk is full or refuses the file.
    """
    folder = trainer.folder / "checkpoints"
    generators = gathered(trainer.accelerator, _global_generator(trainer.device).get_state())

    def write() -> None:
        state = {**snapshot(trainer), "global_generators": generators}
        checkpoints.save(folder, trainer.step, state, trainer.config.keep_checkpoints)

    by_main(trainer.accelerator, write)
    trainer.saved_step = trainer.step
    return checkpoints.path_of(folder, trainer.step)


def newest(trainer: Trainer) -> checkpoints.Loaded | None:
    """The newest state that is whole; the main process first, since it renames damaged ones.

    Raises:
        CheckpointError: there are checkpoints, and none can be used; or the processes see different ones.
    """
    folder = trainer.folder / "checkpoints"
    with main_first(trainer.accelerator):
        found = checkpoints.load_newest(folder, trainer.tell)
    mine = torch.tensor(-1 if found is None else found.state["step"])
    steps = [int(step) for step in gathered(trainer.accelerator, mine)]
    if len(set(steps)) > 1:
        raise CheckpointError(
            f"the processes see different checkpoints in {folder}, of steps {listing(steps)} (-1: "
            "none); choose an --out on a disk that all of them share"
        )
    return found


def resume(trainer: Trainer) -> bool:
    """Continue from the newest checkpoint of the folder that is whole, if there is one.

    The log's lines after it are dropped: their steps were lost and will be done again.

    Raises:
        CheckpointError: there are checkpoints, and all are damaged, or they are of another run; or the
            disk is full.
    """
    found = newest(trainer)
    if found is not None:
        restore(trainer, found.state)
    logged = found.state["log_lines"] if found else 0
    with checkpoints.writing_to(trainer.folder):
        by_main(trainer.accelerator, lambda: trainer.log.cut(logged))
    return found is not None


def seed_global_generator(trainer: Trainer) -> None:
    """For dropout, the one thing that each process draws for itself."""
    own = 1_000_003 * trainer.accelerator.process_index
    _global_generator(trainer.device).manual_seed(trainer.config.seed + own + trainer.step)


def _global_generator(device: torch.device) -> torch.Generator:
    """The generator that layers such as dropout draw from."""
    if device.type != "cuda":
        return torch.default_generator
    index = torch.cuda.current_device() if device.index is None else device.index
    return torch.cuda.default_generators[index]
