"""Weighted BCE + soft Dice, and its sum over all that the network puts out while it trains."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from nnunetv2.utilities.ddp_allgather import AllGatherGrad
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from nnunet_autosam2.architectures.fusion import Fused, with_background
from nnunet_autosam2.architectures.log_odds import decisions, probabilities
from nnunet_autosam2.architectures.masks import SampleMasks, on_slices
from nnunet_autosam2.architectures.outputs import AutoSAM2Output
from nnunet_autosam2.architectures.slice_axes import sliced_along
from nnunet_autosam2.config import AutoSAM2Config
from nnunet_autosam2.errors import ConfigurationError

if TYPE_CHECKING:
    from nnunetv2.utilities.label_handling.label_handling import LabelManager

    from nnunet_autosam2.architectures.autosam2 import AutoSAM2

DICE_SMOOTHING = 1e-5  # nnU-Net's
VALUES_AT_ONCE = 2**24
"""Logits that the loss is computed of at once: a batch of BraTS is fewer"""
IOU_WEIGHT = OBJECT_WEIGHT = 1 / 20  # Ravi et al. 2024, SAM 2, appendix: focal, Dice, IoU, object as 20:1:1:1


class WeightedBCEDiceLoss(nn.Module):
    """Weighted BCE minus weighted soft Dice (so that -dice_weight is perfect), on nnU-Net's targets.

    Regions: sigmoid; target `[B, C, ...]` multi-hot and, with an ignore label, one more channel that marks
    what to ignore. Exclusive labels: softmax; target `[B, 1, ...]`, BCE of each class's probability, Dice
    without the background. Ignored voxels count nowhere; the loss is 0 where nothing else is left.

    Args:
        num_channels: C, of the logits.
        region_based: regions and a sigmoid, or exclusive labels and a softmax.
        ignore_label: None where the data set has none. Regions only tell None from anything else.
        class_weights: one a channel, None: equal. Only their ratios matter.
        batch_dice: Dice of the whole batch (over all processes with `ddp`), or the mean over its samples.

    Raises:
        ConfigurationError: when the number of class weights is not `num_channels`.
    """

    class_weights: Tensor

    def __init__(
        self,
        num_channels: int,
        *,
        region_based: bool,
        ignore_label: int | None = None,
        bce_weight: float = 0.3,
        dice_weight: float = 0.7,
        class_weights: Sequence[float] | None = None,
        batch_dice: bool = False,
        ddp: bool = False,
    ) -> None:
        super().__init__()
        if class_weights is not None and len(class_weights) != num_channels:
            kind = "one a region" if region_based else "one a class, background first"
            raise ConfigurationError(
                f"class_weights has {len(class_weights)} numbers; this data set needs {num_channels}, {kind}."
            )
        self.region_based = region_based
        self.ignore_label = ignore_label
        self.bce_weight = bce_weight
        self.dice_weight = dice_weight
        self.batch_dice = batch_dice
        self.ddp = ddp
        self.register_buffer("class_weights", torch.tensor(class_weights or [1.0] * num_channels, dtype=torch.float32))

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Logits `[B, C, ...]` of any precision; computed in float32, under autocast too."""
        if logits.ndim != 5:
            logits, target = (each.flatten(2)[:, :, None, None] for each in (logits, target))
        return self.of_sums(self.sums(logits, target))

    def sums(self, logits: Tensor, target: Tensor) -> Tensor:
        """[5, B, C, D] of logits [B, C, D, H, W]: of the cross entropy, intersection, prediction, truth and what counts
        of each slice, in float32.

        More than fit at once go through it part by part, which the backward pass computes again.
        """
        parts = 1 if torch.compiler.is_compiling() else math.ceil(logits.numel() / VALUES_AT_ONCE)
        if parts <= 1:
            return self._sums(logits, target)
        keeps_none = torch.is_grad_enabled() and logits.requires_grad
        sums = partial(checkpoint, self._sums, use_reentrant=False) if keeps_none else self._sums
        split = (each.tensor_split(min(parts, logits.shape[2]), dim=2) for each in (logits, target))
        return torch.cat([sums(*part) for part in zip(*split, strict=True)], dim=3)

    def _sums(self, logits: Tensor, target: Tensor) -> Tensor:
        truth, counted = self.encode(target)
        if self.region_based:
            logits = logits.float()
            cross_entropy = F.binary_cross_entropy_with_logits(logits, truth, reduction="none")
            probability = logits.sigmoid()
        else:
            probability, log_p, log_rest = probabilities(logits.float())
            cross_entropy = -torch.where(truth > 0, log_p, log_rest)
        if self.ignore_label is not None:
            truth, probability, cross_entropy = (each * counted for each in (truth, probability, cross_entropy))
        every = (cross_entropy, probability * truth, probability, truth, counted.expand_as(truth))
        return torch.stack([each.sum((3, 4)) for each in every])

    def of_sums(self, sums: Tensor) -> Tensor:
        """The loss of what has these `sums`.

        BCE is the mean over counted voxels and over channels by their weights; Dice that over samples that have counted
        voxels, and over channels by their weights.
        """
        sums, weights = sums.sum(3), self.class_weights.to(sums.device)
        cross_entropy, _, _, _, counted = sums
        bce = weighted_mean(cross_entropy / counted.clamp_min(1), weights * counted)
        first_channel = 0 if self.region_based else 1
        sums, weights = sums[1:, :, first_channel:], weights[first_channel:]
        if self.batch_dice:
            sums = sums.sum(1, keepdim=True)
            if self.ddp:
                sums = AllGatherGrad.apply(sums).sum(0)
        intersection, predicted, true, counted = sums
        dice = (2 * intersection + DICE_SMOOTHING) / (predicted + true + DICE_SMOOTHING)
        return self.bce_weight * bce - self.dice_weight * weighted_mean(dice, weights * (counted > 0))

    def encode(self, target: Tensor) -> tuple[Tensor, Tensor]:
        """nnU-Net's target → truth `[B, C, ...]`, 0 or 1, and what counts of it, `[B, 1, ...]`, 0 or 1."""
        num_channels = len(self.class_weights)
        if self.ignore_label is None:
            counted = torch.ones_like(target[:, :1], dtype=torch.float32)
        elif self.region_based:
            counted = 1 - target[:, num_channels:].float()
        else:
            counted = (target != self.ignore_label).float()

        if self.region_based:
            return target[:, :num_channels].float(), counted
        truth = torch.zeros(len(target), num_channels, *target.shape[2:], device=target.device)
        return truth.scatter_(1, (target * counted).long(), 1), counted


