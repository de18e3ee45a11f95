from __future__ import annotations

import csv
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from nnunetv2.evaluation.evaluate_predictions import compute_metrics_on_folder, load_summary_json
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from scipy.ndimage import binary_erosion
from scipy.spatial import KDTree

from nnunet_autosam2.dataset_conversion.regions import REGIONS
from nnunet_autosam2.errors import AutoSAM2Error
from nnunet_autosam2.evaluation.brats_metrics import METRICS, require_brats_evaluation
from nnunet_autosam2.evaluation.numbering import NUMBERINGS
from nnunet_autosam2.evaluation.pairs import Pair
from nnunet_autosam2.evaluation.scoring import Scores, evaluate

REGIONS_OF_NNUNET = {"WT": (1, 2, 3), "TC": (2, 3), "ET": (3,)}
IN_PARSED_TABLE = {
    "Dice": "global_dsc",
    "HD95": "global_hd95",
    "NSD": "global_nsd",
    "Lesion-wise Dice": "lesionwise_dsc_mean",
    "Lesion-wise NSD": "lesionwise_nsd_mean",
    "Lesion-wise HD95": "lesionwise_hd95_mean",
}
# The mains of the package's two commands, one after the other because its import takes seconds
COMMANDS = """
import sys
from brats_evaluation import evaluation, metrics_parser

root, *challenges = sys.argv[1:]
for challenge in challenges:
    folder = f"{root}/{challenge}"
    sys.argv = ["brats-evaluate", "--config", challenge, "--ref_path", f"{folder}/truth",
                "--pred_path", f"{folder}/predictions", "--summary_json", f"{folder}/summary.json"]
    evaluation.main()
    sys.argv = ["brats-parse-metrics", "mets" if challenge == "mets" else "seg",
                "--json_path", f"{folder}/summary.json", "--output_csv_path", f"{folder}/parsed.csv"]
    metrics_parser.main()
"""


@pytest.fixture(scope="module")
def scores(pairs: list[Pair]) -> Scores:
    return evaluate(pairs, num_processes=2)


@pytest.fixture(scope="module")
def official(in_numbers_of: dict[str, list[Pair]]) -> dict[str, dict[str, dict[str, str]]]:
    """Challenge → case → row of the table that the package's command line writes."""
    root = in_numbers_of["gli"][0].truth.parents[2]
    done = subprocess.run([sys.executable, "-c", COMMANDS, root, *in_numbers_of], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    tables = {}
    for challenge, pairs in in_numbers_of.items():
        with (root / challenge / "parsed.csv").open(newline="") as file:
            rows = {row["subject_id"].removesuffix(".nii.gz"): row for row in csv.DictReader(file)}
        tables[challenge] = {pair.case: rows[pair.case] for pair in pairs}
    return tables


def assert_equals_table(scores: Scores, table: dict[str, dict[str, str]], regions: Iterable[str] = REGIONS) -> None:
    assert scores.keys() == table.keys()
    for case, row in table.items():
        for region in regions:
            for metric, column in IN_PARSED_TABLE.items():
                cell = row[f"{column}_{region.lower()}"]
                # An infinite lesion-wise HD95 is not replaced by the package's parser.
                expected = None if cell == "" else 373.0 if cell == "inf" else float(cell)
                assert scores[case][region][metric] == pytest.approx(expected, abs=1e-6), (case, region, metric)


def test_equals_the_command_line_of_the_package(scores: Scores, official: dict):
    assert_equals_table(scores, official["gli"])


@pytest.mark.parametrize("challenge", ["mets", "ped"])
def test_equals_the_command_line_with_the_rules_of(challenge: str, pairs: list[Pair], official: dict):
    assert_equals_table(evaluate(pairs, challenge, num_processes=2), official[challenge])


def test_radiotherapy_planning_equals_the_command_line(in_numbers_of: dict[str, list[Pair]], official: dict):
    scores = evaluate(in_numbers_of["MenRT"], numbering=NUMBERINGS["men-rt2024"], num_processes=2)
    assert_equals_table(scores, official["MenRT"], ["GTV"])


def test_numberings_of_the_challenges(scores: Scores, in_numbers_of: dict[str, list[Pair]]):
    assert evaluate(in_numbers_of["gli"], numbering=NUMBERINGS["brats2023"], num_processes=2) == scores
    assert evaluate(in_numbers_of["ped"], "ped", NUMBERINGS["ped2024"], num_processes=2) == scores


def test_equals_summary_json_of_nnunet(scores: Scores, pairs: list[Pair], tmp_path: Path):
    file = tmp_path / "summary.json"
    folders = str(pairs[0].truth.parent), str(pairs[0].prediction.parent)
    regions = list(REGIONS_OF_NNUNET.values())
    compute_metrics_on_folder(*folders, str(file), SimpleITKIO(), ".nii.gz", regions, num_processes=1)
    summary = load_summary_json(str(file))["metric_per_case"]
    assert len(summary) == len(scores)
    for case in summary:
        name = Path(case["prediction_file"]).name.removesuffix(".nii.gz")
        for region, labels in REGIONS_OF_NNUNET.items():
            theirs, ours = case["metrics"][labels], scores[name][region]
            sensitivity = theirs["TP"] / theirs["n_ref"] if theirs["n_ref"] else None
            assert ours["Sensitivity"] == pytest.approx(sensitivity, abs=1e-6)
            for metric in ("Dice", "IoU"):
                expected = None if np.isnan(theirs[metric]) else theirs[metric]
                assert ours[metric] == pytest.approx(expected, abs=1e-6), (name, region, metric)


def hd95(truth: np.ndarray, prediction: np.ndarray) -> float:
    """Of all distances from the border of one to the border of the other, in voxels, by nearest neighbours."""
    borders = [np.argwhere(mask & ~binary_erosion(mask)) for mask in (truth, prediction)]
    there, _ = KDTree(borders[0]).query(borders[1])
    back, _ = KDTree(borders[1]).query(borders[0])
    return float(np.percentile([*there, *back], 95))


def read(file: Path) -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.ReadImage(file))


