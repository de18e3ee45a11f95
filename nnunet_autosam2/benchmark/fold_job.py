"""One fold of one model, from nothing to its predictions, by nnU-Net's commands. What is done is not done again."""

from __future__ import annotations

import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import submitit

from nnunet_autosam2.benchmark.kept import PredictionCost, TrainingCost, read_kept
from nnunet_autosam2.benchmark.models import ComparedModel
from nnunet_autosam2.errors import AutoSAM2Error
from nnunet_autosam2.support.checkpoint import require_nnunet_checkpoint
from nnunet_autosam2.support.plans import read_plans, require_configuration
from nnunet_autosam2.support.staging import set_aside
from nnunet_autosam2.support.text import printable

CHECKPOINTS = ("checkpoint_latest.pth", "checkpoint_best.pth")
SHUTDOWN_SECONDS = 30
SIGNALS_OF_SLURM = (-signal.SIGTERM, -signal.SIGUSR1, -signal.SIGUSR2)
"""Exit codes of a command that SLURM has ended: the job is cancelled, preempted, or near its time limit"""
SLURM_SECONDS = 300
"""Until the job ends as well: more than SLURM's usual KillWait of 30"""
END_OF_LOG = 2**16
"""Bytes, more than nnU-Net says in an epoch"""


class CommandFailed(Exception):
    """Names the command, and where its output is."""


@dataclass(frozen=True, eq=False)
class FoldJob:
    """A training run with its predictions. Called, it returns None, or what went wrong in one line.

    Args:
        images: of the cases to time, in the order of nnU-Net's channels.
        output: the benchmark's folder.
    """

    model: ComparedModel
    fold: int
    device: str
    images: dict[str, list[str]]
    output: Path

    @property
    def name(self) -> str:
        return f"{self.model.name}__fold_{self.fold}"

    @property
    def folder(self) -> Path:
        """Folder in which nnU-Net keeps the training run."""
        return self.model.folder / f"fold_{self.fold}"

    @property
    def log(self) -> Path:
        return self.output / "logs" / f"{self.name}.txt"

    @property
    def is_done(self) -> bool:
        return self.is_validated and self.prediction is not None

    @property
    def is_validated(self) -> bool:
        """True once nnU-Net has written the summary, which it does last."""
        return (self.folder / "validation" / "summary.json").is_file() and self._final.is_file()

    @property
    def training(self) -> TrainingCost | None:
        """Cost of the training run; None if it was not measured here."""
        return read_kept(self._record("training"), TrainingCost)

    @property
    def prediction(self) -> PredictionCost | None:
        """Cost of predictions; None if it was not measured here."""
        return read_kept(self._record("prediction"), PredictionCost)

    def needs(self, other: FoldJob) -> bool:
        return self.fold == other.fold and self.model.needs(other.model)

    def epoch(self) -> str | None:
        """Last epoch in nnU-Net's log, as in `Epoch 7`."""
        epochs = re.findall(r": (Epoch \d+)", self._end_of_log()) if self.log.is_file() else []
        return epochs[-1] if epochs else None

    def __call__(self) -> str | None:
        try:
            for folder in (self.log.parent, self._record("training").parent):
                folder.mkdir(parents=True, exist_ok=True)
            with self._alone() as lock:
                self._refuse_code()
                if not self.is_validated:
                    self._train(lock)
                if self.prediction is None:
                    self._time(lock)
        except (CommandFailed, AutoSAM2Error) as error:
            return str(error)
        except OSError as error:
            return f"{error.filename or self.output} cannot be written: {error.strerror or error}"
        return None

    def checkpoint(self) -> submitit.helpers.DelayedSubmission:
        """submitit's way to put a job that a cluster has interrupted into the queue again."""
        return submitit.helpers.DelayedSubmission(self)

    def _refuse_code(self) -> None:
        """nnU-Net's commands run what is in checkpoints, and call what plans name.

        Raises:
            AutoSAM2Error: there is something of that in what is trained already.
        """
        plans = self.model.folder / "plans.json"
        if plans.exists():
            require_configuration(self.model.configuration, read_plans(plans), plans)
        for name in self.whole_checkpoints():
            require_nnunet_checkpoint(self.folder / name)

    def _train(self, lock: int) -> None:
        model = self.model
        command = [
            "nnUNetv2_train", model.dataset, model.configuration, str(self.fold),
            "-tr", model.trainer, "-p", model.plans, "-device", self.device,
        ]  # fmt: skip
        whole = self.whole_checkpoints()
        if self._final.name in whole:
            command.append("--val")
        elif whole:
            command.append("--c")
        self._execute("measured", [str(self._record("training")), *command], command[0], lock)

    def whole_checkpoints(self) -> list[str]:
        """Names. Others are set aside: nnU-Net leaves a part of one on a full disk, and would never get past it."""
        found = [path for name in (self._final.name, *CHECKPOINTS) if (path := self.folder / name).is_file()]
        for path in found:
            if not zipfile.is_zipfile(path):
                set_aside(path, "is damaged")
        return [path.name for path in found if path.is_file()]

    def _time(self, lock: int) -> None:
        record, cases = str(self._record("prediction")), json.dumps(self.images)
        arguments = [record, str(self.model.folder), str(self.fold), self.device, cases]
        self._execute("timed_prediction", arguments, "timed prediction", lock)

    def _execute(self, module: str, arguments: list[str], what: str, lock: int) -> None:
        command = [sys.executable, "-u", "-m", f"nnunet_autosam2.benchmark.{module}", *arguments]
        with self.log.open("a") as log:
            process = subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, pass_fds=[lock]
            )
            try:
                status = process.wait()
            except BaseException:
                process.send_signal(signal.SIGINT)
                try:
                    process.wait(SHUTDOWN_SECONDS)
                except subprocess.TimeoutExpired:
                    process.kill()
                raise
        if status in SIGNALS_OF_SLURM and "SLURM_JOB_ID" in os.environ:
            # It has been sent to all processes. Here submitit puts the job back, or SLURM ends it as well.
            time.sleep(SLURM_SECONDS)
        if status:
            said = next((line.strip() for line in reversed(self._end_of_log().split("\n")) if line.strip()), "nothing")
            raise CommandFailed(f"{what} has ended with exit code {status}: {printable(said)} (log: {self.log})")

    def _end_of_log(self) -> str:
        """The last part alone: all of it may be megabytes, and `epoch` reads it every second."""
        with self.log.open("rb") as file:
            file.seek(max(0, self.log.stat().st_size - END_OF_LOG))
            return file.read().decode(errors="replace")

    @contextmanager
    def _alone(self) -> Iterator[int]:
        """Waits until nobody else does this fold. Its commands hold the lock, too, should this process be killed."""
        with self._record("training").with_suffix(".lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield file.fileno()

    @property
    def _final(self) -> Path:
        return self.folder / "checkpoint_final.pth"

    def _record(self, what: str) -> Path:
        return self.output / "measured" / f"{self.name}__{what}.json"