class AutoSAM2Loss(nn.Module):
    """Loss of the fused output, of the UNet's outputs, of SAM2's masks on the slices that it has seen, and of the gate.

    Without SAM2 the UNet's outputs are all there is, and their sum alone is the loss.

    Args:
        gated: the fusion has a gate, which learns from nothing but its own term.
        unet_trains: False with a frozen backbone without SAM2's features, whose outputs have no loss.
        joint: the UNet learns from the fused output too.
        sample_weight: of this process's samples. Distributed data parallel takes the mean over processes, in which a
            sample would count the more the fewer its process has: see `sample_weight_of`.
    """

    def __init__(
        self,
        segmentation: WeightedBCEDiceLoss,
        unet_loss_weight: float = 1.0,
        sam2_loss_weight: float = 1.0,
        gated: bool = True,
        sample_weight: float = 1.0,
        unet_trains: bool = True,
        joint: bool = True,
    ) -> None:
        super().__init__()
        self.unet_trains = unet_trains
        self.joint = joint
        self.segmentation = segmentation
        self.sample_weight = sample_weight
        self.unet_loss_weight = unet_loss_weight
        self.sam2_loss_weight = sam2_loss_weight
        self.gated = gated

    @classmethod
    def from_config(
        cls,
        config: AutoSAM2Config,
        label_manager: LabelManager,
        batch_dice: bool,
        ddp: bool,
        sample_weight: float = 1.0,
    ) -> AutoSAM2Loss:
        """Raises ConfigurationError when the number of class weights does not fit the data set."""
        return cls._of(
            config,
            label_manager.num_segmentation_heads,
            region_based=label_manager.has_regions,
            ignore_label=label_manager.ignore_label,
            batch_dice=batch_dice,
            ddp=ddp,
            sample_weight=sample_weight,
        )

    @classmethod
    def for_network(cls, network: AutoSAM2, ignore_label: int | None = None) -> AutoSAM2Loss:
        """The loss by which nnU-Net's trainer would train `network`, for trainings without nnU-Net.

        Raises:
            ConfigurationError: when the number of class weights is not that of the network's outputs.
        """
        config = network.config
        return cls._of(config, network.num_classes, region_based=config.region_based, ignore_label=ignore_label)

    @classmethod
    def _of(
        cls, config: AutoSAM2Config, num_channels: int, *, sample_weight: float = 1.0, **data_set: Any
    ) -> AutoSAM2Loss:
        """`data_set`: what WeightedBCEDiceLoss takes beside the configuration."""
        segmentation = WeightedBCEDiceLoss(
            num_channels,
            bce_weight=config.bce_weight,
            dice_weight=config.dice_weight,
            class_weights=config.class_weights,
            **data_set,
        )
        weights = (config.unet_loss_weight, config.sam2_loss_weight)
        trained = {"unet_trains": config.unet_outputs_train, "joint": config.joint_training}
        return cls(segmentation, *weights, config.has_gate, sample_weight, **trained)

    def forward(self, output: AutoSAM2Output | Tensor, target: Sequence[Tensor] | Tensor) -> Tensor:
        """
        Args:
            output: of the network, or logits alone.
            target: nnU-Net's list, full resolution first, with one for each output of the UNet (coarser ones are
                left out); or that of full resolution alone.
        """
        if isinstance(output, AutoSAM2Output) and output.logits.ndim == 4:  # of slices, which are volumes of one
            output = output._replace(logits=output.logits[:, :, None])
            target = target[:, :, None] if isinstance(target, Tensor) else [each[:, :, None] for each in target]
        return self.sample_weight * self._sum(output, target)

    def _sum(self, output: AutoSAM2Output | Tensor, target: Sequence[Tensor] | Tensor) -> Tensor:
        if isinstance(output, Tensor):
            return self.segmentation(output, target if isinstance(target, Tensor) else target[0])
        targets = at_all_scales(target, output.unet) if isinstance(target, Tensor) else target
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.unet_trains):
            of_unet = self._sums(output.unet, targets, output.slice_axis)
        if output.sam2 is None:
            return self._over_scales(of_unet)
        target = sliced_along(targets[0], output.slice_axis)
        loss = self.sam2_loss_weight * self.sam2(output.sam2, target)
        if self.unet_trains:
            loss = loss + self.unet_loss_weight * self._over_scales(of_unet)
        if output.fused is None:
            return loss + self.segmentation(output.logits, targets[0])
        loss = loss + self.fused(output.fused, target, of_unet[0])
        return loss + self.gate(output.fused, target) if self.gated else loss

    def deep_supervision(self, outputs: Sequence[Tensor], targets: Sequence[Tensor]) -> Tensor:
        """Weighted mean over scales; the weights halve with each, as in nnU-Net, and none is 0."""
        return self._over_scales(self._sums(outputs, targets))

    def _sums(self, outputs: Sequence[Tensor], targets: Sequence[Tensor], slice_axis: int = 0) -> list[Tensor]:
        """Those of each scale, by slices along this axis."""
        pairs = zip(outputs, targets[: len(outputs)], strict=True)
        return [self.segmentation.sums(*(sliced_along(each, slice_axis) for each in pair)) for pair in pairs]

    def _over_scales(self, sums: Sequence[Tensor]) -> Tensor:
        weights = [0.5**scale for scale in range(len(sums))]
        losses = [weight * self.segmentation.of_sums(each) for weight, each in zip(weights, sums, strict=True)]
        return torch.stack(losses).sum() / sum(weights)

    def fused(self, fused: Fused, target: Tensor, of_unet: Tensor) -> Tensor:
        """Loss of the fused output, which is the UNet's, with these sums, on slices that the fusion leaves out.

        Args:
            target: as `sliced_along` the slices' axis.
        """
        sums = self.segmentation.sums(fused.logits, on_slices(target, fused.slices))
        if fused.slices is not None:
            of_unet = of_unet if self.joint else of_unet.detach()
            sums = of_unet.scatter(3, fused.slices[None, :, None].expand_as(sums), sums)
        return self.segmentation.of_sums(sums)

    def gate(self, fused: Fused, target: Tensor) -> Tensor:
        """The gate's own loss, on the slices that the fusion is of."""
        truth, counted = self.segmentation.encode(on_slices(target, fused.slices))
        return gate_loss(fused, truth, counted, self.segmentation.region_based)

    def sam2(self, masks: SampleMasks, target: Tensor) -> Tensor:
        """Loss of the masks, and of SAM2's two judgements of them, as in its own training."""
        target = on_slices(target, masks.slices)
        truth, counted = self.segmentation.encode(target)
        truth = truth[:, -masks.logits.shape[1] :]
        return (
            self.segmentation(with_background(masks.logits, self.segmentation.region_based), target)
            + IOU_WEIGHT * iou_loss(masks.predicted_iou, masks.logits, truth, counted)
            + OBJECT_WEIGHT * object_loss(masks.object_score, truth, counted)
        )


