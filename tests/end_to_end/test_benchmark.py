"""`autosam2 benchmark` from training to report, killed in the middle and started again."""

from __future__ import annotations

import csv
import json
import os
import signal
import time
from pathlib import Path
from typing import NamedTuple

import pytest

pytestmark = pytest.mark.end_to_end
TRAINERS = ("nnUNetTrainerTiny", "nnUNetTrainerAutoSAM2_UNetOnly", "nnUNetTrainerAutoSAM2_60")
REGIONS = ("ET", "TC", "WT")
OPTIONS = ("--device", "cpu", "--timed-cases", "1", "--num-processes", "1", "--viewer-cases", "0")


class Benchmark(NamedTuple):
    """Each with a configuration, and so with results, of its own."""

    name: str
    trainers: tuple[str, ...]
    folds: tuple[str, ...]

    def command(self, output: Path) -> tuple[str | Path, ...]:
        selection = ("-c", self.name, "--trainers", *self.trainers, "--folds", *self.folds)
        return "autosam2", "benchmark", "-d", "900", *selection, *OPTIONS, "-o", output

    def output(self, extended) -> Path:
        return extended.root / f"benchmark_{self.name}"


SHORT = Benchmark("short", TRAINERS[:2], ("0",))
WHOLE = Benchmark("whole", TRAINERS, ("0", "1"))


@pytest.fixture(
    scope="module", params=[pytest.param(each, marks=pytest.mark.slow, id=each.name) for each in (SHORT, WHOLE)]
)
def finished(request, extended) -> Benchmark:
    """A benchmark whose processes were all killed during its second training."""
    benchmark: Benchmark = request.param
    short = "num_iterations_per_epoch=1"
    extended.run("autosam2", "configure", "900", "--base", "tiny", "--name", benchmark.name, short)
    output, trainer = benchmark.output(extended), benchmark.trainers[0]
    first = extended.start(*benchmark.command(output))
    second_log = output / "logs" / f"{TRAINERS[1]}__nnUNetPlans__{benchmark.name}__fold_0.txt"
    deadline = time.monotonic() + 300
    while not (second_log.is_file() and "Epoch 1" in second_log.read_text()):
        assert first.poll() is None, first.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.1)
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate()
    assert not (output / "benchmark.json").exists()
    checkpoint = extended.results(trainer, benchmark.name) / "fold_0" / "checkpoint_final.pth"
    before = checkpoint.stat().st_mtime_ns
    said = extended.run(*benchmark.command(output))
    assert f"1 of {len(benchmark.trainers) * len(benchmark.folds)} folds are done" in said
    assert checkpoint.stat().st_mtime_ns == before
    assert second_log.read_text().count("Epoch 0") == 1  # it went on from its checkpoint
    return benchmark


def read_record(extended, benchmark: Benchmark) -> dict:
    return json.loads((benchmark.output(extended) / "benchmark.json").read_text())


def test_every_fold_is_there_with_its_costs(extended, finished: Benchmark) -> None:
    record = read_record(extended, finished)
    assert [model["title"] for model in record["models"]] == list(finished.trainers)
    assert [model["slice_fraction"] for model in record["models"]] == [None, 0.0, 0.6][: len(finished.trainers)]
    for model in record["models"]:
        assert [str(fold["fold"]) for fold in model["folds"]] == list(finished.folds)
        assert model["parameters"]["all"] >= model["parameters"]["trainable"] > 0
        for fold in model["folds"]:
            assert fold["error"] is None
            assert fold["training_seconds"] > 0
            assert 2**20 < fold["peak_memory_bytes"] < 2**36
            assert len(fold["curves"]["train_loss"]) == 2
            assert sum(case["seconds"] is not None for case in fold["cases"]) == 1
    sizes = [model["parameters"]["all"] for model in record["models"]]
    assert len(sizes) == 2 or sizes[2] > sizes[1] + 30e6  # SAM2 itself


def test_scores_are_those_of_nnunets_validation(extended, finished: Benchmark) -> None:
    """Every case of the folds; nnU-Net leaves a Dice out where truth and prediction are empty."""
    splits = json.loads((extended.root / "preprocessed" / "Dataset900_Phantom" / "splits_final.json").read_text())
    labels = {"WT": "(1, 2, 3)", "TC": "(2, 3)", "ET": "3"}
    compared = 0
    for model in read_record(extended, finished)["models"]:
        for fold in model["folds"]:
            folder = extended.results(model["trainer"], finished.name) / f"fold_{fold['fold']}" / "validation"
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
    assert compared >= 6


