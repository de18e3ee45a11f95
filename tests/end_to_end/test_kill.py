"""A training that is killed at any moment goes on from a checkpoint that can be read, as if nothing had been."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from nnunet_autosam2.support.checkpoint import read_nnunet_checkpoint

pytestmark = pytest.mark.end_to_end
TRAINER = "nnUNetTrainerAutoSAM2_SavesEveryEpoch"
ITERATIONS = 2
LONGEST = 25.0
"""Seconds from a start to the latest kill: importing, loading, and some epochs"""


@pytest.mark.slow
@pytest.mark.parametrize(("kills", "num_epochs"), [(2, 5), (30, 100)], ids=["short", "long"])
def test_killed_at_random_moments_and_while_it_writes(loading, kills: int, num_epochs: int, capsys) -> None:
    moments, name = random.Random(kills), f"killed_{kills}"
    loading.run("autosam2", "configure", "900", "--base", "tiny", "--name", name, f"num_epochs={num_epochs}",
                 f"early_stopping_patience={num_epochs}")  # fmt: skip
    command = ("nnUNetv2_train", "900", name, "1", "-tr", TRAINER, "-device", "cpu", "--c")
    folder = loading.results(TRAINER, name) / "fold_1"
    killed_while_writing, done = 0, 0
    for kill in range(kills):
        process = loading.start(*command)
        if kill % 2:
            wait_for_write(process, folder, LONGEST * 5)
            time.sleep(moments.uniform(0, 0.02))
        else:
            time.sleep(moments.uniform(0, LONGEST))
        assert process.poll() is None, f"the training ended before it could be killed: {process.communicate()[0]}"
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        killed_while_writing += bool(unfinished(folder))
        done = check_progress(folder, done)

    loading.run(*command)
    final = read_nnunet_checkpoint(folder / "checkpoint_final.pth")
    assert final["current_epoch"] == num_epochs
    assert all(len(final["logging"][key]) == num_epochs for key in ("lrs", "train_losses", "ema_fg_dice"))
    expected = onecycle_at_epoch_starts(num_epochs, ITERATIONS, max_lr=1e-3)
    np.testing.assert_allclose(final["logging"]["lrs"], expected, rtol=1e-9)
    assert not unfinished(folder)
    with capsys.disabled():
        print(f"\n{kills} kills, {killed_while_writing} of them while a checkpoint was written; nothing was lost")


def test_a_data_loader_that_dies_ends_the_training(loading) -> None:
    loading.run("autosam2", "configure", "900", "--base", "tiny", "--name", "no_loader", "num_epochs=1000")
    folder = loading.results(TRAINER, "no_loader") / "fold_1"
    process = loading.start("nnUNetv2_train", "900", "no_loader", "1", "-tr", TRAINER, "-device", "cpu")
    deadline = time.monotonic() + 300
    while not (folder / "checkpoint_latest.pth").is_file():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.2)
    for task in Path(f"/proc/{process.pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            os.kill(int(child), signal.SIGKILL)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "no longer alive" in output
    assert check_progress(folder, 1) >= 1


def check_progress(folder: Path, done: int) -> int:
    """Epochs that are safe by now: every checkpoint can be read, and the one to go on from is not an older one."""
    epochs = {path.stem: read_nnunet_checkpoint(path)["current_epoch"] for path in folder.glob("checkpoint_*.pth")}
    now = epochs.get("checkpoint_latest", epochs.get("checkpoint_best", 0))
    assert now >= done
    return now


def unfinished(folder: Path) -> list[Path]:
    return list(folder.glob(".checkpoint_*"))


def wait_for_write(process: subprocess.Popen, folder: Path, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while process.poll() is None and not unfinished(folder) and time.monotonic() < deadline:
        time.sleep(0.001)


def onecycle_at_epoch_starts(num_epochs: int, iterations: int, max_lr: float) -> list[float]:
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=max_lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr, total_steps=num_epochs * iterations)
    rates = []
    for step in range(num_epochs * iterations):
        if step % iterations == 0:
            rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if step + 1 < num_epochs * iterations:
            schedule.step()
    return rates
