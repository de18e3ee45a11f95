import copy
import os
import subprocess
import sys

import pytest
import torch
from torch.nn import functional as F

from nnunet_autosam2 import AutoSAM2
from nnunet_autosam2.architectures.convolutional_gate import ConvolutionalGatedFusion
from nnunet_autosam2.architectures.fusion import GATE_LR_MULTIPLIER, with_background
from nnunet_autosam2.architectures.log_odds import decisions, versus_rival
from nnunet_autosam2.architectures.outputs import AutoSAM2Output
from nnunet_autosam2.architectures.parts import make_gate
from nnunet_autosam2.architectures.sam2.volume import take_slices
from nnunet_autosam2.architectures.slice_selection import num_slices, select_slices
from nnunet_autosam2.errors import ConfigurationError, WeightsError
from nnunet_autosam2.support.checkpoint import load_network
from nnunet_autosam2.trainers.loss import AutoSAM2Loss, WeightedBCEDiceLoss
from tests.counted_slices import counted_slices

pytestmark = pytest.mark.filterwarnings("ignore:sam2_checkpoint is random")
MODES = {
    "hybrid": {},
    "UNet only": {"enable_sam2": False},
    "SAM2 only": {"enable_unet_decoder": False},
}
EVERY_MODE = pytest.mark.parametrize("mode", MODES)
REGIONS_AND_LABELS = pytest.mark.parametrize("region_based", [True, False], ids=["regions", "labels"])
FUSIONS = ("fixed", "gated", "convolutional")
SIZE = (16, 16, 32)


def make_volume(batch: int = 1, in_channels: int = 2, size: tuple[int, ...] = SIZE) -> torch.Tensor:
    return torch.randn(batch, in_channels, *size, generator=torch.Generator().manual_seed(1))


def decided(network: AutoSAM2) -> AutoSAM2:
    """With a UNet that has strong opinions, as after training: all kinds of prompts, here and there."""
    with torch.no_grad():
        for head in network.unet.decoder.seg_layers.values():
            head.weight *= 20
    return network


def started(network: AutoSAM2) -> None:
    """With an output of a gate's convolution, as after a step; before it, what is behind it has no gradient."""
    if isinstance(network.fusion, ConvolutionalGatedFusion):
        torch.nn.init.normal_(network.fusion.output_weight, std=0.02)


def seen_by_sam2(network: AutoSAM2, volume: torch.Tensor) -> int:
    with counted_slices(network) as seen, torch.no_grad():
        network(volume)
    return sum(seen)


@pytest.fixture(scope="module")
def hybrid(make_network) -> AutoSAM2:
    return decided(make_network()).eval()


# Shapes and modes


def test_as_the_description_uses_it():
    model = AutoSAM2(num_classes=4, sam2_checkpoint="random", sam2_image_size=128).train()
    with torch.no_grad():
        assert model(torch.randn(1, 4, 16, 32, 32)).shape == (1, 4, 16, 32, 32)


@pytest.mark.parametrize(
    ("mode", "fusion"),
    [*(("hybrid", fusion) for fusion in FUSIONS), *((mode, "convolutional") for mode in ("UNet only", "SAM2 only"))],
)
@REGIONS_AND_LABELS
def test_logits_have_the_size_of_the_volume(make_network, mode, region_based, fusion):
    network = decided(make_network(region_based=region_based, fusion=fusion, **MODES[mode])).eval()
    volume = make_volume(2)
    with torch.no_grad():
        logits = network(volume)
    assert logits.shape == (2, 3, *SIZE)
    assert logits.isfinite().all()


@EVERY_MODE
@pytest.mark.parametrize("fusion", ["gated", "convolutional"])
def test_odd_sizes(make_network, mode, fusion):
    network = decided(make_network(fusion=fusion, **MODES[mode])).eval()
    started(network)
    with torch.no_grad():
        assert network(make_volume(1, 2, (19, 50, 61))).shape == (1, 3, 19, 50, 61)


@pytest.mark.parametrize("in_channels", [1, 2, 8])
def test_channel_counts(make_network, in_channels):
    network = make_network(2, in_channels).train()
    with torch.no_grad():
        assert network(make_volume(1, in_channels)).shape == (1, 2, *SIZE)


