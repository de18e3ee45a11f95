"""Processes that share work, and end when the one that started them does, however that ends."""

from __future__ import annotations

import gc
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import active_children
from typing import TypeVar

from tqdm import tqdm

POLL_SECONDS = 0.2
Item = TypeVar("Item")
Result = TypeVar("Result")


def process_map(function: Callable[[Item], Result], items: Sequence[Item], workers: int, desc: str) -> list[Result]:
    """Call `function` on each item in `workers` processes, with a bar of progress.

    Raises:
        BrokenProcessPool: a process was ended by the system.
    """
    others = set(active_children())
    with ProcessPoolExecutor(workers, initializer=_start, initargs=(os.getpid(),)) as pool:
        try:
            return list(tqdm(pool.map(function, items), total=len(items), desc=desc))
        except BaseException:
            for process in set(active_children()) - others:
                process.kill()
            raise


def _start(parent: int) -> None:
    """Prepare a worker. What is sent to all of them together, as Ctrl-C is, is for the parent to act on."""
    gc.freeze()  # what is the parent's stays shared, and is not searched for garbage
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    """End with the parent. One that got SIGKILL can tell nobody; its children are then given to another process."""
    while os.getppid() == parent:
        time.sleep(POLL_SECONDS)
    os._exit(1)
