"""What trained folds come to: two trainers whose predictions are the truth moved by one voxel and by two."""

from __future__ import annotations

import csv
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from nnunet_autosam2.benchmark.fold_job import FoldJob
from nnunet_autosam2.benchmark.record import collect, markdown, write
from nnunet_autosam2.benchmark.results import Benchmark, CaseFiles, read_benchmark
from nnunet_autosam2.evaluation.numbering import Numbering

DATASET = "Dataset900_Phantom"
TRAINERS = ("nnUNetTrainer", "nnUNetTrainerAutoSAM2")
FOLDS = (("a", "b"), ("c", "d"))
KIDNEY = Numbering({"kidney": (1, 2), "tumour": (2,)})
SIDE = 6
"""Of the kidney, in voxels; each is 2 mm long"""


def save(file: Path, distance: int, tumour: bool = True) -> None:
    voxels = np.zeros((16, 12, 10), np.uint8)
    voxels[2 + distance : 2 + SIDE + distance, 3:9, 3:7] = 1
    if tumour:
        voxels[4 + distance : 6 + distance, 4:6, 4:6] = 2
    file.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(voxels, np.diag([2.0, 1.0, 1.0, 1.0])), file)


@dataclass
class Finished:
    root: Path
    job_in: Callable[..., FoldJob]

    @property
    def jobs(self) -> list[FoldJob]:
        return [self.job_in(self.root, trainer, fold) for trainer in TRAINERS for fold in range(len(FOLDS))]

    @property
    def truths(self) -> Path:
        return self.root / "preprocessed" / DATASET / "gt_segmentations"

    @property
    def cases(self) -> dict[str, CaseFiles]:
        names = [case for fold in FOLDS for case in fold]
        return {
            case: CaseFiles(images={"CT": self.truths / case}, truth=self.truths / f"{case}.nii.gz") for case in names
        }

    def collect(self, jobs: list[FoldJob] | None = None, errors: dict[FoldJob, str] | None = None) -> Benchmark:
        jobs = jobs or self.jobs
        models = list(dict.fromkeys(job.model for job in jobs))
        return collect(models, jobs, errors or {}, self.cases, KIDNEY, challenge="gli", num_processes=1)


def point_nnunet_to(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("preprocessed", "results"):
        monkeypatch.setenv(f"nnUNet_{name}", str(root / name))


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory, stub_in, job_in) -> Path:
    """Trained and timed by the stub, and evaluated. Case d has no tumour, and only the first trainer finds one."""
    root = tmp_path_factory.mktemp("record")
    finished = Finished(root, job_in)
    with pytest.MonkeyPatch.context() as monkeypatch:
        stub_in(root, monkeypatch)
        point_nnunet_to(root, monkeypatch)
        for job in finished.jobs:
            assert job() is None
            distance = 1 + TRAINERS.index(job.model.trainer)
            for case in FOLDS[job.fold]:
                save(finished.truths / f"{case}.nii.gz", 0, tumour=case != "d")
                save(job.folder / "validation" / f"{case}.nii.gz", distance, tumour=case != "d" or distance == 1)
        for job in finished.jobs:
            (job.model.folder / "plans.json").write_text(json.dumps({"dataset_name": DATASET}))
        splits = [{"train": [], "val": list(fold)} for fold in FOLDS]
        (finished.truths.parent / "splits_final.json").write_text(json.dumps(splits))
        finished.collect()
    return root


@pytest.fixture
def finished(template: Path, tmp_path: Path, job_in, monkeypatch: pytest.MonkeyPatch) -> Finished:
    """A copy of it, for one test."""
    point_nnunet_to(shutil.copytree(template, tmp_path, dirs_exist_ok=True), monkeypatch)
    return Finished(tmp_path, job_in)


