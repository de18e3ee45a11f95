"""SAM2's masks of a patch, for its mirror images too."""

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from nnunet_autosam2.architectures.outputs import SAM2Masks
from nnunet_autosam2.architectures.reconstruction import VolumeMasks


class MirroredMasks:
    """Asks SAM2 about a volume, and not again about the mirror images that follow: they get its masks, mirrored.

    nnU-Net's prediction with mirroring shows a patch to the network, and then each of its seven mirror images, in which
    the UNet sees nearly the same. SAM2 would cost as much as in eight patches.
    """

    def __init__(self) -> None:
        self.asked: tuple[Tensor, Any, VolumeMasks] | None = None

    def __call__(
        self, volume: Tensor, state: Any, ask: Callable[[], tuple[SAM2Masks, VolumeMasks]]
    ) -> tuple[SAM2Masks | None, VolumeMasks]:
        """
        Args:
            volume: [B, C, D, H, W].
            state: whatever else the masks depend on; compared with ==.
            ask: gives the masks of `volume`: on the slices that were selected, and on all.
        """
        if self.asked and self.asked[1] == state:
            before, _, masks = self.asked
            # A volume is no mirror image of itself: whoever shows it again wants it looked at again.
            if axes := _mirrored_axes(volume, before):
                return None, masks.mirrored(axes)
        sam2, masks = ask()
        self.asked = volume.clone(), state, masks
        return sam2, masks

    def forget(self) -> None:
        self.asked = None


def _mirrored_axes(volume: Tensor, other: Tensor) -> tuple[int, ...]:
    """The axes D, H, W (2 to 4) along which `volume` is `other` mirrored; none if it is the same or another one."""
    if volume.shape != other.shape or volume.device != other.device:
        return ()
    candidates = (axes for count in range(4) for axes in itertools.combinations((2, 3, 4), count))
    return next((axes for axes in candidates if torch.equal(volume, other.flip(axes))), ())
