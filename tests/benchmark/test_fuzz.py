"""The benchmark's own files, should anyone else have written them: read, or refused with one line that names them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings

from nnunet_autosam2.benchmark import record
from nnunet_autosam2.benchmark.kept import KeptScores, PredictionCost, TrainingCost, read_kept
from nnunet_autosam2.benchmark.results import read_benchmark
from nnunet_autosam2.errors import AutoSAM2Error
from nnunet_autosam2.evaluation.brats_metrics import METRICS
from nnunet_autosam2.report.write import write_report


def thorough(short: int, long: int):
    """How many inputs are tried in `make test` and in `make test-slow`."""
    return pytest.mark.parametrize("tries", [short, pytest.param(long, marks=pytest.mark.slow)])


@pytest.fixture
def attempt(tmp_path: Path, foreign_json, every_time) -> Callable[..., None]:
    """Puts so many foreign versions of a content into a file, and runs a reader."""

    def run(tries: int, file: Path, content: Any, read: Callable[[], Any]) -> None:
        outcomes: Counter[str] = Counter()
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(content))
        read()
        before = sorted(tmp_path.rglob("*"))

        @settings(every_time, max_examples=tries)
        @given(written=foreign_json(content))
        def once(written: bytes) -> None:
            file.write_bytes(written)
            said = "read"
            try:
                read()
            except AutoSAM2Error as error:
                said = str(error)
                outcomes["refused"] += 1
            assert said == "read" or said.startswith(str(file))
            assert "\n" not in said

        once()
        assert sorted(tmp_path.rglob("*")) == before
        assert 0.05 * tries < outcomes["refused"] < 0.95 * tries, outcomes

    return run


REGIONS = ("ET", "TC", "WT")
KEPT: dict[str, tuple[Any, Any]] = {
    "scores": (KeptScores, {case: {region: dict.fromkeys(METRICS, 0.5) for region in REGIONS} for case in ("a", "b")}),
    "training": (TrainingCost, {"peak_memory_bytes": 2**30}),
    "prediction": (
        PredictionCost,
        {
            "peak_memory_bytes": 2**30,
            "seconds": {"a": 1.5, "b": 2.0},
            "parameters": {"all": 10, "trainable": 5},
        },
    ),
}


@thorough(60, 3000)
@pytest.mark.parametrize("what", KEPT)
def test_what_a_benchmark_keeps_is_read_or_set_aside(tmp_path: Path, foreign_json, every_time, what: str, tries: int):
    kind, content = KEPT[what]
    file = tmp_path / f"{what}.json"
    outcomes: Counter[bool] = Counter()

    @settings(every_time, max_examples=tries)
    @given(written=foreign_json(content))
    def once(written: bytes) -> None:
        file.write_bytes(written)
        kept = read_kept(file, kind)
        (left,) = tmp_path.iterdir()
        assert left.name == (file.name if kept is not None else f"{file.name}.damaged")
        assert left.read_bytes() == written
        left.unlink()
        outcomes[kept is not None] += 1

    once()
    assert 0.05 * tries < outcomes[False] < 0.95 * tries, outcomes


def benchmark_json(folder: Path) -> dict[str, Any]:
    """Of two models and two folds, with volumes to show."""
    for name in ("image", "truth", "prediction"):
        nibabel.save(
            nibabel.Nifti1Image(np.eye(8, dtype=np.uint8)[None].repeat(8, 0), np.eye(4)), folder / f"{name}.nii.gz"
        )
    models = [
        {
            "title": title, "trainer": title, "configuration": "tiny", "slice_fraction": fraction,
            "parameters": {"all": 10, "trainable": 5},
            "folds": [
                {
                    "fold": fold, "training_seconds": 10.5, "peak_memory_bytes": 2**30, "error": None,
                    "curves": {"train_loss": [1.0, 0.5], "val_loss": [1.0, 0.75], "ema_fg_dice": [0.1, 0.2]},
                    "cases": [
                        {
                            "case": case, "prediction": str(folder / "prediction.nii.gz"), "seconds": 1.5,
                            "scores": {region: dict.fromkeys(METRICS, 0.25 + fold / 10) for region in REGIONS},
                        }
                    ],
                }
                for fold, case in enumerate(("a", "b"))
            ],
        }
        for title, fraction in (("nnUNetTrainer", None), ("nnUNetTrainerAutoSAM2", 0.3))
    ]  # fmt: skip
    comparison = {
        "model": "nnUNetTrainerAutoSAM2", "reference": "nnUNetTrainer", "region": "ET", "metric": "Dice", "n": 2,
        "difference": 0.1, "low": 0.0, "high": 0.2, "p": 0.5,
    }  # fmt: skip
    files = {"images": {"T1": str(folder / "image.nii.gz")}, "truth": str(folder / "truth.nii.gz")}
    return {
        "dataset": "Dataset900_Phantom", "plans": "nnUNetPlans", "device": "cpu",
        "created": "2026-01-02T03:04:05+00:00", "models": models, "cases": {"a": files, "b": files},
        "comparisons": [comparison],
    }  # fmt: skip


@thorough(300, 10000)
def test_benchmark_json(tmp_path: Path, attempt, tries: int) -> None:
    """As the tables need it."""

    def read() -> None:
        for line in record.markdown(read_benchmark(tmp_path)):
            assert line

    attempt(tries, tmp_path / "benchmark.json", benchmark_json(tmp_path), read)


@pytest.mark.slow
def test_reports_of_benchmark_json(tmp_path: Path, attempt) -> None:
    """With all figures, which take a second each."""
    attempt(200, tmp_path / "benchmark.json", benchmark_json(tmp_path), lambda: write_report(tmp_path, 0))
