from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_autosam2.dataset_conversion.brats import convert_brats
from nnunet_autosam2.dataset_conversion.phantom import write_phantom
from tests.fork_server import run

CASES = [f"phantom_{number:03d}" for number in range(1, 5)]


def autosam2(*arguments: Path | str) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("nnUNet_")}
    return run("autosam2", *arguments, variables=inherited)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two folds that predicted the truth, and in each case an enhancing tumour of 27 mm³ in the dark."""
    root = tmp_path_factory.mktemp("model")
    write_phantom(root / "brats", num_cases=4, size=(24, 26, 28), seed=1)
    dataset = convert_brats(root / "brats", 5, "Phantom", ["t1"], root / "raw").folder
    for number, case in enumerate(CASES):
        truth = sitk.ReadImage(dataset / "labelsTr" / f"{case}.nii.gz")
        voxels = sitk.GetArrayFromImage(truth)
        voxels[:3, :3, :3] = 3
        prediction = sitk.GetImageFromArray(voxels)
        prediction.CopyInformation(truth)
        file = root / "model" / f"fold_{number // 2}" / "validation" / f"{case}.nii.gz"
        file.parent.mkdir(parents=True, exist_ok=True)
        sitk.WriteImage(prediction, file)
    (root / "model" / "dataset.json").write_text((dataset / "dataset.json").read_text())
    return root / "model"


def test_what_is_found_is_applied_and_scores_as_announced(model: Path, tmp_path: Path):
    truth = model.parent / "raw" / "Dataset005_Phantom" / "labelsTr"
    tuned = autosam2("tune-postprocessing", model, truth, "-np", "2")
    assert tuned.returncode == 0, tuned.stderr
    assert "Lesion-wise Dice, all, mean of 4 cases in 2 folds" in tuned.stdout
    assert "tune WT: 100%" in tuned.stderr
    assert "WT: components below 50 mm³" in tuned.stdout.splitlines()
    file = model / "autosam2_postprocessing.json"
    written = json.loads(file.read_text())
    assert written["rules"]["WT"]["smallest_component"] == 50
    assert written["found_by"]["folds"] == {fold: {"WT": "components below 50 mm³"} for fold in ("fold_0", "fold_1")}
    before, nested = (written["found_by"]["means"]["WT"][name] for name in ("before", "nested"))
    assert (before, nested) == (pytest.approx(0.5, abs=0.2), 1)
    for fold in ("0", "1"):
        cleaned = tmp_path / f"cleaned_{fold}"
        done = autosam2("postprocess", model / f"fold_{fold}" / "validation", cleaned, "--settings", file)
        assert done.returncode == 0, done.stderr
        assert f"{cleaned}: 2 files, 2 of them changed" in done.stdout
        for prediction in cleaned.glob("*.nii.gz"):
            arrays = [sitk.GetArrayFromImage(sitk.ReadImage(each)) for each in (prediction, truth / prediction.name)]
            np.testing.assert_array_equal(*arrays)


def test_errors_are_a_line(model: Path, tmp_path: Path):
    truth = model.parent / "raw" / "Dataset005_Phantom" / "labelsTr"
    unknown = autosam2("tune-postprocessing", model, truth, "--metric", "DICE")
    assert unknown.returncode == 2
    assert "--metric 'DICE' is not possible: choose from 'Dice', 'IoU'" in unknown.stderr
    one = tmp_path / "one"
    one.mkdir()
    for side in ("p", "t"):
        (one / side).mkdir()
        (one / side / f"{CASES[0]}.nii.gz").write_bytes((truth / f"{CASES[0]}.nii.gz").read_bytes())
    alone = autosam2("tune-postprocessing", one / "p", one / "t", "--labels", "nnunet")
    assert (alone.returncode, alone.stderr) == (
        1,
        "Error: Predictions of two patients are the least that tuning and its check can do with.\n",
    )
    assert not list(one.glob("p/*.json"))
