from collections.abc import Callable
from pathlib import Path

import pytest

from nnunet_autosam2.dataset_conversion.brats_layout import RELEASES
from nnunet_autosam2.dataset_conversion.cases import find_empty, find_source_cases, read_tree, releases_by_names
from nnunet_autosam2.errors import ConfigurationError, DatasetError


def touch(*files: Path) -> None:
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()


def test_files_are_found_by_folder_name_and_suffix(tmp_path: Path):
    folder = tmp_path / "HGG" / "BraTS20_Training_001"
    stem = folder / folder.name
    touch(*(Path(f"{stem}_{end}") for end in ("t1.nii", "t1ce.nii.gz", "t1ce.nii")), folder / "other_flair.nii.gz")
    Path(f"{stem}_t2.nii.gz").symlink_to("nowhere")

    (case,) = find_source_cases(read_tree(tmp_path), RELEASES["2018-2021"])

    assert case.name == folder.name
    assert {key: file.name.removeprefix(f"{folder.name}_") for key, file in case.images.items()} == {
        "t1": "t1.nii",
        "t1ce": "t1ce.nii.gz",
        "t2": "t2.nii.gz",
        "flair": "flair.nii.gz",
    }
    assert case.segmentation is None
    assert case.surplus == (Path(f"{stem}_t1ce.nii"),)


def test_the_decathlon_has_one_file_a_case_and_labels_of_their_own(tmp_path: Path):
    names = ("imagesTr/BRATS_001.nii.gz", "labelsTr/BRATS_001.nii.gz", "labelsTr/BRATS_002.nii.gz")
    touch(*(tmp_path / name for name in (*names, "imagesTr/._BRATS_001.nii.gz", "imagesTs/BRATS_485.nii")))
    cases = find_source_cases(read_tree(tmp_path), RELEASES["decathlon"])
    assert [(case.name, [str(file.relative_to(tmp_path)) for file in case.files]) for case in cases] == [
        ("BRATS_001", ["imagesTr/BRATS_001.nii.gz", "labelsTr/BRATS_001.nii.gz"]),
        ("BRATS_002", ["imagesTr/BRATS_002.nii.gz", "labelsTr/BRATS_002.nii.gz"]),
        ("BRATS_485", ["imagesTs/BRATS_485.nii"]),
    ]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("BraTS2018", ["2018-2021"]),
        ("GLI2023", ["2023-gli", "2024-gli"]),
        ("GLI2024", ["2024-gli"]),
        ("MET2025", ["2023-met", "2025-met"]),
        ("PED2023", ["2023-ped", "2024-ped"]),
        ("SSA2023", ["2023-ssa"]),
        ("MENRT2024", ["2024-men-rt"]),
        ("Decathlon", ["decathlon"]),
    ],
)
def test_names_tell_the_releases_apart(publish: Callable[[str], Path], name: str, expected: list[str]):
    folder = publish(name)
    assert [release.name for release in releases_by_names(folder, read_tree(folder))] == expected


def test_names_that_do_not_decide_are_left_to_the_user(tmp_path: Path):
    touch(tmp_path / "mine" / "case_1" / "case_1-t1n.nii.gz")
    with pytest.raises(ConfigurationError, match=r"the cases \(case_1\) fit no release: give --release, one of 2018"):
        releases_by_names(tmp_path, read_tree(tmp_path))
    touch(*(tmp_path / name / f"{name}{end}" for name, end in (("BraTS-MEN-1-0", "-seg.nii"), ("a", "_t1.nii"))))
    (tmp_path / "mine" / "case_1" / "case_1-t1n.nii.gz").unlink()
    with pytest.raises(ConfigurationError, match="fit BraTS 2018-2021 and BraTS 2023 MEN: give --release"):
        releases_by_names(tmp_path, read_tree(tmp_path))


def test_a_folder_without_cases(tmp_path: Path):
    with pytest.raises(DatasetError, match="nowhere is not a folder"):
        read_tree(tmp_path / "nowhere")
    touch(tmp_path / "case" / "notes.txt")
    with pytest.raises(DatasetError, match="holds no case: expected <case>/<case>_"):
        releases_by_names(tmp_path, read_tree(tmp_path))


def test_empty_folders_are_cases_only_where_a_case_is_expected(tmp_path: Path):
    touch(*(tmp_path / "HGG" / name / f"{name}_t1.nii" for name in ("case_001", "case_002")))
    touch(tmp_path / "case_004" / "._case_004_t1.nii")
    for name in ("logs", "HGG/empty", "LGG/case_001", "case_003", "__MACOSX/case_005", "HGG/@eaDir", ".trash/case_006"):
        (tmp_path / name).mkdir(parents=True)
    tree = read_tree(tmp_path)
    lost, empty = find_empty(tree, find_source_cases(tree, RELEASES["2018-2021"]))
    assert [str(path.relative_to(tmp_path)) for path in lost] == ["case_003", "case_004"]
    assert [str(path.relative_to(tmp_path)) for path in empty] == ["logs", "HGG/empty", "LGG/case_001"]
