"""`autosam2 convert-brats`: a BraTS folder → an nnU-Net raw dataset."""

from pathlib import Path

import click


@click.command()
@click.argument("source", type=click.Path(path_type=Path))
@click.option("-d", "--dataset-id", type=int, required=True, help="ID of the new dataset, 1 to 999.")
@click.option("-n", "--name", required=True, help="Its name: the folder becomes DatasetID_NAME.")
@click.option("--modalities", help="Those to use, as in t1ce,flair. Default: t1,t1ce,t2,flair.")
@click.option("--output", type=click.Path(path_type=Path), help="Where to write. Default: $nnUNet_raw.")
def command(source: Path, dataset_id: int, name: str, modalities: str | None, output: Path | None) -> None:
    """Convert SOURCE, a folder in the layout of BraTS 2018 to 2021, to an nnU-Net raw dataset.

    SOURCE holds <case>/<case>_{t1,t1ce,t2,flair,seg}.nii.gz or .nii. Cases without seg become test cases.
    Everything is checked first; where something is wrong, nothing is written.
    """
    from nnunet_autosam2.dataset_conversion.brats import convert_brats

    chosen = None if modalities is None else [key.strip() for key in modalities.split(",")]
    dataset = convert_brats(source, dataset_id, name, chosen, output)
    click.echo(f"{dataset.folder}: channels {', '.join(dataset.channels)}")
    click.echo(f"Training cases, in imagesTr and labelsTr: {len(dataset.training_cases)}")
    if dataset.test_cases:
        names = ", ".join(dataset.test_cases)
        click.echo(f"Test cases, in imagesTs because they have no seg file: {len(dataset.test_cases)} ({names})")
