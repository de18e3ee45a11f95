"""Blending the UNet's and SAM2's predictions, as probabilities, into logits again."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nnunet_autosam2.architectures.backbone import UNetOutput
from nnunet_autosam2.architectures.log_odds import one_versus_rest
from nnunet_autosam2.architectures.masks import VolumeMasks, cropped, on_slices
from nnunet_autosam2.architectures.seg_layers import HasSegLayers
from nnunet_autosam2.architectures.slice_axes import size_along, sliced_along
from nnunet_autosam2.config import AutoSAM2Config

CLOSEST_BLEND = 1e-3
"""A learned gate starts at least this far from 0 and 1, where its gradient would vanish."""
GATE_LR_MULTIPLIER = 40
"""A gate has to follow how good both networks are by now, with few numbers a class: these learn this much faster."""


class Reliability(NamedTuple):
    """How far SAM2 is to be trusted on each slice, each 0 to 1 and of a shape that broadcasts to [B, C, D]."""

    predicted_iou: Tensor
    object_probability: Tensor
    nearness: Tensor
    """1 on a slice that SAM2 has seen, 1 / (1 + distance) elsewhere"""

    @classmethod
    def of(cls, masks: VolumeMasks, region_based: bool) -> Reliability:
        """Each region's scores; a background gets the regions' mean."""
        predicted_iou, presence = masks.predicted_iou, masks.presence
        if not region_based:
            predicted_iou, presence = (
                torch.cat([score.mean(1, keepdim=True), score], dim=1) for score in (predicted_iou, presence)
            )
        return cls(predicted_iou, presence, 1 / (1 + masks.distance[:, None]))


def blend(unet: Tensor, sam2: Tensor, log_weight: Tensor, log_rest: Tensor, region_based: bool) -> Tensor:
    """Logits of w · p(unet) + (1 − w) · p(sam2), with p the sigmoid (regions) or the softmax over dim 1 (labels).

    Where the class weights of exclusive labels differ, the blended probabilities are normalised to sum 1.

    Args:
        unet, sam2: logits [B, C, D, H, W].
        log_weight, log_rest: log w and log(1 − w), of a shape that broadcasts to the logits.
    """
    if region_based:
        # The background's share has the logarithm less the logit: fewer passes over memory, which are what it costs.
        of_unet, of_sam2 = log_weight + F.logsigmoid(unet), log_rest + F.logsigmoid(sam2)
        return torch.logaddexp(of_unet, of_sam2) - torch.logaddexp(of_unet - unet, of_sam2 - sam2)
    return torch.logaddexp(log_weight + unet.log_softmax(1), log_rest + sam2.log_softmax(1))


class Fused(NamedTuple):
    """The output of a fusion, what UNet and SAM2 have said, and how much SAM2 counted.

    All of it is of the volume as `sliced_along` the slices' axis returns it.
    """

    logits: Tensor
    """[B, C, D, H, W]"""
    unet: Tensor
    """[B, C, D, H, W], the UNet's logits"""
    sam2: Tensor
    """[B, C, D, H, W], SAM2's logits where its masks reach, the UNet's elsewhere"""
    sam2_weight: Tensor
    """[B, C, D, H, W], of SAM2 in the fusion"""
    covered: Tensor
    """[B, 1, D, 1, 1], False where SAM2's masks do not reach and the weight is of no consequence"""
    slices: Tensor | None = None
    """[B, D], positions of these slices, where they are not all of them; elsewhere the output is the UNet's"""


class FusionInputs(NamedTuple):
    """All that a fusion goes by, in float32 but for the features."""

    unet: Tensor
    """[B, C, D, H, W], logits"""
    sam2: Tensor
    """[B, C, D, H, W], logits where SAM2's masks reach, the UNet's elsewhere"""
    reliability: Reliability
    blends: Sequence[float]
    """The UNet's weight in each of C classes, where a learned gate starts"""
    region_based: bool
    """Regions and a sigmoid, or exclusive labels and a softmax"""
    features: Tensor | None = None
    """[B, F, D, H, W] of the UNet, for a fusion that sees them"""


