"""What bfloat16 in SAM2 changes in the predictions of a trained model: Dice of each region, as in `autosam2 evaluate`.

Usage: python -m experiments.precision MODEL_FOLDER DATASET_FOLDER [--fold 0] [--device cuda]
DATASET_FOLDER, one of nnUNet_raw, has images and labels in imagesTr and labelsTr.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import click
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

from nnunet_autosam2 import AutoSAM2
from nnunet_autosam2.evaluation.numbering import numbering_of_dataset
from nnunet_autosam2.evaluation.pairs import find_pairs
from nnunet_autosam2.evaluation.scoring import evaluate
from nnunet_autosam2.evaluation.summary import summarise

PRECISIONS = ("float32", "bfloat16")
FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)


@click.command()
@click.argument("model", type=FOLDER)
@click.argument("dataset", type=FOLDER)
@click.option("--fold", default="0", show_default=True)
@click.option("--device", default="cpu", show_default=True)
def main(model: Path, dataset: Path, fold: str, device: str) -> None:
    predictor = nnUNetPredictor(device=torch.device(device), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(model), (fold,), "checkpoint_final.pth")
    network = predictor.network
    if not isinstance(network, AutoSAM2) or network.sam2_branch is None:
        raise click.ClickException(f"{model} has no SAM2 branch.")
    numbering = numbering_of_dataset(model / "dataset.json")
    scores = {}
    for precision in PRECISIONS:
        network.sam2_branch.precision = precision
        with TemporaryDirectory() as output:
            predictor.predict_from_files(
                str(dataset / "imagesTr"), output, num_processes_preprocessing=1, num_processes_segmentation_export=1
            )
            pairs = find_pairs(Path(output), dataset / "labelsTr").pairs
            summary = summarise(evaluate(pairs, numbering=numbering))
        scores[precision] = {region: metrics["Dice"].mean for region, metrics in summary.items()}
    click.echo(f"| region | {' | '.join(PRECISIONS)} | difference |\n|{' --- |' * (len(PRECISIONS) + 2)}")
    for region in scores[PRECISIONS[0]]:
        full, half = (scores[precision][region] for precision in PRECISIONS)
        if full is None or half is None:
            click.echo(f"| {region} | no case has it | | |")
        else:
            click.echo(f"| {region} | {full:.5f} | {half:.5f} | {half - full:+.5f} |")


if __name__ == "__main__":
    main()
