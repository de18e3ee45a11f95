"""Answers of SAM2: on slices, on the selected slices of a sample, on a volume; R regions (or foreground classes)."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class ImageEmbeddings(NamedTuple):
    """Embeddings of N slices, as images of S pixels."""

    image: Tensor
    """[N, 256, S / 16, S / 16], before any memory"""
    fine: Tensor
    """[N, 32, S / 4, S / 4]"""
    middle: Tensor
    """[N, 64, S / 8, S / 8]"""


class SliceEmbeddings(NamedTuple):
    """The image encoder's answer on the selected slices of a volume."""

    embeddings: ImageEmbeddings | None
    """Embeddings of the N slices that have been encoded, sample by sample; None where there are none"""
    slices: Tensor
    """[B, K], positions along the slice axis, ascending"""
    encoded: Tensor
    """[B, K], False where a prediction skipped the slice because the UNet sees nothing there"""
    depth: int
    """D"""

    def mirrored(self, axes: Sequence[int]) -> "SliceEmbeddings":
        """Those of the volume that is mirrored along `axes` of [B, C, D, H, W].

        SAM2 would see something else in mirrored slices; these are mirror images of what it has seen. The slices must
        not have been padded, as those of nnU-Net's tiles never are.
        """
        if self.embeddings is None:
            return self
        in_plane = tuple(axis - 1 for axis in axes if axis > 2)
        embeddings = ImageEmbeddings(*(each.flip(in_plane) for each in self.embeddings))
        if 2 not in axes:
            return self._replace(embeddings=embeddings)
        rows = torch.zeros_like(self.slices).masked_scatter(
            self.encoded, torch.arange(len(embeddings.image), device=self.slices.device)
        )
        encoded = self.encoded.flip(1)
        order = rows.flip(1)[encoded]
        embeddings = ImageEmbeddings(*(each[order] for each in embeddings))
        return SliceEmbeddings(embeddings, self.depth - 1 - self.slices.flip(1), encoded, self.depth)


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
    """[B, R, K, P, 2] prompts, (x, y) in pixels of the slice: two corners of the box, positives, negatives; then those
    of the region's next part"""
    labels: Tensor
    """[B, R, K, P], SAM's labels of the prompts, -1 for none"""
    slices: Tensor
    """[B, K], positions along the slice axis, ascending"""
    prompted: Tensor
    """[B, K], False where a prediction skipped SAM2 because the UNet sees nothing there"""


class VolumeMasks(NamedTuple):
    """SAM2's masks and their scores on every slice, or on the consecutive ones for which they matter."""

    logits: Tensor
    """[B, R, D, H, W]"""
    predicted_iou: Tensor
    """[B, R, D], 0 to 1"""
    presence: Tensor
    """[B, R, D], probability that the region is on the slice"""
    covered: Tensor
    """[B, D], False where the masks do not count: beyond the outermost selected slices, and beside skipped ones"""
    distance: Tensor
    """[B, D], slices to the nearest selected one"""
    slices: Tensor | None = None
    """[B, D], positions of these slices along the slice axis, ascending, where they are not all of them"""
    depth: int = 0
    """How many there are in all, where these are not all of them"""

    def cropped(self, size: Sequence[int]) -> "VolumeMasks":
        """The masks of the first `size` voxels along D, H, W."""
        predicted_iou, presence, covered, distance = (values[..., : size[0]] for values in self[1:5])
        return VolumeMasks(cropped(self.logits, size), predicted_iou, presence, covered, distance, *self[5:])

    def mirrored(self, axes: Sequence[int]) -> "VolumeMasks":
        """The masks of the volume that is mirrored along `axes` of [B, C, D, H, W]."""
        predicted_iou, presence, covered, distance = (values.flip(-1) if 2 in axes else values for values in self[1:5])
        slices = self.slices
        if slices is not None and 2 in axes:
            slices = self.depth - 1 - slices.flip(1)
        logits = self.logits.flip(tuple(axes))
        return VolumeMasks(logits, predicted_iou, presence, covered, distance, slices, self.depth)


class SAM2Output(NamedTuple):
    """Masks and embeddings of a volume, which serve its mirror images too."""

    masks: VolumeMasks | None
    """None where it makes none"""
    embeddings: SliceEmbeddings | None
    """None where they serve for nothing but the masks"""
    axis: int = 0
    """0, 1 or 2 of D, H, W, which is the first of these of the slices' volume, whose place D has taken"""

    def mirrored(self, axes: Sequence[int]) -> "SAM2Output":
        """That of the volume that is mirrored along `axes` of [B, C, D, H, W]."""
        own = tuple({2: 2 + self.axis, 2 + self.axis: 2}.get(axis, axis) for axis in axes)
        masks = None if self.masks is None else self.masks.mirrored(own)
        embeddings = None if self.embeddings is None else self.embeddings.mirrored(own)
        return SAM2Output(masks, embeddings, self.axis)


def cropped(volume: Tensor, size: Sequence[int]) -> Tensor:
    """[B, C, D, H, W] to the first `size` voxels along D, H, W; the same tensor where these are all."""
    return volume if volume.shape[2:] == tuple(size) else volume[..., : size[0], : size[1], : size[2]]


def on_slices(volume: Tensor, slices: Tensor | None) -> Tensor:
    """[B, C, D, H, W] at positions [B, L] along D → [B, C, L, H, W]; the same tensor for None."""
    if slices is None:
        return volume
    # Not take_along_dim, which computes an index for each voxel.
    return volume.gather(2, slices[:, None, :, None, None].expand(-1, volume.shape[1], -1, *volume.shape[3:]))
