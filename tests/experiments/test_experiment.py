"""What the experiment on real cases asks of the package's own commands."""

from pathlib import Path

import nibabel
import numpy as np
import pytest

from experiments.experiment import METRICS, NAME, Run, evaluate, prediction_folder
from nnunet_autosam2.dataset_conversion.regions import REGIONS


def write(path: Path, labels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.Nifti1Image(labels.astype(np.uint8), np.eye(4)).to_filename(path)


def test_predictions_are_scored_by_nnunets_labels(tmp_path: Path) -> None:
    """1 is the whole tumour, 2 the core and 3 what is enhanced; BraTS has 3 otherwise."""
    truth = np.zeros((16, 16, 16))
    truth[4:12, 4:12, 4:12], truth[5:9, 5:9, 5:9], truth[6:8, 6:8, 6:8] = 1, 2, 3
    runs = {"a": Run("nnunet", 0, 0), "b": Run("upgrade", 0, 0)}
    for run, labels in zip(runs.values(), (truth, np.where(truth == 3, 2, truth)), strict=True):
        write(prediction_folder(tmp_path, run) / "case.nii.gz", labels)
    write(tmp_path / "raw" / NAME / "labelsTr" / "case.nii.gz", truth)
    scores = evaluate(tmp_path, {name: (run, "case") for name, run in runs.items()})["cases"]
    for region in REGIONS:
        assert set(METRICS) <= set(scores["a"][region])
        assert scores["a"][region]["Dice"] == pytest.approx(1)
        assert scores["b"][region]["Dice"] == pytest.approx(0 if region == "ET" else 1)
