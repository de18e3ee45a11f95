import os
import subprocess
from pathlib import Path

import nibabel
from scipy import ndimage

from tests.fork_server import run


def make(*arguments: object, afresh: bool = False) -> subprocess.CompletedProcess[str]:
    return run("autosam2", "make-phantom", *arguments, afresh=afresh)


def test_writes_the_cases_asked_for(tmp_path: Path):
    result = make(tmp_path / "phantom", "--cases", 2, "--size", 24, 26, 28, "--seed", 3, afresh=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout == f"{tmp_path / 'phantom'}: 2 phantom cases of 24 x 26 x 28 voxels (z, y, x)\n"
    files = sorted(path.name for path in tmp_path.glob("phantom/*/*"))
    suffixes = ("flair", "seg", "t1", "t1ce", "t2")
    assert files == [f"phantom_{case}_{suffix}.nii.gz" for case in ("001", "002") for suffix in suffixes]
    assert nibabel.load(tmp_path / "phantom" / "phantom_001" / "phantom_001_t1.nii.gz").shape == (28, 26, 24)


def test_several_tumours(tmp_path: Path):
    result = make(tmp_path / "phantom", "--cases", 1, "--size", 24, 26, 28, "--tumours", 3)
    assert result.returncode == 0, result.stderr
    labels = nibabel.load(tmp_path / "phantom" / "phantom_001" / "phantom_001_seg.nii.gz").get_fdata()
    assert ndimage.label(labels)[1] == 3


def test_errors_are_one_line_and_write_nothing(tmp_path: Path):
    result = make(tmp_path / "phantom", "--size", 8, 48, 48)
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.startswith("Error: Size (8, 48, 48) is not possible")
    assert len(result.stderr.splitlines()) == 1
    (tmp_path / "mine").touch()
    result = make(tmp_path)
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == f"Error: {tmp_path} is not empty: remove it or choose another folder.\n"
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_a_folder_whose_name_is_no_text_is_one_line(tmp_path: Path):
    """SimpleITK would end the process."""
    result = make(os.fsdecode(os.fsencode(tmp_path) + b"/\xff"), "--cases", 1, "--size", 24, 24, 24)
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.splitlines() == [
        rf"Error: {tmp_path}/\xff has a name with control characters or bytes that are not UTF-8: rename it, "
        "or choose another."
    ]
    assert list(tmp_path.iterdir()) == []