def test_tables_statistics_and_report(extended, finished: Benchmark) -> None:
    record, output = read_record(extended, finished), finished.output(extended)
    pairs = {(comparison["model"], comparison["reference"]) for comparison in record["comparisons"]}
    assert pairs == {(trainer, TRAINERS[0]) for trainer in finished.trainers[1:]}
    for comparison in record["comparisons"]:
        assert -400 < comparison["difference"] < 400
        assert (comparison["low"], comparison["high"]) == (None, None)  # of four cases at most
    with (output / "scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == sum(len(fold["cases"]) for model in record["models"] for fold in model["folds"]) * len(REGIONS)
    text = (output / "results.md").read_text()
    for trainer in finished.trainers:
        assert f"| {trainer}, " in text
        assert trainer in (output / "report" / "index.html").read_text()
    assert "| Model − reference |" in text
    assert "Models are compared over the same cases and regions." in text


def test_a_finished_benchmark_does_nothing_again(extended, finished: Benchmark) -> None:
    before = {path: path.stat().st_mtime_ns for path in extended.root.glob("results/**/*.pth")}
    said = extended.run(*finished.command(finished.output(extended)))
    count = len(finished.trainers) * len(finished.folds)
    assert f"{count} of {count} folds are done" in said
    assert {path: path.stat().st_mtime_ns for path in extended.root.glob("results/**/*.pth")} == before


def test_a_fold_that_fails_is_named_and_loses_nothing_else(extended, finished: Benchmark, tmp_path: Path) -> None:
    benchmark = finished._replace(trainers=("nnUNetTrainerFails", TRAINERS[0]), folds=("0",))
    said = extended.run(*benchmark.command(tmp_path / "benchmark"), "--executor", "debug", expected=1)
    line = said.strip().splitlines()[-1]
    assert line.startswith(f"nnUNetTrainerFails__nnUNetPlans__{finished.name}__fold_0: nnUNetv2_train has ended with")
    assert "this trainer cannot train" in line
    record = json.loads((tmp_path / "benchmark" / "benchmark.json").read_text())
    failed, other = record["models"]
    assert "this trainer cannot train" in failed["folds"][0]["error"]
    assert other["folds"][0]["error"] is None
    assert other["folds"][0]["cases"]
    assert "1 of 1 folds failed" in (tmp_path / "benchmark" / "results.md").read_text()


def test_ctrl_c_is_one_line_and_leaves_no_process(extended, tmp_path: Path) -> None:
    """As in a terminal, where it reaches every process that was started."""
    output, log = tmp_path / "benchmark", f"{TRAINERS[0]}__nnUNetPlans__tiny__fold_1.txt"
    options = ("-c", "tiny", "--trainers", TRAINERS[0], "--folds", "1", *OPTIONS, "-o", output)
    run = extended.start("autosam2", "benchmark", "-d", "900", *options)
    deadline = time.monotonic() + 300
    while not (output / "logs" / log).is_file():
        assert run.poll() is None, run.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.1)
    os.killpg(run.pid, signal.SIGINT)
    said, _ = run.communicate(timeout=60)
    assert run.returncode == 1
    assert "Traceback" not in said
    assert said.splitlines()[-1] == "Error: Stopped. Start it again to go on."
    deadline = time.monotonic() + 60
    while processes_of_group(run.pid):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def processes_of_group(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize(
    ("message", "changes"),
    [
        ("nnU-Net finds no trainer nnUNetTrainerNobody", {"--trainers": "nnUNetTrainerNobody"}),
        ("is named twice", {"--trainers": ("nnUNetTrainer", "nnUNetTrainer__nnUNetPlans__tiny")}),
        ("no_such is no configuration in", {"-c": "no_such"}),
        ("is not the ID or name of one dataset", {"-d": "987"}),
        ("Fold 7 is not there", {"--folds": ("0", "7")}),
        ("--slurm: partition is not KEY=VALUE", {"--slurm": "partition"}),
    ],
)
def test_wrong_requests_are_refused_before_anything_is_trained(extended, tmp_path: Path, message, changes) -> None:
    options = {"-d": "900", "--trainers": "nnUNetTrainer", "-c": "tiny", "--device": "cpu", "--viewer-cases": "0"}
    arguments = []
    for option, values in {**options, **changes}.items():
        arguments += [option, *([values] if isinstance(values, str) else values)]
    expected = 2 if "--slurm" in changes else 1
    said = extended.run("autosam2", "benchmark", *arguments, "-o", tmp_path / "benchmark", expected=expected)
    assert message in said
    assert "Traceback" not in said
    assert not (tmp_path / "benchmark").exists()