def test_anisotropic_patches(make_network):
    strides = ((1, 2, 2), (2, 2, 2), (2, 2, 2), (1, 2, 2))
    network = decided(make_network(strides=strides, training_slices=None))
    network.set_deep_supervision(True)
    output = network(make_volume(1, 2, (20, 32, 48)))
    assert output.logits.shape == (1, 3, 20, 32, 48)
    assert [tuple(logits.shape[2:]) for logits in output.unet] == [(20, 32, 48), (20, 16, 24), (10, 8, 12)]
    assert network.output_strides == [(1, 1, 1), (1, 2, 2), (2, 4, 4)]
    assert output.sam2.logits.shape == (1, 2, 6, 32, 48)


@EVERY_MODE
@REGIONS_AND_LABELS
def test_training_output(make_network, mode, region_based):
    network = make_network(region_based=region_based, slice_fraction=0.3, training_slices=None, **MODES[mode])
    network.set_deep_supervision(True)
    output = network(make_volume(2))
    assert isinstance(output, AutoSAM2Output)
    assert output.logits.shape == (2, 3, *SIZE)
    assert [logits.shape[2:] for logits in output.unet] == [
        tuple(size // stride for size, stride in zip(SIZE, strides, strict=True)) for strides in network.output_strides
    ]
    if mode == "UNet only":
        assert output.sam2 is None
        assert output.logits is output.unet[0]
        return
    regions = 3 if region_based else 2
    assert output.sam2.logits.shape == (2, regions, 5, *SIZE[1:])
    assert output.sam2.predicted_iou.shape == output.sam2.object_score.shape == (2, regions, 5)
    assert output.sam2.points.shape == (2, regions, 5, 15, 2)
    assert output.sam2.labels.shape == (2, regions, 5, 15)
    assert output.sam2.prompted.all()
    foreground = output.unet[0].sigmoid() if region_based else versus_rival(output.unet[0])[:, 1:].sigmoid()
    assert torch.equal(output.sam2.slices, select_slices(foreground, 5))
    assert len(output.unet) == (1 if mode == "SAM2 only" else 3)


@REGIONS_AND_LABELS
def test_a_training_step_asks_sam2_about_a_window_of_the_selected_slices(make_network, region_based):
    network = make_network(region_based=region_based, slice_fraction=0.5, training_slices=3)
    network.set_deep_supervision(True)
    volume = make_volume(2)
    with counted_slices(network) as seen, torch.no_grad():
        output = network.train()(volume)
        every = network.eval()(volume)
    assert sum(seen) == 2 * 3 + 2 * 8
    first = torch.searchsorted(every.sam2.slices, output.sam2.slices[:, :1].contiguous())
    assert torch.equal(output.sam2.slices, every.sam2.slices.gather(1, first + torch.arange(3)))
    positions = torch.arange(SIZE[0])
    reached = (positions >= output.sam2.slices[:, :1]) & (positions <= output.sam2.slices[:, -1:])
    slices = output.fused.slices
    assert slices.shape == (2, 8)
    assert torch.equal(slices, slices[:, :1] + torch.arange(8))
    assert torch.equal(output.fused.covered[:, 0, :, 0, 0], reached.gather(1, slices))
    reached &= torch.zeros_like(reached).scatter(1, slices, True)
    assert torch.equal(output.logits.take_along_dim(slices[:, None, :, None, None], dim=2), output.fused.logits)
    outside = ~reached[:, None, :, None, None].expand_as(output.logits)
    assert torch.equal(output.logits[outside], output.unet[0][outside])
    assert not torch.equal(output.logits, output.unet[0])


@pytest.mark.parametrize("fraction", [0.05, 0.3, 0.6, 1.0])
def test_slice_fractions(hybrid, fraction):
    network = copy.deepcopy(hybrid).train()
    network.set_mode(slice_fraction=fraction, training_slices=None)
    assert seen_by_sam2(network, make_volume()) == num_slices(SIZE[0], fraction)


def test_at_fraction_zero_there_is_no_sam2(make_network, hybrid):
    network = make_network(slice_fraction=0)
    assert network.sam2_branch is None
    assert not any("sam2" in name or "fusion" in name for name, _ in network.named_parameters())
    network.load_state_dict(hybrid.unet.state_dict(prefix="unet."))
    unet_only = make_network(enable_sam2=False)
    unet_only.load_state_dict(network.state_dict())
    switched_off = copy.deepcopy(hybrid)
    switched_off.set_mode(slice_fraction=0)
    volume = make_volume()
    with torch.no_grad():
        expected = hybrid.unet(volume).logits[0]
        assert all(torch.equal(model(volume), expected) for model in (network, unet_only, switched_off))


def test_padding_is_never_among_the_slices(make_network):
    network = decided(make_network(training_slices=None)).train()
    network.set_mode(slice_fraction=1)
    assert seen_by_sam2(network, make_volume(1, 2, (19, 16, 16))) == 19


def test_slices_and_masks_belong_together(make_network):
    """Where SAM2 alone decides, its masks come back at the depth that they were made for."""
    network = decided(make_network(enable_unet_decoder=False, region_based=True, training_slices=None))
    network.set_deep_supervision(True)
    output = network(make_volume(2))
    assert len(set(map(tuple, output.sam2.slices.tolist()))) == 2
    at_slices = take_slices(output.logits, output.sam2.slices).view(2, 5, 3, *SIZE[1:]).transpose(1, 2)
    torch.testing.assert_close(at_slices, output.sam2.logits)
    beyond = torch.arange(SIZE[0]) > output.sam2.slices[:, -1:]
    assert beyond.any()
    for b in range(2):
        assert torch.equal(output.logits[b, :, beyond[b]], output.unet[0][b, :, beyond[b]])


# set_mode


def test_set_mode_switches_between_the_modes(hybrid):
    network, volume = copy.deepcopy(hybrid), make_volume()
    with torch.no_grad():
        whole = network(volume)
        network.set_mode(enable_sam2=False)
        assert torch.equal(network(volume), network.unet(volume).logits[0])
        network.set_mode(enable_sam2=True, enable_unet_decoder=False)
        sam2_only = network(volume)
        network.set_mode(enable_unet_decoder=True)
        assert torch.equal(network(volume), whole)
    assert not torch.allclose(sam2_only, whole)


@pytest.mark.parametrize(
    ("background", "tumor", "fusion", "region_based"),
    [
        (background, tumor, fusion, (i + j) % 2 == 0)
        for i, (background, tumor) in enumerate([(0.5, 0.5), (0.9, 0.2), (1.0, 1.0)])
        for j, fusion in enumerate(FUSIONS)
    ],
)
def test_output_is_the_blend_of_the_probabilities(make_network, region_based, fusion, background, tumor):
    network = decided(make_network(region_based=region_based, fusion=fusion))
    network.set_mode(slice_fraction=1, training_slices=None, bg_blend=background, tumor_blend=tumor)
    network.set_deep_supervision(True)
    with torch.no_grad():
        output = network(make_volume())
    all_logits = (output.logits, output.unet[0], with_background(output.sam2.logits, region_based))
    if region_based:
        fused, unet, sam2 = (logits.sigmoid() for logits in all_logits)
        expected = tumor * unet + (1 - tumor) * sam2
    else:
        fused, unet, sam2 = (logits.softmax(1) for logits in all_logits)
        assert torch.equal(sam2, output.fused.sam2.softmax(1))
        weight = torch.tensor([background, tumor, tumor]).view(3, 1, 1, 1)
        expected = F.normalize(weight * unet + (1 - weight) * sam2, p=1, dim=1)
    # A learned gate starts a thousandth away from 0 and 1, where it could not learn.
    torch.testing.assert_close(fused, expected, rtol=0, atol=1e-5 if fusion == "fixed" else 2e-3)


def test_set_mode_changes_the_number_of_points(hybrid):
    network = copy.deepcopy(hybrid)
    network.set_deep_supervision(True)
    network.set_mode(num_positive_points=4, num_negative_points=0)
    assert network(make_volume()).sam2.points.shape[3] == 2 + 4


@pytest.mark.parametrize(
    ("built", "changes", "message"),
    [
        ({"enable_sam2": False}, {"slice_fracton": 0.1}, "slice_fracton cannot be changed"),
        ({"enable_sam2": False}, {"enable_unet_decoder": False}, "nothing is left to predict with"),
        ({"enable_sam2": False}, {"enable_sam2": True}, "built without SAM2"),
        ({"slice_fraction": 0}, {"slice_fraction": 0.3}, "built without SAM2"),
        ({"enable_unet_decoder": False}, {"enable_unet_decoder": True}, "built without the UNet's decoder"),
    ],
)
def test_set_mode_refuses_what_is_not_there(make_network, built, changes, message):
    network = make_network(**built)
    before = network.config
    with pytest.raises(ConfigurationError, match=message):
        network.set_mode(**changes)
    assert network.config == before


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"rgb_channels": (0, 1, 2)}, "rgb_channels.*2 channels"),
        ({"slice_fracton": 0.3}, "Did you mean slice_fraction"),
    ],
)
def test_impossible_parameters(make_network, parameters, message):
    with pytest.raises(ConfigurationError, match=message):
        make_network(**parameters)


