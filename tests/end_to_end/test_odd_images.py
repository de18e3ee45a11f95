"""Images that are constant, smaller than the patch, one slice thick, without foreground, or of other channel counts."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

pytestmark = [pytest.mark.end_to_end, pytest.mark.slow]
SHAPES = {
    "whole": (28, 34, 30),
    "constant": (26, 33, 32),
    "small": (9, 14, 30),
    "thin": (1, 20, 36),
    "healthy": (25, 32, 30),
}


def write_dataset(folder: Path, channels: int) -> None:
    """As nnU-Net wants it, axes x, y, z of nibabel reversed; exclusive labels."""
    rng = np.random.default_rng(0)
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(parents=True)
    for name, shape in SHAPES.items():
        labels = np.zeros(shape, np.uint8)
        if name == "small":
            labels[4, 7, 15] = 2  # a single voxel
        elif name != "healthy":
            labels[..., 8:15, 10:20], labels[..., 10:13, 12:16] = 1, 2
        for channel in range(channels):
            image = rng.normal(100 + 50 * labels, 10).astype(np.float32)
            if name == "constant":
                image[:] = 7
            save(image, folder / "imagesTr" / f"{name}_{channel:04d}.nii.gz")
        save(labels, folder / "labelsTr" / f"{name}.nii.gz")
    description = {
        "channel_names": {str(channel): f"contrast {channel}" for channel in range(channels)},
        "labels": {"background": 0, "rim": 1, "core": 2},
        "numTraining": len(SHAPES),
        "file_ending": ".nii.gz",
    }
    (folder / "dataset.json").write_text(json.dumps(description))


def save(volume: np.ndarray, path: Path) -> None:
    nibabel.save(nibabel.Nifti1Image(volume.T, np.eye(4)), path)


@pytest.mark.parametrize("channels", [1, 8])
def test_train_and_predict(planned, tmp_path: Path, channels: int) -> None:
    dataset = str(900 + channels)
    folder = planned.root / "raw" / f"Dataset{dataset}_Odd"
    write_dataset(folder, channels)
    planned.run("nnUNetv2_plan_and_preprocess", "-d", dataset, "-c", "3d_fullres", "-np", "1", "-npfp", "1")
    options = ("sam2_image_size=64", "num_epochs=1", "num_iterations_per_epoch=5", "num_val_iterations_per_epoch=2")
    planned.run("autosam2", "configure", dataset, "--name", "odd", "--patch-size", "24", "32", "32", *options)
    trainer = ("-tr", "nnUNetTrainerAutoSAM2")
    output = planned.run("nnUNetv2_train", dataset, "odd", "all", *trainer, "-device", "cpu")
    assert "skipped" not in output
    model = planned.root / "results" / folder.name / "nnUNetTrainerAutoSAM2__nnUNetPlans__odd"
    final = torch.load(model / "fold_all" / "checkpoint_final.pth", weights_only=False)
    assert all(tensor.isfinite().all() for tensor in final["network_weights"].values())
    assert np.isfinite(final["logging"]["train_losses"]).all()

    planned.run(
        "nnUNetv2_predict", "-d", dataset, "-c", "odd", "-f", "all", *trainer, "-i", folder / "imagesTr",
        "-o", tmp_path, "-device", "cpu", "--save_probabilities", "--disable_tta",
    )  # fmt: skip
    for name, shape in SHAPES.items():
        predicted = np.asarray(nibabel.load(tmp_path / f"{name}.nii.gz").dataobj).T
        assert predicted.shape == shape
        assert np.isfinite(np.load(tmp_path / f"{name}.npz")["probabilities"]).all()
