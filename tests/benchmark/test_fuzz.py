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
from nnunet_autosam2.benchmark.fold_job import FoldJob
from nnunet_autosam2.benchmark.models import Model
from nnunet_autosam2.errors import AutoSAM2Error
from nnunet_autosam2.evaluation.brats_metrics import METRICS
from nnunet_autosam2.report.benchmark import REGIONS, CaseFiles, read_benchmark
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


@pytest.fixture
def job(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FoldJob:
    """A fold that is done, with two cases."""
    results = tmp_path / "results" / "Dataset900_Phantom"
    results.mkdir(parents=True)
    model.rename(results / model.name)
    monkeypatch.setenv("nnUNet_results", str(results.parent))
    trained = Model("Dataset900_Phantom", *model.name.split("__"), slice_fraction=0.3, starts_from_baseline=False)
    job = FoldJob(trained, 0, "cpu", {}, tmp_path / "benchmark")
    validation = job.folder / "validation"
    validation.mkdir()
    (validation / "summary.json").write_text("{}")
    return job


def collected(job: FoldJob) -> Any:
    files = {name: CaseFiles(images={"T1": Path("a.nii.gz")}, truth=Path("b.nii.gz")) for name in ("a", "b")}
    return record.collect([job.model], [job], {}, files)


SCORES = {case: {region: dict.fromkeys(METRICS, 0.5) for region in REGIONS} for case in ("a", "b")}


@thorough(60, 3000)
def test_scores(job: FoldJob, attempt, tries: int) -> None:
    file = job.output / "scores" / f"{job.name}__gli.json"
    attempt(tries, file, SCORES, lambda: record.write(collected(job), job.folder))


@thorough(60, 3000)
@pytest.mark.parametrize("what", ["training", "prediction"])
def test_measured(job: FoldJob, attempt, what: str, tries: int) -> None:
    scores = job.output / "scores" / f"{job.name}__gli.json"
    scores.parent.mkdir(parents=True)
    scores.write_text(json.dumps(SCORES))
    content: dict[str, Any] = {"peak_memory_bytes": 2**30}
    if what == "prediction":
        content |= {"seconds": {"a": 1.5, "b": 2.0}, "parameters": {"all": 10, "trainable": 5}}
    file = job.output / "measured" / f"{job.name}__{what}.json"
    attempt(tries, file, content, lambda: record.write(collected(job), job.folder))


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
