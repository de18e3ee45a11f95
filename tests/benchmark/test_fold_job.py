"""What is trained already may come from anywhere, and nnU-Net's commands would run what is in it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from nnunet_autosam2.benchmark.fold_job import FoldJob
from nnunet_autosam2.benchmark.models import Model


class RunsCode:
    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self):
        return Path.touch, (self.trace,)


@pytest.fixture
def job(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FoldJob:
    results = tmp_path / "results" / "Dataset900_Phantom"
    results.mkdir(parents=True)
    model.rename(results / model.name)
    monkeypatch.setenv("nnUNet_results", str(results.parent))
    trained = Model("Dataset900_Phantom", *model.name.split("__"), slice_fraction=0.3, starts_from_baseline=False)
    job = FoldJob(trained, 0, "cpu", {}, tmp_path / "benchmark")
    (job.folder / "validation").mkdir()
    (job.folder / "validation" / "summary.json").write_text("{}")
    return job


def test_plans_that_name_code_are_refused_before_a_timed_prediction(job: FoldJob, plans, trap: Path):
    plans["configurations"]["3d_fullres"]["architecture"]["network_class_name"] = "trap.Network"
    (job.model.folder / "plans.json").write_text(json.dumps(plans))
    said = job()
    assert said is not None
    assert said.startswith(f"{job.model.folder / 'plans.json'}: ")
    assert "found trap.Network" in said
    assert not job.log.exists()
    assert not trap.exists()


@pytest.mark.parametrize("name", ["checkpoint_final.pth", "checkpoint_latest.pth", "checkpoint_best.pth"])
def test_checkpoints_with_code_are_refused_before_any_command(job: FoldJob, tmp_path: Path, name: str):
    trace = tmp_path / "trace"
    (job.folder / name).unlink(missing_ok=True)
    torch.save({"network_weights": {}, "init_args": RunsCode(trace), "trainer_name": "x"}, job.folder / name)
    said = job()
    assert said is not None
    assert f"{name} is refused: found a pickle that could run code" in said
    assert not job.log.exists()
    assert not trace.exists()
    torch.load(job.folder / name, weights_only=False)
    assert trace.exists()
