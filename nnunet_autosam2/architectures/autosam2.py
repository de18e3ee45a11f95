"""The hybrid network: a 3D UNet, SAM2 on strategic slices, and their fusion."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nnunet_autosam2.architectures.fusion import FixedFusion, GatedFusion, Reliability
from nnunet_autosam2.architectures.mirrored_masks import MirroredMasks
from nnunet_autosam2.architectures.outputs import AutoSAM2Output, SAM2Masks, Shares, SliceMasks
from nnunet_autosam2.architectures.planned_unet import PlannedUNet
from nnunet_autosam2.architectures.prompts import NOT_A_POINT, NUM_CORNERS, THRESHOLD
from nnunet_autosam2.architectures.reconstruction import VolumeMasks, cropped, locate, reconstruct
from nnunet_autosam2.architectures.sam2 import weights
from nnunet_autosam2.architectures.seg_layers import with_current_names
from nnunet_autosam2.architectures.slice_selection import num_slices, select_slices
from nnunet_autosam2.architectures.unet import ResidualUNet3d, Size3d, UNetOutput, resize
from nnunet_autosam2.config import AutoSAM2Config
from nnunet_autosam2.errors import ConfigurationError

if TYPE_CHECKING:
    from nnunet_autosam2.architectures.sam2.branch import SAM2Branch

CHANGEABLE = (
    "slice_fraction",
    "enable_unet_decoder",
    "enable_sam2",
    "bg_blend",
    "tumor_blend",
    "num_positive_points",
    "num_negative_points",
    "box_prompt",
    "mask_prompt",
    "sam2_mirroring",
)


class AutoSAM2(nn.Module):
    """Segments a volume: `AutoSAM2(num_classes=4)(volume)` turns [B, 4, D, H, W] into logits of the same size.

    SAM2's weights come from `load_state_dict`, from `load_sam2_weights`, or, if neither has brought them, from where
    the configuration says on the first use.

    To train it, give `training_outputs(volume)` to `AutoSAM2Loss`. A loss of the logits alone works too: it trains
    UNet, SAM2 and gate jointly.

    Args:
        num_classes: output channels, background included unless `region_based`.
        in_channels: modalities.
        config: every other parameter; defaults where it is left out.
        strides: of the UNet's four encoder blocks.
        planned: the network that nnU-Net planned, as the backbone in the place of AutoSAM2's UNet.
        parameters: changes to `config`, for example `enable_sam2=False`.

    Raises:
        ConfigurationError: for parameters that are not possible.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int = 4,
        config: AutoSAM2Config | None = None,
        strides: Sequence[Sequence[int]] = ((2, 2, 2),) * 4,
        planned: nn.Module | None = None,
        **parameters: Any,
    ) -> None:
        super().__init__()
        self.config = (config or AutoSAM2Config()).updated(parameters)
        self.num_classes = num_classes
        rgb = self.config.rgb_channels
        if rgb is not None and max(rgb) >= in_channels:
            raise ConfigurationError(f"rgb_channels = {list(rgb)} is not possible: there are {in_channels} channels.")
        full_resolution = self.config.enable_unet_decoder
        self.unet: ResidualUNet3d | PlannedUNet
        if planned is None:
            self.unet = ResidualUNet3d(in_channels, num_classes, strides, full_resolution)
        else:
            self.unet = PlannedUNet(planned, full_resolution)
        self.sam2_branch: SAM2Branch | None = None
        self.fusion: FixedFusion | GatedFusion | None = None
        if self.config.uses_sam2:
            # Not before it is needed: where nobody has initialised Hydra yet, importing sam2 does.
            from nnunet_autosam2.architectures.sam2.branch import SAM2Branch

            num_regions = num_classes if self.config.region_based else num_classes - 1
            self.sam2_branch = SAM2Branch(in_channels, self.unet.middle_channels, num_regions, self.config)
            if self.config.sam2_checkpoint != "random":
                self.sam2_branch.sam2.withhold_weights()
            if self.config.enable_unet_decoder:
                closed = self.config.backbone_checkpoint is not None
                self.fusion = GatedFusion(num_classes, closed) if self.config.fusion == "gated" else FixedFusion()
        self.mirrored_masks = MirroredMasks()
        self.state_was_loaded = False
        """Whether `load_state_dict` has filled it"""
        self.looked_for_weights = False
        """Whether `load_sam2_weights` was called, which warns of random ones"""
        self.set_deep_supervision(False)

    def forward(self, volume: Tensor, foreground: Tensor | None = None) -> Tensor | AutoSAM2Output:
        """[B, C, D, H, W], z-scores → logits [B, num_classes, D, H, W], or AutoSAM2Output under deep supervision.

        Args:
            foreground: [B, R, D, H, W], probabilities of the regions (or foreground classes) from elsewhere, to
                select slices and prompts by in the place of the UNet's.
        """
        size, given, volume = volume.shape[2:], volume, self._pad(volume)
        unet = self.unet(volume, self.config.enable_unet_decoder)
        if not self.config.uses_sam2:
            return self._output(cropped(unet.logits[0], size), unet.logits)
        seen = unet if self._trains_jointly else unet.detach()
        once = foreground is None and self._asks_once
        foreground = self._foreground(unet.logits[0]) if foreground is None else self._pad(foreground)
        ask = partial(self._ask_sam2, volume, seen, foreground, size)
        with cudnn_benchmark(allowed=self.training):
            sam2, masks = self.mirrored_masks(given, self._state, ask) if once else ask()
        logits, shares = self._fuse(cropped(seen.logits[0], size), masks)
        return self._output(logits, unet.logits, sam2, shares)

    def training_outputs(self, volume: Tensor) -> AutoSAM2Output:
        """What `AutoSAM2Loss` trains UNet, SAM2 and gate by, as the trainer of nnU-Net does: all of their outputs.

        Within DistributedDataParallel, whose own forward has to be called, `set_deep_supervision(True)` gives the same.
        """
        before = self.unet.deep_supervision
        self.set_deep_supervision(True)
        try:
            return self(volume)
        finally:
            self.set_deep_supervision(before)

    @property
    def _trains_jointly(self) -> bool:
        """Without deep supervision the fused output is all that a loss gets to see: it trains all that trains."""
        alone = not self.unet.deep_supervision
        return alone or self.config.joint_training or not self.config.enable_unet_decoder

    @property
    def _asks_once(self) -> bool:
        """About a patch and its mirror images, in predictions; without the UNet's answers all passes would be one."""
        predicts = torch.is_inference_mode_enabled() and not (self.training or self.unet.deep_supervision)
        return predicts and self.config.enable_unet_decoder and not self.config.sam2_mirroring

    @property
    def _state(self) -> tuple[AutoSAM2Config, int]:
        """Changes with the configuration and the weights, save those that were moved to a device in inference mode."""
        changes = (weight._version for weight in self.parameters() if not weight.is_inference())
        return self.config, sum(changes)

    def _foreground(self, logits: Tensor) -> Tensor:
        """Logits [B, C, ...] → probabilities [B, R, ...] of the foreground, detached."""
        logits = logits.detach().float()
        return logits.sigmoid() if self.config.region_based else logits.softmax(1)[:, 1:]

    def _worth_asking(self, foreground: Tensor, slices: Tensor) -> Tensor:
        """[B, K]: all of them in training; a prediction leaves out those without foreground."""
        present = (take_slices(foreground, slices) > THRESHOLD).flatten(1).any(1) | self.training
        return present.view(slices.shape)

    def _ask_sam2(
        self,
        volume: Tensor,
        unet: UNetOutput,
        foreground: Tensor,
        size: torch.Size,
    ) -> tuple[SAM2Masks, VolumeMasks]:
        """Masks of the selected slices, the UNet's where SAM2 is not asked, and those of all slices.

        Args:
            size: of the volume without its padding.
        """
        slices = select_slices(foreground[:, :, : size[0]], num_slices(size[0], self.config.slice_fraction))
        prompted = self._worth_asking(foreground, slices)
        positions = locate(slices, prompted, volume.shape[2])
        by_slice = self._unprompted(take_slices(unet.logits[0].detach().float(), slices))
        answers = None
        if bool(prompted.any()):
            features = resize(unet.middle_features, (volume.shape[2], *unet.middle_features.shape[3:]))
            asked = prompted.flatten()
            answers = self._branch()(
                take_slices(volume, slices)[asked],
                take_slices(features, slices)[asked],
                take_slices(foreground, slices)[asked],
                self.config,
            )
            by_slice = by_slice.replaced(asked, answers.masks)
        masks = SliceMasks(*(values.unflatten(0, slices.shape).transpose(1, 2) for values in by_slice))
        volume_masks = reconstruct(masks, positions)
        if answers is not None and self._tracks:
            on_slices = torch.zeros_like(positions.covered).scatter(1, slices, prompted)
            from nnunet_autosam2.architectures.propagation import propagate

            volume_masks = propagate(self._branch(), volume, features, on_slices, answers, positions, volume_masks)
        return self._sam2_masks(masks, slices, prompted), volume_masks.cropped(size)

    @property
    def _tracks(self) -> bool:
        """Predictions alone: nnU-Net validates during a training with deep supervision, and often."""
        return self.config.propagation == "memory" and not (self.training or self.unet.deep_supervision)

    def _unprompted(self, logits: Tensor) -> SliceMasks:
        """The UNet's logits [N, C, H, W] in the place of SAM2's."""
        regions = logits if self.config.region_based else logits[:, 1:] - logits[:, :1]
        scores = logits.new_ones(regions.shape[:2])
        prompts = NUM_CORNERS + self.config.num_positive_points + self.config.num_negative_points
        points = logits.new_zeros(*regions.shape[:2], prompts, 2)
        labels = torch.full(points.shape[:-1], NOT_A_POINT, dtype=torch.int32, device=logits.device)
        return SliceMasks(regions, scores, torch.zeros_like(scores), points, labels)

    def _fuse(self, unet: Tensor, masks: VolumeMasks) -> tuple[Tensor, Shares | None]:
        """Where SAM2's masks do not reach, the UNet stands alone."""
        with torch.autocast(unet.device.type, enabled=False):
            unet, covered = unet.float(), masks.covered[:, None, :, None, None]
            sam2 = torch.where(covered, self._with_background(masks.logits), unet)
            if not self.config.enable_unet_decoder:
                return sam2, None
            assert self.fusion is not None
            reliability = Reliability(
                self._with_average(masks.predicted_iou),
                self._with_average(masks.presence),
                1 / (1 + masks.distance[:, None]),
            )
            fused, sam2_weight = self.fusion(
                unet,
                sam2,
                reliability,
                self._blends(),
                self.config.region_based,
                gate_learns=not self.unet.deep_supervision,
            )
            logits = torch.where(covered, fused, unet)
            return logits, Shares(sam2, sam2_weight, covered) if self.unet.deep_supervision else None

    def _with_background(self, logits: Tensor) -> Tensor:
        """[B, R, ...] of the regions → [B, C, ...]: exclusive labels get a background of constant logit 0."""
        return logits if self.config.region_based else F.pad(logits, (0, 0) * (logits.ndim - 2) + (1, 0))

    def _with_average(self, scores: Tensor) -> Tensor:
        """[B, R, ...] → [B, C, ...]: the background's score is the regions' mean."""
        return scores if self.config.region_based else torch.cat([scores.mean(1, keepdim=True), scores], dim=1)

    def _blends(self) -> list[float]:
        background = [] if self.config.region_based else [self.config.bg_blend]
        return background + [self.config.tumor_blend] * (self.num_classes - len(background))

    def _pad(self, volume: Tensor) -> Tensor:
        """With the background's 0 at the far ends, to a size that the UNet's strides divide."""
        missing = [-size % stride for size, stride in zip(volume.shape[2:], self.unet.total_stride, strict=True)]
        if not any(missing):
            return volume
        if self.unet.deep_supervision:
            raise ConfigurationError(
                f"A training patch of {tuple(volume.shape[2:])} voxels is not divisible by the UNet's strides "
                f"{self.unet.total_stride}. Choose another patch size."
            )
        return F.pad(volume, [pad for size in reversed(missing) for pad in (0, size)])

    def _output(
        self, logits: Tensor, unet: tuple[Tensor, ...], sam2: SAM2Masks | None = None, shares: Shares | None = None
    ) -> Tensor | AutoSAM2Output:
        return AutoSAM2Output(logits, unet, sam2, shares) if self.unet.deep_supervision else logits

    def _sam2_masks(self, masks: SliceMasks, slices: Tensor, prompted: Tensor) -> SAM2Masks:
        return SAM2Masks(
            self._with_background(masks.logits),
            masks.predicted_iou,
            masks.object_score,
            slices,
            prompted,
            masks.points,
            masks.labels,
        )

    def _branch(self) -> SAM2Branch:
        assert self.sam2_branch is not None
        random = self.config.sam2_checkpoint == "random" and not (self.state_was_loaded or self.looked_for_weights)
        if random or not self.sam2_has_weights:
            self.load_sam2_weights()
        return self.sam2_branch

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Its parts in place, with torch.compile: slices and prompts between them differ from patch to patch."""
        for part in (self.unet, self.sam2_branch, self.fusion):
            if part is not None:
                part.compile(*args, **kwargs)

    def halve_chunks(self) -> bool:
        """For a pass, forwards or backwards, that has run out of memory; False if no smaller ones are possible."""
        return self.sam2_branch is not None and self.sam2_branch.halve_chunks()

    @property
    def sam2_has_weights(self) -> bool:
        """False: SAM2's weights are still to be had from where the configuration says."""
        return self.sam2_branch is None or self.sam2_branch.sam2.has_weights

    def load_sam2_weights(self) -> None:
        """Fills SAM2 from the checkpoint that the configuration names.

        Raises:
            WeightsError: there are none, or they do not fit the model.
        """
        assert self.sam2_branch is not None
        self.looked_for_weights = True
        path = weights.obtain(self.config)
        if path is None:
            self.sam2_branch.sam2.allow_random_weights()
        else:
            weights.load_into(self.sam2_branch.sam2, weights.read_checkpoint(path), path)

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        had_weights = self.sam2_has_weights
        result = super().load_state_dict(with_current_names(state_dict, self.state_dict()), *args, **kwargs)
        self.mirrored_masks.forget()
        self.state_was_loaded = True
        if not had_weights and any(key.startswith("sam2_branch.sam2.") for key in result.missing_keys):
            assert self.sam2_branch is not None
            self.sam2_branch.sam2.withhold_weights()  # a part of them is none
        return result

    @property
    def output_strides(self) -> list[Size3d]:
        """Of the UNet's outputs under deep supervision, finest first."""
        return self.unet.strides if self.config.enable_unet_decoder else [(1, 1, 1)]

    def set_deep_supervision(self, enabled: bool) -> None:
        """True: `forward` returns an AutoSAM2Output, for the loss. False: the logits alone."""
        self.unet.deep_supervision = enabled

    def set_mode(self, **changes: Any) -> None:
        """Changes mode, blends, slice fraction or the number of points after construction.

        The blends shift a learned gate; they do not replace it.

        Raises:
            ConfigurationError: for another key, or for a part that this network was built without.
        """
        for key in changes:
            if key not in CHANGEABLE:
                raise ConfigurationError(
                    f"{key} cannot be changed after construction. Possible: {', '.join(CHANGEABLE)}."
                )
        config = self.config.updated(changes)
        if config.uses_sam2 and self.sam2_branch is None:
            raise ConfigurationError(
                "This network was built without SAM2. Build it with enable_sam2=True and a slice_fraction above 0."
            )
        if config.enable_unet_decoder and not self.unet.full_resolution:
            raise ConfigurationError(
                "This network was built without the UNet's decoder. Build it with enable_unet_decoder=True."
            )
        self.config = config


@contextmanager
def cudnn_benchmark(allowed: bool) -> Iterator[None]:
    """nnU-Net lets cuDNN try every kernel for a new size. In a prediction almost every patch has another number of
    slices with foreground, and the trials would take longer than what they save.
    """
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = before and allowed
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def take_slices(volume: Tensor, slices: Tensor) -> Tensor:
    """[B, C, D, H, W] at positions [B, K] → [B · K, C, H, W]."""
    batch = torch.arange(len(volume), device=volume.device)[:, None]
    return volume.transpose(1, 2)[batch, slices].flatten(0, 1)
