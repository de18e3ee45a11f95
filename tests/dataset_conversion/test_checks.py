import gzip
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest

from nnunet_autosam2.dataset_conversion.brats import convert_brats
from nnunet_autosam2.errors import DatasetError


def voxels(file: Path) -> np.ndarray:
    return np.asanyarray(nibabel.load(file).dataobj)


def overwrite(file: Path, values: np.ndarray, affine: np.ndarray | None = None) -> None:
    nibabel.save(nibabel.Nifti1Image(values, nibabel.load(file).affine if affine is None else affine), file)


def assert_refused(source: Path, output: Path, *expected: str) -> None:
    """One line for each of `expected`, in this order, a last one with the remedy, and no data set."""
    with pytest.raises(DatasetError) as caught:
        convert_brats(source, 5, "Phantom", output=output)
    *lines, remedy = str(caught.value).splitlines()
    assert "Cases that cannot be used" in remedy
    assert len(lines) == len(expected), lines
    for line, part in zip(lines, expected, strict=True):
        assert part in line
    assert_only_checks(output, "Dataset005_Phantom")


def assert_only_checks(output: Path, dataset: str) -> None:
    """What was found is all that is kept."""
    hidden = output / f".{dataset}_unfinished"
    assert sorted(path for path in output.rglob("*")) == [hidden, hidden / "checks.jsonl"]


def test_all_problems_come_at_once(source: Path, tmp_path: Path):
    first, second = source / "phantom_001", source / "phantom_002"
    t1ce = voxels(first / "phantom_001_t1ce.nii.gz")
    overwrite(first / "phantom_001_t1ce.nii.gz", t1ce[:-1])
    overwrite(first / "phantom_001_t2.nii.gz", t1ce, np.diag([-1.0, -1.0, 2.0, 1.0]))
    labels = voxels(first / "phantom_001_seg.nii.gz").copy()
    labels[0, 0, 0] = 3
    overwrite(first / "phantom_001_seg.nii.gz", labels)
    overwrite(second / "phantom_002_t1.nii.gz", np.full_like(t1ce, 7))
    (second / "phantom_002_t1ce.nii.gz").unlink()
    overwrite(second / "phantom_002_t2.nii.gz", np.where(t1ce == t1ce.max(), np.nan, t1ce).astype(np.float32))
    flair = second / "phantom_002_flair.nii.gz"
    flair.write_bytes(flair.read_bytes()[:-500])
    shutil.copytree(second, source / "HGG" / "phantom_003")
    for file in (source / "HGG" / "phantom_003").iterdir():
        file.rename(file.with_name(file.name.replace("002", "003")))
    assert_refused(
        source,
        tmp_path / "raw",
        "phantom_001_t1ce.nii.gz does not fit phantom_001_t1.nii.gz: shape (27, 26, 24) and not (28, 26, 24).",
        "phantom_001_t2.nii.gz does not fit phantom_001_t1.nii.gz: spacing",
        "phantom_001_t2.nii.gz does not fit phantom_001_t1.nii.gz: origin",
        "phantom_001_seg.nii.gz has labels that BraTS 2018-2021 does not know: 3. It knows 0, 1, 2, 4.",
        "phantom_002_t1.nii.gz is empty: every voxel is 7.",
        "phantom_002_t1ce.nii.gz is missing.",
        "phantom_002_t2.nii.gz has voxels that are infinite or not a number.",
        "phantom_002_flair.nii.gz cannot be read",
        "phantom_003_t1.nii.gz is empty: every voxel is 7.",
        "phantom_003_t1ce.nii.gz is missing.",
        "phantom_003_t2.nii.gz has voxels that are infinite or not a number.",
        "phantom_003_flair.nii.gz cannot be read",
    )


def test_the_odd_file_is_named_also_when_it_is_the_first(source: Path, tmp_path: Path):
    file = source / "phantom_001" / "phantom_001_t1.nii.gz"
    shifted = nibabel.load(file).affine
    shifted[0, 3] += 0.01
    overwrite(file, voxels(file), shifted)
    assert_refused(source, tmp_path / "raw", "phantom_001_t1.nii.gz does not fit phantom_001_t1ce.nii.gz: origin")


def test_rounding_of_positions_is_tolerated(source: Path, tmp_path: Path):
    file = source / "phantom_001" / "phantom_001_t1.nii.gz"
    rounded = nibabel.load(file).affine
    rounded[0, 3] += 0.0005
    overwrite(file, voxels(file), rounded)
    assert convert_brats(source, 5, "Phantom", output=tmp_path / "raw").left_out == {}


def test_ambiguous_files_and_cases_are_refused(source: Path, tmp_path: Path):
    case = source / "phantom_001"
    (case / "phantom_001_t1.nii").write_bytes(gzip.decompress((case / "phantom_001_t1.nii.gz").read_bytes()))
    shutil.copytree(source / "phantom_002", source / "HGG" / "phantom_002")
    assert_refused(
        source, tmp_path / "raw", "phantom_001_t1.nii both exist: remove one.", "phantom_002 is there 2 times"
    )