def test_scores_and_costs_of_every_fold(finished: Finished):
    benchmark = finished.collect()
    assert [model.title for model in benchmark.models] == list(TRAINERS)
    assert (benchmark.dataset, benchmark.plans, benchmark.device) == (DATASET, "nnUNetPlans", "cpu")
    assert benchmark.regions == ["kidney", "tumour"]
    assert benchmark.cases.keys() == {"a", "b", "c", "d"}
    for distance, model in enumerate(benchmark.models, 1):
        assert [[result.case for result in fold.cases] for fold in model.folds] == [list(fold) for fold in FOLDS]
        assert model.parameters is not None
        assert (model.parameters.all, model.parameters.trainable) == (3, 2)
        for fold in model.folds:
            assert (fold.error, fold.training_seconds, fold.peak_memory_bytes) == (None, 7, 1024)
            assert fold.curves.train_loss == [0.5]
        for result in model.results():
            assert result.scores["kidney"]["Dice"] == pytest.approx(1 - distance / SIDE)
            assert result.scores["kidney"]["HD95"] == pytest.approx(2 * distance)
            assert result.prediction.is_file()
            assert result.seconds == (1.5 if result.case == "a" else None)  # the case that was timed


def test_models_are_compared_with_the_first_over_the_cases_that_count(finished: Finished):
    found = {(each.region, each.metric): each for each in finished.collect().comparisons}
    assert found.keys() == {(region, metric) for region in ("kidney", "tumour", "mean") for metric in ("Dice", "HD95")}
    assert {(each.model, each.reference) for each in found.values()} == {(TRAINERS[1], TRAINERS[0])}
    assert found["kidney", "Dice"].difference == pytest.approx(-1 / SIDE)
    assert found["kidney", "HD95"].difference == pytest.approx(2)
    # In d the first one invents a tumour, and the second one rightly does not.
    assert (found["tumour", "Dice"].n, found["tumour", "Dice"].dropped) == (4, 0)
    assert found["tumour", "Dice"].difference == pytest.approx((3 * (0 - 0.5) + (1 - 0)) / 4)


def test_scores_are_kept_until_nnunet_validates_again(finished: Finished):
    first = finished.collect()
    job = finished.jobs[0]
    (kept,) = (job.output / "scores").glob(f"{job.name}__*.json")
    written = kept.stat().st_mtime_ns
    assert finished.collect().models == first.models
    assert kept.stat().st_mtime_ns == written
    validation = job.folder / "validation" / "a.nii.gz"
    save(validation, 0)
    later = kept.stat().st_mtime + 10
    os.utime(validation, (later, later))
    a, *_ = finished.collect().models[0].results()
    assert a.scores["kidney"]["Dice"] == 1


def test_a_fold_that_has_failed_has_its_error_and_no_cases(finished: Finished):
    jobs = finished.jobs
    (jobs[3].folder / "validation" / "summary.json").unlink()
    benchmark = finished.collect(jobs, {jobs[3]: "out of memory"})
    fold = benchmark.models[1].folds[1]
    assert (fold.error, fold.cases, fold.training_seconds) == ("out of memory", [], None)
    assert fold.peak_memory_bytes == 1024  # of what there was
    assert [each.n for each in benchmark.comparisons if each.region == "kidney"] == [2, 2]


def test_a_damaged_checkpoint_costs_the_curves_and_not_the_scores(finished: Finished):
    checkpoint = finished.jobs[0].folder / "checkpoint_final.pth"
    checkpoint.write_bytes(checkpoint.read_bytes()[:-50])
    fold, other = finished.collect().models[0].folds
    assert fold.error is not None
    assert fold.error.startswith(f"{checkpoint} is refused: found a truncated or damaged file")
    assert (fold.training_seconds, fold.curves.train_loss, len(fold.cases)) == (None, [], 2)
    assert other.error is None


def test_a_checkpoint_without_a_log(finished: Finished):
    checkpoint = finished.jobs[0].folder / "checkpoint_final.pth"
    torch.save({"network_weights": {}, "init_args": {}, "trainer_name": "x"}, checkpoint)
    error = finished.collect().models[0].folds[0].error
    assert error is not None
    assert error.startswith(f"{checkpoint}: logging: ")


