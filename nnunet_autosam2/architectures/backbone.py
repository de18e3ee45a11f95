"""The common part of the two UNets: an encoder, and a decoder in two halves between which SAM2 may be asked."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from torch import Tensor, nn
from torch.nn import functional as F

from nnunet_autosam2.architectures.slice_axes import sliced_along
from nnunet_autosam2.errors import ConfigurationError

MIDDLE_STRIDE = 4
"""In-plane stride of the decoder features that prompt SAM2"""

Size3d = tuple[int, int, int]


class CoarseHalf(NamedTuple):
    """A UNet down to its bottleneck and up again to the middle level."""

    skips: list[Tensor]
    """Features of the encoder, finest first"""
    features: dict[int, Tensor]
    """Features of the decoder, from the coarsest level to the middle one, by its number"""


class UNetOutput(NamedTuple):
    logits: tuple[Tensor, ...]
    """[B, C, D, H, W], then one entry a deep-supervision head, from fine to coarse"""
    middle_features: Tensor
    """[B, F, D / sd, H / 4, W / 4], with sd the stride along the slices"""
    finest_features: Tensor | None = None
    """[B, F', D, H, W] of the decoder; None where nobody asks for them"""

    def detach(self) -> UNetOutput:
        """The same, for whoever must not train the UNet."""
        return self._map(Tensor.detach)

    def sliced_along(self, axis: int) -> UNetOutput:
        """The same of the volume as the function of this name returns it."""
        return self._map(lambda volume: sliced_along(volume, axis))

    def _map(self, change: Callable[[Tensor], Tensor]) -> UNetOutput:
        finest = None if self.finest_features is None else change(self.finest_features)
        return UNetOutput(tuple(map(change, self.logits)), change(self.middle_features), finest)


class Backbone(nn.Module):
    """A UNet whose levels count from 0, the finest. The middle one feeds SAM2.

    A subclass has an encoder and the parts of a decoder, and says what they do.
    """

    total_stride: Size3d
    """Every input size has to be a multiple of it"""
    strides: list[Size3d]
    """Strides of the outputs, finest first"""
    middle: int
    full_resolution: bool
    """False: built without the decoder's fine half"""
    deep_supervision = True
    gives_finest_features = False
    """They take memory until all that is made of the output is done"""

    @property
    def middle_channels(self) -> int:
        return self.decoder_channels(self.middle)

    def forward(self, volume: Tensor, full_resolution: bool = True) -> UNetOutput:
        """[B, C, D, H, W] → logits at the input's size and the features that prompt SAM2."""
        half = self.coarse_half(volume)
        if full_resolution:
            return self.fine_half(half)
        return UNetOutput((resize(self.coarse_logits(half), volume.shape[2:]),), half.features[self.middle])

    def padded(self, volume: Tensor, allowed: bool = True) -> Tensor:
        """[B, C, D, H, W] with the background's 0 at the far ends, to a size that the strides divide.

        Raises:
            ConfigurationError: there is something to be padded, and it is not allowed.
        """
        missing = [-size % stride for size, stride in zip(volume.shape[2:], self.total_stride, strict=True)]
        if not any(missing):
            return volume
        if not allowed:
            raise ConfigurationError(
                f"A training patch of {tuple(volume.shape[2:])} voxels is not divisible by the UNet's strides "
                f"{self.total_stride}. Choose another patch size."
            )
        return F.pad(volume, [pad for size in reversed(missing) for pad in (0, size)])

    def coarse_half(self, volume: Tensor) -> CoarseHalf:
        """[B, C, D, H, W] → all that `fine_half` needs."""
        skips = self.encode(volume)
        x = skips[-1]
        features = {}
        for level in reversed(range(self.middle, len(skips) - 1)):
            x = features[level] = self.decode(level, x, skips[level])
        return CoarseHalf(skips, features)

    def coarse_logits(self, half: CoarseHalf) -> Tensor:
        """[B, C', ...] of the middle level."""
        return self.head(self.middle)(half.features[self.middle])

    def fine_half(self, half: CoarseHalf, residuals: Mapping[int, Tensor] | None = None) -> UNetOutput:
        """
        Args:
            residuals: added to the decoder's features, by level, from the middle one on.
        """
        residuals = residuals or {}
        x = middle = _added(half.features[self.middle], residuals.get(self.middle))
        coarse, logits = {**half.features, self.middle: middle}, {}
        heads = range(len(self.strides) if self.deep_supervision else 1)
        for level in reversed(range(len(self.strides))):
            if level < self.middle:
                x = _added(self.decode(level, x, half.skips[level]), residuals.get(level))
            else:
                x = coarse[level]
            # Right behind its features: in the backward pass the head's gradient would wait for all finer levels.
            if level in heads:
                logits[level] = self.head(level)(x)
        return UNetOutput(tuple(logits[level] for level in heads), middle, x if self.gives_finest_features else None)

    def parts(self) -> list[nn.Module]:
        """The encoder and the stages of the decoder."""
        raise NotImplementedError

    def encode(self, volume: Tensor) -> list[Tensor]:
        """The features of every level, finest first."""
        raise NotImplementedError

    def decode(self, level: int, x: Tensor, skip: Tensor) -> Tensor:
        """Features of a level of the decoder, from those of the level below, and from the encoder's."""
        raise NotImplementedError

    def head(self, level: int) -> Callable[[Tensor], Tensor]:
        """Makes logits of the decoder's features."""
        raise NotImplementedError

    def decoder_channels(self, level: int) -> int:
        """Number of the decoder's features."""
        raise NotImplementedError


def _added(x: Tensor, residual: Tensor | None) -> Tensor:
    return x if residual is None else x + residual.to(x.dtype)


def resize(x: Tensor, size: Sequence[int]) -> Tensor:
    """Trilinear."""
    return F.interpolate(x, size=tuple(size), mode="trilinear", align_corners=False)


def level_strides(strides: Sequence[Sequence[int]]) -> list[Size3d]:
    """Strides from level to level → of each level against the input; those of a 2D network have 1 along D."""
    return [(1, int(h), int(w)) if not d else (int(d[0]), int(h), int(w)) for *d, h, w in np.cumprod(strides, axis=0)]


def middle_level(levels: Sequence[Size3d]) -> int:
    """The first level with the in-plane stride of the middle features, else the coarsest one of the decoder."""
    for level, stride in enumerate(levels[:-1]):
        if max(stride[1:]) >= MIDDLE_STRIDE:
            return level
    return len(levels) - 2
