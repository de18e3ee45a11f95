"""Of a data set that nnU-Net has preprocessed: its labels and folds are looked at before anything is trained."""

import json
from pathlib import Path

import pytest

from nnunet_autosam2.benchmark import dataset, models
from nnunet_autosam2.benchmark.dataset import find_numbering, find_splits
from nnunet_autosam2.benchmark.models import ComparedModel
from nnunet_autosam2.errors import ConfigurationError, DatasetError

NAME = "Dataset009_Kidney"
CASES = [f"case_{number}" for number in range(6)]
MODEL = ComparedModel(NAME, "nnUNetTrainer", "nnUNetPlans", "3d_fullres", None, False)
LABELS = {"background": 0, "kidney": [1, 2], "tumour": 2}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of the preprocessed data set."""
    monkeypatch.setattr(dataset, "nnUNet_preprocessed", str(tmp_path / "preprocessed"))
    monkeypatch.setattr(models, "nnUNet_results", str(tmp_path / "results"))
    folder = tmp_path / "preprocessed" / NAME
    folder.mkdir(parents=True)
    return folder


def write_dataset_json(folder: Path, labels: dict, ending: str = ".nii.gz") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "dataset.json").write_text(json.dumps({"labels": labels, "file_ending": ending}))


@pytest.mark.parametrize(
    ("labels", "ending", "message"),
    [
        (LABELS, ".nrrd", r"files that end in \.nrrd cannot be evaluated here"),
        ({"background": 0}, ".nii.gz", "defines no label but background"),
        (
            {"background": 0, "whole tumor": [1, 2], "tumor core": [2, 3], "enhancing tumor": [3]}, ".nii.gz",
            "regions that are not nested",
        ),
    ],
)  # fmt: skip
def test_labels_that_cannot_be_evaluated(folder: Path, labels: dict, ending: str, message: str):
    write_dataset_json(folder, labels, ending)
    with pytest.raises(DatasetError, match=message):
        find_numbering([MODEL])


def test_a_model_that_was_trained_on_other_labels(folder: Path):
    write_dataset_json(folder, LABELS)
    assert find_numbering([MODEL]).regions == {"kidney": (1, 2), "tumour": (2,)}
    write_dataset_json(MODEL.folder, LABELS)
    assert find_numbering([MODEL]).regions == {"kidney": (1, 2), "tumour": (2,)}
    write_dataset_json(MODEL.folder, {"background": 0, "kidney": 1, "tumour": 2})
    with pytest.raises(DatasetError, match="Labels mean different things in"):
        find_numbering([MODEL])


@pytest.mark.parametrize(
    ("train", "val", "message"),
    [
        (CASES[2:], [*CASES[:2], CASES[0]], "fold 0 has validation cases more than once: case_0."),
        ([*CASES[2:], CASES[3]], CASES[:2], "fold 0 has training cases more than once: case_3."),
        (CASES[1:], CASES[:2], "fold 0 validates on cases that it trains on: case_1."),
        (CASES[2:], ["case_0", "none"], "fold 0 has validation cases that the data set does not have: none."),
        (["none"], CASES[:2], "fold 0 has training cases that the data set does not have: none."),
        (CASES, [], "fold 0 has no validation cases."),
    ],
)
def test_folds_are_sets_of_cases(folder: Path, train: list[str], val: list[str], message: str):
    file = folder / "splits_final.json"
    file.write_text(json.dumps([{"train": train, "val": val}, {"train": CASES[:4], "val": CASES[4:]}]))
    with pytest.raises(DatasetError) as caught:
        find_splits(NAME, [0], CASES)
    assert str(caught.value) == f"{file}: {message}"
    assert find_splits(NAME, [1], CASES)[1]["val"] == CASES[4:]


def test_folds_share_no_validation_case(folder: Path):
    splits = [{"train": CASES[2:], "val": CASES[:2]}, {"train": CASES[3:], "val": CASES[1:3]}]
    (folder / "splits_final.json").write_text(json.dumps(splits))
    with pytest.raises(DatasetError, match="folds 0 and 1 share validation cases, which would count twice: case_1"):
        find_splits(NAME, [0, 1], CASES)
    assert find_splits(NAME, [1], CASES) == splits
    with pytest.raises(ConfigurationError, match="Fold 2 is not there"):
        find_splits(NAME, [2], CASES)


def test_folds_that_are_made_here_are_by_patient(folder: Path):
    scans = [f"BraTS-MET-0000{patient}-00{scan}" for patient in range(5) for scan in range(2)]
    (folder / "gt_segmentations").mkdir()
    for case in scans:
        (folder / "gt_segmentations" / f"{case}.nii.gz").touch()
    for fold in find_splits(NAME, [0, 1, 2, 3, 4], scans):
        assert len({case[:15] for case in fold["val"]}) == 1
        assert len(fold["val"]) == 2
