from pathlib import Path

import nibabel
import numpy as np
import pytest

from nnunet_autosam2.dataset_conversion.brats import convert_brats
from nnunet_autosam2.dataset_conversion.predictions import predictions_to_brats
from nnunet_autosam2.errors import DatasetError


def assert_round_trip_is_exact(source: Path, modalities: list[str] | None, tmp_path: Path) -> None:
    """BraTS labels → nnU-Net's → BraTS labels, voxels and grid."""
    dataset = convert_brats(source, 5, "RoundTrip", modalities, tmp_path)
    number = predictions_to_brats(dataset.folder / "labelsTr", tmp_path / "back")
    assert number == len(dataset.training_cases) == len(list((tmp_path / "back").iterdir()))
    for case in dataset.training_cases:
        before = nibabel.load(source / case / f"{case}_seg.nii.gz")
        after = nibabel.load(tmp_path / "back" / f"{case}.nii.gz")
        np.testing.assert_array_equal(np.asanyarray(after.dataobj), np.asanyarray(before.dataobj))
        np.testing.assert_allclose(after.affine, before.affine, atol=1e-5)


def test_round_trip_of_phantom_labels(source: Path, tmp_path: Path):
    assert_round_trip_is_exact(source, None, tmp_path)


@pytest.mark.real_data
@pytest.mark.parametrize(("folder", "modalities"), [("brats2013", ["t1ce", "flair"]), ("tcga_lgg", None)])
def test_round_trip_of_real_labels(real_data: Path, tmp_path: Path, folder: str, modalities: list[str] | None):
    assert_round_trip_is_exact(real_data / folder, modalities, tmp_path)


def test_only_segmentations_are_read(source: Path, tmp_path: Path):
    labels = convert_brats(source, 5, "Phantom", output=tmp_path).folder / "labelsTr"
    (labels / "plans.json").write_text("{}")
    (labels / "phantom_001.npz").touch()
    assert predictions_to_brats(labels, tmp_path / "back") == 2


def test_unknown_labels_and_damaged_files_are_named_and_nothing_is_written(source: Path, tmp_path: Path):
    labels = convert_brats(source, 5, "Phantom", output=tmp_path).folder / "labelsTr"
    brats = source / "phantom_001" / "phantom_001_seg.nii.gz"
    (labels / "in_brats_labels.nii.gz").write_bytes(brats.read_bytes())
    (labels / "damaged.nii.gz").write_bytes(brats.read_bytes()[:-100])
    with pytest.raises(DatasetError) as caught:
        predictions_to_brats(labels, tmp_path / "back")
    damaged, unknown = str(caught.value).splitlines()
    assert "damaged.nii.gz cannot be read" in damaged
    assert "in_brats_labels.nii.gz has the labels 4:" in unknown
    assert not (tmp_path / "back").exists()


def test_folders_that_do_not_fit_are_refused(source: Path, tmp_path: Path):
    with pytest.raises(DatasetError, match="nowhere is not a folder"):
        predictions_to_brats(tmp_path / "nowhere", tmp_path / "back")
    with pytest.raises(DatasetError, match=r"holds no \.nii\.gz file"):
        predictions_to_brats(source, tmp_path / "back")
    with pytest.raises(DatasetError, match="is not empty"):
        predictions_to_brats(source / "phantom_001", source)
    assert not (tmp_path / "back").exists()