def test_training_patches_have_to_fit_the_strides(make_network):
    network = make_network(enable_sam2=False)
    network.set_deep_supervision(True)
    with pytest.raises(ConfigurationError, match=r"\(12, 16, 16\).*\(16, 16, 16\)"):
        network(make_volume(size=(12, 16, 16)))


# Gradients


def targets_for(output: AutoSAM2Output, network: AutoSAM2) -> list[torch.Tensor]:
    """Random, with foreground everywhere, in nnU-Net's form."""
    generator = torch.Generator().manual_seed(2)
    batch, channels, *size = output.logits.shape
    if network.config.region_based:
        full = (torch.rand(batch, channels, *size, generator=generator) > 0.7).float()
    else:
        full = torch.randint(0, channels, (batch, 1, *size), generator=generator).float()
    return [F.interpolate(full, logits.shape[2:], mode="nearest") for logits in output.unet]


def train_step(network: AutoSAM2, volume: torch.Tensor, make_targets=targets_for) -> torch.Tensor:
    network.set_deep_supervision(True)
    output = network.train()(volume)
    loss = AutoSAM2Loss(WeightedBCEDiceLoss(network.num_classes, region_based=network.config.region_based))
    value = loss(output, make_targets(output, network))
    value.backward()
    return value


@pytest.mark.parametrize(
    ("mode", "fusion", "tuning", "region_based"),
    [
        ("UNet only", "gated", "decoder", True),
        ("UNet only", "gated", "decoder", False),
        *(("SAM2 only", "gated", "decoder", regions) for regions in (True, False)),
        *(("hybrid", fusion, "decoder", regions) for fusion in FUSIONS for regions in (True, False)),
        *((mode, "gated", tuning, True) for mode in ("hybrid", "SAM2 only") for tuning in ("frozen", "lora", "full")),
    ],
)
def test_what_trains_gets_a_gradient_and_nothing_else_does(make_network, mode, fusion, tuning, region_based):
    network = make_network(fusion=fusion, sam2_tuning=tuning, region_based=region_based, **MODES[mode])
    for name, parameter in network.named_parameters():
        if "lora_B" in name:  # while it is 0, as at the start, its partner has no gradient
            torch.nn.init.normal_(parameter, std=0.02)
    started(network)
    assert train_step(decided(network), make_volume(2)).isfinite()
    for name, parameter in network.named_parameters():
        if not parameter.requires_grad:
            assert parameter.grad is None, name
            continue
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        # A softmax does not notice what is added to all keys: the true gradient of their bias is 0.
        assert parameter.grad.any() or name.endswith("k_proj.bias"), name
    trained = {name.split(".")[0] for name, parameter in network.named_parameters() if parameter.requires_grad}
    expected = {"unet"} if mode == "UNet only" else {"unet", "sam2_branch"}
    assert trained == (expected | {"fusion"} if mode == "hybrid" and fusion != "fixed" else expected)


