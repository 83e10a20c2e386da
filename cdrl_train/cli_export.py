"""`cdrl-hub export`: write the model of a training run as a model folder."""

from __future__ import annotations

from pathlib import Path

import click

from cdrl_infer.cli.command import IMPORT
from cdrl_infer.cli.hub.writing import check_target, tell, writes_a_model


@click.command()
@click.argument("run", metavar="RUN", type=click.Path(path_type=Path))
@click.argument("folder", metavar="FOLDER")
@click.option("--step", type=int, metavar="N", help="Step of a checkpoint in RUN. [the newest]")
@IMPORT
@writes_a_model
def export(
    run: Path,
    folder: str,
    step: int | None,
    dtype: str | None,
    variant: str | None,
    licence: str | None,
    datasets: tuple[str, ...],
    as_json: bool,
) -> None:
    """Export the model of a training run.

    Example: cdrl-hub export runs/mine mine. RUN is the --out of cdrl-train, finished or not; the
    training data are not needed. CDRLPipeline.from_pretrained opens FOLDER, and `cdrl-hub push` uploads
    it. Without --dtype and --variant, the run's stored_as says how weights are stored.
    """
    stored = check_target(folder, dtype, variant)
    from cdrl_infer.storage.folder import save_model
    from cdrl_train.export import STORED_TYPES, export_run

    model, config = export_run(run, step, licence=licence, datasets=datasets)
    if stored is None and variant is None:
        stored = STORED_TYPES[config.stored_as]
    save_model(model, folder, dtype=stored, variant=variant)
    tell(model, folder, as_json, step=model.training["steps"])
