"""The 3D UNet of AutoSAM2."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from dynamic_network_architectures.building_blocks.residual import BasicBlockD
from dynamic_network_architectures.building_blocks.simple_conv_blocks import ConvDropoutNormReLU
from torch import Tensor, nn
from torch.nn import functional as F

FEATURES = (16, 32, 64, 128, 128)
"""Stem, then four encoder blocks"""
MIDDLE_STRIDE = 4
"""In-plane stride of the decoder features that prompt SAM2"""
NUM_GROUPS = 8

Size3d = tuple[int, int, int]


class UNetOutput(NamedTuple):
    logits: tuple[Tensor, ...]
    """[B, C, D, H, W], then one entry a deep-supervision head, from fine to coarse"""
    middle_features: Tensor
    """[B, F, D / sd, H / 4, W / 4], with sd the stride along the slices"""

    def detach(self) -> UNetOutput:
        """The same, for whoever must not train the UNet."""
        return UNetOutput(tuple(logits.detach() for logits in self.logits), self.middle_features.detach())


class ResidualUNet3d(nn.Module):
    """5×5×5 stem, four residual encoder blocks, a mirrored decoder with trilinear upsampling and skips.

    Args:
        in_channels: modalities.
        num_classes: output channels.
        strides: of the four encoder blocks; every input size has to be a multiple of their product.
        full_resolution: False leaves out the decoder's fine half; the output of the middle level is then the only
            one, resized to the input.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        strides: Sequence[Sequence[int]] = ((2, 2, 2),) * 4,
        full_resolution: bool = True,
    ) -> None:
        super().__init__()
        levels = level_strides([(1, 1, 1), *strides])
        self.total_stride = levels[-1]
        self.middle = middle_level(levels)
        self.strides = levels[: self.middle + 1]
        """Strides of the outputs, finest first"""
        self.encoder = Encoder(in_channels, strides)
        self.decoder = Decoder(num_classes, self.middle, full_resolution)
        self.full_resolution = full_resolution
        self.deep_supervision = True

    @property
    def middle_channels(self) -> int:
        return self.decoder.channels[self.middle]

    def forward(self, volume: Tensor, full_resolution: bool = True) -> UNetOutput:
        """[B, C, D, H, W] → logits at the input's size and the features that prompt SAM2."""
        skips = self.encoder(volume)
        features = self.decoder(skips, finest=0 if full_resolution else self.middle)
        heads = self.decoder.seg_layers
        if not full_resolution:
            coarse = heads[str(self.middle)](features[self.middle])
            return UNetOutput((resize(coarse, volume.shape[2:]),), features[self.middle])
        levels = range(self.middle + 1) if self.deep_supervision else range(1)
        return UNetOutput(tuple(heads[str(i)](features[i]) for i in levels), features[self.middle])


class Encoder(nn.Module):
    """Returns the features of every level, finest first."""

    def __init__(self, in_channels: int, strides: Sequence[Sequence[int]]) -> None:
        super().__init__()
        self.stem = ConvDropoutNormReLU(
            nn.Conv3d,
            in_channels,
            FEATURES[0],
            5,
            1,
            norm_op=GroupNorm,
            nonlin=nn.ReLU,
            nonlin_kwargs={"inplace": True},
        )
        self.blocks = nn.ModuleList(
            residual_block(FEATURES[i], FEATURES[i + 1], stride) for i, stride in enumerate(strides)
        )

    def forward(self, volume: Tensor) -> list[Tensor]:
        features = [self.stem(volume)]
        for block in self.blocks:
            features.append(block(features[-1]))
        return features


class Decoder(nn.Module):
    """Upsamples from the bottleneck; `channels` of its levels are 16, 16, 32, 64, finest first."""

    def __init__(self, num_classes: int, middle: int, full_resolution: bool) -> None:
        super().__init__()
        self.channels = (FEATURES[0], *FEATURES[: len(FEATURES) - 2])
        below = (*self.channels[1:], FEATURES[-1])
        levels = range(0 if full_resolution else middle, len(self.channels))
        self.blocks = nn.ModuleDict({str(i): residual_block(below[i] + FEATURES[i], self.channels[i]) for i in levels})
        self.seg_layers = nn.ModuleDict(
            {str(i): nn.Conv3d(self.channels[i], num_classes, 1) for i in levels if i <= middle}
        )

    def forward(self, skips: list[Tensor], finest: int) -> dict[int, Tensor]:
        """Level → features, down to level `finest`."""
        x = skips[-1]
        features = {}
        for level in reversed(range(finest, len(self.channels))):
            x = torch.cat([resize(x, skips[level].shape[2:]), skips[level]], dim=1)
            x = features[level] = self.blocks[str(level)](x)
        return features


class GroupNorm(nn.GroupNorm):
    """With the signature that dynamic-network-architectures expects of a norm.

    In the precision of its input, as instance norms are: autocast on a GPU would make it float32, and with it all that
    follows up to the next convolution, at twice the memory.
    """

    def __init__(self, num_channels: int) -> None:
        super().__init__(NUM_GROUPS, num_channels)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return F.group_norm(x, self.num_groups, self.weight.to(x.dtype), self.bias.to(x.dtype), self.eps)


def residual_block(in_channels: int, out_channels: int, stride: int | Sequence[int] = 1) -> BasicBlockD:
    return BasicBlockD(
        nn.Conv3d,
        in_channels,
        out_channels,
        kernel_size=3,
        stride=stride,
        norm_op=GroupNorm,
        nonlin=nn.ReLU,
        nonlin_kwargs={"inplace": True},
    )


def resize(x: Tensor, size: Sequence[int]) -> Tensor:
    """Trilinear."""
    return F.interpolate(x, size=tuple(size), mode="trilinear", align_corners=False)


def strides_for(patch_size: Sequence[int], planned: Sequence[Sequence[int]] = ()) -> list[Size3d]:
    """Strides of the four blocks for a patch: those that nnU-Net planned, continued where it planned fewer.

    Args:
        patch_size: (D, H, W).
        planned: strides of nnU-Net's stages, with the first stage's (1, 1, 1) in front.
    """
    strides: list[Size3d] = []
    size = np.array(patch_size)
    for i in range(1, len(FEATURES)):
        stride = np.array(planned[i]) if i < len(planned) else np.where((size % 2 == 0) & (size >= 8), 2, 1)
        strides.append((int(stride[0]), int(stride[1]), int(stride[2])))
        size = size // stride
    return strides


def level_strides(strides: Sequence[Sequence[int]]) -> list[Size3d]:
    """Strides from level to level → of each level against the input."""
    return [(int(d), int(h), int(w)) for d, h, w in np.cumprod(strides, axis=0)]


def middle_level(levels: Sequence[Size3d]) -> int:
    """The first level with the in-plane stride of the middle features, else the coarsest one of the decoder."""
    for level, stride in enumerate(levels[:-1]):
        if max(stride[1:]) >= MIDDLE_STRIDE:
            return level
    return len(levels) - 2
