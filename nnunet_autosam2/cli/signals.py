"""A command that is asked to end does so in order."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

_handled: set[signal.Signals] = set()


@contextmanager
def end_in_order() -> Iterator[None]:
    """SIGTERM, and SIGHUP of a terminal that is closed, end a command as Ctrl-C does: with its processes, and without
    what it has not finished. The exit code is the shell's, 143 or 129.
    """
    usual = {
        name: signal.signal(name, _end)
        for name in (signal.SIGTERM, signal.SIGHUP)
        if signal.getsignal(name) is signal.SIG_DFL  # and not ignored, as by nohup
    }
    _handled.update(usual)
    try:
        yield
    finally:
        _handled.difference_update(usual)
        for name, handler in usual.items():
            signal.signal(name, handler)


def _end(number: int, _: FrameType | None) -> NoReturn:
    sys.exit(128 + number)


def _hold() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, _handled)


def _release() -> None:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _handled)


def _release_in_child() -> None:
    for name in _handled:
        signal.signal(name, signal.SIG_DFL)
    _release()
    _handled.clear()


# A process that is forked has no handler of its parent's: whoever started it ends it by SIGTERM, and waits. Python
# forgets a signal that comes while it forks, so that none may come before the child is as it has to be.
os.register_at_fork(before=_hold, after_in_parent=_release, after_in_child=_release_in_child)
