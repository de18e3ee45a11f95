from pathlib import Path

from nnunet_autosam2.dataset_conversion.brats_layout import BRATS_2018_2021


def test_files_are_found_by_folder_name_and_suffix(tmp_path: Path):
    case = tmp_path / "BraTS20_Training_001"
    case.mkdir()
    for name in (f"{case.name}_t1.nii", f"{case.name}_t1ce.nii.gz", f"{case.name}_t1ce.nii", "other_flair.nii.gz"):
        (case / name).touch()
    (case / f"{case.name}_seg.nii.gz").mkdir()

    files = {suffix: [file.name for file in found] for suffix, found in BRATS_2018_2021.files(case).items()}

    assert files == {
        "t1": [f"{case.name}_t1.nii"],
        "t1ce": [f"{case.name}_t1ce.nii.gz", f"{case.name}_t1ce.nii"],
        "t2": [],
        "flair": [],
        "seg": [],
    }
