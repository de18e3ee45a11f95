"""`autosam2 benchmark` from training to report, killed in the middle and started again."""

from __future__ import annotations

import csv
import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.end_to_end
TRAINERS = ("nnUNetTrainerTiny", "nnUNetTrainerAutoSAM2_UNetOnly", "nnUNetTrainerAutoSAM2_60")
FOLDS = ("0", "1")
REGIONS = ("ET", "TC", "WT")
OPTIONS = ("-c", "quick", "--device", "cpu", "--timed-cases", "1", "--num-processes", "1", "--viewer-cases", "0")


@pytest.fixture(scope="module")
def workspace(planned) -> Iterator:
    planned.environment["nnUNet_extTrainer"] = str(Path(__file__).with_name("trainers"))
    yield planned
    del planned.environment["nnUNet_extTrainer"]


@pytest.fixture(scope="module")
def finished(workspace) -> Path:
    """Folder of a benchmark whose processes were all killed during its second training."""
    output = workspace.root / "benchmark"
    command = ("autosam2", "benchmark", "-d", "900", "--trainers", *TRAINERS, "--folds", *FOLDS, *OPTIONS, "-o", output)
    first = workspace.start(*command)
    second_log = output / "logs" / f"{TRAINERS[1]}__nnUNetPlans__quick__fold_0.txt"
    deadline = time.monotonic() + 300
    while not (second_log.is_file() and "Epoch 1" in second_log.read_text()):
        assert first.poll() is None, first.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.1)
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate()
    assert not (output / "benchmark.json").exists()
    before = checkpoint(workspace, TRAINERS[0], "0").stat().st_mtime_ns
    said = workspace.run(*command)
    assert "1 of 6 folds are done" in said
    assert checkpoint(workspace, TRAINERS[0], "0").stat().st_mtime_ns == before
    assert second_log.read_text().count("Epoch 0") == 1  # it went on from its checkpoint
    return output


def checkpoint(workspace, trainer: str, fold: str) -> Path:
    return workspace.results(trainer, "quick") / f"fold_{fold}" / "checkpoint_final.pth"


def test_every_fold_is_there_with_its_costs(workspace, finished: Path) -> None:
    record = json.loads((finished / "benchmark.json").read_text())
    assert [model["title"] for model in record["models"]] == list(TRAINERS)
    assert [model["slice_fraction"] for model in record["models"]] == [None, 0.0, 0.6]
    for model in record["models"]:
        assert [fold["fold"] for fold in model["folds"]] == [0, 1]
        assert model["parameters"]["all"] >= model["parameters"]["trainable"] > 0
        for fold in model["folds"]:
            assert fold["error"] is None
            assert fold["training_seconds"] > 0
            assert 2**20 < fold["peak_memory_bytes"] < 2**36
            assert len(fold["curves"]["train_loss"]) == 2
            assert sum(case["seconds"] is not None for case in fold["cases"]) == 1
    sizes = [model["parameters"]["all"] for model in record["models"]]
    assert sizes[2] > sizes[1] + 30e6  # SAM2 itself


def test_scores_are_those_of_nnunets_validation(workspace, finished: Path) -> None:
    """Every case of both folds; nnU-Net leaves a Dice out where truth and prediction are empty."""
    record = json.loads((finished / "benchmark.json").read_text())
    splits = json.loads((workspace.root / "preprocessed" / "Dataset900_Phantom" / "splits_final.json").read_text())
    labels = {"WT": "(1, 2, 3)", "TC": "(2, 3)", "ET": "3"}
    compared = 0
    for model in record["models"]:
        for fold in model["folds"]:
            folder = workspace.results(model["trainer"], "quick") / f"fold_{fold['fold']}" / "validation"
            summary = json.loads((folder / "summary.json").read_text())
            expected = {Path(case["prediction_file"]).name: case["metrics"] for case in summary["metric_per_case"]}
            assert sorted(case["case"] for case in fold["cases"]) == sorted(splits[fold["fold"]]["val"])
            for case in fold["cases"]:
                for region in REGIONS:
                    metrics = {str(key): value for key, value in expected[f"{case['case']}.nii.gz"].items()}
                    theirs = metrics.get(labels[region], metrics.get(f"({labels[region]},)"))
                    if theirs["Dice"] == theirs["Dice"]:
                        assert case["scores"][region]["Dice"] == pytest.approx(theirs["Dice"], abs=1e-6)
                        compared += 1
    assert compared >= 12


