"""A cluster that refuses. Its commands are scripts: there is no SLURM where the tests run."""

from __future__ import annotations

import os
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
