"""CT of one channel with 25 exclusive classes, from a phantom to predictions, by nnU-Net's commands."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

pytestmark = pytest.mark.end_to_end
TRAINER = "nnUNetTrainerAutoSAM2"
CLASSES = 25
CPU = ("-device", "cpu")
SMALL = (
    "--patch-size", "32", "32", "32", "--batch-size", "2", "sam2_image_size=64", "regions_per_slice=4", "num_epochs=2",
    "num_iterations_per_epoch=2", "num_val_iterations_per_epoch=1",
)  # fmt: skip


def test_ct_with_25_classes(planned, tmp_path: Path) -> None:
    raw = planned.root / "raw" / "Dataset925_Organs"
    planned.run("autosam2", "make-phantom", raw, "--classes", str(CLASSES), "--cases", "5", "--size", "32", "36", "40")
    planned.run("nnUNetv2_plan_and_preprocess", "-d", "925", "-c", "3d_fullres", "-np", "1", "-npfp", "1")
    path = planned.root / "preprocessed" / raw.name / "nnUNetPlans.json"
    plans = json.loads(path.read_text())
    assert plans["configurations"]["3d_fullres"]["normalization_schemes"] == ["CTNormalization"]
    planned.run("autosam2", "configure", "925", "--name", "tiny", *SMALL)
    said = planned.run("nnUNetv2_train", "925", "tiny", "0", "-tr", TRAINER, *CPU)
    assert "Pseudo dice of SAM2 alone" in said

    images = tmp_path / "images"
    images.mkdir()
    shutil.copy(raw / "imagesTr" / "organs_001_0000.nii.gz", images)
    options = ("-d", "925", "-c", "tiny", "-tr", TRAINER, "-f", "0", "-i", images, "-o", tmp_path / "predicted")
    planned.run("nnUNetv2_predict", *options, *CPU, "--save_probabilities")
    labels = sitk.GetArrayFromImage(sitk.ReadImage(tmp_path / "predicted" / "organs_001.nii.gz"))
    assert labels.max() <= CLASSES
    probabilities = np.load(tmp_path / "predicted" / "organs_001.npz")["probabilities"]
    assert len(probabilities) == CLASSES + 1
    np.testing.assert_allclose(probabilities.sum(0), 1, atol=1e-3)
