"""SAM2's image embeddings in the UNet's decoder."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nnunet_autosam2.architectures.backbone import Size3d
from nnunet_autosam2.architectures.masks import SliceEmbeddings
from nnunet_autosam2.architectures.reconstruction import locate_slices
from nnunet_autosam2.architectures.slice_axes import size_along, sliced_along

EMBEDDINGS = {1: "fine", 2: "middle", 4: "image"}
"""Scale of ImageEmbeddings by the in-plane stride of the levels from which on it serves: it has their resolution with
images of four times the size of a patch"""
CHANNELS = {"fine": 32, "middle": 64, "image": 256}
NUM_GROUPS = 4


class FeatureFusion(nn.Module):
    """Residuals of the UNet's decoder, from the middle level to the finest, which start at zero.

    Args:
        channels: of the decoder's levels, finest first.
        strides: of the same.
    """

    def __init__(self, channels: Sequence[int], strides: Sequence[Size3d]) -> None:
        super().__init__()
        self.strides = list(strides)
        self.scales = [EMBEDDINGS[max(at for at in EMBEDDINGS if at <= max(stride[1:]))] for stride in strides]
        self.levels = nn.ModuleList(
            SliceResidual(CHANNELS[scale], count) for scale, count in zip(self.scales, channels, strict=True)
        )

    def forward(self, known: SliceEmbeddings, size: Sequence[int], axis: int = 0) -> dict[int, Tensor]:
        """Residual [B, F, d, h, w] of each level of a volume of `size` D, H, W; none if no slice has been encoded.

        Args:
            axis: 0, 1 or 2 of D, H, W, along which the slices have been cut.
        """
        if known.embeddings is None:
            return {}
        size = size_along(size, axis)
        positions = locate_slices(known.slices, known.encoded, size[0])
        weights = positions.weights * positions.covered[..., None]
        rows = known.encoded.flatten().nonzero()[:, 0]
        return {
            level: sliced_along(residual(getattr(known.embeddings, scale), rows, weights, size, stride), axis)
            for level, (residual, scale, stride) in enumerate(zip(self.levels, self.scales, self.strides, strict=True))
        }


class SliceResidual(nn.Module):
    """One level's: projected on the slices, interpolated between them and mixed along them."""

    def __init__(self, embedding_channels: int, channels: int) -> None:
        super().__init__()
        self.project = nn.Sequential(
            nn.Conv2d(embedding_channels, channels, 1, bias=False),
            nn.GroupNorm(math.gcd(NUM_GROUPS, channels), channels),
            nn.LeakyReLU(inplace=True),
        )
        self.mix = nn.Conv3d(channels, channels, (3, 1, 1), padding=(1, 0, 0), bias=False)
        nn.init.zeros_(self.mix.weight)

    def forward(self, embeddings: Tensor, rows: Tensor, weights: Tensor, size: Sequence[int], stride: Size3d) -> Tensor:
        """
        Args:
            embeddings: [N, E, h, w].
            rows: [N], the slices that they are of, among all B · K.
            weights: [B, D, K] of the slices in every slice of the volume.
        """
        depth, height, width = (length // step for length, step in zip(size, stride, strict=True))
        x = self.project(embeddings.to(self.mix.weight.dtype))
        if x.shape[2:] != (height, width):
            x = F.interpolate(x, size=(height, width), mode="bilinear", align_corners=False)
        batch_size, _, count = weights.shape
        on_slices = x.new_zeros(batch_size * count, *x.shape[1:]).index_put((rows,), x)
        weights = weights.unflatten(1, (depth, -1)).mean(2).to(x.dtype)
        return self._mixed(on_slices.unflatten(0, (batch_size, count)), weights)

    def _mixed(self, on_slices: Tensor, weights: Tensor) -> Tensor:
        """[B, K, F, h, w] on the slices, whose `weights` in those of the volume are [B, d, K] → [B, F, d, h, w].

        It is `mix` of what is interpolated between the slices. Both are linear along them, and there are fewer slices
        than the volume has: each kernel position's products come first, and then their interpolation, shifted by it.
        """
        depth, kernel = weights.shape[1], self.mix.weight.flatten(2)
        padded = F.pad(weights, (0, 0, 1, 1))
        shifted = torch.cat([padded[:, at : at + depth] for at in range(kernel.shape[2])], 2)
        products = torch.einsum("gft,bkfhw->bgtkhw", kernel, on_slices)
        return (shifted[:, None] @ products.flatten(4).flatten(2, 3)).unflatten(3, on_slices.shape[3:])
