"""Folders and files that appear, or are replaced, whole or not at all, made by one process at a time."""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import shutil
import stat
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from nnunet_autosam2.errors import DatasetError
from nnunet_autosam2.support.access import fault_of_file, fault_of_name
from nnunet_autosam2.support.text import LINE, printable

DAMAGED = ".damaged"
STATE = "state.json"
REPLACED = "replaced"
LOCK_TIMEOUT = 5.0
"""Seconds to wait for a lock: what a process that was killed has started comes to its end in these"""
NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK)
"""Errors of file systems that have no locks"""
logger = logging.getLogger(__name__)


@contextmanager
def staged_folder(target: Path) -> Iterator[Path]:
    """A folder to write into that becomes `target` at the end, and vanishes on an error or interruption.

    Raises:
        DatasetError: `target` exists and is not an empty folder, another process makes it, or the disk refuses.
    """
    target = target.absolute()
    with locked(target):
        if target.exists() and not target.is_dir():
            raise DatasetError(f"{target} is a file: choose another folder.")
        if target.is_dir() and any(target.iterdir()):
            raise DatasetError(f"{target} is not empty: remove it or choose another folder.")
        with _replacing(target) as staged:
            yield staged


@contextmanager
def replaced_folder(target: Path) -> Iterator[Path]:
    """A folder to write into that takes the place of `target` at the end, and vanishes on an error or interruption.

    What a process that was killed has left of it is removed first.

    Raises:
        DatasetError: another process makes it, or the disk refuses.
    """
    target = target.absolute()
    with locked(target), _replacing(target) as staged:
        yield staged


@contextmanager
def _replacing(target: Path) -> Iterator[Path]:
    with _disk_may_refuse(target):
        unfinished = open_unfinished(target)
        replaced, staged = unfinished / REPLACED, unfinished / "new"
        if replaced.is_dir() and not target.exists():  # it was killed between the two renames
            replaced.rename(target)
        try:
            shutil.rmtree(unfinished)
            open_unfinished(target)
            staged.mkdir()
            yield staged
            if target.exists():
                target.rename(replaced)
            staged.rename(target)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)


@contextmanager
def locked(target: Path, name: str | None = None) -> Iterator[None]:
    """Lock for one process at a time, those that it has forked included.

    Args:
        name: what is locked beside `target`, None: the target itself.

    Raises:
        DatasetError: another process holds the lock, the disk refuses, or the name is no text.
    """
    if fault := fault_of_name(target):
        raise DatasetError(f"{printable(target, LINE)} {fault}, or choose another.")
    name = name or target.name
    path = target.with_name(f".{name}.lock")
    with _disk_may_refuse(target):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = _lock(path, f"Another process writes {target.with_name(name)}: wait until it is done, or stop it.")
    try:
        yield
    finally:
        with suppress(OSError):
            path.unlink()
        os.close(lock)


def _lock(path: Path, refusal: str) -> int:
    deadline = time.monotonic() + LOCK_TIMEOUT
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The one that had it has removed it: what was locked here may be seen by nobody else.
            if path.exists() and os.path.samestat(os.fstat(file), path.stat()):
                return file
        except OSError as error:
            if error.errno in NO_LOCKS:
                return file
            if not isinstance(error, BlockingIOError):
                os.close(file)
                raise
            if time.monotonic() > deadline:
                os.close(file)
                raise DatasetError(refusal) from error
            time.sleep(0.1)
        os.close(file)


def require_writable(folder: Path) -> None:
    """Make sure that a result can be written, before hours of work for it.

    Raises:
        DatasetError: the disk refuses to make a file in `folder`, or where that will be.
    """
    folder = folder.absolute()
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    with _disk_may_refuse(folder), TemporaryDirectory(prefix=".autosam2_", dir=folder) as temporary:
        Path(temporary, "test").write_text("test")