@EVERY_MODE
@pytest.mark.parametrize("fusion", ["gated", "convolutional"])
def test_none_is_unused_where_the_unet_sees_nothing(make_network, mode, fusion):
    network = make_network(region_based=True, fusion=fusion, **MODES[mode])
    for head in network.unet.decoder.seg_layers.values():
        torch.nn.init.constant_(head.bias, -100)
    assert train_step(network, make_volume()).isfinite()
    trainable = [parameter for parameter in network.parameters() if parameter.requires_grad]
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in trainable)


@pytest.mark.parametrize(("dtype", "region_based"), [(torch.bfloat16, False), (torch.float16, True)], ids=str)
def test_training_step_in_half_precision(make_network, dtype, region_based):
    # Four voxels a side at the bottom: on some CPUs torch's bfloat16 gradient of a convolution over 2 is garbage.
    strides = ((2, 2, 2), (2, 2, 2), (1, 1, 1), (1, 1, 1))
    network = decided(make_network(region_based=region_based, strides=strides))
    with torch.autocast("cpu", dtype=dtype):
        assert train_step(network, make_volume(size=(16, 16, 16))).isfinite()
    trainable = [parameter for parameter in network.parameters() if parameter.requires_grad]
    assert all(parameter.grad.isfinite().all() for parameter in trainable)


