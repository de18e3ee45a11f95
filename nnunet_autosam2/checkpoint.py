"""Reads what torch.save has written, and runs nothing that may be in it."""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nnunet_autosam2.errors import WeightsError
from nnunet_autosam2.files import fault_of_file
from nnunet_autosam2.text import LINE, printable

if TYPE_CHECKING:
    import torch

_SCALAR = np.float64(0).__reduce__()[0]
IN_A_LOG = [
    np.dtype,
    *{type(np.dtype(kind)) for kind in ("bool", "int32", "int64", "float16", "float32", "float64")},
    # NumPy 2 has moved it, and a checkpoint names it as the NumPy did that was there when it was written.
    *((_SCALAR, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
]
"""What nnU-Net's log of a training has beside numbers, text, lists and dictionaries"""


def read_nnunet_checkpoint(path: Path, map_location: torch.device | str = "cpu") -> dict[str, Any]:
    """The content of a checkpoint of nnU-Net: network_weights, init_args, trainer_name, logging and more.

    Raises:
        WeightsError: there is no such file, it is damaged or no checkpoint of nnU-Net, or it holds code.
    """
    expected = "Expected a checkpoint that nnU-Net has written."
    content = read_torch_file(path, expected, map_location, IN_A_LOG, mmap=True)
    if not isinstance(content, dict) or not {"network_weights", "init_args", "trainer_name"} <= content.keys():
        raise WeightsError(f"{path} is refused: it has no network_weights, init_args and trainer_name. {expected}")
    return content


def require_nnunet_checkpoint(path: Path) -> dict[str, Any]:
    """Its content, as `read_nnunet_checkpoint`.

    Raises:
        WeightsError: as `read_nnunet_checkpoint`; the message names the checkpoints beside it that are good.
    """
    try:
        return read_nnunet_checkpoint(path)
    except WeightsError as error:
        good = [other.name for other in sorted(path.parent.glob("checkpoint_*.pth")) if _is_good(other)]
        advice = f"Remove it to go on from {' or '.join(good)}." if good else "There is no other: start afresh."
        raise WeightsError(f"{error} {advice}") from error


def _is_good(path: Path) -> bool:
    try:
        read_nnunet_checkpoint(path)
    except WeightsError:
        return False
    return True


def training_seconds(checkpoint: Mapping[str, Any]) -> float:
    """Of all epochs, wherever the training was interrupted; of what `read_nnunet_checkpoint` returns."""
    log = checkpoint["logging"]
    return sum(log["epoch_end_timestamps"]) - sum(log["epoch_start_timestamps"])


def read_torch_file(
    path: str | Path,
    expected: str,
    map_location: torch.device | str = "cpu",
    safe_globals: Sequence[Any] = (),
    mmap: bool = False,
) -> Any:
    """
    Args:
        expected: the end of every error message.
        safe_globals: what else than tensors, numbers, text and containers may be in it.
        mmap: read tensors when they are needed, where the format allows it; the file has to stay as it is until then.

    Raises:
        WeightsError: there is no such file, it is damaged, or it holds objects that could run code.
    """
    import torch  # takes seconds, and finding weights does without

    if fault := fault_of_file(Path(path)):
        raise WeightsError(f"{printable(path, LINE)} {fault}. {expected}")
    try:
        with open(path, "rb") as file:
            start = file.read(16)
    except FileNotFoundError as error:
        raise WeightsError(f"{path} does not exist. {expected}") from error
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror}. {expected}") from error
    try:
        with torch.serialization.safe_globals([*safe_globals]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch comments on what it refuses
            return torch.load(
                path, map_location=map_location, weights_only=True, mmap=mmap and zipfile.is_zipfile(path)
            )
    except Exception as error:  # whatever other bytes lead to in torch's unpickler
        raise WeightsError(f"{path} is refused: found {_fault(Path(path), start, error)}. {expected}") from error


def _fault(path: Path, start: bytes, error: Exception) -> str:
    """What is in a file that torch.load has refused with `error`."""
    if not start:
        return "an empty file"
    if not start.startswith((b"PK", b"\x80")):  # zip, as torch.save writes, and pickle, as it once did
        return f"a file that torch.save did not write, starting with {start!r}"
    if isinstance(error, pickle.UnpicklingError):
        named = re.search(r"GLOBAL (\S+)", str(error))
        return f"a pickle that could run code{f' ({named[1]})' if named else ''}, of which nothing was run"
    return f"a truncated or damaged file of {path.stat().st_size:,} bytes"
