"""Plans of nnU-Net for one channel of thick slices: thin patches, a low resolution, and every planner's network."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_autosam2.architectures.planned_unet import PlannedUNet

pytestmark = pytest.mark.end_to_end
CPU = ("-device", "cpu")
CASES = 5  # as many as folds
SPACING = (3.6, 0.6, 0.6)
SMALL = ("--base-features", "4", "--max-features", "16")
SHORT = ("sam2_image_size=64", "num_epochs=1", "num_iterations_per_epoch=2", "num_val_iterations_per_epoch=1")
PLANNERS = ("ResEncM", "ResEncL", "ResEncXL", "ResEncL_torchres", "ResEncL_torchres_sepz", "_torchres")


def write_prostates(folder: Path, size: tuple[int, int, int]) -> None:
    """Cases of one channel, two labels."""
    rng = np.random.default_rng(0)
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(parents=True)
    for case in range(CASES):
        z, y, x = np.meshgrid(*(np.linspace(-1, 1, length) for length in size), indexing="ij")
        radius = np.sqrt(z**2 + (1.5 * y) ** 2 + (1.5 * x + rng.normal(0, 0.1)) ** 2)
        labels = (radius < 0.7).astype(np.uint8) + (radius < 0.4).astype(np.uint8)
        save(rng.normal(100 + 40 * labels, 10).astype(np.float32), folder / "imagesTr" / f"case{case}_0000.nii.gz")
        save(labels, folder / "labelsTr" / f"case{case}.nii.gz")
    description = {
        "channel_names": {"0": "T2"},
        "labels": {"background": 0, "rim": 1, "core": 2},
        "numTraining": CASES,
        "file_ending": ".nii.gz",
    }
    (folder / "dataset.json").write_text(json.dumps(description))


def save(volume: np.ndarray, path: Path) -> None:
    nibabel.save(nibabel.Nifti1Image(volume.T, np.diag([*reversed(SPACING), 1.0])), path)


@pytest.fixture(scope="module")
def prostates(planned) -> Path:
    """Folder of a preprocessed data set. Patches of 0.1 GB see so little of it that a low resolution is planned too."""
    write_prostates(planned.root / "raw" / "Dataset920_Prostate", (20, 128, 112))
    planned.run("nnUNetv2_extract_fingerprint", "-d", "920", "-np", "1")
    planned.run("nnUNetv2_plan_experiment", "-d", "920", "-gpu_memory_target", "0.1", "-overwrite_plans_name", "thin")
    planned.run("nnUNetv2_preprocess", "-d", "920", "-plans_name", "thin", "-c", "3d_lowres", "3d_fullres", "-np", "1")
    return planned.root / "preprocessed" / "Dataset920_Prostate"


@pytest.mark.parametrize("base", ["3d_fullres", "3d_lowres"])
def test_thin_patches_and_a_low_resolution(planned, prostates: Path, tmp_path: Path, base: str) -> None:
    configuration = json.loads((prostates / "thin.json").read_text())["configurations"][base]
    assert [1, 2, 2] in configuration["architecture"]["arch_kwargs"]["strides"]
    assert (configuration["spacing"][1] > 1) == (base == "3d_lowres")
    train_and_predict(planned, "thin", base, (), tmp_path)


@pytest.mark.slow
def test_patches_of_20_320_256_voxels(planned, tmp_path: Path) -> None:
    write_prostates(planned.root / "raw" / "Dataset921_Prostate", (20, 320, 280))
    plan = ("-d", "921", "-c", "3d_fullres", "-np", "1", "-npfp", "1", "-overwrite_plans_name", "large")
    planned.run("nnUNetv2_plan_and_preprocess", *plan)
    train_and_predict(planned, "large", "3d_fullres", ("--patch-size", "20", "320", "256"), tmp_path, "921")


def train_and_predict(
    planned, plans: str, base: str, options: tuple[str, ...], output: Path, dataset: str = "920"
) -> None:
    name, trainer = f"{base}_small", "nnUNetTrainerAutoSAM2_Plans"
    configure = ("autosam2", "configure", dataset, "-p", plans, "--base", base, "--name", name)
    planned.run(*configure, *options, *SMALL, *SHORT)
    said = planned.run("nnUNetv2_train", dataset, name, "0", "-tr", trainer, "-p", plans, *CPU)
    assert "Pseudo dice of SAM2 alone" in said
    image = planned.root / "raw" / f"Dataset{dataset}_Prostate" / "imagesTr" / "case0_0000.nii.gz"
    images = output / "images"
    images.mkdir()
    shutil.copy(image, images)
    model = ("-d", dataset, "-c", name, "-tr", trainer, "-p", plans, "-f", "0")
    planned.run("nnUNetv2_predict", *model, "-i", images, "-o", output, *CPU, "--save_probabilities", "--disable_tta")
    assert nibabel.load(output / "case0.nii.gz").shape == nibabel.load(image).shape
    np.testing.assert_allclose(np.load(output / "case0.npz")["probabilities"].sum(0), 1, atol=1e-3)


@pytest.mark.parametrize("planner", PLANNERS)
@torch.no_grad()
def test_the_network_of_every_planner_can_be_the_backbone(planned, prostates: Path, planner: str) -> None:
    """As large as it is planned, without memory for its numbers."""
    command = ("nnUNetv2_plan_experiment", "-d", "920", "-pl", f"nnUNetPlanner{planner}")
    planned.run(*command, "-overwrite_plans_name", planner)
    plans = PlansManager(json.loads((prostates / f"{planner}.json").read_text()))
    configuration = plans.get_configuration("3d_fullres")
    with torch.device("meta"):
        network = nnUNetTrainer.build_network_architecture(plans, configuration, 1, 3, True)
        volume = torch.empty(1, 1, *configuration.patch_size)
    output = PlannedUNet(network)(volume)
    assert output.logits[0].shape == (1, 3, *configuration.patch_size)
    assert [4 * side for side in output.middle_features.shape[-2:]] == list(configuration.patch_size[-2:])
