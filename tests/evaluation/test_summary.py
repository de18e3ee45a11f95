import csv
import json
from pathlib import Path

import numpy as np
import pytest

from nnunet_autosam2.dataset_conversion.regions import REGIONS
from nnunet_autosam2.evaluation.brats_metrics import METRICS
from nnunet_autosam2.evaluation.scoring import Scores
from nnunet_autosam2.evaluation.summary import summarise, table, write_scores


@pytest.fixture
def scores() -> Scores:
    """Dice of WT 0.5, 0.7, 0.9; ET defined in one case, TC in none; all others 1."""
    values = {"a": (0.5, None), "b": (0.7, 0.25), "c": (0.9, None)}
    return {
        case: {
            "WT": {**dict.fromkeys(METRICS, 1.0), "Dice": wt},
            "TC": dict.fromkeys(METRICS),
            "ET": dict.fromkeys(METRICS, et),
        }
        for case, (wt, et) in values.items()
    }


def test_mean_and_sd_over_the_cases_in_which_a_metric_is_defined(scores: Scores):
    summary = summarise(scores)
    assert summary["WT"]["Dice"] == pytest.approx((0.7, np.std([0.5, 0.7, 0.9], ddof=1), 3))
    assert summary["ET"]["Dice"] == (0.25, None, 1)
    assert summary["TC"]["HD95"] == (None, None, 0)


def test_table(scores: Scores):
    lines = table(scores).splitlines()
    assert lines[0].split() == ["WT", "TC", "ET"]
    assert lines[1] == "Dice                   0.7000 ± 0.2000  -   0.2500 (n=1)"
    assert lines[3] == "HD95 (mm)              1.00 ± 0.00      -   0.25 (n=1)"
    assert len(lines) == 1 + len(METRICS)


def test_files_hold_every_value(scores: Scores, tmp_path: Path):
    write_scores(tmp_path, scores, {"challenge": "gli"})
    content = json.loads((tmp_path / "scores.json").read_text())
    assert (content["challenge"], content["cases"]) == ("gli", scores)
    assert content["summary"]["ET"]["NSD"] == {"mean": 0.25, "sd": None, "n": 1}
    with (tmp_path / "scores.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row.pop("case"), row.pop("region")) for row in rows] == [
        (case, region) for case in "abc" for region in REGIONS
    ]
    for row, expected in zip(rows, [scores[case][region] for case in "abc" for region in REGIONS], strict=True):
        assert {metric: float(cell) if cell else None for metric, cell in row.items()} == expected
