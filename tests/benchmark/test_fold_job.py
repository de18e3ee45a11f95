from pathlib import Path

import pytest
import torch

from nnunet_autosam2.benchmark.fold_job import CHECKPOINTS, FoldJob
from nnunet_autosam2.benchmark.models import Model


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FoldJob:
    """Trained and measured."""
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "results"))
    model = Model("Dataset005_Phantom", "nnUNetTrainer", "nnUNetPlans", "3d_fullres", None, False)
    job = FoldJob(model, 0, "cpu", {}, tmp_path / "benchmark")
    (job.folder / "validation").mkdir(parents=True)
    (job.folder / "validation" / "summary.json").write_text("{}")
    for name in ("checkpoint_final.pth", *CHECKPOINTS):
        torch.save({"network_weights": {}}, job.folder / name)
    (tmp_path / "benchmark" / "measured").mkdir(parents=True)
    measured = '{"seconds": {}, "peak_memory_bytes": 1, "parameters": {"all": 1, "trainable": 1}}'
    (tmp_path / "benchmark" / "measured" / f"{job.name}__prediction.json").write_text(measured)
    return job


def test_a_damaged_record_is_measured_again(job: FoldJob, caplog: pytest.LogCaptureFixture):
    assert job.is_done
    (record,) = (job.output / "measured").iterdir()
    record.write_text("")
    assert not job.is_done
    assert job.is_validated
    assert f"{record} is damaged" in caplog.text
    assert (job.training, job.prediction) == (None, None)


@pytest.mark.parametrize("left", [0, 100])
def test_checkpoints_that_a_full_disk_has_cut_off_are_set_aside(job: FoldJob, left: int):
    """nnU-Net would end at each start with a traceback."""
    final, latest = job.folder / "checkpoint_final.pth", job.folder / CHECKPOINTS[0]
    for path in (final, latest):
        path.write_bytes(path.read_bytes()[:left])
    assert job.whole_checkpoints() == [CHECKPOINTS[1]]
    names = {"validation", "checkpoint_best.pth", "checkpoint_final.pth.damaged", "checkpoint_latest.pth.damaged"}
    assert {path.name for path in job.folder.iterdir()} == names
