import gzip
from pathlib import Path

import nibabel
import numpy as np
import pytest

from nnunet_autosam2.dataset_conversion.nifti import Geometry, read_volume, unknown_labels
from nnunet_autosam2.errors import DatasetError

GRID = Geometry((4, 5, 6), (1.0, 1.0, 2.0), (0.0, -239.0, 0.0), (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0))


def save(file: Path, voxels: np.ndarray) -> Path:
    nibabel.save(nibabel.Nifti1Image(voxels, np.diag([-1.0, -1.0, 2.0, 1.0])), file)
    return file


def test_voxels_and_grid_in_the_order_x_y_z(tmp_path: Path):
    written = np.arange(4 * 5 * 6, dtype=np.int16).reshape(4, 5, 6)
    geometry, voxels = read_volume(save(tmp_path / "a.nii.gz", written))
    np.testing.assert_array_equal(voxels, written)
    assert geometry.shape == (4, 5, 6)
    assert geometry.spacing == (1.0, 1.0, 2.0)


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_a_truncated_file_is_refused_by_name(tmp_path: Path, ending: str):
    file = save(tmp_path / f"cut{ending}", np.random.default_rng(0).integers(0, 999, (20, 20, 20), np.int16))
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(DatasetError, match=rf"cut{ending} cannot be read") as caught:
        read_volume(file)
    assert "\n" not in str(caught.value)


def test_what_is_no_nifti_is_refused(tmp_path: Path):
    file = tmp_path / "text.nii.gz"
    file.write_bytes(gzip.compress(b"not an image"))
    with pytest.raises(DatasetError, match=r"text\.nii\.gz cannot be read"):
        read_volume(file)


def test_four_dimensions_are_refused(tmp_path: Path):
    with pytest.raises(DatasetError, match=r"not a 3D image: its shape is \(3, 3, 3, 2\)"):
        read_volume(save(tmp_path / "4d.nii.gz", np.zeros((3, 3, 3, 2), np.int16)))


def test_differences_name_each_field_that_differs():
    assert GRID.differences(GRID) == []
    assert GRID._replace(origin=(1e-6, -239.0001, 0.0)).differences(GRID) == []
    other = GRID._replace(shape=(4, 5, 7), origin=(0.0, 0.0, 0.0))
    assert [text.split()[0] for text in other.differences(GRID)] == ["shape", "origin"]


def test_unknown_labels():
    assert unknown_labels(np.array([0, 1, 4, 2, 4], np.uint8), (0, 1, 2, 4)) == []
    assert unknown_labels(np.array([0, 7, 3, 7], np.uint8), (0, 1, 2, 4)) == [3, 7]
    assert unknown_labels(np.array([0.0, 1.0, 1.5]), (0, 1, 2, 4)) == [1.5]
