"""One fold from nothing to its predictions, with stubs of the commands (conftest.py), and what is never run."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from nnunet_autosam2.benchmark.fold_job import CHECKPOINTS, FoldJob
from nnunet_autosam2.benchmark.models import ComparedModel

TRAIN = "measured nnUNetv2_train Dataset900_Phantom 3d_fullres 0 -tr nnUNetTrainer -p nnUNetPlans -device cpu"


def test_a_new_fold_is_trained_and_timed_and_then_done(stub, make_job: Callable[..., FoldJob]):
    job = make_job()
    assert not job.is_done
    assert (job.training, job.prediction, job.epoch()) == (None, None, None)
    assert job() is None
    timed = f'timed_prediction {job.model.folder} 0 cpu {{"a": ["a_0000.nii.gz"]}}'
    assert stub.calls == [TRAIN, timed]
    assert job.is_done
    assert job.training is not None
    assert job.training.peak_memory_bytes == 1024
    assert job.prediction is not None
    assert job.prediction.seconds == {"a": 1.5}
    assert job.epoch() == "Epoch 0"


def test_what_is_done_is_not_done_again(stub, make_job: Callable[..., FoldJob]):
    make_job()()
    (record,) = (make_job().output / "measured").glob("*__prediction.json")
    done = stub.calls
    assert make_job()() is None
    assert stub.calls == done
    record.unlink()
    assert make_job()() is None
    assert stub.calls == [*done, done[1]]


@pytest.mark.parametrize(
    ("there", "option"),
    [((), ""), (("checkpoint_latest.pth",), " --c"), (("checkpoint_best.pth",), " --c"),
     (("checkpoint_latest.pth", "checkpoint_final.pth"), " --val")],
)  # fmt: skip
def test_an_interrupted_training_goes_on_from_what_it_has(
    stub, make_job: Callable[..., FoldJob], there: tuple[str, ...], option: str
):
    job = make_job()
    job.folder.mkdir(parents=True)
    for name in there:
        (job.folder / name).write_bytes(stub.checkpoint.read_bytes())
    assert job() is None
    assert stub.calls[0] == TRAIN + option


def test_a_training_that_fails_is_told_by_its_last_line(stub, make_job: Callable[..., FoldJob]):
    job = make_job()
    stub.training("echo 'Traceback ...'; printf 'RuntimeError: no \\033[31mmemory\\n\\n'; exit 3")
    assert job() == (f"nnUNetv2_train has ended with exit code 3: RuntimeError: no \\x1b[31mmemory (log: {job.log})")
    assert len(stub.calls) == 1
    assert not job.is_validated
    stub.training("")
    assert job() is None
    assert "Traceback ..." in job.log.read_text()  # what was said before stays


def test_a_training_that_says_nothing(stub, make_job: Callable[..., FoldJob]):
    job = make_job()
    stub.training(f": >'{job.log}'; exit 1")
    assert job() == f"nnUNetv2_train has ended with exit code 1: nothing (log: {job.log})"


def test_of_a_long_log_the_last_epoch_is_told(make_job: Callable[..., FoldJob]):
    job = make_job()
    job.log.parent.mkdir(parents=True)
    with job.log.open("wb") as log:
        for epoch in range(20_000):
            log.write(b"2026-01-02 03:04:05.678901: Epoch %d\nloss \xff\n" % epoch)
    assert job.epoch() == "Epoch 19999"


def test_ctrl_c_lets_the_training_end_in_its_own_way(stub, make_job: Callable[..., FoldJob]):
    """It has a checkpoint to write."""
    job = make_job()
    stub.training("trap 'kill $!; echo stopped in good order; exit 1' INT; echo ready; sleep 60 & wait")

    def interrupt() -> None:
        while not (job.log.is_file() and "ready" in job.log.read_text()):
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        job()
    assert job.log.read_text().endswith("stopped in good order\n")
    assert not job.is_validated


def test_two_benchmarks_of_one_fold_train_it_once(stub, make_job: Callable[..., FoldJob]):
    """The second waits for the first."""
    stub.training("sleep 0.3")
    said: list[str | None] = []
    threads = [threading.Thread(target=lambda: said.append(make_job()())) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert said == [None, None]
    assert [call.split()[0] for call in stub.calls] == ["measured", "timed_prediction"]


def test_a_place_that_cannot_be_written_is_told_in_one_line(stub, make_job: Callable[..., FoldJob]):
    job = make_job()
    job.output.write_text("a file")
    said = job()
    assert said == f"{job.output / 'logs'} cannot be written: Not a directory"
    assert stub.calls == []


def test_only_the_same_fold_of_the_baseline_is_waited_for(make_job: Callable[..., FoldJob]):
    hybrid = make_job("nnUNetTrainerAutoSAM2_OnBaseline", 1, starts_from_baseline=True)
    assert hybrid.needs(make_job("nnUNetTrainer", 1))
    assert not hybrid.needs(make_job("nnUNetTrainer", 0))
    assert not hybrid.needs(make_job("nnUNetTrainerAutoSAM2", 1))
    assert not make_job("nnUNetTrainerAutoSAM2", 1).needs(make_job("nnUNetTrainer", 1))


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
