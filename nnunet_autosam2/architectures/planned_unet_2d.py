"""The network of nnU-Net's 2D configuration, as the backbone."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from nnunet_autosam2.architectures.planned_unet import PlannedUNet


class PlannedUNet2d(PlannedUNet):
    """A PlannedUNet slice by slice: those of a volume are one batch, and nnU-Net's own slices are volumes of one."""

    def encode(self, volume: Tensor) -> list[Tensor]:
        return [volumes_of(x, volume.shape[2]) for x in super().encode(slices_of(volume))]

    def decode(self, level: int, x: Tensor, skip: Tensor) -> Tensor:
        return volumes_of(super().decode(level, slices_of(x), slices_of(skip)), x.shape[2])

    def head(self, level: int) -> Callable[[Tensor], Tensor]:
        head = super().head(level)
        return lambda x: volumes_of(head(slices_of(x)), x.shape[2])


def slices_of(volume: Tensor) -> Tensor:
    """[B, C, D, H, W] → [B · D, C, H, W]."""
    return volume.transpose(1, 2).flatten(0, 1)


def volumes_of(slices: Tensor, depth: int) -> Tensor:
    """[B · D, C, H, W] → [B, C, D, H, W]."""
    return slices.unflatten(0, (-1, depth)).transpose(1, 2)