def test_the_masks_train_the_unet_through_the_bridge(make_network):
    network = decided(make_network(enable_unet_decoder=False, region_based=True))
    network.set_deep_supervision(True)
    network.train()(make_volume()).sam2.logits.square().mean().backward()
    assert network.unet.encoder.stem.conv.weight.grad.any()
    assert all(head.weight.grad is None for head in network.unet.decoder.seg_layers.values())


@EVERY_MODE
@pytest.mark.parametrize(
    ("content", "region_based", "foreground"),
    [
        ("zero", True, 0),
        ("zero", False, 1),
        ("constant", True, 1),
        ("constant", False, 0),
        ("huge", True, 0),
        ("huge", False, 1),
    ],
)
def test_training_step_on_odd_patches(make_network, mode, region_based, content, foreground):
    network = make_network(region_based=region_based, **MODES[mode])
    volume = {"zero": 0.0, "constant": 7.0, "huge": 1e4}[content] * torch.ones(1, 2, *SIZE)

    def make_targets(output: AutoSAM2Output, _network: AutoSAM2) -> list[torch.Tensor]:
        targets = [torch.zeros(1, 3 if region_based else 1, *logits.shape[2:]) for logits in output.unet]
        for target in targets:
            target[0, 0, 0, 0, :foreground] = 1
        return targets

    assert train_step(network, volume, make_targets).isfinite()
    assert all(parameter.grad.isfinite().all() for parameter in network.parameters() if parameter.requires_grad)
    network.set_deep_supervision(False)
    with torch.no_grad():
        assert network.eval()(volume[:, :, :1]).isfinite().all()


def unet_after_training(network: AutoSAM2) -> dict[str, torch.Tensor]:
    optimizer = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(2):
        optimizer.zero_grad()
        train_step(network, make_volume(2))
        optimizer.step()
    return network.unet.state_dict()


@pytest.mark.parametrize(("fusion", "region_based"), zip(FUSIONS, (True, False, True), strict=True))
def test_the_unet_trains_as_it_would_without_sam2(make_network, fusion, region_based):
    networks = [
        make_network(fusion=fusion, region_based=region_based, **changes)
        for changes in ({"enable_sam2": False}, {}, {"joint_training": True})
    ]
    for network in networks:
        network.unet.load_state_dict(networks[0].unet.state_dict())
    alone, beside, jointly = (unet_after_training(network) for network in networks)
    assert all(torch.equal(alone[name], beside[name]) for name in alone)
    assert not any(torch.equal(alone[name], jointly[name]) for name in alone if name.endswith("conv.weight"))


@pytest.mark.parametrize(
    ("mode", "fusion", "closed"),
    [
        ("UNet only", "gated", False),
        ("SAM2 only", "gated", False),
        *(("hybrid", fusion, closed) for fusion in ("gated", "convolutional") for closed in (False, True)),
    ],
)
@REGIONS_AND_LABELS
def test_a_loss_of_the_logits_alone_trains_what_they_are_made_of(make_network, mode, region_based, closed, fusion):
    """As whoever trains without nnU-Net may do it."""
    network = make_network(region_based=region_based, fusion=fusion, **MODES[mode])
    if closed:
        network.fusion = make_gate(network.config, 3, network.unet, closed=True)
        torch.nn.init.constant_(network.fusion.opening, 0.5 / GATE_LR_MULTIPLIER)
    started(network)
    decided(network).train()
    logits, target = network(make_volume(2)), torch.randint(3, (2, *SIZE), generator=torch.Generator().manual_seed(3))
    F.cross_entropy(logits, target).backward()
    judgements = ("iou_prediction_head", "pred_obj_score_head", "iou_token", "obj_score_token")  # of the masks
    still = {n for n, p in network.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())}
    coarse = {"unet.decoder.seg_layers.1", "unet.decoder.seg_layers.2"} if mode != "SAM2 only" else {"unet.decoder.seg"}
    left = {
        name
        for name in still
        if not name.endswith("k_proj.bias")
        and not any(part in name for part in judgements)
        and not name.startswith(tuple(coarse))
    }
    assert not left


