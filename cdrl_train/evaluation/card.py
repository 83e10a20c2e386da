"""Write results into the card of a model."""

from __future__ import annotations

from pathlib import Path

from cdrl_infer.errors import CheckpointError, InputError, shown
from cdrl_infer.pipeline import CDRLPipeline
from cdrl_infer.storage.card import render, with_figures
from cdrl_infer.storage.folder import CARD, bundled_models
from cdrl_infer.untrusted import read_text
from cdrl_train.evaluation.report import Report


def card_file(model: str | None) -> Path:
    """The path of the card of a model in a local folder.

    Raises:
        InputError: the model is bundled or on the Hub.
    """
    if model is None or model in bundled_models() or not Path(model).is_dir():
        raise InputError(
            "--update-card needs a model in a folder of your own, got "
            f"{model or 'the bundled model'!r}; make a copy with pipe.save_pretrained(FOLDER)"
        )
    return Path(model) / CARD


def updated_card(pipe: CDRLPipeline, file: Path, report: Report | None = None) -> bytes:
    """The text of the card with the results of a report. Without a card, it makes a new one.

    Args:
        pipe: the model.
        file: the file of the card.
        report: the report; None adds nothing and only checks that the card can be edited.

    Raises:
        CheckpointError: the card cannot be read or edited.
    """
    text = read_text(file.parent, file.name) or render(
        pipe.model, shown(pipe.name), facts={}, text=""
    )
    entries, dataset = ([], None) if report is None else (report.card_entries(), report.dataset)
    try:
        changed = with_figures(text, entries, dataset=dataset, model=shown(pipe.name))
    except CheckpointError as error:
        raise CheckpointError(f"{file}: {error}") from error
    return changed.encode()
