"""Runs jobs on this machine or on a cluster, through submitit."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import submitit
from tqdm import tqdm

from nnunet_autosam2.benchmark.fold_job import FoldJob
from nnunet_autosam2.benchmark.slurm import SlurmQueue
from nnunet_autosam2.errors import ConfigurationError
from nnunet_autosam2.support.text import printable

POLL_SECONDS = 1.0
MOST_TIME_LIMITS = 20
"""Times that a job of a cluster goes on after its time limit: 1000 epochs in a partition of an hour or two"""
NO_LIMIT_MINUTES = 366 * 24 * 60
"""On this machine; submitit would stop a job earlier."""


def run_jobs(
    jobs: Sequence[FoldJob], executor: str, at_once: int | None, folder: Path, slurm: Mapping[str, Any]
) -> dict[FoldJob, str]:
    """Run each job as soon as there is room and what it needs is done.

    Args:
        executor: `local`, `slurm`, or `debug` (in this process, one after the other).
        at_once: at most so many. On this machine each has a GPU of its own where its device is cuda.
        folder: for submitit's files.
        slurm: parameters of sbatch, as `{"partition": "gpu"}`.

    Returns:
        Job that failed → what went wrong.
    """
    waiting = list(jobs)
    errors: dict[FoldJob, str] = {}
    running: dict[int, tuple[FoldJob, submitit.Job]] = {}
    places = set(range(len(jobs) if at_once is None else at_once))
    queue = SlurmQueue()
    with tqdm(total=len(jobs), desc="folds", unit="fold") as bar:
        try:
            while waiting or running:
                for job in [job for job in waiting if any(job.needs(failed) for failed in errors)]:
                    waiting.remove(job)
                    errors[job] = "not trained, because the nnU-Net that it starts from has failed"
                for place in sorted(places - running.keys()):
                    unfinished = [*waiting, *(job for job, _ in running.values())]
                    ready = next((job for job in waiting if not any(job.needs(other) for other in unfinished)), None)
                    if ready is not None:
                        waiting.remove(ready)
                        try:
                            with _standard_error_into(folder / "submitit.log"):
                                submission = _executor(executor, folder, ready.device, place, slurm).submit(ready)
                        except Exception as refusal:  # of the cluster, which may refuse what sbatch is given
                            errors[ready] = _one_line(refusal)
                        else:
                            running[place] = ready, submission
                bar.set_postfix_str(_state(len(errors), [job for job, _ in running.values()]))
                for place, (job, submission) in list(running.items()):
                    if executor == "slurm":
                        has_ended = queue.has_ended(submission)
                    else:
                        has_ended = executor == "debug" or submission.done()
                    if has_ended:
                        del running[place]
                        if error := _outcome(submission, queue):
                            errors[job] = error
                        else:
                            bar.update()
                if running:
                    time.sleep(POLL_SECONDS)
        except BaseException:
            for _, submission in running.values():
                submission.cancel()
            raise
    return errors


def require_executor(name: str, slurm: Mapping[str, Any]) -> None:
    """Refuse an executor that cannot be used, before anything is trained.

    Raises:
        ConfigurationError: there is no such cluster here, or submitit does not know a parameter of `slurm`.
    """
    with TemporaryDirectory() as folder:
        _executor(name, Path(folder), "cpu", 0, slurm)


def _executor(name: str, folder: Path, device: str, place: int, slurm: Mapping[str, Any]) -> submitit.AutoExecutor:
    try:
        executor = submitit.AutoExecutor(folder, cluster=name, slurm_max_num_timeout=MOST_TIME_LIMITS)
        executor.update_parameters(name="autosam2", stderr_to_stdout=True)
        if name == "slurm":
            executor.update_parameters(**{f"slurm_{key}": value for key, value in slurm.items()})
        else:
            executor.update_parameters(timeout_min=NO_LIMIT_MINUTES)
        if name == "local" and device == "cuda":
            visible = os.environ.get("CUDA_VISIBLE_DEVICES")
            gpus = [int(gpu) for gpu in visible.split(",")] if visible else list(range(place + 1))
            executor.update_parameters(gpus_per_node=1, local_visible_gpus=[gpus[place % len(gpus)]])
    except (RuntimeError, NameError, ValueError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigurationError(f"The executor {name} cannot be used: {reason}") from error
    return executor


@contextmanager
def _standard_error_into(file: Path) -> Iterator[None]:
    """Redirect that of processes which start meanwhile: submitit's own ends with a traceback when a job is stopped."""
    file.parent.mkdir(parents=True, exist_ok=True)
    kept = os.dup(2)
    try:
        with file.open("ab") as log:
            os.dup2(log.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _outcome(submission: submitit.Job, queue: SlurmQueue) -> str | None:
    if isinstance(submission, submitit.SlurmJob) and not submission.paths.result_pickle.exists():
        return f"SLURM has ended job {submission.job_id}: {queue.state(submission)} (log: {submission.paths.stdout})"
    try:
        return submission.result()
    except Exception as error:  # of the job, of submitit, or of the cluster
        return _one_line(error)


def _one_line(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {printable(lines[-1]) if lines else 'no reason given'}"


def _state(failed: int, running: Sequence[FoldJob]) -> str:
    parts = [f"{failed} failed"] if failed else []
    return ", ".join([*parts, *(f"{job.name}{f' {epoch}' if (epoch := job.epoch()) else ''}" for job in running)])