def test_tables_statistics_and_report(finished: Path) -> None:
    record = json.loads((finished / "benchmark.json").read_text())
    pairs = {(comparison["model"], comparison["reference"]) for comparison in record["comparisons"]}
    assert pairs == {(trainer, TRAINERS[0]) for trainer in TRAINERS[1:]}
    assert all(
        comparison["low"] <= comparison["difference"] <= comparison["high"] for comparison in record["comparisons"]
    )
    with (finished / "scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == sum(len(fold["cases"]) for model in record["models"] for fold in model["folds"]) * len(REGIONS)
    text = (finished / "results.md").read_text()
    for trainer in TRAINERS:
        assert f"| {trainer}, " in text
        assert trainer in (finished / "report" / "index.html").read_text()


def test_a_finished_benchmark_does_nothing_again(workspace, finished: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in workspace.root.glob("results/**/*.pth")}
    command = ("autosam2", "benchmark", "-d", "900", "--trainers", *TRAINERS, "--folds", *FOLDS, *OPTIONS)
    assert "6 of 6 folds are done" in workspace.run(*command, "-o", finished)
    assert {path: path.stat().st_mtime_ns for path in workspace.root.glob("results/**/*.pth")} == before


def test_a_fold_that_fails_is_named_and_loses_nothing_else(workspace, finished: Path, tmp_path: Path) -> None:
    names = ("nnUNetTrainerFails", TRAINERS[0])
    command = ("autosam2", "benchmark", "-d", "900", "--trainers", *names, "--folds", "0", *OPTIONS)
    said = workspace.run(*command, "--executor", "debug", "-o", tmp_path / "benchmark", expected=1)
    line = said.strip().splitlines()[-1]
    assert line.startswith("nnUNetTrainerFails__nnUNetPlans__quick__fold_0: nnUNetv2_train has ended with exit code 1")
    assert "this trainer cannot train" in line
    record = json.loads((tmp_path / "benchmark" / "benchmark.json").read_text())
    failed, other = record["models"]
    assert "this trainer cannot train" in failed["folds"][0]["error"]
    assert other["folds"][0]["error"] is None
    assert other["folds"][0]["cases"]
    assert "1 of 1 folds failed" in (tmp_path / "benchmark" / "results.md").read_text()


@pytest.mark.parametrize(
    ("message", "changes"),
    [
        ("nnU-Net finds no trainer nnUNetTrainerNobody", {"--trainers": "nnUNetTrainerNobody"}),
        ("is named twice", {"--trainers": ("nnUNetTrainer", "nnUNetTrainer__nnUNetPlans__quick")}),
        ("no_such is no configuration in", {"-c": "no_such"}),
        ("is not the ID or name of one dataset", {"-d": "901"}),
        ("Fold 7 is not there", {"--folds": ("0", "7")}),
        ("--slurm: partition is not KEY=VALUE", {"--slurm": "partition"}),
    ],
)
def test_wrong_requests_are_refused_before_anything_is_trained(workspace, tmp_path: Path, message, changes) -> None:
    options = {"-d": "900", "--trainers": "nnUNetTrainer", "-c": "quick", "--device": "cpu", "--viewer-cases": "0"}
    arguments = []
    for option, values in {**options, **changes}.items():
        arguments += [option, *([values] if isinstance(values, str) else values)]
    expected = 2 if "--slurm" in changes else 1
    said = workspace.run("autosam2", "benchmark", *arguments, "-o", tmp_path / "benchmark", expected=expected)
    assert message in said
    assert "Traceback" not in said
    assert not (tmp_path / "benchmark").exists()