def test_hd95_by_nearest_neighbours(scores: Scores, pairs: list[Pair]):
    compared = 0
    for pair in pairs:
        prediction, truth = read(pair.prediction), read(pair.truth)
        for region, labels in REGIONS_OF_NNUNET.items():
            masks = np.isin(truth, labels), np.isin(prediction, labels)
            if (masks[0] & masks[1]).any():
                assert scores[pair.case][region]["HD95"] == pytest.approx(hd95(*masks), abs=1e-6)
                compared += 1
    assert compared >= 10


WORST = dict.fromkeys(METRICS, 0.0) | {"HD95": 373.0, "Lesion-wise HD95": 373.0}
UNDEFINED = dict.fromkeys(METRICS)


@pytest.mark.parametrize(
    ("case", "region", "expected"),
    [
        ("empty_prediction_00006-000", "WT", WORST),
        ("no_enhancing_in_prediction_00004-000", "ET", WORST),
        ("no_overlap_00009-000", "TC", WORST),
        ("empty_truth_00007-000", "WT", WORST | {"Sensitivity": None}),
        ("no_enhancing_in_truth_00003-000", "ET", WORST | {"Sensitivity": None}),
        ("both_empty_00008-000", "WT", UNDEFINED),
        ("no_enhancing_00005-000", "ET", UNDEFINED),
        ("perfect_00011-000", "ET", dict.fromkeys(METRICS, 1.0) | {"HD95": 0.0, "Lesion-wise HD95": 0.0}),
    ],
)
def test_empty_regions(scores: Scores, case: str, region: str, expected: dict[str, float | None]):
    assert scores[case][region] == pytest.approx(expected)


def cubes(*corners: tuple[int, int]) -> np.ndarray:
    """Cubes of enhancing tumour in 40³ voxels; of each its lowest corner and its length."""
    labels = np.zeros((40, 40, 40), np.uint8)
    for corner, length in corners:
        labels[(slice(corner, corner + length),) * 3] = 3
    return labels


@pytest.mark.parametrize(
    ("truth", "prediction", "found", "all_lesions"),
    [
        ([(5, 6), (20, 6)], [(5, 6), (20, 6)], 1, 1),
        ([(5, 6), (20, 6)], [(5, 6)], 1, 1 / 2),  # one is missed
        ([(5, 6)], [(5, 6), (20, 3), (30, 3)], 1, 1 / 3),  # two are invented
        ([(5, 6), (20, 6)], [(6, 6), (32, 4)], 2 * 125 / 432, 2 * 125 / 432 / 3),  # one of each, and one is shifted
    ],
)
def test_missed_and_invented_lesions(
    tmp_path: Path, truth: list, prediction: list, found: float, all_lesions: float
) -> None:
    pair = Pair("case", tmp_path / "prediction.nii.gz", tmp_path / "truth.nii.gz")
    for file, corners in ((pair.truth, truth), (pair.prediction, prediction)):
        sitk.WriteImage(sitk.GetImageFromArray(cubes(*corners)), file)
    scores = evaluate([pair], num_processes=1)["case"]
    for region in ("WT", "TC", "ET"):
        assert scores[region]["Lesion-wise Dice"] == pytest.approx(found)
        assert scores[region]["Lesion-wise Dice, all"] == pytest.approx(all_lesions)


def test_without_the_package(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "path", [])
    with pytest.raises(AutoSAM2Error, match="extra `evaluation`"):
        require_brats_evaluation()


@pytest.mark.real_data
def test_a_real_case(real_data: Path, tmp_path: Path):
    truth = real_data / "brats2013" / "brats_2013_pat0003_1" / "brats_2013_pat0003_1_seg.nii.gz"
    image = sitk.ReadImage(truth)
    shifted = sitk.GetImageFromArray(np.roll(sitk.GetArrayFromImage(image), (2, 1, 3), axis=(0, 1, 2)))
    shifted.CopyInformation(image)
    sitk.WriteImage(shifted, tmp_path / "shifted.nii.gz")
    pair = Pair("real", tmp_path / "shifted.nii.gz", truth)
    scores = evaluate([pair], numbering=NUMBERINGS["brats2021"])["real"]
    overlap = sitk.LabelOverlapMeasuresImageFilter()
    overlap.Execute(image > 0, shifted > 0)
    assert scores["WT"]["Dice"] == pytest.approx(overlap.GetDiceCoefficient(1), abs=1e-6)
    assert scores["WT"]["IoU"] == pytest.approx(overlap.GetJaccardCoefficient(1), abs=1e-6)
    assert scores["ET"]["HD95"] == pytest.approx(hd95(read(truth) == 4, read(pair.prediction) == 4), abs=1e-6)
