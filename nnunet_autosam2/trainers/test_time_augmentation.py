"""nnU-Net's test-time augmentation, in which SAM2 sees a sliding-window tile once and its mirror images never."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from torch import Tensor, nn

from nnunet_autosam2.architectures.masks import SAM2Output
from nnunet_autosam2.trainers.patching import predicting_autosam2_of, put_around

PREDICT_TILE = "_internal_maybe_mirror_and_predict"
MIRRORINGS = [axes for count in range(4) for axes in itertools.combinations((2, 3, 4), count)]
"""Axes of [B, C, D, H, W], and those of [B, C, H, W] among them, in the order in which nnU-Net mirrors a tile"""


class SAM2OncePerTile:
    """A network for the passes of one tile: what SAM2 makes of the first, mirrored, serves its mirror images.

    nnU-Net shows a tile to the network, and then each of its seven mirror images, in which the UNet sees nearly the
    same. SAM2 would cost as much as in eight tiles. Where it may cut its slices along several axes, the passes have
    them in turns, and SAM2 is run in the first pass of each.

    Args:
        shares: False: SAM2 is run in every pass.
    """

    def __init__(self, network: nn.Module, slice_axes: int = 1, shares: bool = True) -> None:
        self.network = network
        self.slice_axes = slice_axes
        self.shares = shares
        self.tile: Tensor | None = None
        self.passes = 0
        self.mirrored: tuple[int, ...] = ()
        self.known: dict[int, SAM2Output] = {}

    def __call__(self, volume: Tensor) -> Tensor:
        """[B, C, D, H, W], or [B, C, H, W] of a 2D network → logits."""
        mirrored = None if self.tile is None else mirrored_axes(volume, self.tile, self.mirrored)
        if mirrored is None:
            self.tile, self.passes, self.known, mirrored = volume, 0, {}, ()
        self.mirrored, axis = mirrored, self.passes % self.slice_axes
        self.passes += 1
        of_volume = tuple(each + 5 - volume.ndim for each in mirrored)
        if axis in self.known:
            return self.network(volume, sam2=self.known[axis].mirrored(of_volume))
        logits, sam2 = self.network(volume, return_sam2=True, slice_axis=axis)
        if self.shares:
            self.known[axis] = sam2.mirrored(of_volume)
        return logits


def mirrored_axes(volume: Tensor, other: Tensor, last: tuple[int, ...] = ()) -> tuple[int, ...] | None:
    """The axes D, H, W (2 to 4) along which `volume` is `other` mirrored; none of them if it is the same. Of slices,
    H and W (2 and 3).

    None if it is another volume. Each comparison reads both volumes and waits for a GPU: those that follow `last` in
    nnU-Net's order come first.
    """
    if volume.shape != other.shape or volume.device != other.device:
        return None
    following = MIRRORINGS.index(last) + 1
    candidates = MIRRORINGS[following:] + MIRRORINGS[:following]
    possible = (axes for axes in candidates if max(axes, default=0) < volume.ndim)
    return next((axes for axes in possible if torch.equal(volume, other.flip(axes))), None)


def install() -> None:
    """Makes every nnUNetPredictor predict the tiles of an AutoSAM2 network so; all else is predicted as before.

    nnU-Net has no place for it: what a tile begins and ends with is within its predictor.
    """
    slower = "predictions with mirroring ask SAM2 in every pass, and take longer"
    put_around(nnUNetPredictor, PREDICT_TILE, _with_sam2_once, slower)


def _with_sam2_once(predict_tile: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def predict(self: Any, tile: Tensor) -> Tensor:
        autosam2 = predicting_autosam2_of(self.network)
        if autosam2 is None:
            return predict_tile(self, tile)
        network, config = self.network, autosam2.config
        # Without the UNet's decoder all passes would be one.
        shares = config.enable_unet_decoder and not config.sam2_mirroring
        if not shares and config.slice_axes == 1:
            return predict_tile(self, tile)
        self.network = SAM2OncePerTile(network, config.slice_axes, shares)
        try:
            return predict_tile(self, tile)
        finally:
            self.network = network

    return predict
