"""Against the networks of dynamic-network-architectures themselves, as nnU-Net plans them."""

import pytest
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet
from torch import nn

from nnunet_autosam2.architectures.autosam2 import AutoSAM2
from nnunet_autosam2.architectures.planned_unet import PlannedUNet
from nnunet_autosam2.trainers.loss import AutoSAM2Loss

ISOTROPIC = ((1, 1, 1), (2, 2, 2), (2, 2, 2), (2, 2, 2))
ANISOTROPIC = ((1, 1, 1), (1, 2, 2), (1, 2, 2), (2, 2, 2))
SIZE = (16, 32, 32)


def planned(kind: str = "plain", strides: tuple = ISOTROPIC, num_classes: int = 3) -> nn.Module:
    torch.manual_seed(0)
    arguments = {
        "input_channels": 2, "n_stages": len(strides), "features_per_stage": [8, 16, 24, 32][: len(strides)],
        "conv_op": nn.Conv3d, "kernel_sizes": 3, "strides": strides, "num_classes": num_classes,
        "n_conv_per_stage_decoder": 1, "conv_bias": True, "norm_op": nn.InstanceNorm3d,
        "norm_op_kwargs": {"eps": 1e-5, "affine": True}, "nonlin": nn.LeakyReLU, "deep_supervision": True,
    }  # fmt: skip
    if kind == "plain":
        return PlainConvUNet(n_conv_per_stage=2, **arguments)
    return ResidualEncoderUNet(n_blocks_per_stage=[1, 2, 2, 2][: len(strides)], **arguments)


@pytest.mark.parametrize("strides", [ISOTROPIC, ANISOTROPIC], ids=["isotropic", "anisotropic"])
@pytest.mark.parametrize("kind", ["plain", "residual"])
@torch.no_grad()
def test_logits_are_the_planned_networks_own(kind, strides):
    network = planned(kind, strides).eval()
    volume = torch.randn(2, 2, *SIZE)
    expected = network(volume)
    backbone = PlannedUNet(network)
    output = backbone(volume)
    assert len(output.logits) == len(expected) == len(backbone.strides)
    for ours, theirs, stride in zip(output.logits, expected, backbone.strides, strict=True):
        assert torch.equal(ours, theirs)
        assert ours.shape[2:] == tuple(size // s for size, s in zip(SIZE, stride, strict=True))
    assert output.middle_features.shape[-2:] == (8, 8)
    assert output.middle_features.shape[1] == backbone.middle_channels == 24
    backbone.deep_supervision = False
    (alone,) = backbone(volume).logits
    assert torch.equal(alone, expected[0])


@pytest.mark.parametrize("kind", ["plain", "residual"])
def test_the_backward_pass_takes_the_planned_networks_own_course(kind):
    """Gradients that wait for other levels take memory. Weights get theirs in the order of the pass."""
    network, volume = planned(kind), torch.randn(2, 2, *SIZE)
    order: list[str] = []
    for name, parameter in network.named_parameters():
        parameter.register_hook(lambda _, name=name: order.append(name))
    sum(logits.sum() for logits in network(volume)).backward()
    expected = order.copy()
    order.clear()
    sum(logits.sum() for logits in PlannedUNet(network)(volume).logits).backward()
    assert order == expected


def test_names_are_nnunets():
    network = planned()
    names = set(network.state_dict())
    assert {name.removeprefix("network.") for name in PlannedUNet(network).state_dict()} == names


def make_hybrid(**parameters) -> AutoSAM2:
    small = {"sam2_image_size": 64, "sam2_checkpoint": "random", "region_based": True, "backbone": "plans"}
    network = AutoSAM2(3, 2, planned=planned(), **{**small, **parameters})
    network.set_deep_supervision(True)
    return network


@pytest.mark.filterwarnings("ignore:sam2_checkpoint is random")
@pytest.mark.parametrize(
    "mode", [{}, {"enable_sam2": False}, {"enable_unet_decoder": False}], ids=["hybrid", "UNet only", "SAM2 only"]
)
def test_every_mode_trains_what_is_trainable(mode):
    network = make_hybrid(**mode).train()
    output = network(torch.randn(1, 2, *SIZE))
    parts = [*output.unet, output.logits]
    if output.sam2 is not None:
        parts += [output.sam2.logits, output.sam2.predicted_iou, output.sam2.object_score]
    if output.fused is not None:
        parts.append(output.fused.sam2_weight)
    sum(part.square().mean() for part in parts).backward()
    for name, parameter in network.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
    network.eval().set_deep_supervision(False)
    with torch.no_grad():
        assert network(torch.randn(1, 2, 19, 33, 40)).shape == (1, 3, 19, 33, 40)


@pytest.mark.filterwarnings("ignore:sam2_checkpoint is random")
@pytest.mark.parametrize("region_based", [True, False])
@pytest.mark.parametrize("fusion", ["gated", "convolutional"])
def test_a_closed_gate_starts_as_the_backbone_and_learns(region_based, fusion):
    network = make_hybrid(backbone_checkpoint="some.pth", region_based=region_based, fusion=fusion)
    volume = torch.randn(1, 2, *SIZE)
    with torch.no_grad():
        network.unet.network.decoder.seg_layers[-1].weight *= 20  # strong opinions, as after training
        output = network.eval()(volume)
        expected = network.unet.network(volume)[0]
        assert output.sam2.prompted.any()
        assert torch.equal(output.logits, expected)
        assert not output.fused.sam2_weight.any()
        assert not torch.allclose(output.fused.sam2, expected, atol=1e-2)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    for _ in range(2):
        optimizer.zero_grad()
        output = network.train()(volume)
        (output.fused.sam2_weight - 1).square().mean().backward()
        assert network.fusion.opening.grad.any()
        optimizer.step()
    assert network.fusion.bias.grad.any()
    assert not torch.allclose(network(volume).logits, network.unet.network(volume)[0], atol=1e-4)


def state_of_backbone(network: AutoSAM2) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in network.unet.state_dict().items()}


