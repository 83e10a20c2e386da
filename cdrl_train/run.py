"""A run in a folder: start or resume it, train, show its progress, write its model."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from cdrl_infer.device import usable_device
from cdrl_infer.errors import InputError, NetworkError, NumericalError
from cdrl_infer.model import CDRLModel
from cdrl_infer.storage.folder import check_replaceable, save_model
from cdrl_train.config import TrainConfig
from cdrl_train.contradiction import contradiction_curve
from cdrl_train.data.sources import data_name, load_for
from cdrl_train.data.stream import BatchStream
from cdrl_train.dry_run import duration, time_steps
from cdrl_train.engine.checkpoints import newest, writing_to
from cdrl_train.engine.distributed import by_main, main_first, make_accelerator
from cdrl_train.engine.interrupt import Stopped, StopRequest, stop_request
from cdrl_train.engine.lock import locked
from cdrl_train.engine.loop import Callbacks, Loop
from cdrl_train.engine.saving import resume
from cdrl_train.engine.state import Start
from cdrl_train.engine.trainer import Trainer
from cdrl_train.export import (
    CONFIG,
    STORED_TYPES,
    DataRecord,
    add_card,
    picture_of,
    read_record,
    record_data,
    to_model,
)
from cdrl_train.init_from import absolute_model, open_model, start_from
from cdrl_train.preview import save_samples
from cdrl_train.report import write_report
from cdrl_train.settle import absolute, settled, sized
from cdrl_train.tracking import Progress, Trackers, tell
from cdrl_train.upload import Uploads

if TYPE_CHECKING:
    from accelerate import Accelerator

Resume = Literal["yes", "auto"]
LARGE = 64 * 64  # pixels of an image whose steps are timed first, on a CPU


def train(
    config: TrainConfig,
    source: str,
    out: Path,
    *,
    device: str | None,
    trackers: Sequence[str],
    resuming: Resume | None,
    init_from: str | None,
    repo_id: str | None,
    private: bool | None,
) -> signal.Signals | None:
    """Train in a folder. The main process also shows the run and writes its model.

    Args:
        config: the run.
        source: name of the data, see `cdrl_train.data.load_images`.
        out: the folder.
        device: device to train on; None: a GPU if there is one.
        trackers: names in `cdrl_train.engine.distributed.TRACKERS`.
        resuming: None: start a run in a folder without one; "yes": continue the run that is there;
            "auto": continue it if its options are the same, or start it if there is none.
        init_from: a model whose networks a new run starts with, see `cdrl_train.init_from`.
        repo_id, private: where to upload the model, see `Uploads`.

    Returns:
        The signal that stopped this process, if the run ended because of it.

    Raises:
        CDRLError: see the exit codes of `cdrl-train`.
    """
    _check_folder(out, config, resuming)
    with ExitStack() as stack:
        accelerator = make_accelerator(
            config.precision,
            None if device is None else usable_device(device),
            trackers=trackers,
            logs=out / "logs",
        )
        stack.callback(accelerator.end_training)
        trainer = _trainer(config, source, out, accelerator, init_from)
        config = trainer.config
        untrained = to_model(trainer)  # a model that cannot be exported is refused before training
        # Before the folder is made, so that a refusal by the Hub leaves none.
        uploads = by_main(accelerator, lambda: _uploads(config, repo_id, private))
        by_main(accelerator, lambda: stack.enter_context(_claimed(out, config, resuming)))
        resumed = resuming is not None and resume(trainer)
        curves = by_main(accelerator, lambda: _begin(trainer, untrained, source, init_from))
        # Until here a signal ends the process at once; from now on there is something to save.
        stop = stack.enter_context(stop_request())
        if curves is None:  # another process shows and writes
            Loop(trainer, Callbacks(stop=stop)).run()
            return None
        progress = stack.enter_context(closing(Progress(trainer)))
        if resumed:
            tell(f"resumed at step {trainer.step} of {config.total_steps}")

        def preview(trainer: Trainer) -> None:
            try:
                picture = save_samples(trainer, stop)
                with _optional("picture for the trackers"):
                    curves.picture(picture, trainer.step)
            except Stopped:
                return
            except NumericalError as error:
                tell(f"no samples of step {trainer.step}: {error}")
            if uploads and trainer.step < config.total_steps:
                uploads.start(_exported(trainer), trainer.step)

        def log(line: dict[str, Any]) -> None:
            progress.log(line)
            with _optional("curves for the trackers"):
                curves.log(line)

        calls = Callbacks(log, _measured, preview, progress.advance, _report, stop)
        Loop(trainer, calls).run()
        done, picture = trainer.step == config.total_steps, picture_of(out, trainer.step)
        if done and resumed and not picture.is_file():  # killed after the last step
            with writing_to(out):
                preview(trainer)
        # Asked to stop, this process or another; or while the last picture was drawn.
        if not done or (stop() and not picture.is_file()):
            by = f" by {stop.signal.name}" if stop.signal else ""
            tell(f"stopped{by} at step {trainer.step}; --resume continues from it")
            return stop.signal
        _write_model(trainer, uploads, stop)
    return None


def _measured(trainer: Trainer) -> dict[str, float]:
    """The contradiction of the levels; nothing if it is not finite."""
    try:
        return contradiction_curve(trainer)
    except NumericalError as error:
        tell(f"no contradiction of step {trainer.step}: {error}")
        return {}


def _report(trainer: Trainer) -> None:
    """Write the report; an error must not hide why the run ended."""
    with _optional("report of the run"):
        write_report(trainer.folder)


@contextmanager
def _optional(what: str) -> Iterator[None]:
    """Inside the block, an error is told and does not end the run."""
    try:
        yield
    except Exception as error:
        tell(f"no {what}: {' '.join(str(error).split())[:200] or type(error).__name__}")


def _check_folder(out: Path, config: TrainConfig, resuming: Resume | None) -> None:
    """Refuse a folder that cannot take the run or its model, or that holds a run with other options."""
    for target in (out, out / "model"):
        place = next(path for path in (target, *target.absolute().parents) if path.exists())
        if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
            raise InputError(
                f"cannot write to {str(target)!r}: {place} is not a folder that is writable"
            )
    check_replaceable(out / "model")
    if resuming == "yes" or not (out / CONFIG).exists():
        return
    if resuming is None:
        raise InputError(f"{out} already holds a run: add --resume or choose another --out")
    check_same(config, TrainConfig.read(out / CONFIG), out)


def check_same(config: TrainConfig, held: TrainConfig, out: Path) -> None:
    """Refuse other options than those of the run in a folder, as far as ``config`` says any."""
    differing = config.adopting(held).assignments(held)
    if differing:
        value: Any = held.to_dict() | held.by_label()
        for key in differing[0].partition("=")[0].split("."):
            value = value.get(key)
        raise InputError(
            f"{out} holds a run whose options differ: expected {json.dumps(value)}, got {differing[0]}; "
            "give those of the run, change them by --resume with --set, or choose another --out"
        )


def _trainer(
    config: TrainConfig, source: str, out: Path, accelerator: Accelerator, init_from: str | None
) -> Trainer:
    """A trainer with its data. The main process reads them first: it may download or copy them."""
    say = tell if accelerator.is_main_process else (lambda text: None)
    with main_first(accelerator):
        fresh = newest(out / "checkpoints") is None
        model = open_model(init_from) if init_from and fresh else None
        config = sized(config, source, model, say)
        data = load_for(source, config.data)
    config = settled(config, data, say)
    stream = BatchStream(data, config.data, config.seed, accelerator.device)
    start: Start | None = None
    if model is not None:
        start = partial(start_from, model, labels=data.attributes, tell=say)
    trainer = Trainer(config, stream, out, tell, accelerator, start)
    if fresh and trainer.is_main:
        _warn_of_slow_steps(trainer)
    return trainer


def _warn_of_slow_steps(trainer: Trainer) -> None:
    """Time a step on one large image, before the first step takes minutes without a word."""
    image, config = trainer.image, trainer.config
    if trainer.device.type != "cpu" or image.height * image.width <= LARGE:
        return
    timed = next(k for k, phase in enumerate(config.phases) if phase.steps)
    with torch.random.fork_rng(devices=[]):
        timing = time_steps(
            config, timed, 1, image, trainer.stream.data.num_classes, trainer.device
        )
    phase = config.phases[timed]
    tell(
        f"a step of {phase.batch_size} images of {image.height} x {image.width} takes about "
        f"{duration(timing.seconds * phase.batch_size)} here, {phase.steps:,} steps "
        f"{duration(timing.seconds * phase.batch_size * phase.steps)}; --image-size makes images smaller"
    )


@contextmanager
def _claimed(out: Path, config: TrainConfig, resuming: Resume | None) -> Iterator[None]:
    """Inside the block the folder exists, and no other run may write to it."""
    with ExitStack() as stack:
        with _folder_at_fault(out):
            out.mkdir(parents=True, exist_ok=True)
            stack.enter_context(locked(out, tell))
            _check_folder(out, config, resuming)  # another run may have come and gone since
        yield


def _uploads(config: TrainConfig, repo_id: str | None, private: bool | None) -> Uploads | None:
    """Uploads to a repository, which is made here; None if no repository was named."""
    dtype = STORED_TYPES[config.stored_as]
    return Uploads(repo_id, private=private, dtype=dtype, tell=tell) if repo_id else None


def _begin(trainer: Trainer, model: CDRLModel, source: str, init_from: str | None) -> Trackers:
    """Write the options and a record of the data into the folder, and open the trackers."""
    config, out = trainer.config, trainer.folder
    with _folder_at_fault(out):
        config.write(out / CONFIG)
        start = init_from and absolute_model(init_from)
        labels, name = model.labels, data_name(source)
        gone = trainer.stream.data.held_out
        record_data(out, DataRecord(name, model.image, labels, absolute(source), start, gone))
        return Trackers(trainer.accelerator, config, out, trainer.step)


def _exported(trainer: Trainer) -> CDRLModel:
    """The model as it is now, with its card."""
    model, record = to_model(trainer), read_record(trainer.folder)
    start, gone = record.init_from, record.held_out
    add_card(
        model, trainer.config, trainer.folder, data=record.name, init_from=start, held_out=gone
    )
    return model


def _write_model(trainer: Trainer, uploads: Uploads | None, stop: StopRequest) -> None:
    """Write the model into the folder, and upload it if asked to."""
    folder = trainer.folder / "model"
    with writing_to(trainer.folder):
        save_model(_exported(trainer), folder, dtype=STORED_TYPES[trainer.config.stored_as])
    tell(f"model written to {folder}")
    if uploads and not uploads.finish(folder, trainer.step, stop):
        raise NetworkError(
            f"the model is in {folder} but not on the Hub; "
            f"`cdrl-hub push {folder} {uploads.repo_id}` sends it"
        )


@contextmanager
def _folder_at_fault(out: Path) -> Iterator[None]:
    """Inside the block, an error of the system says that the folder cannot be written to."""
    try:
        yield
    except OSError as error:
        raise InputError(f"cannot write to {str(out)!r}: {error.strerror or error}") from error
