"""The machine and the versions that something runs with, for reports of faults and beside results."""

from __future__ import annotations

import importlib.metadata
import platform
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

DISTRIBUTIONS = (
    "nnunet-autosam2",
    "nnunetv2",
    "torch",
    "sam2",
    "peft",
    "dynamic-network-architectures",
    "batchgenerators",
    "SimpleITK",
    "nibabel",
)


def versions() -> dict[str, str | None]:
    """Python's, and those of the packages that decide on a result; None: it is not installed."""
    found: dict[str, str | None] = {"Python": platform.python_version()}
    for name in DISTRIBUTIONS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def device_name(device: torch.device) -> str:
    """The graphics card's name, or the kind of device."""
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def environment(device: torch.device) -> dict[str, Any]:
    """Versions, system and device, in values that JSON keeps."""
    import torch

    return {
        "versions": versions(),
        "system": platform.platform(),
        "device": device_name(device),
        "cuda": torch.version.cuda if device.type == "cuda" else None,
        "cudnn": torch.backends.cudnn.version() if device.type == "cuda" else None,
    }
