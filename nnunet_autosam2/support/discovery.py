"""Discovery of what is there where this package is installed: the trainers, by nnU-Net's own search, and the device.

`python -m nnunet_autosam2.support.discovery` links the overlay as `autosam2 doctor --fix` does.
"""

from __future__ import annotations

import contextlib
import csv
import importlib.metadata
import importlib.util
import io
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nnunet_autosam2
from nnunet_autosam2.errors import InstallationError
from nnunet_autosam2.support.staging import replaced_file

if TYPE_CHECKING:
    import torch

TRAINER = "nnUNetTrainerAutoSAM2"
DISTRIBUTION = "nnunet-autosam2"
OVERLAY = Path("training", "nnUNetTrainer", "variants", "autosam2")
"""Folder in nnU-Net's package, where it looks for trainers"""
MODULE = "autosam2_trainers.py"


def search_trainer(name: str = TRAINER) -> type | None:
    """The class that nnU-Net's own search finds, None if it finds none.

    Raises:
        Exception: whatever the import of nnU-Net or of the trainer raises.
    """
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name  # slow, and may be broken

    try:
        with contextlib.redirect_stdout(io.StringIO()):  # nnU-Net reports its search
            return recursive_find_trainer_class_by_name(name)
    except RuntimeError as error:
        if str(error).startswith("Could not find requested nnunet trainer"):
            return None
        raise


def default_device() -> torch.device:
    """The first of CUDA, MPS and CPU that this machine has."""
    import torch

    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def is_editable() -> bool:
    """True where an installer has put a link to the sources in the place of a copy."""
    distribution = _installed()
    origin = distribution.read_text("direct_url.json") if distribution else None
    return bool(json.loads(origin or "{}").get("dir_info", {}).get("editable"))


def source_overlay() -> Path | None:
    """The folder `overlay/` beside this package, None where it is not imported from its sources."""
    folder = Path(nnunet_autosam2.__file__).resolve().parents[1] / "overlay"
    return folder if (folder / MODULE).is_file() else None


def installed_overlay() -> Path:
    """Place in which nnU-Net looks for the overlay, whether it is there or not.

    Raises:
        InstallationError: nnU-Net is not installed.
    """
    found = importlib.util.find_spec("nnunetv2")
    if found is None or not found.submodule_search_locations:
        raise InstallationError("nnunetv2 is not installed here: pip install nnunetv2")
    return Path(found.submodule_search_locations[0]) / OVERLAY


def search_remedy() -> str:
    """Advice for where nnU-Net does not find the trainers."""
    overlay = source_overlay()
    if overlay is None:
        return "Install nnunet-autosam2 again, into the environment that nnunetv2 is in."
    named = os.environ.get("nnUNet_extTrainer")  # noqa: SIM112 (nnU-Net's spelling)
    folders = [folder for folder in (named, str(overlay)) if folder]
    return f"Run: export nnUNet_extTrainer={os.pathsep.join(folders)}"


def link_overlay() -> str:
    """Links nnU-Net's folder for the overlay to the sources of an editable install, and says in a line what was done.

    Raises:
        InstallationError: that is not possible here; the message says what to do instead.
    """
    link, sources = installed_overlay(), source_overlay()
    if sources is None or not is_editable():
        if (link / MODULE).is_file():
            return f"nothing to do: not an editable install, {link} is a copy"
        raise InstallationError(
            f"{link} is missing, and this is no editable install that it could be linked to. Install nnunet-autosam2 "
            "again, into the environment that nnunetv2 is in."
        )
    if link.is_symlink() and link.resolve() == sources:
        _record(link)
        return f"nothing to do: {link} is a link to {sources}"
    try:
        _remove(link)
        link.symlink_to(sources, target_is_directory=True)
        _record(link)
    except OSError as error:
        raise InstallationError(f"{link} cannot be linked: {error.strerror or error}. {search_remedy()}") from error
    return f"linked {link} to {sources}"


def _remove(link: Path) -> None:
    """An old link, or what the bytecode of a copy has left there; nothing that somebody has written."""
    if link.is_symlink():
        link.unlink()
    elif link.is_dir():
        for cache in (link / "__pycache__").glob("*.pyc"):
            cache.unlink()
        for folder in (link / "__pycache__", link):
            with contextlib.suppress(FileNotFoundError):
                folder.rmdir()


def _installed() -> importlib.metadata.Distribution | None:
    """Metadata that an installer has recorded; setuptools leaves some in the sources, too, which may be on the path."""
    found = importlib.metadata.distributions(name=DISTRIBUTION)
    return next((distribution for distribution in found if distribution.read_text("RECORD")), None)


def _record(link: Path) -> None:
    """Makes the link a file of this distribution: installers then remove it before they install a copy.

    They would write that copy through the link, into the sources.
    """
    distribution: Any = _installed()
    record = distribution.locate_file(f"{distribution._path.name}/RECORD")
    entry = os.path.relpath(link, record.parents[1])
    rows = list(csv.reader(record.read_text(encoding="utf-8").splitlines()))
    if any(row and row[0] == entry for row in rows):
        return
    written = io.StringIO()
    csv.writer(written, lineterminator="\n").writerows([*rows, [entry, "", ""]])
    with replaced_file(record) as temporary:
        temporary.write_text(written.getvalue(), encoding="utf-8")


if __name__ == "__main__":
    from nnunet_autosam2.errors import exit_on_user_error

    with exit_on_user_error():
        print(link_overlay())