def replace_file(path: Path, text: str) -> None:
    """Replace a file so that readers see the old one or the new one.

    Raises:
        DatasetError: the disk refuses.
    """
    path = path.resolve()
    try:
        with replaced_file(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
            if path.exists():
                shutil.copymode(path, temporary)
    except OSError as error:
        raise DatasetError(f"{path} cannot be written: {error.strerror}.") from error


@contextmanager
def replaced_file(path: Path) -> Iterator[Path]:
    """A path to write to, whose file takes the place of `path` once it is on the disk, and vanishes on an error.

    A process that is killed leaves it behind; `remove_unfinished` is for these.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def set_aside(path: Path, fault: str) -> None:
    """Gives `path` a name beside it, and says so; what was set aside before is not lost either.

    Args:
        fault: follows its name.
    """
    aside, number = path.with_name(f"{path.name}{DAMAGED}"), 1
    while aside.exists():
        number += 1
        aside = path.with_name(f"{path.name}{DAMAGED}{number}")
    path.rename(aside)
    logger.warning(f"{printable(path)} {fault}. It is now {aside.name}, and is made again.")


def remove_unfinished(folder: Path) -> None:
    """Removes what processes that were killed in `replaced_file` have left, in a folder where no other one writes."""
    for left in folder.glob(".*.*"):
        if left.suffix[1:].isdigit():
            left.unlink(missing_ok=True)


def open_unfinished(target: Path) -> Path:
    """The folder beside `target` in which that is made, private to its owner; it is made if it is not there.

    Raises:
        DatasetError: the disk refuses, or the folder is a link, which nothing is written through.
    """
    unfinished = _unfinished(target)
    for path in (unfinished, unfinished / target.name):
        _require_no_link(path)
    with _disk_may_refuse(target):
        unfinished.mkdir(mode=0o700, parents=True, exist_ok=True)
    return unfinished


@contextmanager
def resumable_folder(
    target: Path, state: Mapping[str, Any], links: Mapping[str, str] | None = None
) -> Iterator[tuple[Path, Path]]:
    """A folder to write into that becomes `target` at the end, and is kept beside it on an error or interruption.

    The next call with the same `state` goes on in it, one with another state starts anew. Files have to be written
    into the second folder and moved from there, so that what is in the first is finished.

    Args:
        state: what decides on the contents, in values that JSON keeps.
        links: those that may be in the first folder, path in it → where it leads to.

    Raises:
        DatasetError: the disk refuses, or something in the folder is neither a file nor a folder of files.
    """
    _require_no_link(target)
    unfinished = open_unfinished(target)
    staged = unfinished / target.name
    try:
        if unfinished_state(target) != state:
            shutil.rmtree(staged, ignore_errors=True)
            staged.mkdir()
            replace_file(unfinished / STATE, json.dumps(state))
        _require_own(staged, links or {})
        with TemporaryDirectory(dir=unfinished) as temporary:
            yield staged, Path(temporary)
        staged.rename(target)
        shutil.rmtree(unfinished)
    except OSError as error:
        raise DatasetError(
            f"{target} cannot be written: {error}. The same command goes on where this one stopped, from {unfinished}."
        ) from error


def unfinished_state(target: Path) -> dict[str, Any] | None:
    """State that the last `resumable_folder` for `target` was given, if that one was interrupted."""
    path = _unfinished(target) / STATE
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def _unfinished(target: Path) -> Path:
    return target.with_name(f".{target.name}_unfinished")


def _require_no_link(path: Path) -> None:
    if path.is_symlink():
        raise DatasetError(f"{path} is a link to {os.readlink(path)}, where nothing is written: remove it.")


def _require_own(folder: Path, links: Mapping[str, str]) -> None:
    """Refuse anything but files in `folder` and in folders of it: what others had access to may lead elsewhere."""
    for parent, folders, files in os.walk(folder):
        for path in (Path(parent, name) for name in (*folders, *files)):
            if path.is_symlink() and links.get(str(path.relative_to(folder))) == os.readlink(path):
                continue
            _require_no_link(path)
            may_be_folder = path.parent == folder
            if not stat.S_ISREG(path.lstat().st_mode) and not (may_be_folder and path.is_dir()):
                raise DatasetError(f"{path} {fault_of_file(path)}: remove it.")


@contextmanager
def _disk_may_refuse(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DatasetError(f"{target} cannot be written: {error.strerror or error}.") from error
