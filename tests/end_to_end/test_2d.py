"""nnU-Net's 2D configuration, with SAM2 on the network that it planned."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.end_to_end
TRAINER = "nnUNetTrainerAutoSAM2_Plans"
CPU = ("-device", "cpu")
SMALL = (
    "--batch-size", "4", "--base-features", "8", "--max-features", "32", "sam2_image_size=64", "feature_fusion=true",
    "num_epochs=1", "num_iterations_per_epoch=2", "num_val_iterations_per_epoch=1",
)  # fmt: skip


def test_it_trains_predicts_and_shows(planned, images: Path, tmp_path: Path) -> None:
    planned.run("nnUNetv2_preprocess", "-d", "900", "-c", "2d", "-np", "1")
    planned.run("autosam2", "configure", "900", "--base", "2d", "--name", "flat", *SMALL)
    said = planned.run("nnUNetv2_train", "900", "flat", "0", "-tr", TRAINER, *CPU)
    assert "Pseudo dice of UNet alone" in said
    model, output, pictures = planned.results(TRAINER, "flat"), tmp_path / "predicted", tmp_path / "pictures"
    found = planned.probabilities(model, images, output)
    assert list(found) == ["phantom_001.npz", "phantom_002.npz"]
    assert all(np.isfinite(probabilities).all() for probabilities in found.values())
    planned.run("autosam2", "show", images / "phantom_001", "-m", model, "-f", "0", "--slices", "2", "-o", pictures)
    assert list(pictures.rglob("*.png"))


def test_the_originals_unet_is_refused(planned) -> None:
    said = planned.run("nnUNetv2_train", "900", "2d", "0", "-tr", "nnUNetTrainerAutoSAM2", *CPU, expected=1)
    assert "set backbone = plans" in said
    assert "Traceback" not in said
