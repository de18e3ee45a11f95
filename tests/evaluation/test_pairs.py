import json
from pathlib import Path

import pytest

from nnunet_autosam2.errors import DatasetError
from nnunet_autosam2.evaluation.pairs import Pair, find_pairs

DATASET = "Dataset005_Phantom"


def fill(folder: Path, *cases: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for case in cases:
        (folder / f"{case}.nii.gz").touch()
    return folder


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Results folder of two folds; the truth is where nnU-Net's planning copies it."""
    preprocessed = tmp_path / "preprocessed"
    monkeypatch.setattr("nnunetv2.paths.nnUNet_preprocessed", str(preprocessed))
    monkeypatch.setattr("nnunetv2.paths.nnUNet_raw", str(tmp_path / "raw"))
    fill(preprocessed / DATASET / "gt_segmentations", "a", "b", "c", "d")
    splits = [{"train": ["c", "d"], "val": ["b", "a"]}, {"train": ["a", "b"], "val": ["c", "d"]}]
    (preprocessed / DATASET / "splits_final.json").write_text(json.dumps(splits))
    folder = tmp_path / "results" / DATASET / "nnUNetTrainer__nnUNetPlans__3d_fullres"
    fill(folder / "fold_0" / "validation", "a", "b")
    fill(folder / "fold_1" / "validation", "c", "d")
    fill(folder / "crossval_results_folds_0_1", "a", "b", "c", "d")
    (folder / "plans.json").write_text(json.dumps({"dataset_name": DATASET}))
    (folder / "dataset.json").touch()
    return folder


def test_two_folders(tmp_path: Path):
    predictions, truth = fill(tmp_path / "predicted", "b", "a"), fill(tmp_path / "labelsTr", "a", "b")
    (predictions / "plans.json").touch()
    found = find_pairs(predictions, truth)
    assert found.pairs == [Pair(case, predictions / f"{case}.nii.gz", truth / f"{case}.nii.gz") for case in ("a", "b")]
    assert (found.folds, found.dataset_jsons) == ([], [])


@pytest.mark.parametrize("place", ["predicted", "raw/labelsTr", "raw"])
def test_dataset_json_beside_predictions_or_truth(tmp_path: Path, place: str):
    predictions, truth = fill(tmp_path / "predicted", "a"), fill(tmp_path / "raw" / "labelsTr", "a")
    (tmp_path / place / "dataset.json").touch()
    assert find_pairs(predictions, truth).dataset_jsons == [tmp_path / place / "dataset.json"]


def test_dataset_json_beside_both_and_not_that_of_any_folder_above(tmp_path: Path):
    predictions, truth = fill(tmp_path / "predicted", "a"), fill(tmp_path / "raw" / "labels", "a")
    for folder in (predictions, truth, tmp_path / "raw"):
        (folder / "dataset.json").touch()
    assert find_pairs(predictions, truth).dataset_jsons == [predictions / "dataset.json", truth / "dataset.json"]


def test_all_folds_and_their_truth(run: Path, tmp_path: Path):
    found = find_pairs(run)
    truth = tmp_path / "preprocessed" / DATASET / "gt_segmentations"
    assert found.pairs == [
        Pair(case, run / f"fold_{fold}" / "validation" / f"{case}.nii.gz", truth / f"{case}.nii.gz")
        for case, fold in zip("abcd", (0, 0, 1, 1), strict=True)
    ]
    assert (found.folds, found.dataset_jsons) == (["0", "1"], [run / "dataset.json"])


@pytest.mark.parametrize("place", ["fold_1", "fold_1/validation"])
def test_one_fold(run: Path, place: str, monkeypatch: pytest.MonkeyPatch):
    found = find_pairs(run / place)
    assert ([pair.case for pair in found.pairs], found.folds) == (["c", "d"], ["1"])
    monkeypatch.chdir(run / place)
    assert find_pairs(Path()) == found


def test_fold_all_only_where_it_is_asked_for(run: Path):
    fill(run / "fold_all" / "validation", "a", "b", "c")
    assert find_pairs(run).folds == ["0", "1"]
    assert find_pairs(run / "fold_all").folds == ["all"]


def test_truth_in_raw_data_or_as_given(run: Path, tmp_path: Path):
    gt = tmp_path / "preprocessed" / DATASET / "gt_segmentations"
    gt.rename(tmp_path / "elsewhere")
    with pytest.raises(DatasetError, match=rf"looked in: {gt} and .*labelsTr\): give its folder after PREDICTIONS"):
        find_pairs(run)
    assert find_pairs(run, tmp_path / "elsewhere").pairs[0].truth.parent == tmp_path / "elsewhere"
    labels = fill(tmp_path / "raw" / DATASET / "labelsTr", "a", "b", "c", "d")
    assert find_pairs(run).pairs[0].truth.parent == labels


def test_missing_cases_are_named(tmp_path: Path):
    predictions, truth = fill(tmp_path / "predicted", "a", "b"), fill(tmp_path / "labelsTr", "b", *"cdefgh")
    with pytest.raises(DatasetError) as caught:
        find_pairs(predictions, truth)
    no_truth, not_predicted = str(caught.value).splitlines()
    assert no_truth.startswith(f"{predictions} has 1 predictions without a file of the same name in {truth}: a.")
    shown = "c, d, e, f, g and 1 more"
    assert not_predicted.startswith(f"{predictions} lacks 6 cases that have a truth in {truth}: {shown}.")
    with pytest.raises(DatasetError, match="has 1 predictions without"):
        find_pairs(predictions, truth, chill=True)
    (predictions / "a.nii.gz").unlink()
    assert [pair.case for pair in find_pairs(predictions, truth, chill=True).pairs] == ["b"]


def test_validation_that_was_interrupted(run: Path):
    (run / "fold_1" / "validation" / "d.nii.gz").unlink()
    with pytest.raises(DatasetError, match=r"fold_1/validation lacks 1 cases .*: d\."):
        find_pairs(run)
    assert [pair.case for pair in find_pairs(run, chill=True).pairs] == ["a", "b", "c"]
    (run / "fold_1" / "validation").rename(run / "fold_1" / "old")
    with pytest.raises(DatasetError, match="fold_1 has no folder validation: finish its training"):
        find_pairs(run)


def test_case_in_two_folds(run: Path):
    fill(run / "fold_1" / "validation", "a")
    with pytest.raises(DatasetError, match="another fold has as well"):
        find_pairs(run)


def test_folders_that_do_not_fit(tmp_path: Path):
    empty, full = fill(tmp_path / "empty"), fill(tmp_path / "full", "a")
    with pytest.raises(DatasetError, match="nowhere is not a folder"):
        find_pairs(tmp_path / "nowhere", full)
    with pytest.raises(DatasetError, match="nowhere is not a folder"):
        find_pairs(full, tmp_path / "nowhere")
    with pytest.raises(DatasetError, match=r"empty holds no \.nii\.gz file"):
        find_pairs(empty, full)
    with pytest.raises(DatasetError, match="give the folder of the truths as well"):
        find_pairs(full)
    with pytest.raises(DatasetError, match=r"plans\.json does not name the dataset: give the folder of the truths"):
        find_pairs(fill(tmp_path / "fold_0" / "validation", "a"))
