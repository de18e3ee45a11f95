"""MRI modalities to the RGB image that SAM2 expects."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
NEARLY_ZERO = 1e-3
"""Resampling makes as much of the 0 outside of a brain"""


class MRIToRGB(nn.Module):
    """A fixed choice of three modalities plus a learned mixture of all of them, which starts at zero.

    A sigmoid brings intensities to 0 … 1 and clips outliers softly, in the same way for every patch of a case. It
    expects z-scores, nnU-Net's normalisation of MRI; others become like them by the middle and the width of their
    range: of values from 0 to 1, with the middle 0.5 and the width 1 / 6, 0 comes out as sigmoid(-3) = 0.05.

    Args:
        in_channels: modalities.
        rgb_channels: which of them are shown as red, green and blue.
        image_size: side length of the output in pixels.
        middles, widths: of the intensities of each channel, the width as a standard deviation; None: 0 and 1.
        black_background: 0 in all channels is no tissue, but what normalisation within the brain leaves outside of it,
            and would be a grey among those of the brain.
    """

    mean: Tensor
    std: Tensor
    middles: Tensor
    widths: Tensor

    def __init__(
        self,
        in_channels: int,
        rgb_channels: Sequence[int],
        image_size: int,
        middles: Sequence[float] | None = None,
        widths: Sequence[float] | None = None,
        black_background: bool = False,
    ) -> None:
        super().__init__()
        self.rgb_channels = list(rgb_channels)
        self.image_size = image_size
        self.residual = nn.Conv2d(in_channels, 3, kernel_size=1)
        for parameter in self.residual.parameters():
            nn.init.zeros_(parameter)
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(3, 1, 1), persistent=False)
        for name, values in (("middles", middles or [0.0] * in_channels), ("widths", widths or [1.0] * in_channels)):
            self.register_buffer(name, torch.tensor(values, dtype=torch.float32).view(-1, 1, 1), persistent=False)
        self.black_background = black_background

    def rgb(self, slices: Tensor) -> Tensor:
        """[N, C, H, W] → [N, 3, H, W], 0 to 1."""
        scores = (slices - self.middles) / self.widths
        rgb = torch.sigmoid(scores[:, self.rgb_channels] + self.residual(scores))
        if not self.black_background:
            return rgb
        return rgb.masked_fill((slices.abs() < NEARLY_ZERO).all(1, keepdim=True), 0)

    def forward(self, slices: Tensor) -> Tensor:
        """[N, C, H, W] → [N, 3, S, S], normalised as SAM2's own images are."""
        size = (self.image_size, self.image_size)
        image = F.interpolate(self.rgb(slices), size=size, mode="bilinear", align_corners=False, antialias=True)
        return (image - self.mean) / self.std


def choose_rgb_channels(channel_names: Sequence[str]) -> tuple[int, int, int]:
    """FLAIR, T1ce and T2 as red, green and blue where they are present; other channels fill the gaps in order."""
    names = [name.lower().replace("-", "").replace("_", "") for name in channel_names]
    wanted = (("flair", "t2f"), ("t1ce", "t1c", "t1gd"), ("t2", "t2w"))
    found = [next((i for i, name in enumerate(names) if name in aliases), None) for aliases in wanted]
    spare = [i for i in range(len(names)) if i not in found] or [i for i in found if i is not None]
    red, green, blue = (spare.pop(0) if i is None and len(spare) > 1 else spare[0] if i is None else i for i in found)
    return red, green, blue
