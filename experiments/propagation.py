"""What SAM2's memory costs and gains between the slices that SAM2 has seen, on the cases of a trained model.

A trained hybrid predicts every case by its UNet alone, with SAM2's masks interpolated, with them tracked by SAM2's
memory, and with all slices given to SAM2. The parts for video come from SAM2_CHECKPOINT, or are random where the model
was trained with random weights.

Usage: python -m experiments.propagation MODEL IMAGES LABELS [--sam2-checkpoint FILE] [--device cuda]
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from tqdm import tqdm

from nnunet_autosam2 import AutoSAM2
from nnunet_autosam2.architectures.sam2.weights import VIDEO_MEMORY, read_checkpoint
from nnunet_autosam2.config import PLANS_KEY
from nnunet_autosam2.trainers import nnUNetTrainerAutoSAM2

VARIANTS: dict[str, dict[str, Any]] = {
    "UNet alone": {"enable_sam2": False},
    "interpolated": {"propagation": "linear"},
    "tracked": {"propagation": "memory"},
    "all slices": {"propagation": "linear", "slice_fraction": 1.0},
}
FOLDERS = click.Path(exists=True, file_okay=False, path_type=Path)


@click.command()
@click.argument("model", type=FOLDERS)
@click.argument("images", type=FOLDERS)
@click.argument("labels", type=FOLDERS)
@click.option("--fold", default="0", show_default=True)
@click.option("--sam2-checkpoint", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--device", default="cpu", show_default=True)
@click.option("--step-size", default=0.75, show_default=True, help="Of the sliding window, in patches.")
def main(
    model: Path, images: Path, labels: Path, fold: str, sam2_checkpoint: Path | None, device: str, step_size: float
) -> None:
    torch.manual_seed(0)
    predictor = nnUNetPredictor(step_size, use_mirroring=False, device=torch.device(device), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(model), [fold])
    network = with_memory(predictor, sam2_checkpoint).to(device)
    trained = network.config
    names = [name for name in predictor.dataset_json["labels"] if name != "background"]
    click.echo(f"| case | masks between the slices | {' | '.join(f'Dice {name}' for name in names)} | seconds |")
    click.echo(f"| --- | --- |{' --- |' * (len(names) + 1)}")
    for truth in tqdm(sorted(labels.glob(f"*{predictor.dataset_json['file_ending']}"))):
        case = truth.name.removesuffix(predictor.dataset_json["file_ending"])
        data, segmentation = preprocessed(predictor, sorted(images.glob(f"{case}_????.*")), truth)
        for variant, changes in VARIANTS.items():
            network.config = trained.updated(changes)
            start = time.perf_counter()
            dice = score(predictor, data, segmentation)
            seconds = time.perf_counter() - start
            scores = " | ".join(f"{value:.3f}" for value in dice)
            tqdm.write(f"| {case} | {variant} | {scores} | {seconds:.0f} |")


def with_memory(predictor: nnUNetPredictor, sam2_checkpoint: Path | None) -> AutoSAM2:
    """The trained network, which keeps its weights, with the parts for video; the predictor uses it from now on."""
    predictor.configuration_manager.configuration[PLANS_KEY]["propagation"] = "memory"
    complete = nnUNetTrainerAutoSAM2.build_network_architecture(
        predictor.plans_manager,
        predictor.configuration_manager,
        len(predictor.dataset_json["channel_names"]),
        predictor.label_manager.num_segmentation_heads,
        enable_deep_supervision=False,
    )
    state = dict(predictor.list_of_parameters[0])
    if sam2_checkpoint is not None:
        official = read_checkpoint(sam2_checkpoint)
        state |= {f"sam2_branch.sam2.{k}": v for k, v in official.items() if k.split(".")[0] in VIDEO_MEMORY}
    state = {**complete.state_dict(), **state}
    complete.load_state_dict(state)
    predictor.network, predictor.list_of_parameters = complete.eval(), [state]
    return complete


def preprocessed(predictor: nnUNetPredictor, images: list[Path], truth: Path) -> tuple[torch.Tensor, np.ndarray]:
    preprocessor = predictor.configuration_manager.preprocessor_class(verbose=False)
    data, segmentation, _ = preprocessor.run_case(
        list(map(str, images)),
        str(truth),
        predictor.plans_manager,
        predictor.configuration_manager,
        predictor.dataset_json,
    )
    return torch.from_numpy(np.asarray(data)), np.asarray(segmentation)


def score(predictor: nnUNetPredictor, data: torch.Tensor, segmentation: np.ndarray) -> list[float]:
    """Dice of every region or label, in the space of the preprocessed case."""
    manager = predictor.label_manager
    logits = predictor.predict_logits_from_preprocessed_data(data).cpu()
    labels = np.asarray(manager.convert_logits_to_segmentation(logits))
    regions = manager.foreground_regions if manager.has_regions else manager.foreground_labels
    scores = []
    for region in regions:
        found, true = np.isin(labels, region), np.isin(segmentation[0], region)
        total = found.sum() + true.sum()
        scores.append(2 * (found & true).sum() / total if total else float("nan"))
    return scores


if __name__ == "__main__":
    main()
