"""nnUNetv2_train with noise and with the truth in the place of SAM2's masks: which gates are closed at its end."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import SimpleITK as sitk
import torch

pytestmark = pytest.mark.end_to_end
CPU = ("-device", "cpu")
REGIONS = ("whole tumor", "tumor core", "enhancing tumor")
SMALL = (
    "--patch-size", "24", "32", "32", "--batch-size", "2", "--base-features", "8", "--max-features", "32",
    "backbone=plans", "sam2_image_size=64", "slice_fraction=0.15", "initial_lr=1e-2",
    "num_epochs=1", "num_iterations_per_epoch=20", "num_val_iterations_per_epoch=3",
)  # fmt: skip


@pytest.fixture(scope="module")
def train(extended) -> Callable[[str], tuple[Path, str]]:
    """Folder of fold 0 and output of a training with such masks, when it is asked for."""
    extended.run("autosam2", "configure", "900", "--name", "veto", *SMALL)

    @cache
    def run(masks: str) -> tuple[Path, str]:
        trainer = f"nnUNetTrainerAutoSAM2_{masks}"
        output = extended.run("nnUNetv2_train", "900", "veto", "0", "-tr", trainer, *CPU)
        return extended.results(trainer, "veto") / "fold_0", output

    return run


def vetoed(checkpoint: Path) -> list[bool]:
    return torch.load(checkpoint, weights_only=False)["network_weights"]["fusion.seg_layers.vetoed"].tolist()


def dice(folder: Path, output: str) -> list[float]:
    """Of the regions, in the last epoch."""
    with (folder / "autosam2_progress.csv").open(newline="") as file:
        *_, row = csv.DictReader(file)
    return [float(row[f"{output} {region}"]) for region in REGIONS]


def test_noise_ends_with_closed_gates(extended, train) -> None:
    folder, output = train("Noise")
    final = folder / "checkpoint_final.pth"
    assert f"Closed gates: {', '.join(REGIONS)}, where the hybrid was below its UNet alone." in output
    assert vetoed(final) == [True] * 3
    assert f"closed gates   {', '.join(REGIONS)}\n" in extended.run("autosam2", "inspect", final)


def test_noise_ends_with_the_unets_label_maps(extended, train, tmp_path: Path) -> None:
    """Those of the same UNet in a network that has no SAM2."""
    folder, _ = train("Noise")
    model = tmp_path / folder.parent.name
    (model / "fold_0").mkdir(parents=True)
    content = torch.load(folder / "checkpoint_final.pth", weights_only=False)
    weights = content["network_weights"]
    content["network_weights"] = {name: tensor for name, tensor in weights.items() if name.startswith("unet.")}
    torch.save(content, model / "fold_0" / "checkpoint_final.pth")
    plans = json.loads((folder.parent / "plans.json").read_text())
    plans["configurations"]["veto"]["autosam2"]["enable_sam2"] = False
    (model / "plans.json").write_text(json.dumps(plans))
    shutil.copy(folder.parent / "dataset.json", model)
    validated = sorted((folder / "validation").glob("*.nii.gz"))
    cases = tmp_path / "cases"
    cases.mkdir()
    for path in validated:
        case = path.name.removesuffix(".nii.gz")
        for image in (extended.root / "raw" / "Dataset900_Phantom" / "imagesTr").glob(f"{case}_*"):
            shutil.copy(image, cases)
    extended.run(
        "nnUNetv2_predict_from_modelfolder", "-i", cases, "-o", tmp_path / "unet", "-m", model, "-f", "0", *CPU,
        "-npp", "1", "-nps", "1",
    )  # fmt: skip
    assert validated
    for path in validated:
        ours, expected = (
            sitk.GetArrayFromImage(sitk.ReadImage(each)) for each in (path, tmp_path / "unet" / path.name)
        )
        assert expected.any()
        assert (ours == expected).all()


def test_the_truth_keeps_its_gain(extended, train) -> None:
    folder, output = train("Truth")
    assert "Closed gates: none." in output
    assert vetoed(folder / "checkpoint_final.pth") == [False] * 3
    assert "closed gates   none\n" in extended.run("autosam2", "inspect", folder / "checkpoint_final.pth")
    for unet, fused in zip(dice(folder, "UNet"), dice(folder, "fused"), strict=True):
        assert fused > unet
