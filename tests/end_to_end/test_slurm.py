"""`autosam2 benchmark` on a real SLURM of one node (`slurm/cluster.sh`), whose jobs, controller and head go away."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

pytestmark = [pytest.mark.end_to_end, pytest.mark.slow]
CLUSTER = Path(__file__).parents[1] / "slurm" / "cluster.sh"
TRAINERS = ("nnUNetTrainerTiny", "nnUNetTrainerAutoSAM2_UNetOnly")
OPTIONS = ("--device", "cpu", "--timed-cases", "1", "--num-processes", "1", "--viewer-cases", "0")
SECONDS = 600


def cluster(action: str, folder: Path) -> None:
    subprocess.run([CLUSTER, action, folder], check=True, timeout=300)


@pytest.fixture(scope="module")
def slurm(extended, tmp_path_factory: pytest.TempPathFactory) -> Iterator:
    """A workspace whose commands find the cluster."""
    if os.getuid() != 0 or not shutil.which("apt-get"):
        pytest.skip("SLURM is installed and started by root, on Debian")
    folder = tmp_path_factory.mktemp("slurm")
    cluster("start", folder)
    yield replace(extended, environment={**extended.environment, "SLURM_CONF": str(folder / "slurm.conf")})
    cluster("stop", folder)


def until(holds: Callable[[], object], head: subprocess.Popen | None = None) -> None:
    deadline = time.monotonic() + SECONDS
    while not holds():
        assert head is None or head.poll() is None, head.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.2)


def squeue(slurm, *options: str) -> list[list[str]]:
    command = ["squeue", "--noheader", "--format=%i %T %r", *options]
    return [line.split() for line in subprocess.check_output(command, env=slurm.variables, text=True).splitlines()]


def count(log: Path, text: str) -> int:
    return log.read_text().count(text) if log.is_file() else 0


def test_jobs_heads_and_controllers_may_go_and_nothing_is_lost(slurm, tmp_path: Path) -> None:
    """Four jobs on two cores: two run and two wait."""
    slurm.run("autosam2", "configure", "900", "--base", "tiny", "--name", "slurm", "num_epochs=4")
    output = slurm.root / "benchmark_slurm"
    command = (
        "autosam2", "benchmark", "-d", "900", "-c", "slurm", "--trainers", *TRAINERS, "--folds", "0", "1", *OPTIONS,
        "-o", output, "--executor", "slurm", "--slurm", "partition=test", "time=60", "cpus_per_task=1",
    )  # fmt: skip
    logs = {
        (trainer, fold): output / "logs" / f"{trainer}__nnUNetPlans__slurm__fold_{fold}.txt"
        for trainer in TRAINERS
        for fold in (0, 1)
    }
    head = slurm.start(*command)
    until(lambda: any(count(log, ": Epoch 1") for log in logs.values()), head)
    queue = squeue(slurm)
    assert {state for _, state, *_ in queue} >= {"RUNNING"}
    (victim, *_), *_ = [line for line in queue if line[1] == "RUNNING"]
    subprocess.run(["scancel", victim], env=slurm.variables, check=True)
    cluster("restart-controller", Path(slurm.environment["SLURM_CONF"]).parent)
    said, _ = head.communicate(timeout=SECONDS)
    assert head.returncode == 1, said
    assert f"SLURM has ended job {victim}: CANCELLED" in said
    assert "1 failed" in said
    assert "sacct" not in said
    assert "Traceback" not in said

    (stopped,) = [log for log in logs.values() if not (slurm_summary(slurm, log)).is_file()]
    epochs = count(stopped, ": Epoch 0")
    head = slurm.start(*command)
    until(lambda: squeue(slurm, "--states=RUNNING"), head)
    os.killpg(head.pid, signal.SIGKILL)
    head.communicate()
    assert squeue(slurm), "the job goes on without its head"
    said = slurm.run(*command)
    assert "3 of 4 folds are done" in said or "4 of 4 folds are done" in said
    until(lambda: not squeue(slurm))
    for log in logs.values():
        assert count(log, ": Epoch 0") <= (epochs + 1 if log == stopped else 1), f"{log} was trained twice"
        assert count(log, "Validation complete") == 1
    record = json.loads((output / "benchmark.json").read_text())
    assert [fold["error"] for model in record["models"] for fold in model["folds"]] == [None] * 4
    assert (output / "report" / "index.html").is_file()


def slurm_summary(slurm, log: Path) -> Path:
    trainer, _, _, fold = log.stem.split("__")
    return slurm.results(trainer, "slurm") / fold / "validation" / "summary.json"


def test_a_job_that_reaches_its_time_limit_goes_on(slurm) -> None:
    """Put into the queue again, it trains on from a checkpoint; the limit comes once there is one."""
    slurm.run("autosam2", "configure", "900", "--base", "tiny", "--name", "limit", "num_epochs=30")
    output = slurm.root / "benchmark_limit"
    head = slurm.start(
        "autosam2", "benchmark", "-d", "900", "-c", "limit", "--trainers", TRAINERS[1], "--folds", "0", *OPTIONS,
        "-o", output, "--executor", "slurm",
        "--slurm", "partition=test", "time=60", "cpus_per_task=1", "signal_delay_s=120",
    )  # fmt: skip
    log = output / "logs" / f"{TRAINERS[1]}__nnUNetPlans__limit__fold_0.txt"
    until(lambda: count(log, "New best EMA"), head)
    ((job, *_),) = squeue(slurm)
    update = ("scontrol", "update", f"JobId={job}")
    subprocess.run([*update, "TimeLimit=2"], env=slurm.variables, check=True)  # of which 120 s are left at most
    until(lambda: squeue(slurm, "--states=PENDING"), head)
    subprocess.run([*update, "TimeLimit=60", "StartTime=now"], env=slurm.variables, check=True)
    said, _ = head.communicate(timeout=SECONDS)
    assert head.returncode == 0, said
    assert "Requeued job" in "\n".join(path.read_text() for path in output.rglob("*_log.out"))
    assert count(log, "Validation complete") == 1
    assert count(log, ": Epoch 0") == 1
    record = json.loads((output / "benchmark.json").read_text())
    assert [fold["error"] for model in record["models"] for fold in model["folds"]] == [None]
