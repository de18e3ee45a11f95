"""Processes that share work: real ones, which are seen to end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import active_children
from pathlib import Path

import pytest

from nnunet_autosam2.support.workers import process_map


def squared(number: int) -> int:
    return number**2


def process_of(_: int) -> int:
    time.sleep(0.05)
    return os.getpid()


def fail_at_once_or_sleep(number: int) -> None:
    if number == 0:
        raise ValueError("the first one fails")
    time.sleep(60)


def killed_by_the_system(number: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("count", [0, 1, 7])
def test_results_are_in_the_order_of_the_items(count: int):
    assert process_map(squared, range(count), 2, "square") == [number**2 for number in range(count)]
    assert active_children() == []


def test_as_many_processes_as_asked_for_and_not_this_one():
    found = set(process_map(process_of, range(8), 2, "who"))
    assert len(found) == 2
    assert os.getpid() not in found


def test_a_failure_is_raised_at_once_and_ends_the_others():
    start = time.monotonic()
    with pytest.raises(ValueError, match="the first one fails"):
        process_map(fail_at_once_or_sleep, range(2), 2, "fail")
    assert time.monotonic() - start < 10
    assert active_children() == []


def test_a_process_that_the_system_ends_is_told():
    with pytest.raises(BrokenProcessPool):
        process_map(killed_by_the_system, range(2), 2, "end")
    assert active_children() == []


def test_a_worker_leaves_ctrl_c_to_its_parent():
    assert process_map(handler_of_ctrl_c, range(1), 1, "ask") == [signal.SIG_IGN]


def handler_of_ctrl_c(_: int) -> object:
    return signal.getsignal(signal.SIGINT)


def test_workers_end_with_a_parent_that_was_killed(tmp_path: Path):
    script = tmp_path / "parent.py"
    script.write_text(
        "import os, sys, time\n"
        "from nnunet_autosam2.support.workers import process_map\n"
        "def sleep(number):\n"
        "    print(os.getpid(), flush=True)\n"
        "    time.sleep(60)\n"
        "process_map(sleep, range(2), 2, 'sleep')\n"
    )
    with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as parent:
        assert parent.stdout is not None
        workers = [int(parent.stdout.readline()) for _ in range(2)]
        parent.kill()
        parent.wait()
        deadline = time.monotonic() + 10
        while any(map(is_running, workers)):
            assert time.monotonic() < deadline
            time.sleep(0.05)


def is_running(process: int) -> bool:
    """One that has ended, and that its new parent has not yet asked about, is not."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