def with_background(regions: Tensor, region_based: bool) -> Tensor:
    """[B, R, ...] of the regions → [B, C, ...]: exclusive labels get a background of constant logit 0 in front."""
    return regions if region_based else F.pad(regions, (0, 0) * (regions.ndim - 2) + (1, 0))


def sam2_alone(unet: Tensor, masks: VolumeMasks, region_based: bool) -> Tensor:
    """SAM2's logits [B, C, D, H, W] in float32, and the UNet's where its masks do not reach."""
    sam2 = with_background(masks.logits.float(), region_based)
    return torch.where(masks.covered[:, None, :, None, None], sam2, unet.float())


def fuse(
    fusion: Fusion | None,
    unet: UNetOutput,
    masks: VolumeMasks,
    size: Sequence[int],
    config: AutoSAM2Config,
    axis: int = 0,
) -> tuple[Tensor, Fused | None]:
    """Logits [B, C, D, H, W] of UNet and SAM2, and how they were weighed; SAM2's alone without the UNet's decoder.

    Args:
        masks: of the volume as `sliced_along` the axis returns it.
        size: of the volume without its padding.
    """
    unet = unet.sliced_along(axis)
    whole, features = cropped(unet.logits[0], size_along(size, axis)), unet.finest_features
    logits = on_slices(whole, masks.slices)
    if config.enable_unet_decoder:
        assert fusion is not None
        features = None if features is None else on_slices(cropped(features, whole.shape[2:]), masks.slices)
        fused = fusion(logits, masks, config.blends(logits.shape[1]), config.region_based, features)
        logits = fused.logits
    else:
        fused, logits = None, sam2_alone(logits, masks, config.region_based)
    if masks.slices is not None:
        logits = whole.to(logits.dtype).scatter(2, masks.slices[:, None, :, None, None].expand_as(logits), logits)
    return sliced_along(logits, axis), fused


class Fusion(nn.Module):
    """A weighted mean of the UNet's and SAM2's probabilities; the UNet alone where SAM2's masks do not reach."""

    deep_supervision = False
    """True: the loss sees every output, and a learned gate has its own term there. False: the logits teach it."""

    sees_features = False
    """True: it needs the finest features of the UNet's decoder."""

    def forward(
        self,
        unet: Tensor,
        masks: VolumeMasks,
        blends: Sequence[float],
        region_based: bool,
        features: Tensor | None = None,
    ) -> Fused:
        """The UNet's logits [B, C, D, H, W] and SAM2's masks, fused; the other arguments as of FusionInputs."""
        with torch.autocast(unet.device.type, enabled=False):
            unet, sam2 = unet.float(), sam2_alone(unet, masks, region_based)
            reliability = Reliability.of(masks, region_based)
            logits, sam2_weight = self.weigh(FusionInputs(unet, sam2, reliability, blends, region_based, features))
            covered = masks.covered[:, None, :, None, None]
            return Fused(torch.where(covered, logits, unet), unet, sam2, sam2_weight, covered, masks.slices)

    def weigh(self, inputs: FusionInputs) -> tuple[Tensor, Tensor]:
        """Logits [B, C, D, H, W] of both, and SAM2's weight in them, of the same shape."""
        raise NotImplementedError


class FixedFusion(Fusion):
    """One weight a class, as in the original AutoSAM2."""

    def weigh(self, inputs: FusionInputs) -> tuple[Tensor, Tensor]:
        unet, sam2, _, blends, region_based, _ = inputs
        weight = _per_class(unet, blends)
        return blend(unet, sam2, weight.log(), (1 - weight).log(), region_based), (1 - weight).expand_as(unet)