def test_invalid_cases_can_be_left_out(source: Path, tmp_path: Path):
    (source / "phantom_002" / "phantom_002_t2.nii.gz").unlink()
    with pytest.raises(DatasetError, match=r"--skip-invalid leaves them out, 1 remain. --modalities t1,t1ce,flair"):
        convert_brats(source, 5, "Phantom", output=tmp_path / "raw")
    dataset = convert_brats(source, 5, "Phantom", output=tmp_path / "raw", skip_invalid=True)
    assert dataset.training_cases == ["phantom_001"]
    assert dataset.left_out == {"phantom_002": [f"{source}/phantom_002/phantom_002_t2.nii.gz is missing."]}
    assert len(list(dataset.folder.glob("*Tr/*.nii.gz"))) == 5
    (source / "phantom_001" / "phantom_001_t1.nii.gz").unlink()
    with pytest.raises(DatasetError, match="Cases that cannot be used: 2") as caught:
        convert_brats(source, 6, "Nothing", output=tmp_path / "raw", skip_invalid=True)
    assert "--skip-invalid" not in str(caught.value)
    names = sorted(path.name for path in (tmp_path / "raw").iterdir())
    assert names == [".Dataset006_Nothing_unfinished", "Dataset005_Phantom"]


def test_ambiguous_labels_ask_for_the_release(publish: Callable[[str], Path], tmp_path: Path):
    folder = publish("PED2023")
    (folder / "BraTS-PED-00002-000" / "BraTS-PED-00002-000-t1n.nii.gz").unlink()
    with pytest.raises(DatasetError) as caught:
        convert_brats(folder, 5, "Children", output=tmp_path / "raw", skip_invalid=True)
    ambiguous, missing, summary = str(caught.value).splitlines()
    assert "give --release 2023-ped or --release 2024-ped" in ambiguous
    assert missing.endswith("BraTS-PED-00002-000-t1n.nii.gz is missing.")
    assert summary.startswith("Cases that cannot be used: 1.")
    assert_only_checks(tmp_path / "raw", "Dataset005_Children")


def test_only_what_has_changed_is_checked_again(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    missing = source / "phantom_002" / "phantom_002_t2.nii.gz"
    aside = missing.rename(tmp_path / "aside")
    for total in (2, None):
        with pytest.raises(DatasetError, match=r"phantom_002_t2.nii.gz is missing.*\n.*What was found is kept in"):
            convert_brats(source, 5, "Phantom", output=tmp_path / "raw")
        said = capsys.readouterr().err
        assert f"{total}/{total}" in said if total else "check:" not in said
    kept = tmp_path / "raw" / ".Dataset005_Phantom_unfinished" / "checks.jsonl"
    kept.write_text(kept.read_text() + '["cut o')
    aside.rename(missing)
    assert len(convert_brats(source, 5, "Phantom", output=tmp_path / "raw").training_cases) == 2
    said = capsys.readouterr().err
    assert "check: 100%" in said
    assert "| 1/1" in said
    assert [path.name for path in (tmp_path / "raw").iterdir()] == ["Dataset005_Phantom"]


def test_names_that_are_no_text_are_one_line_each(source: Path, tmp_path: Path):
    bad = os.fsencode(source / "caf") + b"\xe9\n"
    shutil.copytree(source / "phantom_002", os.fsdecode(bad))
    for name in os.listdir(bad):
        os.rename(bad + b"/" + name, bad + b"/" + name.replace(b"phantom_002", b"caf\xe9\n"))
    dataset = convert_brats(source, 5, "Phantom", output=tmp_path / "raw", skip_invalid=True)
    assert dataset.training_cases == ["phantom_001", "phantom_002"]
    (lines,) = dataset.left_out.values()
    assert len(lines) == 5
    assert all(line.isprintable() and r"caf\xe9\n has a name" not in line and "rename it" in line for line in lines)


def test_noise_in_labels_is_rounded(source: Path, tmp_path: Path):
    """A scale factor in the header leaves it."""
    file = source / "phantom_001" / "phantom_001_seg.nii.gz"
    labels = voxels(file)
    overwrite(file, (labels * np.float32(1.0000001)).astype(np.float32))
    other = source / "phantom_002" / "phantom_002_seg.nii.gz"
    overwrite(other, np.where(voxels(other) == 4, 3.9999998, voxels(other)).astype(np.float64))
    folder = convert_brats(source, 5, "Phantom", output=tmp_path / "raw").folder
    expected = np.array([0, 2, 1, 255, 3])[labels]
    np.testing.assert_array_equal(voxels(folder / "labelsTr" / "phantom_001.nii.gz"), expected)
    assert set(np.unique(voxels(folder / "labelsTr" / "phantom_002.nii.gz"))) == {0, 1, 2, 3}
    overwrite(file, np.where(labels == 4, 2.5, labels).astype(np.float32))
    with pytest.raises(DatasetError, match=r"does not know: 2\.5\. It knows 0, 1, 2, 4\."):
        convert_brats(source, 6, "Phantom", output=tmp_path / "raw")


def test_problems_of_the_decathlon(publish: Callable[[str], Path], tmp_path: Path):
    folder = publish("Decathlon")
    (folder / "imagesTr" / "BRATS_002.nii.gz").unlink()
    stacked = voxels(folder / "imagesTr" / "BRATS_001.nii.gz").copy()
    stacked[..., 2] = 0
    overwrite(folder / "imagesTr" / "BRATS_001.nii.gz", stacked)
    overwrite(folder / "imagesTs" / "BRATS_485.nii.gz", stacked[..., :3])
    assert_refused(
        folder,
        tmp_path / "raw",
        "imagesTr/BRATS_001.nii.gz is empty: every voxel of t1gd is 0.",
        "imagesTr/BRATS_002.nii.gz is missing.",
        "imagesTs/BRATS_485.nii.gz has 3 channels, expected flair, t1w, t1gd, t2w.",
    )
