"""What is trained already may come from anywhere, and nnU-Net's commands would run what is in it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from nnunet_autosam2.benchmark.fold_job import CHECKPOINTS, FoldJob
from nnunet_autosam2.benchmark.models import ComparedModel


@pytest.fixture
def measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FoldJob:
    """Trained and measured."""
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "results"))
    model = ComparedModel("Dataset005_Phantom", "nnUNetTrainer", "nnUNetPlans", "3d_fullres", None, False)
    measured = FoldJob(model, 0, "cpu", {}, tmp_path / "benchmark")
    (measured.folder / "validation").mkdir(parents=True)
    (measured.folder / "validation" / "summary.json").write_text("{}")
    for name in ("checkpoint_final.pth", *CHECKPOINTS):
        torch.save({"network_weights": {}}, measured.folder / name)
    (tmp_path / "benchmark" / "measured").mkdir(parents=True)
    record = '{"seconds": {}, "peak_memory_bytes": 1, "parameters": {"all": 1, "trainable": 1}}'
    (tmp_path / "benchmark" / "measured" / f"{measured.name}__prediction.json").write_text(record)
    return measured


def test_a_damaged_record_is_measured_again(measured: FoldJob, caplog: pytest.LogCaptureFixture):
    assert measured.is_done
    (record,) = (measured.output / "measured").iterdir()
    record.write_text("")
    assert not measured.is_done
    assert measured.is_validated
    assert f"{record} is damaged" in caplog.text
    assert (measured.training, measured.prediction) == (None, None)


@pytest.mark.parametrize("left", [0, 100])
def test_checkpoints_that_a_full_disk_has_cut_off_are_set_aside(measured: FoldJob, left: int):
    """nnU-Net would end at each start with a traceback."""
    final, latest = measured.folder / "checkpoint_final.pth", measured.folder / CHECKPOINTS[0]
    for path in (final, latest):
        path.write_bytes(path.read_bytes()[:left])
    assert measured.whole_checkpoints() == [CHECKPOINTS[1]]
    names = {"validation", "checkpoint_best.pth", "checkpoint_final.pth.damaged", "checkpoint_latest.pth.damaged"}
    assert {path.name for path in measured.folder.iterdir()} == names


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
    trainer, plans, configuration = model.name.split("__")
    trained = ComparedModel("Dataset900_Phantom", trainer, plans, configuration, 0.3, starts_from_baseline=False)
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
