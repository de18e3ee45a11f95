"""`autosam2 make-phantom`: a synthetic data set to try things out on."""

from pathlib import Path

import click


@click.command(epilog="Example: autosam2 make-phantom phantom --cases 10 --tumours 3")
@click.argument("output", type=click.Path(path_type=Path))
@click.option("--cases", type=int, default=6, show_default=True, help="Number of cases.")
@click.option(
    "--size", type=int, nargs=3, default=(40, 48, 48), show_default=True, help="Voxels of 1 mm along z, y and x."
)
@click.option("--tumours", type=int, default=1, show_default=True, help="Separate tumours a case.")
@click.option(
    "--classes", type=int, help="CT with so many organs, as a raw dataset of nnU-Net, in the place of tumours."
)
@click.option("--seed", type=int, default=0, show_default=True, help="Same seed, same cases.")
def command(output: Path, cases: int, size: tuple[int, int, int], tumours: int, classes: int | None, seed: int) -> None:
    """Write synthetic brain MRI with tumours to the new folder OUTPUT, in the layout of BraTS 2018 to 2021.

    With --classes, CT with organs: name OUTPUT as nnU-Net does, $nnUNet_raw/Dataset900_Organs.
    """
    if classes is None:
        from nnunet_autosam2.dataset_conversion.phantom import write_phantom

        write_phantom(output, cases, size, seed, tumours)
    else:
        from nnunet_autosam2.dataset_conversion.organ_phantom import write_organs

        write_organs(output, cases, size, seed, classes)
    click.echo(f"{output}: {cases} phantom cases of {' x '.join(map(str, size))} voxels (z, y, x)")
