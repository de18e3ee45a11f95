"""What the experiment on real cases asks of the package's own commands."""

import itertools
import sys
from pathlib import Path

import click
import nibabel
import numpy as np
import pytest
from click.testing import CliRunner
from scipy import stats

from experiments.arms import ARMS
from experiments.experiment import Experiment, TrainingCases, main, make_splits
from experiments.report import METRICS, Result, evaluate, markdown
from experiments.runs import ADDED_LATER, NAME, Run, model_folder, prediction_folder, read_settings
from nnunet_autosam2.dataset_conversion.regions import REGIONS


def write(path: Path, labels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.Nifti1Image(labels.astype(np.uint8), np.eye(4)).to_filename(path)


def test_predictions_are_scored_by_nnunets_labels(tmp_path: Path) -> None:
    """1 is the whole tumour, 2 the core and 3 what is enhanced; BraTS has 3 otherwise."""
    truth = np.zeros((16, 16, 16))
    truth[4:12, 4:12, 4:12], truth[5:9, 5:9, 5:9], truth[6:8, 6:8, 6:8] = 1, 2, 3
    runs = {"a": Run("nnunet", 0, 0), "b": Run("upgrade", 0, 0)}
    for run, labels in zip(runs.values(), (truth, np.where(truth == 3, 2, truth)), strict=True):
        write(prediction_folder(tmp_path, run) / "case.nii.gz", labels)
    write(tmp_path / "raw" / NAME / "labelsTr" / "case.nii.gz", truth)
    scores = evaluate(tmp_path, {name: (run, "case") for name, run in runs.items()})["cases"]
    for region in REGIONS:
        assert set(METRICS) <= set(scores["a"][region])
        assert scores["a"][region]["Dice"] == pytest.approx(1)
        assert scores["b"][region]["Dice"] == pytest.approx(0 if region == "ET" else 1)


CASES = [f"case_{number:02d}" for number in range(10)]


def test_fewer_training_cases_are_some_of_more_and_leave_out_the_same():
    splits = make_splits(CASES, 5, [2, 4, None])
    assert len(splits) == 5 * 3
    for few, more, every in zip(*[iter(splits)] * 3, strict=True):
        assert few["val"] == more["val"] == every["val"]
        assert [len(split["train"]) for split in (few, more, every)] == [2, 4, 8]
        assert set(few["train"]) < set(more["train"]) < set(every["train"]) == set(CASES) - set(few["val"])
    assert sorted(case for split in splits[::3] for case in split["val"]) == CASES


def test_one_case_is_left_out_without_folds():
    assert [split["val"] for split in make_splits(CASES, None, [None])] == [[case] for case in CASES]


def test_more_cases_than_there_are():
    with pytest.raises(click.ClickException, match=r"--training-cases 9 is too many: there are 8 beside a part\."):
        make_splits(CASES, 5, [9, None])
    with pytest.raises(click.ClickException, match=r"--num-folds 11 is too many: there are 10 cases\."):
        make_splits(CASES, 11, [None])


@pytest.mark.parametrize("value", ["20,", "0", "-3", "twenty", "20,20", ""])
def test_numbers_of_training_cases_that_are_none(value: str):
    with pytest.raises(click.BadParameter, match="give different numbers or all"):
        TrainingCases().convert(value, None, None)


def test_a_folder_that_was_started_before_there_were_these_settings(tmp_path: Path):
    (tmp_path / "settings.json").write_text('{"epochs": 5}')
    assert read_settings(tmp_path / "settings.json") == {"epochs": 5, **ADDED_LATER}


SETTINGS = {
    "sam2_checkpoint": "/somewhere/sam2.1_hiera_tiny.pt", "sam2_sha256": "0123abcd", "patch_size": [8, 8, 8],
    "spacing": [1, 1, 1], "epochs": 2, "iterations": 2, "upgrade_epochs": 1, "sam2_image_size": 64, "device": "cpu",
    "training_cases": [2, None],
}  # fmt: skip


def result(arm: str, case: str, dice: float | None, seed: int = 0, fold: int = 0) -> Result:
    """The same in all regions, None where truth and prediction have none."""
    scores = {region: dict.fromkeys(METRICS, dice) for region in REGIONS}
    return Result(Run(arm, fold, seed), case, scores, 60, 5)


def cells(lines: list[str], start: str) -> list[list[str]]:
    """Rows of the table whose header starts so."""
    first = next(number for number, line in enumerate(lines) if line.startswith(f"| {start} |")) + 2
    rows = itertools.takewhile(lambda line: line.startswith("| "), lines[first:])
    return [line.strip("| ").split(" | ") for line in rows]


def test_differences_are_paired_over_cases_with_students_intervals():
    gains = [0.02, 0.05, -0.01, 0.04]
    of_baseline = [result("nnunet", case, 0.5 + 0.1 * number) for number, case in enumerate(CASES[:4])]
    of_upgrade = [
        result("upgrade", each.case, each.scores["WT"]["Dice"] + gain)
        for each, gain in zip(of_baseline, gains, strict=True)
    ]
    lines = list(markdown(SETTINGS, "", of_baseline + of_upgrade))
    low, high = stats.ttest_1samp(gains, 0).confidence_interval(0.95)
    expected = f"+0.025 ({low:+.3f} to {high:+.3f})"
    assert cells(lines, "Dice, less nnU-Net") == [["nnU-Net, frozen, SAM2 on it", "4", *[expected] * 4]]
    assert cells(lines, "arm")[0][:3] == ["nnU-Net", "4", "0.650 ± 0.129"]


def test_a_case_counts_once_however_many_seeds_it_has():
    baseline = [result("nnunet", case, 0.5, seed) for case in CASES[:2] for seed in (0, 1)]
    upgrade = [
        result("upgrade", case, dice, seed)
        for case, of_seeds in zip(CASES[:2], ([0.6, 0.8], [0.5, 0.7]), strict=True)
        for seed, dice in enumerate(of_seeds)
    ]
    lines = list(markdown(SETTINGS, "", [*baseline, *upgrade, result("nnunet", CASES[0], 0.9, seed=2)]))
    low, high = stats.ttest_1samp([0.2, 0.1], 0).confidence_interval(0.95)
    (row,) = cells(lines, "Dice, less nnU-Net")
    assert row[1:3] == ["2", f"+0.150 ({low:+.3f} to {high:+.3f})"]


def test_a_region_that_one_arm_invents_counts_for_the_other():
    baseline, upgrade = result("nnunet", CASES[0], 0.5), result("upgrade", CASES[0], 0.5)
    baseline.scores["ET"].update(dict.fromkeys(METRICS, None))
    upgrade.scores["ET"].update(Dice=0, IoU=0, HD95=373)
    lines = list(markdown(SETTINGS, "", [baseline, upgrade]))
    assert cells(lines, "Dice, less nnU-Net")[0][2:] == ["+0.000", "+0.000", "-1.000", "-0.333"]
    assert cells(lines, "HD95, less nnU-Net")[0][4] == "+373.0"


def test_arms_are_compared_with_as_many_iterations_and_number_by_number_of_training_cases():
    arms = ("nnunet", "unet_only", "upgrade", "nnunet_then_alone")
    lines = list(markdown(SETTINGS, "", [result(arm, CASES[0], 0.5, fold=fold) for fold in (0, 1) for arm in arms]))
    assert [line for line in lines if line.startswith("## ")][:2] == ["## 2 training cases", "## All training cases"]
    titles = {name: ARMS[name].title for name in arms}
    assert [row[0] for row in cells(lines, "Dice, less UNet only")] == [titles["nnunet"]]
    assert {row[0] for row in cells(lines, "Dice, less nnU-Net")} == {
        titles["upgrade"],
        titles["nnunet_then_alone"],
    }
    alone = cells(lines, "Dice, less nnU-Net, then the same without SAM2")
    assert [row[0] for row in alone] == [titles["upgrade"]]


def test_the_first_line_tells_the_weights():
    first = next(markdown(SETTINGS, "", [result("upgrade", CASES[0], 0.5)]))
    assert first == "SAM2's weights: sam2.1_hiera_tiny.pt (SHA-256 0123abcd)."
    both = [result(arm, CASES[0], 0.5) for arm in ("upgrade", "upgrade_untrained")]
    assert "random ones in the arm “the same, SAM2's weights random”." in next(markdown(SETTINGS, "", both))
    random = {**SETTINGS, "sam2_checkpoint": "random", "sam2_sha256": None}
    assert next(markdown(random, "", both)) == "SAM2's weights are random."


def test_an_estimate_counts_a_baseline_once_and_touches_nothing(tmp_path: Path):
    output = tmp_path / "output"
    options = ["--estimate", "50", "--num-folds", "5", "--folds", "1", "--training-cases", "20,all", "--seeds", "2"]
    told = CliRunner().invoke(main, [str(tmp_path / "none"), str(output), *options, "--arms", "upgrade"])
    assert told.exit_code == 0, told.output
    assert not output.exists()
    lines = told.output.splitlines()
    assert [line.split(" h  ")[1].split(":")[0] for line in lines[:4]] == [
        "nnunet_fold_0_seed_0", "upgrade_fold_0_seed_0", "nnunet_fold_1_seed_0", "upgrade_fold_1_seed_0",
    ]  # fmt: skip
    assert "20 cases" in lines[0]
    assert "40 cases" in lines[2]
    hours = [float(line.split(" h ")[0]) for line in lines]
    assert hours[-1] == pytest.approx(sum(hours[:-1]), abs=0.5)


def test_what_is_missing_is_said_in_one_line(tmp_path: Path):
    missing = CliRunner().invoke(main, [str(tmp_path / "none"), str(tmp_path / "output")])
    assert missing.output == f"Error: {tmp_path / 'none'} is not a folder.\n"
    weights = ["--sam2-checkpoint", str(tmp_path / "none.pt")]
    missing = CliRunner().invoke(main, [str(tmp_path), str(tmp_path / "output"), *weights])
    assert missing.output == f"Error: {tmp_path / 'none.pt'} cannot be read: No such file or directory.\n"
    unknown = CliRunner().invoke(main, [str(tmp_path), str(tmp_path / "output"), "--device", "mps", "--estimate", "9"])
    assert unknown.output == "Error: No training has been timed on mps: only cuda and cpu.\n"


class Recorded(Experiment):
    """Its commands are notes of what would have been run, and one of them may fail."""

    def __init__(self, output: Path, failing: str = "") -> None:
        settings = {**ADDED_LATER, "epochs": 1, "upgrade_epochs": 1, "in_time_epochs": 1, "iterations": 1}
        super().__init__(output, settings, 1, 0)
        self.names: list[str] = []
        self.failing = failing

    def _configure(self, name: str, *options: object) -> None:
        """None is needed."""

    def _execute(self, name: str, *command: object, **environment: str) -> float:
        self.names.append(name)
        code = f"import sys, time; time.sleep(0.2); sys.exit({int(name == self.failing)})"
        return super()._execute(name, sys.executable, "-c", code)


def test_arms_train_side_by_side_once_what_they_start_from_is_trained(tmp_path: Path) -> None:
    experiment = Recorded(tmp_path)
    experiment.settings["device"] = "cpu"
    model_folder(tmp_path, Run("nnunet", 0, 0)).mkdir(parents=True)
    arms = ("upgrade", "unet_only", "upgrade_8")
    experiment.train_all([Run(arm, 0, 0) for arm in arms], jobs=4)
    assert sorted(experiment.names) == sorted(
        f"{work}_{Run(arm, 0, 0)}" for work in ("train", "predict") for arm in (*arms, "nnunet")
    )
    place = {name.split("_fold")[0]: number for number, name in enumerate(experiment.names)}
    assert place["predict_nnunet"] < min(place["train_upgrade"], place["train_upgrade_8"])
    assert place["train_unet_only"] < place["predict_nnunet"]
    experiment.train_all([Run("upgrade", 0, 0)], jobs=1)
    assert len(experiment.names) == 8, "nothing is done again"


def test_the_first_error_ends_all(tmp_path: Path) -> None:
    run = Run("nnunet", 0, 0)
    experiment = Recorded(tmp_path, failing=f"train_{run}")
    experiment.settings["device"] = "cpu"
    with pytest.raises(click.ClickException, match=f"train_{run} has ended with exit code 1"):
        experiment.train_all([Run("upgrade", 0, 0), Run("upgrade_8", 0, 0)], jobs=2)
    assert experiment.names == [f"train_{run}"]
