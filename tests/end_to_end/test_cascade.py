"""nnU-Net's cascade: the second stage gets the labels of the first as further channels, which SAM2 does not see."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

pytestmark = pytest.mark.end_to_end
TRAINER = "nnUNetTrainerAutoSAM2"
CPU = ("-device", "cpu")
LABELS = 3


@pytest.fixture(scope="module")
def cascade(planned) -> Path:
    """Results folder of a second stage, trained after its first; both have the voxels of `tiny`."""
    path = planned.root / "preprocessed" / "Dataset900_Phantom" / "nnUNetPlans.json"
    planned.run("autosam2", "configure", "900", "--base", "tiny", "--name", "low", "num_epochs=1")
    planned.run("autosam2", "configure", "900", "--base", "low", "--name", "cascade", "slice_axes=3")
    plans = json.loads(path.read_text())
    plans["configurations"]["low"]["next_stage"] = "cascade"
    plans["configurations"]["cascade"] |= {"previous_stage": "low", "next_stage": None}
    path.write_text(json.dumps(plans))
    # The second stage trains on what the first predicts in its validation, here of all cases.
    for stage, fold in (("low", "all"), ("cascade", "0")):
        planned.run("nnUNetv2_train", "900", stage, fold, "-tr", TRAINER, *CPU)
    return planned.results(TRAINER, "cascade")


def test_sam2_sees_the_images_alone(planned, cascade: Path) -> None:
    weights = torch.load(cascade / "fold_0" / "checkpoint_final.pth", weights_only=False)["network_weights"]
    first = next(tensor for name, tensor in weights.items() if name.startswith("unet.") and tensor.ndim == 5)
    assert first.shape[1] == 4 + LABELS
    assert weights["sam2_branch.mri_to_rgb.residual.weight"].shape[1] == 4


def test_it_predicts_from_what_the_first_stage_has_predicted(planned, cascade, images: Path, tmp_path: Path) -> None:
    def predict(stage: str, fold: str, output: Path, *options: str | Path) -> list[np.ndarray]:
        arguments = ("-d", "900", "-c", stage, "-tr", TRAINER, "-f", fold, "-i", images, "-o", output)
        planned.run("nnUNetv2_predict", *arguments, *CPU, *options, "--save_probabilities")
        return [np.load(file)["probabilities"] for file in sorted(output.glob("*.npz"))]

    assert len(predict("low", "all", tmp_path / "low")) == 2
    found = predict("cascade", "0", tmp_path / "cascade", "-prev_stage_predictions", tmp_path / "low")
    assert len(found) == 2
    assert all(np.isfinite(probabilities).all() for probabilities in found)


def test_what_needs_the_first_stage_and_does_not_have_it_says_so(planned, cascade: Path, images: Path) -> None:
    said = planned.run("autosam2", "show", images / "phantom_001", "-m", cascade, "-f", "0", expected=1)
    assert "Show a model of low" in said
    assert "Traceback" not in said
    command = ("autosam2", "benchmark", "-d", "900", "-c", "cascade", "--trainers", TRAINER, "--device", "cpu")
    said = planned.run(*command, "--viewer-cases", "0", expected=1)
    assert "cascade is the second stage of a cascade" in said
