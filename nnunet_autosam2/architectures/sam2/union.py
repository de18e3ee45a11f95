"""One mask of a region from those of its parts."""

import torch
from torch import Tensor

from nnunet_autosam2.architectures.masks import SliceMasks


def united(first: SliceMasks, further: SliceMasks, at_slice: Tensor, region: Tensor) -> SliceMasks:
    """`first` with the masks of further parts of its regions.

    A pixel or an object is there if it is in one of the masks. As these hardly overlap, the IoU of their union is the
    mean of theirs by area. SAM2's memory gets the token of the first.

    Args:
        first: of R regions on N slices.
        further: of M parts, [M, 1, ...].
        at_slice, region: [M], which slice and region they are of.
    """
    regions = first.object_score.shape[1]
    owner = at_slice * regions + region
    masks, further = (SliceMasks(*(values.flatten(0, 1) for values in each)) for each in (first, further))
    pixels = owner[:, None, None].expand_as(further.logits)
    logits = masks.logits.scatter_reduce(0, pixels, further.logits, "amax")
    object_score = masks.object_score.scatter_reduce(0, owner, further.object_score, "amax")

    area, of_further = (each.logits.detach().sigmoid().sum((1, 2)) for each in (masks, further))
    whole = area.index_add(0, owner, of_further).clamp(min=torch.finfo(area.dtype).tiny)
    change = of_further / whole[owner] * (further.predicted_iou - masks.predicted_iou[owner])
    predicted_iou = masks.predicted_iou.index_add(0, owner, change)
    united_values = (logits, predicted_iou, object_score, masks.token)
    return SliceMasks(*(values.unflatten(0, (-1, regions)) for values in united_values))
