"""A queue whose answers are scripts; with a real SLURM it is in tests/end_to_end/test_slurm.py."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from nnunet_autosam2.benchmark import slurm
from nnunet_autosam2.benchmark.slurm import FORGOTTEN, SlurmQueue


@pytest.fixture
def answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What `squeue` prints is in this file; without it, the controller does not answer."""
    (tmp_path / "squeue").write_text(f"#!/bin/sh\nexec cat {tmp_path / 'answer'}\n")
    (tmp_path / "squeue").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(slurm, "SECONDS_BETWEEN_QUESTIONS", -1.0)
    monkeypatch.setattr(slurm, "SECONDS_FOR_A_RESULT", -1.0)
    return tmp_path / "answer"


def make_job(tmp_path: Path, number: int = 7) -> SimpleNamespace:
    result = tmp_path / "result.pkl"
    return SimpleNamespace(job_id=str(number), paths=SimpleNamespace(result_pickle=result))


@pytest.mark.parametrize("state", ["PENDING", "RUNNING", "COMPLETING", "REQUEUED", "PREEMPTED", "SUSPENDED"])
def test_jobs_that_may_come_back_have_not_ended(answers: Path, tmp_path: Path, state: str) -> None:
    answers.write_text(f"6 FAILED\n7 {state}\n")
    assert not SlurmQueue().has_ended(make_job(tmp_path))


@pytest.mark.parametrize("state", ["CANCELLED", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "TIMEOUT"])
def test_jobs_that_have_ended(answers: Path, tmp_path: Path, state: str) -> None:
    answers.write_text(f"6 RUNNING\n7 {state}\n")
    queue, job = SlurmQueue(), make_job(tmp_path)
    assert queue.has_ended(job)
    assert queue.state(job) == state


def test_a_job_that_the_queue_has_forgotten(answers: Path, tmp_path: Path) -> None:
    answers.write_text("6 RUNNING\n")
    queue, job = SlurmQueue(), make_job(tmp_path)
    assert queue.has_ended(job)
    assert queue.state(job) == FORGOTTEN


def test_a_result_is_the_end_whatever_slurm_says(answers: Path, tmp_path: Path) -> None:
    answers.write_text("7 COMPLETING\n")
    job = make_job(tmp_path)
    job.paths.result_pickle.touch()
    assert SlurmQueue().has_ended(job)


def test_a_controller_that_does_not_answer_ends_no_job(answers: Path, tmp_path: Path) -> None:
    answers.write_text("7 RUNNING\n")
    queue, job = SlurmQueue(), make_job(tmp_path)
    assert not queue.has_ended(job)
    answers.unlink()
    assert not queue.has_ended(job)
    answers.write_text("7 CANCELLED\n")
    assert queue.has_ended(job)


def test_a_result_has_time_to_be_seen(answers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slurm, "SECONDS_FOR_A_RESULT", 60.0)
    answers.write_text("7 COMPLETED\n")
    assert not SlurmQueue().has_ended(make_job(tmp_path))
