"""Folders and files that appear, or are replaced, whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from nnunet_autosam2.errors import DatasetError

STATE = "state.json"


@contextmanager
def staged_folder(target: Path) -> Iterator[Path]:
    """A folder to write into that becomes `target` at the end, and vanishes on an error or interruption.

    Raises:
        DatasetError: `target` exists and is not an empty folder, or the disk refuses.
    """
    target = target.absolute()
    if target.exists() and not target.is_dir():
        raise DatasetError(f"{target} is a file: choose another folder.")
    if target.is_dir() and any(target.iterdir()):
        raise DatasetError(f"{target} is not empty: remove it or choose another folder.")
    with replaced_folder(target) as staged:
        yield staged


@contextmanager
def replaced_folder(target: Path) -> Iterator[Path]:
    """A folder to write into that takes the place of `target` at the end, and vanishes on an error or interruption.

    Raises:
        DatasetError: the disk refuses.
    """
    target = target.absolute()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # The temporary folder is private to its owner, the one inside has the usual permissions.
        with TemporaryDirectory(prefix=f".{target.name}_", dir=target.parent) as temporary:
            staged = Path(temporary) / "new"
            staged.mkdir()
            yield staged
            if target.exists():
                target.rename(Path(temporary) / "old")
            staged.rename(target)
    except OSError as error:
        raise DatasetError(f"{target} cannot be written: {error.strerror or error}.") from error


def replace_file(path: Path, text: str) -> None:
    """Readers see the old file or the new one.

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


def remove_unfinished(folder: Path) -> None:
    """Removes what processes that were killed in `replaced_file` have left, in a folder where no other one writes."""
    for left in folder.glob(".*.*"):
        if left.suffix[1:].isdigit():
            left.unlink(missing_ok=True)


@contextmanager
def resumable_folder(target: Path, state: Mapping[str, Any]) -> Iterator[tuple[Path, Path]]:
    """A folder to write into that becomes `target` at the end, and is kept beside it on an error or interruption.

    The next call with the same `state` goes on in it, one with another state starts anew. Files have to be written
    into the second folder and moved from there, so that what is in the first is finished.

    Args:
        state: what decides on the contents, in values that JSON keeps.

    Raises:
        DatasetError: the disk refuses, or a link leads elsewhere.
    """
    unfinished = _unfinished(target)
    staged = unfinished / target.name
    if link := next((path for path in (target, unfinished, staged) if path.is_symlink()), None):
        raise DatasetError(f"{link} is a link to {os.readlink(link)}, where nothing is written: remove it.")
    try:
        if unfinished_state(target) != state:
            shutil.rmtree(unfinished, ignore_errors=True)
            staged.mkdir(parents=True)
            (unfinished / STATE).write_text(json.dumps(state))
        with TemporaryDirectory(dir=unfinished) as temporary:
            yield staged, Path(temporary)
        staged.rename(target)
        shutil.rmtree(unfinished)
    except OSError as error:
        raise DatasetError(
            f"{target} cannot be written: {error}. The same command goes on where this one stopped, from {unfinished}."
        ) from error


def unfinished_state(target: Path) -> dict[str, Any] | None:
    """What the last `resumable_folder` for `target` was given, if that one was interrupted."""
    try:
        return json.loads((_unfinished(target) / STATE).read_text())
    except (OSError, ValueError):
        return None


def _unfinished(target: Path) -> Path:
    return target.with_name(f".{target.name}_unfinished")
