"""Tuning on segmentations in which it is known what has to go."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_autosam2.errors import DatasetError
from nnunet_autosam2.evaluation.numbering import NUMBERINGS, Numbering
from nnunet_autosam2.evaluation.pairs import Pair
from nnunet_autosam2.evaluation.scoring import evaluate
from nnunet_autosam2.postprocessing.rules import Rule, clean
from nnunet_autosam2.postprocessing.tuning import Tuned, folds_of, tune

METRIC = "Lesion-wise Dice, all"
BRATS = NUMBERINGS["nnunet"]
CASES = [f"case_{number}" for number in range(6)]


def tumour(shift: int = 0) -> np.ndarray:
    voxels = np.zeros((30, 34, 32), np.uint8)
    for label, (start, end) in enumerate(((4, 20), (6, 16), (8, 14)), 1):
        voxels[start:end, start:end, start + shift : end + shift] = label
    return voxels


def predicted(case: int) -> np.ndarray:
    """A shifted tumour with false ones: oedema of 27 mm³, in four cases enhancing of 8 within it; the last has 125."""
    voxels = tumour(1)
    side = 5 if case == 5 else 3
    voxels[23 : 23 + side, 23 : 23 + side, 23 : 23 + side] = 1
    if case < 4:
        voxels[18:20, 18:20, 18:20] = 3
    return voxels


def write(voxels: np.ndarray, file: Path) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(sitk.GetImageFromArray(voxels), file)
    return file


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> list[Pair]:
    root = tmp_path_factory.mktemp("cases")
    return [
        Pair(
            case,
            write(predicted(number), root / "predicted" / f"{case}.nii.gz"),
            write(tumour(), root / "truth" / f"{case}.nii.gz"),
        )
        for number, case in enumerate(CASES)
    ]


@pytest.fixture(scope="module")
def tuned(pairs: list[Pair]) -> Tuned:
    folds = {"first": CASES[:3], "second": CASES[3:]}
    return tune(pairs, folds, BRATS, "gli", METRIC, num_processes=2)


def test_the_smallest_sizes_that_take_out_what_is_false(tuned: Tuned):
    assert tuned.rules == {"WT": Rule(smallest_component=200), "TC": Rule(smallest_component=10)}
    assert tuned.rules_of_folds == {
        "first": {"WT": Rule(smallest_component=200), "TC": Rule(smallest_component=10)},
        "second": {"WT": Rule(smallest_component=50), "TC": Rule(smallest_component=10)},
    }


def test_each_fold_is_scored_by_rules_that_have_not_seen_it(tuned: Tuned):
    """The large false lesion is in the second fold, whose rules are of the first and leave it."""
    assert tuned.nested["case_5"]["WT"][METRIC] == tuned.before["case_5"]["WT"][METRIC]
    assert tuned.after["case_5"]["WT"][METRIC] == pytest.approx(2 * tuned.before["case_5"]["WT"][METRIC])
    for case in CASES[:5]:
        assert tuned.nested[case] == tuned.after[case]
    means = tuned.means(METRIC)["WT"]
    assert means["before"] < means["nested"] < means["after"]


def test_scores_are_those_of_evaluate(tuned: Tuned, pairs: list[Pair], tmp_path: Path):
    assert tuned.before == evaluate(pairs, "gli", num_processes=2)
    cleaned = [
        pair._replace(
            prediction=write(clean(predicted(number), 1.0, BRATS.regions, tuned.rules), tmp_path / f"{number}.nii.gz")
        )
        for number, pair in enumerate(pairs)
    ]
    assert tuned.after == evaluate(cleaned, "gli", num_processes=2)


def test_an_enhancing_tumour_that_is_not_there_is_taken_out(tmp_path: Path):
    """Two of four truths have none; where there is one it is much larger than what is invented."""
    pairs = []
    for number, case in enumerate(CASES[:4]):
        truth, prediction = tumour(), tumour()
        if number < 2:
            truth[truth == 3] = 2
            prediction[prediction == 3] = 2
            prediction[8:10, 8:10, 8:11] = 3
            prediction[12:14, 12:14, 12:14] = 3
        files = [
            write(voxels, tmp_path / side / f"{case}.nii.gz") for side, voxels in (("p", prediction), ("t", truth))
        ]
        pairs.append(Pair(case, *files))
    tuned = tune(pairs, {"a": CASES[:1], "b": CASES[1:4]}, BRATS, "gli", "Dice", num_processes=2)
    assert tuned.rules == {"ET": Rule(smallest_component=20)}
    assert tuned.means("Dice")["ET"] == {"before": 0.5, "nested": 1.0, "after": 1.0}


def test_labels_of_another_data_set(tmp_path: Path):
    organs = Numbering({"liver": (1,), "spleen": (2,)})
    truth = np.zeros((20, 20, 20), np.uint8)
    truth[2:10, 2:10, 2:10], truth[12:18, 12:18, 12:18] = 1, 2
    prediction = truth.copy()
    prediction[0, 0, 0], prediction[19, 0, 0:4] = 1, 2
    files = [write(voxels, tmp_path / f"{name}.nii.gz") for name, voxels in (("p", prediction), ("t", truth))]
    pairs = [Pair(case, *files) for case in ("a", "b")]
    tuned = tune(pairs, folds_of(pairs), organs, "gli", "HD95", num_processes=1)
    assert tuned.rules == {}  # 95 % of the distances are 0
    tuned = tune(pairs, folds_of(pairs), organs, "gli", "Dice", num_processes=1)
    assert tuned.rules == {"liver": Rule(smallest_component=10), "spleen": Rule(smallest_component=10)}
    assert tuned.means("Dice")["spleen"]["nested"] == 1


def test_folds_are_those_of_the_folders_or_of_patients():
    in_folds = [Pair(case, Path(f"fold_{case[-1]}/validation/{case}.nii.gz"), Path()) for case in CASES[:2]]
    assert folds_of(in_folds) == {"fold_0": ["case_0"], "fold_1": ["case_1"]}
    scans = ["BraTS-GLI-00001-100", "BraTS-GLI-00001-101", "BraTS-GLI-00002-100"]
    together = [Pair(case, Path(f"predicted/{case}.nii.gz"), Path()) for case in scans]
    assert sorted(folds_of(together).values()) == [scans[:2], scans[2:]]
    with pytest.raises(DatasetError, match="two patients are the least"):
        folds_of(together[:2])
