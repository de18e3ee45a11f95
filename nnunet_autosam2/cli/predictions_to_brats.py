"""`autosam2 predictions-to-brats`: nnU-Net's labels → BraTS labels."""

from pathlib import Path

import click

from nnunet_autosam2.dataset_conversion.brats_layout import RELEASES


@click.command(epilog="Example: autosam2 predictions-to-brats predicted predicted_brats")
@click.argument("predictions", type=click.Path(path_type=Path))
@click.argument("output", type=click.Path(path_type=Path))
@click.option(
    "--release",
    type=click.Choice(list(RELEASES)),
    help="Whose labels. Default: recorded in dataset.json by convert-brats.",
)
def command(predictions: Path, output: Path, release: str | None) -> None:
    """Convert the folder PREDICTIONS of nnUNetv2_predict to its release's labels, in the new folder OUTPUT.

    nnU-Net puts dataset.json, which names the release, beside its predictions.
    """
    from nnunet_autosam2.dataset_conversion.predictions import predictions_to_brats

    converted = predictions_to_brats(predictions, output, release)
    click.echo(f"{output}: {converted.number} files with the labels of {converted.release.title}")
