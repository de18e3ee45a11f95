"""`autosam2 postprocess`: takes out of segmentations what a tuning has found to be too small."""

from pathlib import Path

import click


@click.command(
    short_help="Take small components and implausible regions out of segmentations.",
    epilog="Example: autosam2 postprocess predicted cleaned --settings $MODEL/autosam2_postprocessing.json",
)
@click.argument("predictions", type=click.Path(path_type=Path))
@click.argument("output", type=click.Path(path_type=Path))
@click.option("--settings", "file", type=click.Path(path_type=Path), required=True, help="File of tune-postprocessing.")
def command(predictions: Path, output: Path, file: Path) -> None:
    """Write the segmentations in the folder PREDICTIONS to the new folder OUTPUT, without what is too small.

    A voxel that leaves a region stays in those around it: a small enhancing tumour becomes core, a core oedema.
    """
    from nnunet_autosam2.postprocessing.folder import postprocess
    from nnunet_autosam2.postprocessing.settings import read_settings

    settings = read_settings(file)
    changed = postprocess(predictions, output, settings)
    for region, rule in settings.rules.items():
        click.echo(f"{region}: taken out were {rule}")
    click.echo(f"{output}: {len(changed)} files, {sum(map(bool, changed.values()))} of them changed")
