import json
from collections import Counter
from pathlib import Path

import pytest
from nnunetv2.utilities.crossval_split import generate_crossval_split

from nnunet_autosam2.dataset_conversion import patients
from nnunet_autosam2.dataset_conversion.patients import leaks, patient_of, plan_folds, split_by_patient

TWICE = [f"BraTS-GLI-{patient:05d}-{scan}" for patient in range(20) for scan in (100, 101)]


@pytest.mark.parametrize(
    ("case", "patient"),
    [
        ("BraTS-GLI-00001-100", "BraTS-GLI-00001"),
        ("BraTS-MET-00761-003", "BraTS-MET-00761"),
        ("BraTS-PED-00264-000", "BraTS-PED-00264"),
        ("BraTS-MEN-RT-0001-1", "BraTS-MEN-RT-0001"),
        ("BraTS-GoAT-00001", "BraTS-GoAT-00001"),
        ("Brats18_TCIA09_141_1", "Brats18_TCIA09_141"),
        ("BraTS19_2013_2_1", "BraTS19_2013_2"),
        ("brats_2013_pat0003_1", "brats_2013_pat0003"),
        ("BraTS20_Training_001", "BraTS20_Training_001"),
        ("BraTS2021_00002", "BraTS2021_00002"),
        ("BRATS_001", "BRATS_001"),
        ("brats_my_case_001", "brats_my_case_001"),
        ("liver_1", "liver_1"),
    ],
)
def test_patient_of_a_case(case: str, patient: str):
    assert patient_of(case) == patient


def test_no_patient_is_on_both_sides():
    """In nnU-Net's own folds, 30 of 40 validation cases are of a patient in training."""
    splits = split_by_patient(reversed(TWICE))
    assert len(splits) == 5
    for fold in splits:
        assert sorted(fold["train"] + fold["val"]) == TWICE
        assert not {case[:15] for case in fold["train"]} & {case[:15] for case in fold["val"]}
        assert len(fold["val"]) == 8
    assert Counter(case for fold in splits for case in fold["val"]) == dict.fromkeys(TWICE, 1)
    assert list(leaks(splits, range(5))) == []
    said = list(leaks(generate_crossval_split(TWICE), range(5)))
    assert sum(int(line.split()[2]) for line in said) == 30
    assert said[0].startswith("Fold 0: ")
    assert "validation cases are of patients whose other scans it trains on (BraTS-GLI-0000" in said[0]


def test_as_nnunet_where_each_patient_has_one_case():
    cases = [case for case in TWICE if case.endswith("100")]
    assert split_by_patient(cases) == generate_crossval_split(cases, seed=12345, n_splits=5)


@pytest.mark.parametrize(("number", "folds"), [(1, 0), (2, 2), (3, 3), (5, 5)])
def test_no_more_folds_than_patients(tmp_path: Path, number: int, folds: int):
    splits, said = plan_folds(TWICE[: 2 * number], tmp_path)
    assert len(splits) == folds
    assert any(line.startswith("WARNING") for line in said) == (folds < 5)


def test_folds_that_are_there_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(patients, "nnUNet_preprocessed", str(tmp_path))
    raw, there = tmp_path / "raw" / "Dataset005_X", tmp_path / "Dataset005_X" / "splits_final.json"
    ours = split_by_patient(TWICE)
    there.parent.mkdir()
    for content, is_written, ending in (
        (json.dumps(ours), True, "where trainings read it."),
        (json.dumps(ours[::-1]), False, "(20 patients with 40 training cases)."),
        (json.dumps(generate_crossval_split(TWICE)), True, "so that its scores are too high."),
        ("{", True, "It cannot be read as nnU-Net's folds."),
        ("[1]", True, "It cannot be read as nnU-Net's folds."),
    ):
        there.write_text(content)
        splits, said = plan_folds(TWICE, raw)
        assert bool(splits) == is_written
        assert said[-1].endswith(ending)
        assert there.read_text() == content


def test_nothing_is_said_where_each_patient_has_one_case(tmp_path: Path):
    assert plan_folds(TWICE[::2], tmp_path) == ([], [])
