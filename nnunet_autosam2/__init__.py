"""AutoSAM2 for nnU-Net v2: a 3D UNet, SAM2 on strategic slices, and a learned bridge between them.

`AutoSAM2(num_classes=4)` is the network on its own; `nnUNetv2_train ... -tr nnUNetTrainerAutoSAM2` trains it.
"""

from typing import TYPE_CHECKING

from nnunet_autosam2.config import AutoSAM2Config

if TYPE_CHECKING:
    from nnunet_autosam2.architectures.autosam2 import AutoSAM2

__all__ = ["AutoSAM2", "AutoSAM2Config"]


def __getattr__(name: str):
    # Lazy, so that the command line can print its help without loading torch and sam2.
    if name == "AutoSAM2":
        from nnunet_autosam2.architectures.autosam2 import AutoSAM2

        return AutoSAM2
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
