"""Rules for every command: the files and folders that are data, and those that can be opened."""

from __future__ import annotations

import stat
import unicodedata
from pathlib import Path

from nnunet_autosam2.errors import DatasetError
from nnunet_autosam2.support.text import LINE, printable

LEFT_BY_SYSTEMS = frozenset(
    {
        "__macosx",
        "@eadir",
        "#recycle",
        "@recycle",
        "@recently-snapshot",
        "$recycle.bin",
        "system volume information",
        "lost+found",
        "thumbs.db",
        "desktop.ini",
        "__pycache__",
    }
)
"""Names, in lower case, that archivers, storage devices and operating systems put beside data"""
UNFIT = ("Cc", "Cs", "Zl", "Zp")
"""Unicode categories of control characters, of bytes that are not UTF-8, and of line and paragraph separators"""


def is_data(name: str) -> bool:
    """True for the name of data, a file or a folder; false if it is hidden, as `._*` and `.ipynb_checkpoints`
    are, or left there by a system.
    """
    return not name.startswith(".") and name.lower() not in LEFT_BY_SYSTEMS


def entries(folder: Path) -> list[Path]:
    """Files and folders in `folder` that are looked at, sorted.

    Raises:
        OSError: as `Path.iterdir`.
    """
    return sorted(path for path in folder.iterdir() if is_data(path.name))


def require_file(path: Path) -> None:
    """Refuse what would hang, end the process or read something endless if opened. A path without a file passes.

    Raises:
        DatasetError: see `fault_of_file`.
    """
    if fault := fault_of_file(path):
        raise DatasetError(f"{printable(path, LINE)} {fault}.")


def fault_of_file(path: Path) -> str | None:
    """Reason why it cannot be opened as a file, to be read after its name; None if it can, or if nothing is there."""
    if fault := fault_of_name(path):
        return fault
    try:
        mode = path.stat().st_mode
    except OSError:
        return None
    if stat.S_ISDIR(mode):
        return "is a folder, where a file has to be"
    return None if stat.S_ISREG(mode) else "is a pipe, a socket or a device, where a file has to be"


def fault_of_name(path: Path) -> str | None:
    """Reason why SimpleITK would end the process, or a message would have lines of its own."""
    if any(unicodedata.category(character) in UNFIT for character in str(path)):
        return "has a name with control characters or bytes that are not UTF-8: rename it"
    return None
