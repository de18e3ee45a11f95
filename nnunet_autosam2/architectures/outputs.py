"""What the network hands to the loss while it trains, and to whoever wants to look inside."""

from typing import NamedTuple

from torch import Tensor


class SliceMasks(NamedTuple):
    """SAM2's answer on N slices and R regions."""

    logits: Tensor
    """[N, R, H, W]"""
    predicted_iou: Tensor
    """[N, R]"""
    object_score: Tensor
    """[N, R]"""
    points: Tensor
    """[N, R, P, 2]"""
    labels: Tensor
    """[N, R, P]"""

    def replaced(self, asked: Tensor, answers: "SliceMasks") -> "SliceMasks":
        """These masks with those of the slices `asked` [N] replaced by `answers`, in order."""
        return SliceMasks(*(own.index_put((asked,), new) for own, new in zip(self, answers, strict=True)))


class SAM2Masks(NamedTuple):
    """SAM2's own answer on the K slices that were selected; R regions (or foreground classes).

    `logits` has the channels of the network's output: R of them for regions; for exclusive labels R + 1, where
    channel 0 is a background of constant logit 0, so that a softmax turns the masks into class probabilities.
    """

    logits: Tensor
    """[B, C, K, H, W], at the resolution of the input"""
    predicted_iou: Tensor
    """[B, R, K], SAM2's own estimate, 0 to 1"""
    object_score: Tensor
    """[B, R, K], logit of "the region is on this slice" """
    slices: Tensor
    """[B, K] positions along the slice axis, ascending"""
    prompted: Tensor
    """[B, K], False where a prediction skipped SAM2 because the UNet sees nothing there"""
    points: Tensor
    """[B, R, K, P, 2] prompts, (x, y) in pixels of the slice: two corners of the box, positives, negatives"""
    labels: Tensor
    """[B, R, K, P], SAM's labels of the prompts, -1 for none"""


class Shares(NamedTuple):
    """Who says what in the fused output."""

    sam2: Tensor
    """[B, C, D, H, W], SAM2's logits where its masks reach, the UNet's elsewhere"""
    sam2_weight: Tensor
    """[B, C, D, H, W], of SAM2 in the fusion"""
    covered: Tensor
    """[B, 1, D, 1, 1], False where SAM2's masks do not reach and the weight is of no consequence"""


class AutoSAM2Output(NamedTuple):
    """Training output. First comes what a prediction would return, as nnU-Net expects of deep supervision."""

    logits: Tensor
    """[B, C, D, H, W], fused. The same tensor as `unet[0]` where SAM2 does not take part."""
    unet: tuple[Tensor, ...]
    """The UNet's own logits, full resolution first, then the deep-supervision heads from fine to coarse"""
    sam2: SAM2Masks | None
    """None where SAM2 does not take part"""
    shares: Shares | None = None
    """None where one half is missing"""
