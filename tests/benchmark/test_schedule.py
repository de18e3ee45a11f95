"""Jobs in their order, and a cluster that refuses. Its commands are scripts: no SLURM is where the tests run.

On processes of their own, as `local` runs them, jobs are in tests/end_to_end/test_benchmark.py.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from nnunet_autosam2.benchmark.fold_job import FoldJob
from nnunet_autosam2.benchmark.models import ComparedModel
from nnunet_autosam2.benchmark.schedule import require_executor, run_jobs
from nnunet_autosam2.errors import ConfigurationError


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, script in (("srun", "exit 0"), ("sbatch", "echo 'sbatch: error: invalid partition' >&2; exit 1")):
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")


def test_a_parameter_that_submitit_does_not_know(slurm):
    require_executor("slurm", {"partition": "gpu", "time": 60})
    with pytest.raises(
        ConfigurationError, match="The executor slurm cannot be used: Unknown argument 'bogus'"
    ) as error:
        require_executor("slurm", {"bogus": 1})
    assert "\n" not in str(error.value)


def test_a_submission_that_is_refused_is_the_folds_own_error(slurm, tmp_path: Path):
    model = ComparedModel("Dataset900_Phantom", "nnUNetTrainer", "nnUNetPlans", "tiny", None, False)
    jobs = [FoldJob(model, fold, "cpu", {}, tmp_path / "benchmark") for fold in (0, 1)]
    errors = run_jobs(jobs, "slurm", None, tmp_path / "jobs", {"partition": "none"})
    assert {job.fold: error for job, error in errors.items()} == dict.fromkeys(
        (0, 1), "FailedJobError: sbatch: error: invalid partition"
    )


BASELINE, HYBRID = "nnUNetTrainer", "nnUNetTrainerAutoSAM2_OnBaseline"


def trained(stub) -> list[tuple[str, int]]:
    """Trainer and fold, in the order in which they were trained."""
    calls = [call.split() for call in stub.calls if call.startswith("measured ")]
    return [(call[call.index("-tr") + 1], int(call[4])) for call in calls]


def test_what_a_job_starts_from_comes_first(stub, make_job: Callable[..., FoldJob], tmp_path: Path):
    jobs = [make_job(HYBRID, fold, True) for fold in (0, 1)] + [make_job(BASELINE, fold) for fold in (1, 0)]
    assert run_jobs(jobs, "debug", 1, tmp_path / "jobs", {}) == {}
    order = trained(stub)
    assert len(order) == 4
    for fold in (0, 1):
        assert order.index((BASELINE, fold)) < order.index((HYBRID, fold))


def test_a_job_that_fails_takes_with_it_what_starts_from_it_and_nothing_else(
    stub, make_job: Callable[..., FoldJob], tmp_path: Path
):
    stub.training('case "$6 $4" in "nnUNetTrainer 0") echo "cannot train"; exit 1;; esac')
    jobs = [make_job(HYBRID, 0, True), make_job(HYBRID, 1, True), make_job(BASELINE, 0), make_job(BASELINE, 1)]
    errors = {
        (job.model.trainer, job.fold): said for job, said in run_jobs(jobs, "debug", 1, tmp_path / "j", {}).items()
    }
    assert errors.keys() == {(BASELINE, 0), (HYBRID, 0)}
    assert "exit code 1: cannot train" in errors[BASELINE, 0]
    assert errors[HYBRID, 0] == "not trained, because the nnU-Net that it starts from has failed"
    assert set(trained(stub)) == {(BASELINE, 0), (BASELINE, 1), (HYBRID, 1)}


def test_a_baseline_that_is_not_asked_for_is_not_waited_for(stub, make_job: Callable[..., FoldJob], tmp_path: Path):
    """It may have been trained before; if not, the trainer says so."""
    assert run_jobs([make_job(HYBRID, 0, True)], "debug", None, tmp_path / "jobs", {}) == {}
    assert trained(stub) == [(HYBRID, 0)]


def test_nothing_to_do(tmp_path: Path):
    assert run_jobs([], "debug", None, tmp_path / "jobs", {}) == {}


def test_an_executor_that_is_not_there():
    with pytest.raises(ConfigurationError, match=r"^The executor moon cannot be used: ") as error:
        require_executor("moon", {})
    assert "\n" not in str(error.value)
