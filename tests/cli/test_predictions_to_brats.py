import subprocess
from pathlib import Path

import nibabel
import numpy as np
import pytest

from tests.fork_server import run


def convert(*arguments: Path | str, afresh: bool = False) -> subprocess.CompletedProcess[str]:
    return run("autosam2", "predictions-to-brats", *arguments, afresh=afresh)


@pytest.fixture
def predictions(tmp_path: Path) -> Path:
    folder = tmp_path / "predictions"
    folder.mkdir()
    labels = np.arange(4, dtype=np.uint8).repeat(16).reshape(4, 4, 4)
    nibabel.save(nibabel.Nifti1Image(labels, np.eye(4)), folder / "case.nii.gz")
    (folder / "dataset.json").write_text('{"brats_release": "2018-2021"}')
    return folder


def test_labels_of_brats(predictions: Path, tmp_path: Path):
    result = convert(predictions, tmp_path / "brats", afresh=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout == f"{tmp_path / 'brats'}: 1 files with the labels of BraTS 2018-2021\n"
    assert sorted(file.name for file in (tmp_path / "brats").iterdir()) == ["case.nii.gz", "dataset.json"]
    labels = np.asanyarray(nibabel.load(tmp_path / "brats" / "case.nii.gz").dataobj)
    np.testing.assert_array_equal(labels[:, 0, 0], [0, 2, 1, 4])


def test_a_release_that_is_not_recorded_has_to_be_given(predictions: Path, tmp_path: Path):
    (predictions / "dataset.json").write_text("{}")
    result = convert(predictions, tmp_path / "brats")
    assert result.returncode == 1
    assert "dataset.json does not say which release the labels came from: give --release" in result.stderr
    result = convert(predictions, tmp_path / "brats", "--release", "2023-gli")
    assert result.returncode == 0, result.stderr
    assert result.stdout.endswith("labels of BraTS 2023 GLI\n")
    labels = np.asanyarray(nibabel.load(tmp_path / "brats" / "case.nii.gz").dataobj)
    np.testing.assert_array_equal(labels[:, 0, 0], [0, 2, 1, 3])


def test_unknown_label_is_one_line_and_nothing_is_written(predictions: Path, tmp_path: Path):
    nibabel.save(nibabel.Nifti1Image(np.full((4, 4, 4), 9, np.uint8), np.eye(4)), predictions / "other.nii.gz")
    result = convert(predictions, tmp_path / "brats")
    assert result.returncode == 1
    (line,) = [line for line in result.stderr.splitlines() if line and not line.startswith("check:")]
    assert line.startswith(f"Error: {predictions / 'other.nii.gz'} has the labels 9:")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["predictions"]


def test_output_with_files_in_it_is_left_alone(predictions: Path, tmp_path: Path):
    result = convert(predictions, tmp_path)
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == f"Error: {tmp_path} is not empty: remove it or choose another folder.\n"
    assert [path.name for path in tmp_path.iterdir()] == ["predictions"]


def test_labels_are_not_converted_twice(predictions: Path, tmp_path: Path):
    """In 2023's numbers a second time would fit as well, and 1 and 2 would change places."""
    assert convert(predictions, tmp_path / "brats", "--release", "2023-gli").returncode == 0
    for options in ((), ("--release", "2023-gli")):
        result = convert(tmp_path / "brats", tmp_path / "again", *options)
        assert result.returncode == 1
        assert "says that the labels beside it are those of 2023-gli already" in result.stderr
        assert not (tmp_path / "again").exists()
