"""SAM2's masks: of slices, of the selected slices of a sample, and of a volume; R regions (or foreground classes)."""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor


class SliceMasks(NamedTuple):
    """The mask decoder's answer on N slices."""

    logits: Tensor
    """[N, R, S / 4, S / 4], for images of S pixels"""
    predicted_iou: Tensor
    """[N, R], SAM2's own estimate, 0 to 1"""
    object_score: Tensor
    """[N, R], logit of "the region is on this slice" """
    token: Tensor
    """[N, R, 256], of the mask, for SAM2's memory"""


class SampleMasks(NamedTuple):
    """SAM2's answer on the K slices that were selected in each sample; the UNet's where SAM2 was not prompted."""

    logits: Tensor
    """[B, R, K, H, W]"""
    predicted_iou: Tensor
    """[B, R, K], 0 to 1"""
    object_score: Tensor
    """[B, R, K], logit"""
    points: Tensor
    """[B, R, K, P, 2] prompts, (x, y) in pixels of the slice: two corners of the box, positives, negatives"""
    labels: Tensor
    """[B, R, K, P], SAM's labels of the prompts, -1 for none"""
    slices: Tensor
    """[B, K], positions along the slice axis, ascending"""
    prompted: Tensor
    """[B, K], False where a prediction skipped SAM2 because the UNet sees nothing there"""


class VolumeMasks(NamedTuple):
    """SAM2's masks and their scores on every slice."""

    logits: Tensor
    """[B, R, D, H, W]"""
    predicted_iou: Tensor
    """[B, R, D], 0 to 1"""
    presence: Tensor
    """[B, R, D], probability that the region is on the slice"""
    covered: Tensor
    """[B, D], False where the masks do not count: beyond the outermost selected slices, and between skipped ones"""
    distance: Tensor
    """[B, D], slices to the nearest selected one"""

    def cropped(self, size: Sequence[int]) -> "VolumeMasks":
        """The masks of the first `size` voxels along D, H, W."""
        scores = (values[..., : size[0]] for values in self[1:])
        return VolumeMasks(cropped(self.logits, size), *scores)

    def mirrored(self, axes: Sequence[int]) -> "VolumeMasks":
        """The masks of the volume that is mirrored along `axes` of [B, C, D, H, W]."""
        scores = (values.flip(-1) if 2 in axes else values for values in self[1:])
        return VolumeMasks(self.logits.flip(tuple(axes)), *scores)


def cropped(volume: Tensor, size: Sequence[int]) -> Tensor:
    """[B, C, D, H, W] to the first `size` voxels along D, H, W; the same tensor where these are all."""
    return volume if volume.shape[2:] == tuple(size) else volume[..., : size[0], : size[1], : size[2]]