def test_a_damaged_prediction_stops_its_fold_and_says_how_to_mend_it(finished: Finished):
    folder = finished.jobs[0].folder / "validation"
    (folder / "b.nii.gz").write_bytes(b"damaged")
    fold, other = finished.collect().models[0].folds
    assert fold.error is not None
    assert f"{folder / 'b.nii.gz'} cannot be read" in fold.error
    assert fold.error.endswith(f"remove {folder / 'summary.json'}, and the fold is validated again.")
    assert "\n" not in fold.error
    assert (len(fold.cases), len(other.cases)) == (0, 2)


def test_nothing_is_trained_yet(finished: Finished):
    for job in finished.jobs:
        (job.folder / "validation" / "summary.json").unlink()
    benchmark = finished.collect()
    assert benchmark.cases == {}
    assert benchmark.comparisons == []
    assert "Overlap" not in "\n".join(markdown(benchmark))


class TestFiles:
    @pytest.fixture
    def benchmark(self, finished: Finished) -> Benchmark:
        return finished.collect()

    def test_what_is_written_is_read_again(self, benchmark: Benchmark, tmp_path: Path):
        write(benchmark, tmp_path)
        assert {path.name for path in tmp_path.iterdir() if path.is_file()} == {
            "benchmark.json", "results.md", "scores.csv",
        }  # fmt: skip
        read = read_benchmark(tmp_path)
        assert read.model_dump() == benchmark.model_dump()

    def test_a_row_for_each_region_of_each_case(self, benchmark: Benchmark, tmp_path: Path):
        write(benchmark, tmp_path)
        with (tmp_path / "scores.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert list(rows[0]) == ["model", "fold", "case", "region", "Dice", "IoU", "HD95", "NSD"]
        assert len(rows) == 2 * 4 * 2
        (undefined,) = [row for row in rows if row["case"] == "d" and not row["Dice"]]
        assert (undefined["model"], undefined["region"]) == (TRAINERS[1], "tumour")

    def test_names_are_neither_formulas_nor_ends_of_columns(self, benchmark: Benchmark, tmp_path: Path):
        first, *others = benchmark.models
        named = benchmark.model_copy(
            update={"models": [first.model_copy(update={"title": "=1+1|\x1b[2K"}), *others], "warnings": ["few cases"]}
        )
        write(named, tmp_path)
        with (tmp_path / "scores.csv").open(newline="") as file:
            assert {row["model"] for row in csv.DictReader(file)} == {r"'=1+1|\x1b[2K", TRAINERS[1]}
        text = (tmp_path / "results.md").read_text()
        assert r"| =1+1\|\x1b[2K" in text
        assert text.startswith("**WARNING: few cases**\n")
        for table in text.split("\n\n"):
            lines = [line.replace(r"\|", "") for line in table.split("\n") if line.startswith("|")]
            assert len({line.count("|") for line in lines}) <= 1


def test_repeats_have_rows_of_their_own_and_are_compared_together(finished: Finished):
    jobs = [replace(job, model=job.model.titled(job.model.trainer)) for job in finished.jobs]
    again = [
        replace(job, model=job.model.titled(f"{job.model.trainer}, repeat 2").repeating(job.model.trainer))
        for job in jobs
    ]
    benchmark = finished.collect([*jobs, *again])
    assert [model.title for model in benchmark.models] == [*TRAINERS, *(f"{trainer}, repeat 2" for trainer in TRAINERS)]
    assert [model.repeat_of for model in benchmark.models] == [None, None, *TRAINERS]
    once = finished.collect()
    for single, double in zip(once.comparisons, benchmark.comparisons, strict=True):
        assert (double.repeats, double.between_repeats) == (2, 0)
        assert double.difference == single.difference
    assert "± 0.00 between 2 trainings" in "".join(markdown(benchmark))
