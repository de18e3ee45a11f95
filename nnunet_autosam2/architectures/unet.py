"""The 3D UNet of AutoSAM2."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from dynamic_network_architectures.building_blocks.residual import BasicBlockD
from dynamic_network_architectures.building_blocks.simple_conv_blocks import ConvDropoutNormReLU
from torch import Tensor, nn
from torch.nn import functional as F

from nnunet_autosam2.architectures.backbone import Backbone, Size3d, level_strides, middle_level, resize

FEATURES = (16, 32, 64, 128, 128)
"""Stem, then four encoder blocks"""
NUM_GROUPS = 8


class ResidualUNet3d(Backbone):
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
        self.encoder = Encoder(in_channels, strides)
        self.decoder = Decoder(num_classes, self.middle, full_resolution)
        self.full_resolution = full_resolution

    def encode(self, volume: Tensor) -> list[Tensor]:
        return self.encoder(volume)

    def decode(self, level: int, x: Tensor, skip: Tensor) -> Tensor:
        return self.decoder(level, x, skip)

    def head(self, level: int) -> nn.Module:
        return self.decoder.seg_layers[str(level)]

    def parts(self) -> list[nn.Module]:
        return [self.encoder, *self.decoder.blocks.values()]

    def decoder_channels(self, level: int) -> int:
        return self.decoder.channels[level]


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

    def forward(self, level: int, x: Tensor, skip: Tensor) -> Tensor:
        """Features of a level, from those of the level below and the encoder's."""
        return self.blocks[str(level)](torch.cat([resize(x, skip.shape[2:]), skip], dim=1))


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
