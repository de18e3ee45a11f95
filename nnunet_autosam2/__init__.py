"""AutoSAM2 for nnU-Net v2: a 3D UNet, SAM2 on strategic slices, and a learned bridge between them.

`AutoSAM2(num_classes=4)` is the network on its own, and `AutoSAM2Loss` trains it; `nnUNetv2_train ... -tr
nnUNetTrainerAutoSAM2` does both.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from nnunet_autosam2.config import AutoSAM2Config

if TYPE_CHECKING:
    from nnunet_autosam2.architectures.autosam2 import AutoSAM2
    from nnunet_autosam2.trainers.loss import AutoSAM2Loss

__all__ = ["AutoSAM2", "AutoSAM2Config", "AutoSAM2Loss"]

# Lazy, so that the command line can print its help without loading torch.
MODULES = {"AutoSAM2": "nnunet_autosam2.architectures.autosam2", "AutoSAM2Loss": "nnunet_autosam2.trainers.loss"}


def __getattr__(name: str):
    if name in MODULES:
        return getattr(import_module(MODULES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
