"""Folders that appear whole or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from nnunet_autosam2.errors import DatasetError


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
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # The temporary folder is private to its owner, the one inside has the usual permissions.
        with TemporaryDirectory(prefix=f".{target.name}_", dir=target.parent) as temporary:
            staged = Path(temporary) / target.name
            staged.mkdir()
            yield staged
            staged.rename(target)
    except OSError as error:
        raise DatasetError(f"{target} cannot be written: {error.strerror or error}.") from error