class GatedFusion(HasSegLayers, Fusion):
    """A weight for each class and voxel, learned from what both networks say and how reliable SAM2 is there.

    The gate is linear in its inputs and starts with zero weights: it starts at the blends exactly, and every one of
    its weights learns from the first step on. Under deep supervision it learns from `sam2_weight` alone, by the
    loss's `gate_loss`; otherwise from the fused logits, which are then all that a loss gets to see.

    Args:
        num_classes: C.
        closed: start with the UNet's logits exactly, whatever the blends are. What the gate would change is scaled by
            one number a class that starts at 0 (as Bachlechner et al. 2020, ReZero, start their residuals) and stays
            within 0 and 1: what the gate makes of SAM2 can be left out, but not be subtracted.
    """

    def __init__(self, num_classes: int, closed: bool = False, **of_the_labels: Tensor) -> None:
        super().__init__(
            opinion_weight=torch.zeros(4, num_classes),
            reliability_weight=torch.zeros(len(Reliability._fields), num_classes),
            bias=torch.zeros(num_classes),
            vetoed=torch.zeros(num_classes, dtype=torch.bool),
            **({"opening": torch.zeros(num_classes)} if closed else {}),
            **of_the_labels,
        )
        self.closed = closed

    def weigh(self, inputs: FusionInputs) -> tuple[Tensor, Tensor]:
        unet, sam2, region_based, gate = inputs.unet, inputs.sam2, inputs.region_based, self.gate(inputs)
        weight, used = torch.sigmoid(-gate), gate.detach() if self.deep_supervision else gate
        log_weight = F.logsigmoid(used)
        logits = blend(unet, sam2, log_weight, log_weight - used, region_based)
        if self.closed:
            opening = self._open()
            change = logits - (unet if region_based else unet.log_softmax(1))
            logits = torch.addcmul(unet, opening.detach() if self.deep_supervision else opening, change)
            weight = opening * weight
        # A blend with weight 1 is the UNet but for rounding, and but for a constant that no softmax sees.
        vetoed = self.vetoed.view(1, -1, 1, 1, 1)
        return torch.where(vetoed if region_based else vetoed.all(), unet, logits), weight

    def veto(self, classes: Sequence[bool]) -> None:
        """Closes the gate for some of the C classes, whatever it has learned, and lets it decide on the others.

        What regions are concerned, or all exclusive labels, have exactly the UNet's logits then. Some labels of several
        have the UNet's probabilities, and go on competing with the others.
        """
        self.vetoed.copy_(torch.tensor(classes))

    def _open(self) -> Tensor:
        return _Bounded.apply(GATE_LR_MULTIPLIER * self.opening.view(1, -1, 1, 1, 1))

    def gate(self, inputs: FusionInputs) -> Tensor:
        """Logit of the UNet's weight, [B, C, D, H, W], infinite where it is vetoed."""
        unet, sam2, reliability, blends, region_based, features = inputs
        start = _per_class(unet, blends).clamp(CLOSEST_BLEND, 1 - CLOSEST_BLEND).logit()
        start = start.masked_fill(self.vetoed.view(1, -1, 1, 1, 1), math.inf)
        u, m = (x.detach() if region_based else one_versus_rest(x.detach()) for x in (unet, sam2))
        opinions = (_opinion(u), _opinion(m), _certainty(u), _certainty(m))
        return start + self.learned(opinions, Reliability(*(score.detach() for score in reliability)), features)

    def learned(self, opinions: Sequence[Tensor], reliability: Reliability, features: Tensor | None) -> Tensor:
        """Addition to the logit [B, C, D, H, W] that it starts from.

        Args:
            opinions: opinion of UNet and of SAM2, certainty of UNet and of SAM2, each [B, C, D, H, W], at most 1.
        """
        learned, *weights = (
            GATE_LR_MULTIPLIER * each.view(1, -1, 1, 1, 1)
            for each in (self.bias, *self.reliability_weight, *self.opinion_weight)
        )
        scores = (score[..., None, None] for score in reliability)
        for weight, seen in zip(weights, (*scores, *opinions), strict=True):
            learned = torch.addcmul(learned, weight, seen)
        return learned


class _Bounded(torch.autograd.Function):
    """Clamp to 0 and 1. At the bounds and beyond, only a gradient that leads further out is lost."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.clamp(0, 1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        outward = ((x <= 0) & (gradient > 0)) | ((x >= 1) & (gradient < 0))
        return gradient.masked_fill(outward, 0)


def _per_class(logits: Tensor, blends: Sequence[float]) -> Tensor:
    return logits.new_tensor(blends).view(1, -1, 1, 1, 1)


def _opinion(logits: Tensor) -> Tensor:
    """-1 to 1, for the class or against it."""
    return torch.tanh(logits / 4)


def _certainty(logits: Tensor) -> Tensor:
    """1 at certainty, 0 at even odds."""
    return torch.tanh(logits / math.log(9)).abs()
