from typing import Any

import pytest
from dynamic_network_architectures.architectures.primus import Primus
from dynamic_network_architectures.architectures.unet import PlainConvUNet
from torch import nn

from nnunet_autosam2.architectures.convolutional_gate import ConvolutionalGatedFusion
from nnunet_autosam2.architectures.fusion import FixedFusion, GatedFusion
from nnunet_autosam2.architectures.parts import make_fusion, make_gate, make_sam2_branch, make_unet
from nnunet_autosam2.architectures.planned_unet import PlannedUNet
from nnunet_autosam2.architectures.unet import ResidualUNet3d
from nnunet_autosam2.config import AutoSAM2Config
from nnunet_autosam2.errors import ConfigurationError

STRIDES = ((2, 2, 2),) * 4
TRAINED = {"backbone": "plans", "backbone_checkpoint": "auto"}


def config(**parameters: Any) -> AutoSAM2Config:
    return AutoSAM2Config(sam2_image_size=64, sam2_checkpoint="random", **parameters)


def planned() -> PlainConvUNet:
    sizes = {"features_per_stage": [4, 4, 4], "strides": [1, 2, 2], "kernel_sizes": 3}
    return PlainConvUNet(
        2, 3, conv_op=nn.Conv3d, num_classes=3, n_conv_per_stage=1, n_conv_per_stage_decoder=1, **sizes
    )


def test_the_backbone_is_the_planned_network_where_there_is_one():
    assert isinstance(make_unet(config(), 3, 2, STRIDES, None), ResidualUNet3d)
    assert isinstance(make_unet(config(backbone="plans"), 3, 2, STRIDES, planned()), PlannedUNet)


def test_a_transformer_is_refused():
    primus = Primus(2, 24, (8, 8, 8), 3, 1, 2, input_shape=(16, 16, 16))
    with pytest.raises(ConfigurationError, match=r"Primus cannot be the backbone: .* PlainConvUNet or ResidualEncoder"):
        make_unet(config(backbone="plans"), 3, 2, STRIDES, primus)


@pytest.mark.parametrize("frozen", [True, False])
def test_of_a_frozen_one_nothing_trains(frozen: bool):
    unet = make_unet(config(**TRAINED, freeze_backbone=frozen), 3, 2, STRIDES, planned())
    assert {parameter.requires_grad for parameter in unet.parameters()} == {not frozen}


@pytest.mark.parametrize("off", [{"enable_sam2": False}, {"slice_fraction": 0}])
def test_without_sam2_there_is_neither_branch_nor_fusion(off: dict):
    assert make_sam2_branch(config(**off), 3, 2, 16) is None
    assert make_fusion(config(**off), 3, ResidualUNet3d(2, 3)) is None


@pytest.mark.parametrize(("region_based", "regions"), [(True, 3), (False, 2)])
def test_sam2_has_a_mask_for_each_region_or_foreground_class(region_based: bool, regions: int):
    branch = make_sam2_branch(config(region_based=region_based), 3, 2, 16)
    assert branch is not None
    assert regions in {size for parameter in branch.bridge.parameters() for size in parameter.shape}
    assert branch.sam2.has_weights


def test_weights_that_are_not_random_on_purpose_are_withheld():
    branch = make_sam2_branch(config().updated({"sam2_checkpoint": "auto"}), 3, 2, 16)
    assert branch is not None
    assert not branch.sam2.has_weights


def test_fusions():
    unet = ResidualUNet3d(2, 3)
    assert isinstance(make_fusion(config(fusion="fixed"), 3, unet), FixedFusion)
    assert make_fusion(config(enable_unet_decoder=False), 3, unet) is None
    for trained in ({}, TRAINED):
        for fusion, kind in (("gated", GatedFusion), ("convolutional", ConvolutionalGatedFusion)):
            gated = make_fusion(config(fusion=fusion, **trained), 3, unet)
            assert type(gated) is kind
            assert gated.closed == bool(trained)


@pytest.mark.parametrize("backbone", ["autosam2", "plans"])
def test_a_convolutional_gate_fits_its_backbone(backbone: str):
    its = config(fusion="convolutional", backbone=backbone)
    unet = make_unet(its, 3, 2, ((1, 2, 2), *STRIDES[1:]), planned() if backbone == "plans" else None)
    gate = make_gate(its, 3, unet, closed=False)
    assert isinstance(gate, ConvolutionalGatedFusion)
    assert gate.stride == unet.strides[1] == ((2, 2, 2) if backbone == "plans" else (1, 2, 2))
    assert gate.input_weight.shape[1] == unet.decoder_channels(0) + 6 * 3 + 1