def test_training_outputs_are_those_of_deep_supervision(make_network):
    network, volume = decided(make_network(region_based=True)), make_volume()
    outputs = network.training_outputs(volume)
    assert isinstance(network(volume), torch.Tensor)
    network.set_deep_supervision(True)
    for ours, theirs in zip(outputs.unet, network(volume).unet, strict=True):
        assert torch.equal(ours, theirs)


# Reproducible, batched, and sparing


@EVERY_MODE
def test_same_seed_same_prediction(make_network, mode):
    predictions = []
    for _ in range(2):
        torch.manual_seed(0)
        network = AutoSAM2(2, 2, sam2_image_size=64, sam2_checkpoint="random", **MODES[mode])
        with torch.no_grad():
            predictions.append(decided(network).eval()(make_volume()))
    assert torch.equal(*predictions)


@EVERY_MODE
def test_a_batch_of_two_predicts_what_the_two_predict_alone(make_network, mode):
    network, volume = decided(make_network(**MODES[mode])).eval(), make_volume(2)
    with torch.no_grad():
        together = network(volume)
        alone = torch.cat([network(volume[i : i + 1]) for i in range(2)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)


def test_state_dict_round_trip(make_network, hybrid, tmp_path):
    torch.save(hybrid.state_dict(), tmp_path / "network.pth")
    other = make_network(seed=1).eval()
    other.load_state_dict(torch.load(tmp_path / "network.pth", weights_only=True))
    with torch.no_grad():
        assert torch.equal(other(make_volume()), hybrid(make_volume()))


def opinion(logits: torch.Tensor) -> torch.Tensor:
    """Of one region or of background and foreground, above 0 where there is foreground."""
    return logits[:, -1] if logits.shape[1] == 1 else logits[:, 1] - logits[:, 0]


def make_network_that_sees(make_network, region_based: bool, volume: torch.Tensor, count: int) -> AutoSAM2:
    """With foreground on `count` of the slices, and SAM2 for all of them."""
    network = make_network(1 if region_based else 2, region_based=region_based, slice_fraction=1).eval()
    with torch.no_grad():
        highest = opinion(network.unet(volume).logits[0]).amax((0, 2, 3)).sort(descending=True).values
        threshold = highest[0] + 1 if count == 0 else (highest[count - 1] + highest[count]) / 2
        network.unet.decoder.seg_layers["0"].bias[-1] -= threshold
    return network


@pytest.mark.parametrize(("region_based", "count"), [(True, 0), (True, 1), (True, 9), (False, 9)])
def test_a_prediction_asks_sam2_only_where_the_unet_sees_something_and_beside_it(make_network, region_based, count):
    volume = make_volume()
    network = make_network_that_sees(make_network, region_based, volume, count)
    network.set_deep_supervision(True)
    with torch.no_grad():
        output = network(volume)
    unet, fused = opinion(output.unet[0])[0], opinion(output.logits)[0]
    sees = (unet > 0).any(2).any(1)
    assert sees.sum() == count
    there = sees.nonzero().flatten().tolist()
    prompted = output.sam2.prompted[0]
    assert prompted.tolist() == [any(abs(d - other) <= 1 for other in there) for d in range(len(sees))]
    assert seen_by_sam2(network, volume) == prompted.sum()
    torch.testing.assert_close(fused[~prompted], unet[~prompted], rtol=1e-4, atol=1e-4)
    if count:
        assert not torch.allclose(fused[sees], unet[sees], atol=1e-2)


def test_skipping_one_sample_leaves_the_other_alone(make_network):
    volume = torch.cat([make_volume(), torch.zeros(1, 2, *SIZE)])
    network = make_network_that_sees(make_network, True, volume[:1], 4)
    with torch.no_grad():
        together = network(volume)
        alone = torch.cat([network(volume[i : i + 1]) for i in range(2)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)


def test_a_prediction_measures_no_kernels_for_its_slices(make_network, monkeypatch):
    """Their number differs from patch to patch; a training always has the same."""
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)  # as nnU-Net sets it
    network, seen = make_network(), []
    network.sam2_branch.register_forward_pre_hook(lambda *_: seen.append(torch.backends.cudnn.benchmark))
    for trains in (True, False):
        network.train(trains)(make_volume(), torch.ones(1, 2, *SIZE))
    assert seen == [True, False]
    assert torch.backends.cudnn.benchmark


@EVERY_MODE
@pytest.mark.parametrize(
    "volume",
    [
        torch.zeros(1, 2, *SIZE),
        torch.full((1, 2, *SIZE), 3.0),
        make_volume(size=(1, 16, 16)),
        make_volume(size=(5, 7, 3)),
        make_volume(size=(1, 1, 1)),
        1e4 * make_volume(),
    ],
    ids=["zero", "constant", "one slice", "smaller than the strides", "one voxel", "huge"],
)
def test_unusual_volumes_give_finite_logits(make_network, mode, volume):
    network = decided(make_network(**MODES[mode]))
    for training in (True, False):
        with torch.no_grad():
            logits = network.train(training)(volume)
        assert logits.shape == (1, 3, *volume.shape[2:])
        assert logits.isfinite().all()


# SAM2's weights


def test_partial_state_does_not_count_as_sam2s_weights(make_network, hybrid, monkeypatch, tmp_path):
    monkeypatch.setenv("AUTOSAM2_SAM2_WEIGHTS", str(tmp_path / "missing.pt"))
    network = make_network(sam2_checkpoint="auto").train()
    network.load_state_dict(hybrid.unet.state_dict(prefix="unet."), strict=False)
    with pytest.raises(WeightsError, match=r"missing\.pt"):
        network(make_volume())
    network.load_state_dict(hybrid.state_dict())
    assert network(make_volume()).isfinite().all()


def test_weights_come_from_the_file_that_the_configuration_names(make_network, hybrid, tmp_path):
    path = tmp_path / "sam2.pt"
    torch.save({"model": hybrid.sam2_branch.sam2.state_dict()}, path)
    network = make_network(seed=1, sam2_checkpoint=str(path)).train()
    network(make_volume())
    for name, tensor in network.sam2_branch.sam2.state_dict().items():
        assert torch.equal(tensor, hybrid.sam2_branch.sam2.state_dict()[name])


WITHOUT_WEIGHTS = """
import torch
from nnunet_autosam2 import AutoSAM2
from nnunet_autosam2.errors import WeightsError
network, volume = AutoSAM2(2, 1, sam2_image_size=64).train(), torch.randn(1, 1, 16, 16, 16)
for _ in range(2):
    try:
        network(volume)
    except WeightsError as error:
        print(error)
    network.load_state_dict(network.state_dict())  # which has none either
"""


def test_without_any_weights_the_first_use_says_how_to_get_them(tmp_path):
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    environment.pop("AUTOSAM2_SAM2_WEIGHTS", None)
    run = subprocess.run(
        [sys.executable, "-c", WITHOUT_WEIGHTS], env=environment, capture_output=True, text=True, check=True
    )
    message, again = run.stdout.splitlines()
    assert all(way in message for way in ("sam2_checkpoint=FILE", "AUTOSAM2_SAM2_WEIGHTS", "model hub"))
    assert again == message


def test_the_state_of_a_hybrid_fills_its_unet_alone(make_network, hybrid):
    alone = make_network(enable_sam2=False, seed=1, region_based=hybrid.config.region_based)
    alone.load_state_dict(hybrid.state_dict())
    load_network(alone, hybrid.state_dict(), "as `autosam2 show` does")
    for name, value in hybrid.unet.state_dict().items():
        assert torch.equal(alone.unet.state_dict()[name], value), name
    with pytest.raises(RuntimeError, match="Missing key"):
        alone.load_state_dict({"sam2_branch.anything": torch.zeros(1)})


def test_a_label_that_wins_with_less_than_one_half_is_asked_about(make_network):
    network = make_network(21, region_based=False, slice_fraction=0.5).eval()
    network.set_deep_supervision(True)
    with torch.no_grad():
        output = network(make_volume())
    probability, winner = output.unet[0].softmax(1).max(1)
    assert probability.max() < 0.5
    expected = decisions(output.unet[0], region_based=False)[:, 1:]
    assert winner.any()
    on_slices = expected[0, :, output.sam2.slices[0]].flatten(2).any(2)
    assert torch.equal((output.sam2.labels[0] == 2).any(-1), on_slices)  # a box around each of them
    assert on_slices.any()
