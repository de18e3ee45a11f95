"""The parts of the network, as the configuration describes them: UNet, SAM2, and the fusions of features and masks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from nnunet_autosam2.architectures.backbone import Backbone
from nnunet_autosam2.architectures.convolutional_gate import ConvolutionalGatedFusion
from nnunet_autosam2.architectures.feature_fusion import FeatureFusion
from nnunet_autosam2.architectures.fusion import FixedFusion, Fusion, GatedFusion
from nnunet_autosam2.architectures.planned_unet import PlannedUNet
from nnunet_autosam2.architectures.planned_unet_2d import PlannedUNet2d
from nnunet_autosam2.architectures.unet import ResidualUNet3d
from nnunet_autosam2.config import AutoSAM2Config
from nnunet_autosam2.errors import ConfigurationError

if TYPE_CHECKING:
    from nnunet_autosam2.architectures.sam2.branch import SAM2Branch

NO_BACKBONE = (
    "a backbone has to be a PlainConvUNet or ResidualEncoderUNet, as nnU-Net plans them. A transformer such as Primus "
    "has no decoder with a level at a quarter of the resolution, from which SAM2 gets features and prompts"
)


def make_unet(
    config: AutoSAM2Config,
    num_classes: int,
    in_channels: int,
    strides: Sequence[Sequence[int]],
    planned: Any,
) -> Backbone:
    """AutoSAM2's own UNet, or the network that nnU-Net planned; frozen where the configuration says so.

    Raises:
        ConfigurationError: `planned` has no encoder and decoder by levels.
    """
    unet: Backbone
    if planned is None:
        unet = ResidualUNet3d(in_channels, num_classes, strides, config.enable_unet_decoder)
    else:
        if not hasattr(getattr(planned, "encoder", None), "strides"):
            raise ConfigurationError(f"{type(planned).__name__} cannot be the backbone: {NO_BACKBONE}.")
        kind = PlannedUNet if len(planned.encoder.strides[0]) == 3 else PlannedUNet2d
        unet = kind(planned, config.enable_unet_decoder)
    if config.freeze_backbone:
        unet.requires_grad_(False)
    return unet


def make_sam2_branch(
    config: AutoSAM2Config, num_classes: int, in_channels: int, middle_channels: int
) -> SAM2Branch | None:
    """SAM2's half, without weights unless they are random on purpose; None where the configuration leaves it out."""
    if not config.uses_sam2:
        return None
    # Not before it is needed: where nobody has initialised Hydra yet, importing sam2 does.
    from nnunet_autosam2.architectures.sam2.branch import SAM2Branch

    num_regions = num_classes if config.region_based else num_classes - 1
    branch = SAM2Branch(in_channels, middle_channels, num_regions, config)
    if config.sam2_checkpoint != "random":
        branch.sam2.withhold_weights()
    return branch


def make_feature_fusion(config: AutoSAM2Config, unet: Backbone) -> FeatureFusion | None:
    """The way of SAM2's embeddings into the UNet's decoder, where the configuration has it."""
    if not (config.feature_fusion and config.uses_sam2):
        return None
    levels = range(unet.middle + 1)
    return FeatureFusion([unet.decoder_channels(level) for level in levels], unet.strides[: len(levels)])


def make_fusion(config: AutoSAM2Config, num_classes: int, unet: Backbone) -> Fusion | None:
    """A fusion where there are two halves to fuse; its gate starts closed on a trained network."""
    if not (config.makes_masks and config.enable_unet_decoder):
        return None
    if not config.has_gate:
        return FixedFusion()
    return make_gate(config, num_classes, unet, closed=config.backbone_checkpoint is not None)


def make_gate(config: AutoSAM2Config, num_classes: int, unet: Backbone, closed: bool) -> GatedFusion:
    """The gate of a configuration that has one."""
    if config.fusion == "gated":
        return GatedFusion(num_classes, closed)
    stride = unet.strides[min(1, len(unet.strides) - 1)]
    return ConvolutionalGatedFusion(num_classes, unet.decoder_channels(0), stride, closed)