def loss_of_a_step(network: AutoSAM2, volume: torch.Tensor) -> torch.Tensor:
    target = (torch.rand(len(volume), 3, *SIZE, generator=torch.Generator().manual_seed(0)) > 0.7).float()
    return AutoSAM2Loss.for_network(network)(network.training_outputs(volume), target)


def take_two_steps(network: AutoSAM2, volume: torch.Tensor, lr: float) -> list[nn.Parameter]:
    """Returns what has been trained, with the gradients of the second."""
    trained = [p for p in network.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=lr)
    for _ in range(2):
        optimizer.zero_grad()
        loss_of_a_step(network, volume).backward()
        optimizer.step()
    return trained


@pytest.mark.filterwarnings("ignore:sam2_checkpoint is random")
@pytest.mark.parametrize("fusion", ["gated", "convolutional"])
def test_a_frozen_backbone_runs_as_in_a_prediction_and_stays_as_it_is(fusion):
    """Even one with dropout and with norms that keep statistics."""
    network = make_hybrid(backbone_checkpoint="auto", freeze_backbone=True, fusion=fusion)
    decoder = network.unet.network.decoder
    decoder.stages[0].convs[0].norm = nn.BatchNorm3d(24)
    decoder.stages[1].convs[0].norm = nn.Sequential(decoder.stages[1].convs[0].norm, nn.Dropout3d(0.5))
    decoder.requires_grad_(False)
    network.train()
    assert network.training
    assert not any(part.training for part in network.unet.modules())
    before, volume = state_of_backbone(network), torch.randn(2, 2, *SIZE)
    trained = take_two_steps(network, volume, lr=1e-2)
    assert all(parameter.grad is not None for parameter in trained)
    assert not any(p.requires_grad or p.grad is not None for p in network.unet.parameters())
    for name, value in state_of_backbone(network).items():
        assert torch.equal(value, before[name]), name


@pytest.mark.filterwarnings("ignore:sam2_checkpoint is random")
def test_a_frozen_backbone_has_no_loss_and_keeps_nothing_for_a_backward_pass():
    network = make_hybrid(backbone_checkpoint="auto", freeze_backbone=True, sam2_loss_weight=0.0).train()
    output = network.training_outputs(torch.randn(2, 2, *SIZE))
    assert len(output.unet) == len(network.output_strides) == 1
    assert not output.unet[0].requires_grad
    target = (torch.rand(2, 3, *SIZE) > 0.7).float()
    loss = AutoSAM2Loss.for_network(network)
    loss.gated = False
    assert torch.equal(loss(output, target), loss.segmentation(output.logits, target))


@pytest.mark.parametrize("fusion", ["gated", "convolutional"])
def test_without_sam2_a_frozen_backbone_is_the_planned_network(fusion):
    network = make_hybrid(backbone_checkpoint="auto", freeze_backbone=True, fusion=fusion).eval()
    network.set_deep_supervision(False)
    network.set_mode(enable_sam2=False)
    volume = torch.randn(1, 2, *SIZE)
    with torch.no_grad():
        assert torch.equal(network(volume), planned().eval()(volume)[0])
