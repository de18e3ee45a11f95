"""`autosam2 show`: what a trained model sees, prompts and predicts on a case."""

from pathlib import Path

import click


@click.command()
@click.argument("images", type=click.Path(path_type=Path), nargs=-1, required=True)
@click.option("-m", "--model", type=click.Path(path_type=Path), required=True, help="Results folder of a hybrid.")
@click.option("-f", "--fold", default="0", show_default=True, help="Fold whose weights are used, or all.")
@click.option("--checkpoint", default="checkpoint_final.pth", show_default=True, help="File name in the fold.")
@click.option("--truth", type=click.Path(path_type=Path), help="Label file of the case, in the data set's labels.")
@click.option("-o", "--output", type=click.Path(path_type=Path), default=Path("autosam2.png"), show_default=True)
@click.option("--slices", type=int, default=4, show_default=True, help="Rows of the picture.")
@click.option("--device", default="cpu", show_default=True)
def command(
    images: tuple[Path, ...],
    model: Path,
    fold: str,
    checkpoint: str,
    truth: Path | None,
    output: Path,
    slices: int,
    device: str,
) -> None:
    """Draw the prompts and the masks of UNet, SAM2 and their fusion on one case.

    IMAGES are the files of the case, one a channel, in nnU-Net's order (CASE_0000.nii.gz CASE_0001.nii.gz ...).
    """
    from nnunet_autosam2.inspection import show_case

    positions = show_case(images, model, fold, checkpoint, truth, output, slices, device)
    click.echo(f"{output}: slices {', '.join(map(str, positions))} of the patch with the largest prediction")
