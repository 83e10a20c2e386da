"""`cdrl-hub convert`: turn a checkpoint of the CDRL authors into a model folder."""

from __future__ import annotations

import click

from cdrl_infer.cli.hub.writing import check_target, tell, writes_a_model


@click.command()
@click.argument("file", metavar="FILE.pth.tar")
@click.argument("folder", metavar="FOLDER")
@click.option("--image-size", default=32, show_default=True, help="Height and width of the images.")
@writes_a_model
def convert(
    file: str,
    folder: str,
    image_size: int,
    dtype: str | None,
    variant: str | None,
    licence: str | None,
    datasets: tuple[str, ...],
    as_json: bool,
) -> None:
    """Convert a checkpoint of the CDRL authors.

    Example: cdrl-hub convert Cifar_10_best.pth.tar cifar10. CDRLPipeline.from_pretrained opens the
    new folder, and `cdrl-hub push` uploads it. The checkpoint is a pickle; no code in it is run.
    """
    from cdrl_infer.storage import authors as converter
    from cdrl_infer.storage.folder import save_model

    stored = check_target(folder, dtype, variant)
    model, ignored = converter.convert(
        file, image_size=image_size, licence=licence, datasets=datasets
    )
    save_model(model, folder, dtype=stored, variant=variant)
    tell(model, folder, as_json, ignored=ignored)
    if not as_json:
        click.echo(f"ignored in {file}: {', '.join(['live weights', *ignored])}", err=True)
