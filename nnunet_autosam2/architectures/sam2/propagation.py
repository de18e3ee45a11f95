"""Masks of the slices between the selected ones: the volume as a video, tracked with SAM2's memory."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from nnunet_autosam2.architectures.masks import ImageEmbeddings, SliceMasks, VolumeMasks
from nnunet_autosam2.architectures.reconstruction import SlicePositions
from nnunet_autosam2.architectures.sam2.branch import SAM2Branch
from nnunet_autosam2.architectures.sam2.model import Memory


@torch.no_grad()
def propagate(
    branch: SAM2Branch,
    volume: Tensor,
    features: Tensor,
    prompted: Tensor,
    masks: SliceMasks,
    embeddings: ImageEmbeddings,
    positions: SlicePositions,
    interpolated: VolumeMasks,
) -> VolumeMasks:
    """`interpolated` with what tracking gives in the place of what lies between the selected slices.

    It goes from the selected slices outwards, through all slices of the same distance at once. A slice is recalled
    from the selected slices on either side of it and from those between it and the nearer one.

    Args:
        volume: [B, C, D, H, W].
        features: [B, F, D, H / 4, W / 4] of the UNet.
        prompted: [B, D], the N slices that `masks` and `embeddings` are of.
    """
    tracked = positions.covered & (positions.distance > 0)
    if not tracked.any():
        return interpolated
    ends = _marked(positions.nearest, tracked) | _marked(positions.opposite, tracked)
    embeddings, masks = _on_all_slices(embeddings, prompted), _on_all_slices(masks, prompted)
    _store(embeddings, tracked, branch.encode(volume.transpose(1, 2)[tracked]))

    memories = _on_all_slices(branch.remember(_taken(embeddings, ends), _taken(masks, ends)), ends)
    for distance in range(1, int(positions.distance[tracked].amax()) + 1):
        now = tracked & (positions.distance == distance)
        sample, position = now.nonzero(as_tuple=True)
        start, end = positions.nearest[now], positions.opposite[now]
        path = [start + step * (position - start).sign() for step in range(1, distance)]
        known = Memory(*(values[sample[:, None], torch.stack([start, end, *path], dim=1)] for values in memories))
        seen = _taken(embeddings, now)
        recalled = branch.recall(seen, branch.bridge(features.transpose(1, 2)[now]), known, volume.shape[2])
        _store(masks, now, recalled)
        _store(memories, now, branch.remember(seen, recalled))

    logits, predicted_iou, presence = (values.transpose(1, 2).clone() for values in interpolated[:3])
    recalled = _taken(masks, tracked)
    logits[tracked] = F.interpolate(recalled.logits, volume.shape[3:], mode="bilinear", align_corners=False)
    predicted_iou[tracked] = recalled.predicted_iou
    presence[tracked] = recalled.object_score.sigmoid()
    return interpolated._replace(
        logits=logits.transpose(1, 2), predicted_iou=predicted_iou.transpose(1, 2), presence=presence.transpose(1, 2)
    )


def _marked(positions: Tensor, where: Tensor) -> Tensor:
    """[B, D] positions → [B, D] booleans, True at those that are named `where`."""
    sample, _ = where.nonzero(as_tuple=True)
    marked = torch.zeros_like(where)
    marked[sample, positions[where]] = True
    return marked


def _on_all_slices(values: Any, where: Tensor) -> Any:
    """NamedTuple of [n, ...] → the same of [B, D, ...], 0 elsewhere."""
    everywhere = type(values)(*(value.new_zeros(*where.shape, *value.shape[1:]) for value in values))
    _store(everywhere, where, values)
    return everywhere


def _store(everywhere: Any, where: Tensor, values: Any) -> None:
    for target, value in zip(everywhere, values, strict=True):
        target[where] = value


def _taken(everywhere: Any, where: Tensor) -> Any:
    return type(everywhere)(*(value[where] for value in everywhere))
