"""`autosam2 predictions-to-brats`: nnU-Net's labels → BraTS labels."""

from pathlib import Path

import click


@click.command()
@click.argument("predictions", type=click.Path(path_type=Path))
@click.argument("output", type=click.Path(path_type=Path))
def command(predictions: Path, output: Path) -> None:
    """Convert the folder PREDICTIONS of nnUNetv2_predict to BraTS labels (0, 1, 2, 4) in the new folder OUTPUT."""
    from nnunet_autosam2.dataset_conversion.predictions import predictions_to_brats

    click.echo(f"{output}: {predictions_to_brats(predictions, output)} files with BraTS labels")
