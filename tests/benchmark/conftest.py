"""Folds that a stub trains in milliseconds; what nnU-Net's own commands do is in tests/end_to_end/test_benchmark.py."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch

from nnunet_autosam2.benchmark.fold_job import FoldJob
from nnunet_autosam2.benchmark.models import ComparedModel

DATASET = "Dataset900_Phantom"
STUB = """#!/bin/sh
# In the place of Python: -u -m nnunet_autosam2.benchmark.MODULE RECORD ARGUMENT...
module=${3##*.} record=$4
shift 4
echo "$module $*" >>CALLS
case $module in
measured)  # nnUNetv2_train DATASET CONFIGURATION FOLD -tr TRAINER -p PLANS ...
    folder="$nnUNet_results/$2/$6__$8__$3/fold_$4"
    mkdir -p "$folder/validation"
    echo "2026-01-02 03:04:05.678901: Epoch 0"
    echo '{"peak_memory_bytes": 1024}' >"$record"
    . TRAINING
    cp CHECKPOINT "$folder/checkpoint_final.pth"
    echo '{}' >"$folder/validation/summary.json"
    ;;
timed_prediction)
    echo '{"seconds": {"a": 1.5}, "peak_memory_bytes": 2048, "parameters": {"all": 3, "trainable": 2}}' >"$record"
    ;;
esac
"""


class Stub:
    """Trains and predicts; what a training does besides is a few lines of shell that a test writes."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.program, self._calls, self._training = folder / "python", folder / "calls", folder / "training"
        log = {name: [0.5] for name in ("train_losses", "val_losses", "ema_fg_dice")}
        log |= {"epoch_start_timestamps": [2.0], "epoch_end_timestamps": [9.0]}
        self.checkpoint = folder / "checkpoint.pth"
        content = {"network_weights": {}, "init_args": {}, "trainer_name": "nnUNetTrainer", "logging": log}
        torch.save(content, self.checkpoint)
        script = STUB
        for name, path in (
            ("CALLS", self._calls), ("TRAINING", self._training), ("CHECKPOINT", self.checkpoint),
        ):  # fmt: skip
            script = script.replace(name, shlex.quote(str(path)))
        self.program.write_text(script)
        self.program.chmod(0o755)
        self.training("")

    def training(self, script: str) -> None:
        self._training.write_text(script)

    @property
    def calls(self) -> list[str]:
        """Each as `module argument ...`, without the record."""
        return self._calls.read_text().splitlines() if self._calls.exists() else []


@pytest.fixture(scope="session")
def stub_in() -> Callable[[Path, pytest.MonkeyPatch], Stub]:
    """Makes the stub of a folder, in which nnU-Net then has its results."""

    def make(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Stub:
        made = Stub(folder / "stub")
        monkeypatch.setattr(sys, "executable", str(made.program))
        monkeypatch.setenv("nnUNet_results", str(folder / "results"))
        return made

    return make


@pytest.fixture
def stub(tmp_path: Path, stub_in, monkeypatch: pytest.MonkeyPatch) -> Stub:
    return stub_in(tmp_path, monkeypatch)


@pytest.fixture(scope="session")
def job_in() -> Callable[..., FoldJob]:
    """Makes the job of a trainer and a fold in a folder, with one case to time."""

    def make(
        folder: Path, trainer: str = "nnUNetTrainer", fold: int = 0, starts_from_baseline: bool = False
    ) -> FoldJob:
        model = ComparedModel(DATASET, trainer, "nnUNetPlans", "3d_fullres", None, starts_from_baseline)
        return FoldJob(model, fold, "cpu", {"a": ["a_0000.nii.gz"]}, folder / "benchmark")

    return make


@pytest.fixture
def make_job(tmp_path: Path, job_in: Callable[..., FoldJob]) -> Callable[..., FoldJob]:
    return partial(job_in, tmp_path)


@pytest.fixture
def planned(tmp_path: Path, plans: dict, dataset_json: dict, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two plans of one data set."""
    for name in ("raw", "preprocessed", "results"):
        monkeypatch.setenv(f"nnUNet_{name}", str(tmp_path / name))
    folder = tmp_path / "preprocessed" / "Dataset900_Phantom"
    folder.mkdir(parents=True)
    (folder / "dataset.json").write_text(json.dumps(dataset_json))
    for name in ("nnUNetPlans", "otherPlans"):
        (folder / f"{name}.json").write_text(json.dumps({**plans, "plans_name": name}))
    return folder
