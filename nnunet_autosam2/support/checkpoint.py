"""Reads what torch.save has written, and runs nothing that may be in it."""

from __future__ import annotations

import os
import pickle
import re
import stat
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import BaseModel, StrictStr

from nnunet_autosam2.errors import WeightsError, listed
from nnunet_autosam2.support.access import fault_of_file
from nnunet_autosam2.support.json_files import checked
from nnunet_autosam2.support.text import LINE, printable

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

_SCALAR = np.float64(0).__reduce__()[0]
IN_A_LOG = [
    np.dtype,
    *{type(np.dtype(kind)) for kind in ("bool", "int32", "int64", "float16", "float32", "float64")},
    # NumPy 2 has moved it, and a checkpoint names it as the NumPy did that was there when it was written.
    *((_SCALAR, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
]
"""Types in nnU-Net's log of a training run, beside numbers, text, lists and dictionaries"""


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


class InitArgs(BaseModel):
    """Arguments that nnU-Net's trainer was called with."""

    plans: dict[StrictStr, Any]
    configuration: StrictStr
    dataset_json: dict[StrictStr, Any]


def init_args(checkpoint: Mapping[str, Any], path: Path) -> InitArgs:
    """Trainer's arguments in what `read_nnunet_checkpoint` returns. Plans and dataset.json are still to be checked.

    Raises:
        WeightsError: an entry is missing or has another type.
    """
    return checked(checkpoint["init_args"], InitArgs, f"{path}: init_args", error=WeightsError)


def load_network(network: nn.Module, weights: Any, source: object) -> None:
    """Fills a network from network_weights of a checkpoint of nnU-Net.

    Args:
        source: where they came from, and the start of the message.

    Raises:
        WeightsError: they do not fit by name, shape or kind of number, or hold one that is not finite.
    """
    if not (isinstance(weights, dict) and all(isinstance(name, str) for name in weights)):
        raise WeightsError(f"{source}: network_weights does not map names to tensors.")
    from nnunet_autosam2.architectures.seg_layers import in_current_layout  # with torch, which takes seconds

    own = network.state_dict()
    weights = in_current_layout(weights, own)
    faults = {
        "missing": [name for name in own if name not in weights],
        "unknown": [name for name in weights if name not in own],
    }
    faults |= unusable(weights, own)
    if problems := faults_in_words(faults):
        raise WeightsError(f"{source} does not fit the network of the plans: {problems}.")
    network.load_state_dict(weights)


def faults_in_words(faults: Mapping[str, Sequence[str]]) -> str:
    """Kinds of fault and the names that have them, for a message; empty where there are none.

    >>> faults_in_words({"missing": ["a", "b"], "unknown": []})
    '2 missing: a, b'
    """
    return "; ".join(f"{len(names)} {kind}: {listed(names)}" for kind, names in faults.items() if names)


def unusable(state: Mapping[str, Any], own: Mapping[str, Tensor]) -> dict[str, list[str]]:
    """Find the entries of a file that cannot take the place of those of the same names in `own`.

    Returns:
        Kind of fault → names, with what was found. A kind without a fault is not there.
    """
    import torch

    floats = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
    faults: dict[str, list[str]] = {}
    for name in (name for name in own if name in state):
        tensor, expected = state[name], own[name]
        if type(tensor) not in (torch.Tensor, torch.nn.Parameter):
            kind = type(tensor).__name__
        elif tensor.layout is not torch.strided or tensor.is_nested:
            kind = "nested" if tensor.is_nested else str(tensor.layout).removeprefix("torch.")
        elif tensor.shape != expected.shape:
            description = f"{name} (expected {list(expected.shape)}, found {list(tensor.shape)})"
            faults.setdefault("of another shape", []).append(description)
            continue
        elif tensor.is_meta:
            kind = "meta, without values"
        elif (tensor.dtype in floats) != expected.is_floating_point() or tensor.is_complex() or tensor.is_quantized:
            kind = str(tensor.dtype).removeprefix("torch.")
        elif tensor.dtype in floats and not tensor.isfinite().all():
            faults.setdefault("not finite", []).append(name)
            continue
        else:
            continue
        faults.setdefault("of another kind", []).append(f"{name} ({kind})")
    return faults


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


class TrainingLog(BaseModel):
    """nnU-Net's log of a training run, one value per epoch."""

    train_losses: list[float]
    val_losses: list[float]
    ema_fg_dice: list[float]
    epoch_start_timestamps: list[float]
    epoch_end_timestamps: list[float]

    @property
    def seconds(self) -> float:
        """Sum over all epochs, wherever the training run was interrupted."""
        return sum(self.epoch_end_timestamps) - sum(self.epoch_start_timestamps)


def training_log(checkpoint: Mapping[str, Any], path: Path) -> TrainingLog:
    """TrainingLog in what `read_nnunet_checkpoint` returns.

    Raises:
        WeightsError: an entry is missing or has another type.
    """
    return checked(checkpoint.get("logging"), TrainingLog, f"{path}: logging", error=WeightsError)


def read_torch_file(
    path: str | Path,
    expected: str,
    map_location: torch.device | str = "cpu",
    safe_globals: Sequence[Any] = (),
    mmap: bool = False,
) -> Any:
    """Read a file of torch.save without running anything in it.

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
        if not stat.S_ISREG(os.stat(path).st_mode) and not os.path.isdir(path):
            raise WeightsError(f"{path} is not a file. {expected}")
        with open(path, "rb") as file:
            start = file.read(16)
    except FileNotFoundError as error:
        raise WeightsError(f"{path} does not exist. {expected}") from error
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror}. {expected}") from error
    is_zip = zipfile.is_zipfile(path)
    if is_zip and (unpacked := _unpacked_bytes(path)) > os.path.getsize(path):
        raise WeightsError(
            f"{path} is refused: found an archive that would unpack to {unpacked:,} bytes, and torch.save does not "
            f"compress. {expected}"
        )
    try:
        with torch.serialization.safe_globals([*safe_globals]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch comments on what it refuses
            return torch.load(path, map_location=map_location, weights_only=True, mmap=mmap and is_zip)
    except Exception as error:  # whatever other bytes lead to in torch's unpickler
        raise WeightsError(f"{path} is refused: found {_fault(Path(path), start, error)}. {expected}") from error


def _unpacked_bytes(path: str | Path) -> int:
    """Sum of what a zip file says it holds; 0 where it is damaged, which torch finds as well."""
    try:
        with zipfile.ZipFile(path) as archive:
            return sum(entry.file_size for entry in archive.infolist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return 0


def _fault(path: Path, start: bytes, error: Exception) -> str:
    """Describe a file that torch.load has refused with `error`."""
    if not start:
        return "an empty file"
    if not start.startswith((b"PK", b"\x80")):  # zip, as torch.save writes, and pickle, as it once did
        return f"a file that torch.save did not write, starting with {start!r}"
    if isinstance(error, pickle.UnpicklingError):
        named = re.search(r"GLOBAL (\S+)", str(error))
        return f"a pickle that could run code{f' ({named[1]})' if named else ''}, of which nothing was run"
    return f"a truncated or damaged file of {path.stat().st_size:,} bytes"
