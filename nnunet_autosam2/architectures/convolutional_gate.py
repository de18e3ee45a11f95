"""A gate that sees its surroundings, and what the UNet knows of them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nnunet_autosam2.architectures.backbone import Size3d, resize
from nnunet_autosam2.architectures.fusion import GATE_LR_MULTIPLIER, GatedFusion, Reliability

CHANNELS = 16
NEGATIVE_SLOPE = 1e-2  # nnU-Net's


class ConvolutionalGatedFusion(GatedFusion):
    """A gated fusion whose gate is not of its voxel alone: errors come in patches.

    To the linear gate's logit is added what two convolutions make of its inputs and of the UNet's finest features
    around the voxel, at the resolution of the UNet's second level. The last layer starts at zero, so that the gate
    starts as a linear one, bit by bit, and it learns at the pace of that.

    Args:
        num_classes: C.
        num_features: F, of the UNet's finest features.
        stride: of the UNet's second level.
        closed: as of GatedFusion.
    """

    sees_features = True

    def __init__(self, num_classes: int, num_features: int, stride: Size3d, closed: bool = False) -> None:
        inputs = num_features + 6 * num_classes + 1  # nearness is that of all classes
        super().__init__(
            num_classes,
            closed,
            input_weight=nn.init.kaiming_normal_(torch.empty(CHANNELS, inputs, 1, 1, 1), NEGATIVE_SLOPE),
            output_weight=torch.zeros(CHANNELS, num_classes),
        )
        self.stride = stride
        self.input_bias = nn.Parameter(torch.zeros(CHANNELS))
        self.neighbourhood = nn.Sequential(nn.LeakyReLU(NEGATIVE_SLOPE, inplace=True), _convolution(), _convolution())

    def learned(self, opinions: Sequence[Tensor], reliability: Reliability, features: Tensor | None) -> Tensor:
        assert features is not None
        half = features.dtype.itemsize == 2
        with torch.autocast(features.device.type, dtype=features.dtype if half else None, enabled=half):
            x = F.conv3d(self.seen(opinions, reliability, features), self.input_weight, self.input_bias)
            x = F.conv3d(self.neighbourhood(x), self.output_weight.T[..., None, None, None])
        added = GATE_LR_MULTIPLIER * resize(x.float(), features.shape[2:])
        return super().learned(opinions, reliability, features) + added

    @torch.no_grad()
    def seen(self, opinions: Sequence[Tensor], reliability: Reliability, features: Tensor) -> Tensor:
        """All inputs [B, F + 6 C + 1, d, h, w], side by side at the second level's resolution."""
        size = [math.ceil(length / step) for length, step in zip(features.shape[2:], self.stride, strict=True)]
        scores = F.interpolate(torch.cat(reliability, 1), size=size[0], mode="linear")[..., None, None]
        maps = (*(resize(x, size) for x in (features, *opinions)), scores.expand(-1, -1, *size))
        return torch.cat([x.to(features.dtype) for x in maps], 1)


def _convolution() -> nn.Sequential:
    convolution = nn.Conv3d(CHANNELS, CHANNELS, 3, padding=1)
    weight, bias = convolution.parameters()
    nn.init.kaiming_normal_(weight, NEGATIVE_SLOPE)
    nn.init.zeros_(bias)
    return nn.Sequential(convolution, nn.LeakyReLU(NEGATIVE_SLOPE, inplace=True))
