"""Outputs of the network for the loss while it trains, and for looking inside."""

from typing import Any, NamedTuple

from torch import Tensor

from nnunet_autosam2.architectures.fusion import Fused
from nnunet_autosam2.architectures.masks import SampleMasks


class AutoSAM2Output(NamedTuple):
    """Training output. First comes what a prediction would return, as nnU-Net expects of deep supervision."""

    logits: Tensor
    """[B, C, D, H, W], fused. The same tensor as `unet[0]` where SAM2 does not take part. Without D of a 2D network"""
    unet: tuple[Tensor, ...]
    """The UNet's own logits, full resolution first, then the deep-supervision heads from fine to coarse"""
    sam2: SampleMasks | None = None
    """SAM2's own masks; None where SAM2 does not take part"""
    fused: Fused | None = None
    """Each half's logits and how they were weighed; None where one half is missing"""
    slice_axis: int = 0
    """0, 1 or 2 of D, H, W, along which the slices of `sam2` were cut"""


def without_depth(output: Any) -> Any:
    """Makes logits [B, C, H, W] of those in the output for volumes of one slice."""
    if isinstance(output, AutoSAM2Output):
        return output._replace(logits=output.logits[:, :, 0])
    return output[:, :, 0] if isinstance(output, Tensor) else (output[0][:, :, 0], output[1])
