"""The hybrid network: a 3D UNet, SAM2 on strategic slices, and their fusion."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nnunet_autosam2.architectures.backbone import Size3d, UNetOutput
from nnunet_autosam2.architectures.freed_memory import give_back_before_backward
from nnunet_autosam2.architectures.fusion import fuse
from nnunet_autosam2.architectures.log_odds import foreground_probabilities
from nnunet_autosam2.architectures.masks import SAM2Output, SliceEmbeddings, cropped
from nnunet_autosam2.architectures.modes import changed_mode
from nnunet_autosam2.architectures.outputs import AutoSAM2Output, without_depth
from nnunet_autosam2.architectures.parts import make_feature_fusion, make_fusion, make_sam2_branch, make_unet
from nnunet_autosam2.architectures.sam2.volume import encode_volume, segment_volume
from nnunet_autosam2.architectures.seg_layers import update_layout
from nnunet_autosam2.architectures.slice_axes import require_axes
from nnunet_autosam2.config import AutoSAM2Config
from nnunet_autosam2.errors import ConfigurationError


class AutoSAM2(nn.Module):
    """Segments a volume: `AutoSAM2(num_classes=4)(volume)` turns [B, 4, D, H, W] into logits of the same size.

    SAM2's weights come from `load_state_dict`, from `load_sam2_weights`, or, if neither has brought them, from where
    the configuration says on the first use.

    To train it, give `training_outputs(volume)` to `AutoSAM2Loss`. A loss of the logits alone works too: it trains
    UNet, SAM2 and gate jointly.

    Args:
        num_classes: output channels, background included unless `region_based`.
        in_channels: modalities, and what a cascade has of its previous stage behind them.
        config: every other parameter; defaults where it is left out.
        strides: of the UNet's four encoder blocks.
        planned: the network that nnU-Net planned, as the backbone in the place of AutoSAM2's UNet.
        image_channels: the first of the channels, which SAM2 sees; None: all.
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
        image_channels: int | None = None,
        **parameters: Any,
    ) -> None:
        super().__init__()
        self.config = (config or AutoSAM2Config()).updated(parameters)
        self.num_classes = num_classes
        self.image_channels, rgb = image_channels or in_channels, self.config.rgb_channels
        if rgb is not None and max(rgb) >= self.image_channels:
            raise ConfigurationError(
                f"rgb_channels = {list(rgb)} is not possible: there are {self.image_channels} channels."
            )
        self.unet = make_unet(self.config, num_classes, in_channels, strides, planned)
        require_axes(self.config, self.unet.strides[: self.unet.middle + 1])
        self.sam2_branch = make_sam2_branch(self.config, num_classes, self.image_channels, self.unet.middle_channels)
        self.feature_fusion = make_feature_fusion(self.config, self.unet)
        self.fusion = make_fusion(self.config, num_classes, self.unet)
        self.unet.gives_finest_features = self.fusion is not None and self.fusion.sees_features
        self.state_was_loaded = False
        """True once a state dict has filled it, of any version"""
        self.register_load_state_dict_pre_hook(update_layout)
        self.register_load_state_dict_post_hook(_note_that_state_was_loaded)
        self.set_deep_supervision(False)

    def forward(
        self,
        volume: Tensor,
        foreground: Tensor | None = None,
        sam2: SAM2Output | None = None,
        return_sam2: bool = False,
        slice_axis: int | None = None,
    ) -> Tensor | AutoSAM2Output | tuple[Tensor, SAM2Output]:
        """[B, C, D, H, W], z-scores → logits [B, num_classes, D, H, W], or AutoSAM2Output under deep supervision.

        Slices [B, C, H, W] of a 2D network are volumes of one slice each, but for the logits [B, num_classes, H, W].

        Args:
            foreground: [B, R, D, H, W], probabilities of the regions (or foreground classes) from elsewhere, to
                select slices and prompts by in the place of the UNet's.
            sam2: what SAM2 makes of this volume where it is known, in the place of asking it.
            return_sam2: return logits and what SAM2 has made of the volume, from which `sam2` can be had.
            slice_axis: 0, 1 or 2 of D, H, W, along which SAM2's slices are cut; None: the first, or in training any of
                those that the configuration has.
        """
        if volume.ndim == 4:
            return without_depth(self.forward(volume[:, :, None], foreground, sam2, return_sam2, slice_axis))
        size, volume = volume.shape[2:], self.unet.padded(volume, allowed=not self.deep_supervision)
        foreground = foreground if foreground is None else self.unet.padded(foreground)
        masks, known, axis = sam2 or SAM2Output(None, None, self._draw_axis() if slice_axis is None else slice_axis)
        unet, known = self._run_unet(volume, foreground, size, known, axis)
        if self.config.uses_sam2:
            give_back_before_backward(unet.logits[0])
        logits, slices, fused = cropped(unet.logits[0], size), None, None
        if self.config.makes_masks:
            seen = unet if self._trains_jointly else unet.detach()
            if masks is None:
                opinion = self._foreground(seen.logits[0]) if foreground is None else foreground
                images = volume[:, : self.image_channels]
                assert self.sam2_branch is not None
                slices, masks = segment_volume(self.sam2_branch, images, seen, opinion, size, self.config, axis, known)
            logits, fused = fuse(self.fusion, seen, masks, size, self.config, axis)
        if return_sam2:
            return logits, SAM2Output(masks, known, axis)
        return AutoSAM2Output(logits, unet.logits, slices, fused, axis) if self.deep_supervision else logits

    def _run_unet(
        self, volume: Tensor, foreground: Tensor | None, size: Sequence[int], known: SliceEmbeddings | None, axis: int
    ) -> tuple[UNetOutput, SliceEmbeddings | None]:
        """The UNet, and between its halves the embeddings that it gets from SAM2, if it gets any."""
        feature_fusion = self.feature_fusion if self.config.uses_sam2 else None
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.config.freeze_backbone):
            if feature_fusion is None:
                return self.unet(volume, self.config.enable_unet_decoder), None
            half = self.unet.coarse_half(volume)
        if known is None:
            opinion = self._foreground(self.unet.coarse_logits(half)) if foreground is None else foreground
            images = volume[:, : self.image_channels]
            assert self.sam2_branch is not None
            known = encode_volume(self.sam2_branch, images, opinion, size, self.config, axis)
        return self.unet.fine_half(half, feature_fusion(known, volume.shape[2:], axis)), known

    def _draw_axis(self) -> int:
        if self.sam2_branch is None or not self.training or self.config.slice_axes == 1:
            return 0
        return self.sam2_branch.training_window.draw(self.config.slice_axes)

    def _foreground(self, logits: Tensor) -> Tensor:
        return foreground_probabilities(logits.detach(), self.config.region_based)

    def training_outputs(self, volume: Tensor) -> AutoSAM2Output:
        """All outputs of UNet, SAM2 and gate, by which `AutoSAM2Loss` trains them, as the trainer of nnU-Net does.

        Within DistributedDataParallel, whose own forward has to be called, `set_deep_supervision(True)` gives the same.
        """
        before = self.deep_supervision
        self.set_deep_supervision(True)
        try:
            return self(volume)
        finally:
            self.set_deep_supervision(before)

    @property
    def _trains_jointly(self) -> bool:
        """Without deep supervision the fused output is all that a loss gets to see: it trains all that trains."""
        return not self.deep_supervision or self.config.joint_training or not self.config.enable_unet_decoder

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Its parts in place, with torch.compile: slices and prompts between them differ from patch to patch."""
        unet = [self.unet] if self.feature_fusion is None else self.unet.parts()
        for part in (*unet, self.sam2_branch, self.fusion):
            if part is not None:
                part.compile(*args, **kwargs)

    def halve_chunks(self) -> bool:
        """Makes room for a pass, forwards or backwards, that has run out of memory; False if there is none to make."""
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
        self.sam2_branch.load_weights(self.config)

    @property
    def output_strides(self) -> list[Size3d]:
        """Strides of the UNet's outputs under deep supervision, finest first."""
        one = not (self.config.unet_outputs_train and self.config.enable_unet_decoder)
        return [(1, 1, 1)] if one else self.unet.strides

    def train(self, mode: bool = True) -> AutoSAM2:
        """Switches as any module does, but for a frozen backbone, which stays as in a prediction."""
        super().train(mode)
        if self.config.freeze_backbone:
            self.unet.eval()
        return self

    def set_deep_supervision(self, enabled: bool) -> None:
        """True: `forward` returns an AutoSAM2Output, for the loss. False: the logits alone."""
        self.deep_supervision = enabled
        self.unet.deep_supervision = enabled and self.config.unet_outputs_train
        for part in (self.sam2_branch, self.fusion):
            if part is not None:
                part.deep_supervision = enabled

    def set_mode(self, **changes: Any) -> None:
        """Changes mode, blends, slice fraction or the number of points after construction.

        The blends shift a learned gate; they do not replace it.

        Raises:
            ConfigurationError: for another key, or for a part that this network was built without.
        """
        config = changed_mode(
            self.config, changes, has_sam2=self.sam2_branch is not None, has_decoder=self.unet.full_resolution
        )
        require_axes(config, self.unet.strides[: self.unet.middle + 1])
        self.config = config


def _note_that_state_was_loaded(network: AutoSAM2, _: object) -> None:
    network.state_was_loaded = True
