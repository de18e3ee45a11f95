"""`autosam2 make-phantom`: a synthetic data set to try things out on."""

from pathlib import Path

import click


@click.command()
@click.argument("output", type=click.Path(path_type=Path))
@click.option("--cases", type=int, default=6, show_default=True, help="Number of cases.")
@click.option(
    "--size", type=int, nargs=3, default=(40, 48, 48), show_default=True, help="Voxels of 1 mm along z, y and x."
)
@click.option("--tumours", type=int, default=1, show_default=True, help="Separate tumours a case.")
@click.option("--seed", type=int, default=0, show_default=True, help="Same seed, same cases.")
def command(output: Path, cases: int, size: tuple[int, int, int], tumours: int, seed: int) -> None:
    """Write synthetic brain MRI with tumours to the new folder OUTPUT, in the layout of BraTS 2018 to 2021."""
    from nnunet_autosam2.dataset_conversion.phantom import write_phantom

    write_phantom(output, cases, size, seed, tumours)
    click.echo(f"{output}: {cases} phantom cases of {' x '.join(map(str, size))} voxels (z, y, x)")
