"""Against nnU-Net's 2D networks themselves, and a hybrid on one of them."""

import pytest
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from torch import nn

from nnunet_autosam2.architectures.autosam2 import AutoSAM2
from nnunet_autosam2.architectures.planned_unet_2d import PlannedUNet2d
from nnunet_autosam2.trainers import test_time_augmentation  # noqa: F401, which nnU-Net's predictor then has
from nnunet_autosam2.trainers.loss import AutoSAM2Loss

pytestmark = pytest.mark.filterwarnings("ignore:sam2_checkpoint is random")
SIZE = (32, 48)


def planned(kind: str = "plain") -> nn.Module:
    torch.manual_seed(0)
    arguments = {
        "input_channels": 2, "n_stages": 4, "features_per_stage": [8, 16, 24, 32], "conv_op": nn.Conv2d,
        "kernel_sizes": 3, "strides": [1, 2, 2, 2], "num_classes": 3, "n_conv_per_stage_decoder": 1, "conv_bias": True,
        "norm_op": nn.InstanceNorm2d, "norm_op_kwargs": {"eps": 1e-5, "affine": True}, "nonlin": nn.LeakyReLU,
        "deep_supervision": True,
    }  # fmt: skip
    if kind == "plain":
        return PlainConvUNet(n_conv_per_stage=2, **arguments)
    return ResidualEncoderUNet(n_blocks_per_stage=[1, 2, 2, 2], **arguments)


def make_hybrid(**parameters) -> AutoSAM2:
    small = {"sam2_image_size": 64, "sam2_checkpoint": "random", "region_based": True, "backbone": "plans"}
    network = AutoSAM2(3, 2, planned=planned(), **{**small, **parameters})
    with torch.no_grad():
        network.unet.network.decoder.seg_layers[-1].weight *= 20  # strong opinions, as after training
    return network


@pytest.mark.parametrize("kind", ["plain", "residual"])
@torch.no_grad()
def test_logits_are_the_planned_networks_own(kind):
    network = planned(kind).eval()
    volume = torch.randn(2, 2, 3, *SIZE)
    output = PlannedUNet2d(network)(volume)
    for at in range(3):
        for ours, theirs in zip(output.logits, network(volume[:, :, at]), strict=True):
            torch.testing.assert_close(ours[:, :, at], theirs)
    assert output.middle_features.shape == (2, 24, 3, 8, 12)


@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"feature_fusion": True, "fusion": "convolutional"},
        {"enable_unet_decoder": False},
        {"propagation": "memory"},
    ],
    ids=["masks", "features and a gate that sees", "SAM2 only", "memory"],
)
@torch.inference_mode()
def test_slices_are_volumes_of_one(parameters):
    network, slices = make_hybrid(**parameters).eval(), torch.randn(2, 2, *SIZE)
    logits = network(slices)
    assert logits.shape == (2, 3, *SIZE)
    torch.testing.assert_close(logits[:, :, None], network(slices[:, :, None]))
    if network.config.enable_unet_decoder:
        network.set_mode(enable_sam2=False)
        assert not torch.allclose(logits, network(slices), atol=1e-2), "SAM2 has nothing to say"


@pytest.mark.parametrize("region_based", [True, False], ids=["regions", "labels"])
def test_all_of_it_trains(region_based):
    network, slices = make_hybrid(region_based=region_based, feature_fusion=True).train(), torch.randn(3, 2, *SIZE)
    network.set_deep_supervision(True)
    truth = (torch.rand(3, 3 if region_based else 1, *SIZE) > 0.5).float()
    targets = [truth[..., ::h, ::w] for _, h, w in network.output_strides]
    output = network(slices)
    assert output.sam2.prompted.shape == (3, 1)
    assert output.sam2.prompted.all()
    loss = AutoSAM2Loss.for_network(network)(output, targets)
    loss.backward()
    parts = (network.unet, network.sam2_branch.bridge, network.feature_fusion, network.fusion)
    assert all(any(p.grad is not None and p.grad.any() for p in part.parameters()) for part in parts)


def test_sam2_is_prompted_on_a_slice_once():
    network, slices = make_hybrid(fusion="fixed").eval(), torch.randn(1, 2, *SIZE)
    calls = []
    network.sam2_branch.sam2.image_encoder.register_forward_pre_hook(lambda _, inputs: calls.append(len(inputs[0])))
    predictor = nnUNetPredictor(device=torch.device("cpu"))
    predictor.network, predictor.allowed_mirroring_axes = network, (0, 1)
    with torch.inference_mode():
        predicted = predictor._internal_maybe_mirror_and_predict(slices)
        assert calls == [1]
        _, sam2 = network(slices, return_sam2=True)
        expected = [
            network(slices.flip(axes), sam2=sam2.mirrored([axis + 1 for axis in axes])).flip(axes)
            for axes in ((), (2,), (3,), (2, 3))
        ]
    torch.testing.assert_close(predicted, torch.stack(expected).mean(0), rtol=1e-4, atol=1e-4)
