"""The network that nnU-Net planned, as the backbone."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from nnunet_autosam2.architectures.backbone import Backbone, level_strides, middle_level


class PlannedUNet(Backbone):
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
        levels = level_strides(network.encoder.strides)
        self.total_stride = levels[-1]
        self.middle = middle_level(levels)
        self.strides = levels[:-1]
        if not full_resolution:
            decoder = network.decoder
            for parts in (decoder.transpconvs, decoder.stages, decoder.seg_layers):
                del parts[len(self.strides) - self.middle :]
            decoder.seg_layers[:-1].requires_grad_(False)

    def encode(self, volume: Tensor) -> list[Tensor]:
        return self.network.encoder(volume)

    def decode(self, level: int, x: Tensor, skip: Tensor) -> Tensor:
        decoder, position = self.network.decoder, len(self.strides) - 1 - level
        return decoder.stages[position](torch.cat((decoder.transpconvs[position](x), skip), dim=1))

    def head(self, level: int) -> Callable[[Tensor], Tensor]:
        return self.network.decoder.seg_layers[len(self.strides) - 1 - level]

    def parts(self) -> list[nn.Module]:
        return [self.network.encoder, *self.network.decoder.stages]

    def decoder_channels(self, level: int) -> int:
        return self.network.encoder.output_channels[level]
