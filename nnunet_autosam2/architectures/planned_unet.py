"""The network that nnU-Net planned, as the backbone."""

from typing import Any

import torch
from torch import Tensor, nn

from nnunet_autosam2.architectures.unet import UNetOutput, level_strides, middle_level, resize


class PlannedUNet(nn.Module):
    """A PlainConvUNet or ResidualEncoderUNet of dynamic-network-architectures, with features for SAM2.

    Its parameters keep their names, below `network`, so that a checkpoint of nnU-Net fills it.

    Args:
        network: with a decoder whose `transpconvs`, `stages` and `seg_layers` come coarsest first.
        full_resolution: False leaves out the decoder's fine half, as in ResidualUNet3d.
    """

    def __init__(self, network: Any, full_resolution: bool = True) -> None:
        super().__init__()
        self.network: Any = network
        self.full_resolution = full_resolution
        self.deep_supervision = True
        levels = level_strides(network.encoder.strides)
        self.total_stride = levels[-1]
        self.middle = middle_level(levels)
        self.middle_channels: int = network.encoder.output_channels[self.middle]
        self.strides = levels[:-1]
        """Strides of the outputs, finest first"""
        if not full_resolution:
            decoder = network.decoder
            for parts in (decoder.transpconvs, decoder.stages, decoder.seg_layers):
                del parts[len(self.strides) - self.middle :]
            decoder.seg_layers[:-1].requires_grad_(False)

    def forward(self, volume: Tensor, full_resolution: bool = True) -> UNetOutput:
        """[B, C, D, H, W] → logits at the input's size and the features that prompt SAM2."""
        features = self._decode(self.network.encoder(volume), finest=0 if full_resolution else self.middle)
        if not full_resolution:
            coarse = self._head(self.middle)(features[self.middle])
            return UNetOutput((resize(coarse, volume.shape[2:]),), features[self.middle])
        levels = range(len(self.strides) if self.deep_supervision else 1)
        return UNetOutput(tuple(self._head(level)(features[level]) for level in levels), features[self.middle])

    def _decode(self, skips: list[Tensor], finest: int) -> dict[int, Tensor]:
        """Level → features, down to level `finest`."""
        decoder = self.network.decoder
        x = skips[-1]
        features = {}
        for level in reversed(range(finest, len(self.strides))):
            upsample, stage = (parts[len(self.strides) - 1 - level] for parts in (decoder.transpconvs, decoder.stages))
            x = features[level] = stage(torch.cat((upsample(x), skips[level]), dim=1))
        return features

    def _head(self, level: int) -> nn.Module:
        return self.network.decoder.seg_layers[len(self.strides) - 1 - level]
