from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest

from nnunet_autosam2.errors import DatasetError
from nnunet_autosam2.postprocessing.folder import postprocess
from nnunet_autosam2.postprocessing.rules import Rule
from nnunet_autosam2.postprocessing.settings import Settings

LABELS = {"background": 0, "whole tumor": [1, 2, 3], "tumor core": [2, 3], "enhancing tumor": [3]}
SETTINGS = Settings(
    labels={"WT": (1, 2, 3), "TC": (2, 3), "ET": (3,)}, outside=(0,), rules={"ET": Rule(smallest_component=10)},
    found_by={},
)  # fmt: skip
AFFINE = np.diag([-1.0, 2.0, 1.5, 1.0])  # 3 mm³ a voxel


@pytest.fixture
def predictions(tmp_path: Path) -> Path:
    folder = tmp_path / "predicted"
    folder.mkdir()
    for case, enhancing in (("a", 3), ("b", 4)):
        voxels = np.zeros((8, 9, 10), np.int16)
        voxels[1:6, 1:6, 1:6] = 2
        voxels[2, 2, 2 : 2 + enhancing] = 3
        nibabel.save(nibabel.Nifti1Image(voxels, AFFINE), folder / f"{case}.nii.gz")
    (folder / "dataset.json").write_text(json.dumps({"labels": LABELS, "file_ending": ".nii.gz"}))
    (folder / "plans.json").write_text("{}")
    return folder


def test_volumes_are_in_mm_and_headers_stay(predictions: Path, tmp_path: Path):
    assert postprocess(predictions, tmp_path / "cleaned", SETTINGS) == {"a": 3, "b": 0}
    for case, left in (("a", 0), ("b", 4)):
        before, after = (nibabel.load(folder / f"{case}.nii.gz") for folder in (predictions, tmp_path / "cleaned"))
        assert (np.asanyarray(after.dataobj) == 3).sum() == left
        assert (np.asanyarray(after.dataobj) > 0).sum() == 125
        assert after.header == before.header
    assert {file.name for file in (tmp_path / "cleaned").iterdir()} == {file.name for file in predictions.iterdir()}


def test_nothing_is_written_where_labels_do_not_fit(predictions: Path, tmp_path: Path):
    other = SETTINGS.model_copy(update={"labels": {"WT": (1, 2, 4), "TC": (1, 4), "ET": (4,)}})
    with pytest.raises(
        DatasetError, match=r"dataset\.json says that labels mean WT 1 2 3; .* the rules are for WT 1 2 4"
    ):
        postprocess(predictions, tmp_path / "cleaned", other)
    (predictions / "dataset.json").unlink()
    with pytest.raises(DatasetError) as caught:
        postprocess(predictions, tmp_path / "cleaned", other)
    assert str(caught.value).splitlines() == [
        f"{predictions / case}.nii.gz has the labels 3: the rules are for 0, 1, 2, 4 alone." for case in "ab"
    ]
    assert not (tmp_path / "cleaned").exists()


def test_no_folder_and_no_files(tmp_path: Path):
    with pytest.raises(DatasetError, match="nowhere is not a folder"):
        postprocess(tmp_path / "nowhere", tmp_path / "cleaned", SETTINGS)
    with pytest.raises(DatasetError, match=r"holds no \.nii\.gz file"):
        postprocess(tmp_path, tmp_path / "cleaned", SETTINGS)
