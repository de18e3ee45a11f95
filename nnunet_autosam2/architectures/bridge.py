"""The bridge from the UNet's features to SAM2's dense prompt."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nnunet_autosam2.architectures.seg_layers import HasSegLayers

EMBEDDING_CHANNELS = 256
INITIAL_SCALE = 0.1
"""Small, so that SAM2 starts close to what it was pretrained to do; not zero, so that the gradient passes."""


class ChannelAttention(nn.Module):
    """Weights features by how they matter: CBAM's channel half (Woo et al., ECCV 2018, section 3.1)."""

    def __init__(self, channels: int, reduction: int = 4) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Conv2d(channels, channels // reduction, 1),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels // reduction, channels, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.mlp(x.mean((2, 3), keepdim=True)) + self.mlp(x.amax((2, 3), keepdim=True)))


class SpatialAttention(nn.Module):
    """Weights pixels by how they matter: CBAM's spatial half (Woo et al., ECCV 2018, section 3.2)."""

    def __init__(self, kernel_size: int = 7) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 1, kernel_size, padding=kernel_size // 2)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.conv(torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], dim=1)))


class Bridge(HasSegLayers):
    """Attention, two convolutions with GroupNorm and a residual: the dense prompt, as AutoSAM learns it.

    Through this path the mask decoder's gradient trains the UNet (Shaharabany et al., AutoSAM, 2023). A learned
    embedding tells the decoder which region is asked for, which points and box alone may not where one region
    almost fills another; it starts at zero.
    """

    def __init__(self, in_channels: int, num_regions: int, embedding_size: int) -> None:
        super().__init__(region_embedding=torch.zeros(num_regions, EMBEDDING_CHANNELS))
        self.embedding_size = embedding_size
        self.attention = nn.Sequential(ChannelAttention(in_channels), SpatialAttention())
        self.convolutions = nn.Sequential(
            nn.Conv2d(in_channels, EMBEDDING_CHANNELS // 2, 3, padding=1, bias=False),
            nn.GroupNorm(16, EMBEDDING_CHANNELS // 2),
            nn.ReLU(inplace=True),
            nn.Conv2d(EMBEDDING_CHANNELS // 2, EMBEDDING_CHANNELS, 3, padding=1, bias=False),
            nn.GroupNorm(16, EMBEDDING_CHANNELS),
        )
        self.residual = nn.Conv2d(in_channels, EMBEDDING_CHANNELS, 1)
        self.scale = nn.Parameter(torch.tensor(INITIAL_SCALE))

    def forward(self, features: Tensor, regions: Tensor | None = None) -> Tensor:
        """[N, F, H / 4, W / 4] → [N, R, 256, E, E], to be added to SAM2's own dense prompt.

        Args:
            regions: [N, M], those that are asked for on each slice, in the place of all R.
        """
        x = self.attention(features)
        x = self.scale * (self.convolutions(x) + self.residual(x))
        size = (self.embedding_size, self.embedding_size)
        x = F.interpolate(x, size=size, mode="bilinear", align_corners=False)
        embedding = self.region_embedding if regions is None else self.region_embedding[regions]
        return x[:, None] + embedding[..., None, None]