def at_all_scales(target: Tensor, outputs: Sequence[Tensor]) -> list[Tensor]:
    """A target `[B, C, D, H, W]` in the size of each of the outputs, by the nearest voxel, as nnU-Net does it."""
    return [
        target
        if logits.shape[2:] == target.shape[2:]
        else F.interpolate(target.float(), logits.shape[2:], mode="nearest-exact").to(target.dtype)
        for logits in outputs
    ]


def sample_weight_of(batch_size: int, num_processes: int, total_batch_size: int) -> float:
    """Weight that samples of a process with `batch_size` of all samples need for each to count the same.

    >>> [sample_weight_of(size, 2, 3) for size in (2, 1)]  # means of 2 and 1 samples, and then of both processes
    [1.3333333333333333, 0.6666666666666666]
    """
    return batch_size * num_processes / total_batch_size


def iou_loss(predicted_iou: Tensor, logits: Tensor, truth: Tensor, counted: Tensor) -> Tensor:
    """Mean absolute error of the predicted IoU, over regions and slices where the region is present; mean of samples.

    Args:
        predicted_iou: `[B, R, K]`.
        logits, truth: `[B, R, K, H, W]`; no gradient reaches the logits.
        counted: `[B, 1, K, H, W]`.
    """
    mask = (logits.detach() > 0) * counted
    truth = truth * counted
    intersection = (mask * truth).sum((-2, -1))
    union = torch.maximum(mask, truth).sum((-2, -1))
    error = (predicted_iou.float() - intersection / union.clamp_min(1)).abs()
    return weighted_mean(error, truth.amax((-2, -1)), dims=(1, 2)).mean()


