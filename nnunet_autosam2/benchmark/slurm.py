"""Asks `squeue` about jobs, which needs no accounting, as submitit's own question by `sacct` does."""

from __future__ import annotations

import os
import subprocess
import time

import submitit

SECONDS_BETWEEN_QUESTIONS = 5.0
"""To a controller that many users share; one for all jobs"""
SECONDS_TO_ANSWER = 60.0
SECONDS_FOR_A_RESULT = 15.0
"""Time from a job's end until its result is seen on storage that nodes share"""
ENDED = frozenset(
    ("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "REVOKED", "TIMEOUT")
)
"""States from which a job does not come back"""
FORGOTTEN = "no longer in the queue"


class SlurmQueue:
    """The jobs of this user, as SLURM saw them last."""

    def __init__(self) -> None:
        self._states: dict[str, str] = {}
        self._asked = float("-inf")
        self._gone_since: dict[str, float] = {}

    def has_ended(self, job: submitit.Job) -> bool:
        """True with a result, or for a job that has ended without one. A job that was put back has not ended."""
        if job.paths.result_pickle.exists():
            return True
        if time.monotonic() - self._asked > SECONDS_BETWEEN_QUESTIONS:
            self._ask()
        if self.state(job) not in {*ENDED, FORGOTTEN}:
            self._gone_since.pop(job.job_id, None)
            return False
        return time.monotonic() - self._gone_since.setdefault(job.job_id, time.monotonic()) > SECONDS_FOR_A_RESULT

    def state(self, job: submitit.Job) -> str:
        """Name of the state in `squeue`, or FORGOTTEN."""
        return self._states.get(job.job_id, FORGOTTEN)

    def _ask(self) -> None:
        """A controller that does not answer, since it is started again, leaves what was known before."""
        command = ["squeue", "--noheader", "--states=all", f"--user={os.getuid()}", "--format=%i %T"]
        try:
            answer = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS_TO_ANSWER, check=True)
        except (OSError, subprocess.SubprocessError):
            self._gone_since.clear()
        else:
            self._states = dict(line.split(maxsplit=1) for line in answer.stdout.splitlines() if " " in line)
        self._asked = time.monotonic()
