"""`autosam2 convert-brats`: a BraTS folder → an nnU-Net raw dataset."""

from pathlib import Path

import click

from nnunet_autosam2.dataset_conversion.brats_layout import RELEASES
from nnunet_autosam2.errors import listed
from nnunet_autosam2.support.text import LINE, printable


@click.command(epilog="Example: autosam2 convert-brats /data/BraTS2021 -d 21 -n BraTS2021")
@click.argument("source", type=click.Path(path_type=Path))
@click.option("-d", "--dataset-id", type=int, required=True, help="ID of the new dataset, 1 to 999.")
@click.option("-n", "--name", required=True, help="Its name: the folder becomes DatasetID_NAME.")
@click.option("--release", type=click.Choice(list(RELEASES)), help="Default: by the names and labels in SOURCE.")
@click.option("--modalities", help="Those to use, by their file names, as in t1ce,flair. Default: all four.")
@click.option("--output", type=click.Path(path_type=Path), help="Where to write. Default: $nnUNet_raw.")
@click.option("--link", is_flag=True, help="Symbolic links to the images that nnU-Net can read as they are.")
@click.option("--skip-invalid", is_flag=True, help="Leave out the cases that cannot be used, and say why.")
def command(
    source: Path,
    dataset_id: int,
    name: str,
    release: str | None,
    modalities: str | None,
    output: Path | None,
    link: bool,
    skip_invalid: bool,
) -> None:
    """Convert SOURCE, a BraTS release or the Decathlon's Task01_BrainTumour, to an nnU-Net raw dataset.

    SOURCE holds the case folders, directly or one level deeper, or the Decathlon's imagesTr. Cases without
    segmentation become test cases. Everything is checked first; where something is wrong, no data set is written.
    After an interruption the same command goes on where it stopped, and does not check again what has stayed the same.
    """
    from nnunet_autosam2.dataset_conversion.brats import convert_brats

    chosen = None if modalities is None else [key.strip() for key in modalities.split(",")]
    dataset = convert_brats(
        source, dataset_id, name, chosen, output, release=release, link=link, skip_invalid=skip_invalid
    )
    origin = "as given" if release else "by names and labels; --release overrides"
    click.echo(f"Release: {dataset.release.name}, {dataset.release.title} ({origin})")
    click.echo(f"{dataset.folder}: channels {', '.join(dataset.channels)}")
    click.echo(f"Training cases, in imagesTr and labelsTr: {len(dataset.training_cases)}")
    for line in dataset.folds:
        click.secho(line, fg="red" if line.startswith("WARNING") else None)
    if dataset.test_cases:
        names = ", ".join(map(printable, dataset.test_cases))
        click.echo(f"Test cases, in imagesTs because they have no segmentation: {len(dataset.test_cases)} ({names})")
    if dataset.left_out:
        click.echo(
            f"Left out, with --skip-invalid: {len(dataset.left_out)} ({', '.join(map(printable, dataset.left_out))})"
        )
        for lines in dataset.left_out.values():
            click.echo("\n".join(f"  {printable(line, LINE)}" for line in lines))
    if dataset.empty:
        click.echo(f"Empty folders, which are no cases: {len(dataset.empty)} ({listed(dataset.empty)})")