def object_loss(object_score: Tensor, truth: Tensor, counted: Tensor) -> Tensor:
    """Mean BCE of the logit `[B, R, K]` of "the region has a voxel on this slice"; shapes as above."""
    present = (truth * counted).amax((-2, -1))
    error = F.binary_cross_entropy_with_logits(object_score.float(), present, reduction="none")
    return weighted_mean(error, counted.amax((-2, -1)), dims=(1, 2)).mean()


def gate_loss(fused: Fused, truth: Tensor, counted: Tensor, region_based: bool) -> Tensor:
    """Brier score of SAM2's weight as the probability that SAM2 is right, over the voxels where UNet and SAM2 disagree.

    The segmentation loss would reward a gate for whoever is surer of itself, and no weight matters where both agree.
    Each voxel counts by what an error costs in Dice (`cost_in_dice`). The mean over samples and channels of each one's
    mean: a patch with little in dispute, as one without a tumour, counts as much as any.

    Args:
        fused: no logits get a gradient.
        truth, counted: `[B, C, D, H, W]` and `[B, 1, D, H, W]`, of the slices that it is of.
    """
    sam2_decides = decisions(fused.sam2, region_based)
    disputed = (sam2_decides != decisions(fused.unet, region_based)) & (counted > 0) & fused.covered
    error = (fused.sam2_weight - (sam2_decides == truth.bool()).float()).square()
    cost = cost_in_dice(decisions(fused.logits, region_based), truth, counted)
    return weighted_mean(error, disputed * cost, dims=(2, 3, 4)).mean()


def cost_in_dice(foreground: Tensor, truth: Tensor, counted: Tensor) -> Tensor:
    """Cost in Dice of a voxel that is decided wrongly, up to a factor a sample and channel, in the shape of `truth`.

    With Dice 2I / T, a true voxel that is left out costs (2 - Dice) / T and a false one that is let in Dice / T: a
    foreground that is likelier than Dice / 2 is worth it. Without any truth all voxels are worth the same.

    Args:
        foreground: bool, what is decided now, `[B, C, D, H, W]`.
    """
    voxels = (2, 3, 4)
    true = truth * counted
    total = (foreground * counted).sum(voxels, keepdim=True) + true.sum(voxels, keepdim=True)
    dice = 2 * (foreground * true).sum(voxels, keepdim=True) / total.clamp_min(1)
    dice = dice.where(true.amax(voxels, keepdim=True) > 0, 1)
    return torch.where(truth > 0, 1 - dice / 2, dice / 2)


def weighted_mean(values: Tensor, weights: Tensor, dims: Sequence[int] | None = None) -> Tensor:
    """Σ weights · values / Σ weights, over `dims` or all; weights broadcast to values; 0 where all weights are 0."""
    dims = range(values.ndim) if dims is None else dims
    total = weights.expand_as(values).sum(tuple(dims), dtype=values.dtype)
    return (weights * values).sum(tuple(dims)) / total.clamp_min(torch.finfo(values.dtype).tiny)
