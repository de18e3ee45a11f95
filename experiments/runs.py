"""Trainings of an experiment, and where in its folder their files lie."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any, NamedTuple

from experiments.arms import ARMS, Arm

DATASET, NAME = "40", "Dataset040_Experiment"
PLANS, CONFIGURATION = "nnUNetPlansExperiment", "small"
BATCH_SIZE = 2
PATH = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])

ADDED_LATER = {
    "training_cases": [None],
    "initial_lr": 1e-3,
    "val_iterations": 4,
    "full_prediction": False,
    "stored_batches": False,
    "sam2_sha256": None,
}
"""Settings of a folder that was started before there were these"""


class Run(NamedTuple):
    """One training and the prediction of the cases that it has not seen."""

    arm: str
    fold: int
    """nnU-Net's: each part of the cases is left out once for each number of training cases"""
    seed: int

    def __str__(self) -> str:
        return f"{self.arm}_fold_{self.fold}_seed_{self.seed}"


def read_settings(path: Path) -> dict[str, Any]:
    return {**ADDED_LATER, **json.loads(path.read_text())}


def training_cases_of(settings: dict[str, Any], fold: int) -> int | None:
    """Number of training cases that was asked for; None: all of them."""
    numbers = settings["training_cases"]
    return numbers[fold % len(numbers)]


def start_of(run: Run) -> Run | None:
    """The run whose weights it starts from."""
    start = ARMS[run.arm].starts_from
    return run._replace(arm=start) if start else None


def epochs_of(arm: Arm, settings: dict[str, Any]) -> int:
    if arm.starts_from is None:
        return settings["epochs"]
    return settings["in_time_epochs" if arm.in_time else "upgrade_epochs"]


def configuration(arm: str) -> str:
    return arm if ARMS[arm].parameters or ARMS[arm].starts_from else CONFIGURATION


def results_folder(output: Path, seed: int) -> Path:
    """nnU-Net keeps one training of a trainer, configuration and fold."""
    return output / f"results_seed_{seed}"


def model_folder(output: Path, run: Run) -> Path:
    return results_folder(output, run.seed) / NAME / f"{ARMS[run.arm].trainer}__{PLANS}__{configuration(run.arm)}"


def batches_folder(output: Path, fold: int, seed: int) -> Path:
    return output / "batches" / f"fold_{fold}_seed_{seed}"


def prediction_folder(output: Path, run: Run) -> Path:
    return output / "predicted" / f"{run.arm}_seed_{run.seed}"


def stamp_file(output: Path, name: str) -> Path:
    return output / "done" / name


def left_out_cases(output: Path) -> list[list[str]]:
    """Cases that each fold leaves out."""
    splits = json.loads((output / "preprocessed" / NAME / "splits_final.json").read_text())
    return [split["val"] for split in splits]
