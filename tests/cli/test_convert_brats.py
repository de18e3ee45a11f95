import gzip
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest

from nnunet_autosam2.dataset_conversion.phantom import write_phantom


def run(source: Path, raw: Path | None, *options: str) -> subprocess.CompletedProcess[str]:
    """`autosam2 convert-brats` with nnU-Net's raw folder at `raw`."""
    script = shutil.which("autosam2", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    assert script is not None, "autosam2 is not installed"
    environment = {key: value for key, value in os.environ.items() if not key.startswith("nnUNet_")}
    if raw is not None:
        environment["nnUNet_raw"] = str(raw)
    command = [script, "convert-brats", str(source), "-d", "5", "-n", "Phantom", *options]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


def assert_refused(result: subprocess.CompletedProcess[str], expected: str) -> None:
    """Exit code 1 and, beside progress bars, one line that says what is wrong."""
    assert result.returncode == 1
    assert result.stdout == ""
    (line,) = [line for line in result.stderr.splitlines() if line and not line.startswith("check:")]
    assert line.startswith("Error: ")
    assert expected in line


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("phantom") / "brats"
    write_phantom(folder, num_cases=2, size=(24, 24, 24), seed=0)
    return folder


@pytest.fixture
def source(template: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(template, tmp_path / "brats"))


@pytest.mark.parametrize(
    ("options", "channels"), [([], "T1, T1ce, T2, Flair"), (["--modalities", "flair,t1ce"], "T1ce, Flair")]
)
def test_converts_and_says_what_it_did(source: Path, tmp_path: Path, options: list[str], channels: str):
    (source / "phantom_002" / "phantom_002_seg.nii.gz").unlink()
    flair = source / "phantom_001" / "phantom_001_flair.nii.gz"
    flair.with_suffix("").write_bytes(gzip.decompress(flair.read_bytes()))
    flair.unlink()
    result = run(source, tmp_path / "raw", *options)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == [
        f"{tmp_path / 'raw' / 'Dataset005_Phantom'}: channels {channels}",
        "Training cases, in imagesTr and labelsTr: 1",
        "Test cases, in imagesTs because they have no seg file: 1 (phantom_002)",
    ]
    assert len(list(tmp_path.glob("raw/Dataset005_Phantom/images*/*.nii.gz"))) == 2 * len(channels.split(", "))


def test_output_takes_the_place_of_nnunet_raw(source: Path, tmp_path: Path):
    result = run(source, None, "--output", str(tmp_path / "elsewhere"))
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "elsewhere" / "Dataset005_Phantom" / "dataset.json").is_file()


def remove_modality(source: Path) -> None:
    (source / "phantom_002" / "phantom_002_t2.nii.gz").unlink()


def crop_modality(source: Path) -> None:
    file = source / "phantom_002" / "phantom_002_t2.nii.gz"
    image = nibabel.load(file)
    nibabel.save(nibabel.Nifti1Image(np.asanyarray(image.dataobj)[:, :, :-1], image.affine), file)


def write_unknown_label(source: Path) -> None:
    file = source / "phantom_001" / "phantom_001_seg.nii.gz"
    image = nibabel.load(file)
    nibabel.save(nibabel.Nifti1Image(np.asanyarray(image.dataobj) + np.uint8(1), image.affine), file)


def truncate(source: Path) -> None:
    file = source / "phantom_001" / "phantom_001_t1.nii.gz"
    file.write_bytes(file.read_bytes()[:1000])


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (remove_modality, "phantom_002: t2 missing; to use what every case has, give --modalities t1,t1ce,flair."),
        (crop_modality, "phantom_002_t2.nii.gz does not fit phantom_002_t1.nii.gz: shape (24, 24, 23)"),
        (write_unknown_label, "phantom_001_seg.nii.gz has labels that BraTS 2018-2021 does not know: 3, 5."),
        (truncate, "phantom_001_t1.nii.gz cannot be read as NIfTI"),
        (shutil.rmtree, "brats is not a folder"),
    ],
)
def test_data_that_cannot_be_used(source: Path, tmp_path: Path, damage: Callable[[Path], None], expected: str):
    damage(source)
    assert_refused(run(source, tmp_path / "raw"), expected)
    assert not (tmp_path / "raw").exists()


def test_existing_dataset(source: Path, tmp_path: Path):
    existing = tmp_path / "raw" / "Dataset005_Phantom"
    existing.mkdir(parents=True)
    assert_refused(run(source, tmp_path / "raw"), "Dataset005_Phantom exists")
    assert list(existing.iterdir()) == []


def test_unset_raw_folder_and_unknown_modality(source: Path, tmp_path: Path):
    assert_refused(run(source, None), "nnUNet_raw is not set")
    assert_refused(run(source, tmp_path / "raw", "--modalities", "t1,dwi"), "'dwi'")
    assert not (tmp_path / "raw").exists()
