import subprocess
import sys
from datetime import timedelta
from unittest import mock

import pytest
import torch
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
from nnunetv2.utilities.helpers import softmax_helper_dim1
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from torch.nn import functional as F

from nnunet_autosam2.architectures.fusion import Fused
from nnunet_autosam2.architectures.masks import SampleMasks
from nnunet_autosam2.architectures.outputs import AutoSAM2Output
from nnunet_autosam2.architectures.slice_axes import size_along, sliced_along
from nnunet_autosam2.config import AutoSAM2Config
from nnunet_autosam2.errors import ConfigurationError
from nnunet_autosam2.trainers import loss as loss_module
from nnunet_autosam2.trainers.loss import (
    AutoSAM2Loss,
    WeightedBCEDiceLoss,
    cost_in_dice,
    gate_loss,
    iou_loss,
    object_loss,
)

B, C, SIZE = 2, 3, (4, 6, 5)
IGNORE = C
WEIGHTS = (1.0, 0.25, 3.0)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def make_logits(channels: int = C) -> torch.Tensor:
    return 3 * torch.randn(B, channels, *SIZE)


def make_regions(ignore: bool = False) -> torch.Tensor:
    return torch.rand(B, C + ignore, *SIZE) < 0.3


def make_labels(ignore: bool = False) -> torch.Tensor:
    return torch.randint(0, C + ignore, (B, 1, *SIZE))


def make_target(region_based: bool, ignore: bool = False) -> torch.Tensor:
    return make_regions(ignore) if region_based else make_labels(ignore)


def make_loss(region_based: bool, ignore: bool = False, **kwargs) -> WeightedBCEDiceLoss:
    return WeightedBCEDiceLoss(C, region_based=region_based, ignore_label=IGNORE if ignore else None, **kwargs)


def one_hot(labels: torch.Tensor) -> torch.Tensor:
    return F.one_hot(labels[:, 0], C).movedim(-1, 1).float()


def test_default_is_30_percent_bce_and_70_percent_dice():
    logits, target = make_logits(), make_regions()
    bce = make_loss(True, bce_weight=1, dice_weight=0)(logits, target)
    dice = make_loss(True, bce_weight=0, dice_weight=1)(logits, target)
    torch.testing.assert_close(make_loss(True)(logits, target), 0.3 * bce + 0.7 * dice)


@pytest.mark.parametrize("region_based", [True, False], ids=["regions", "labels"])
@pytest.mark.parametrize("ignore", [True, False], ids=["ignore", "no ignore"])
@pytest.mark.parametrize("batch_dice", [True, False], ids=["batch", "sample"])
def test_dice_equals_nnunet(region_based, ignore, batch_dice):
    logits, target = make_logits().requires_grad_(), make_target(region_based, ignore)
    nonlinearity = torch.sigmoid if region_based else softmax_helper_dim1
    oracle = MemoryEfficientSoftDiceLoss(nonlinearity, batch_dice, do_bg=region_based, smooth=1e-5, ddp=False)
    if region_based:
        mask = ~target[:, C:] if ignore else None
        expected = oracle(logits, target[:, :C], mask)
    else:
        mask = target != IGNORE
        expected = oracle(logits, torch.where(mask, target, 0), mask if ignore else None)
    loss = make_loss(region_based, ignore, bce_weight=0, dice_weight=1, batch_dice=batch_dice)(logits, target)

    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(*(torch.autograd.grad(value, logits)[0] for value in (loss, expected)))


@pytest.mark.parametrize("class_weights", [None, WEIGHTS], ids=["equal", "weighted"])
@pytest.mark.parametrize("region_based", [True, False], ids=["regions", "labels"])
def test_bce_equals_torch(region_based, class_weights):
    logits, target = make_logits().requires_grad_(), make_target(region_based)
    weights = torch.tensor(class_weights or [1.0] * C)
    weights = (weights / weights.mean()).view(C, 1, 1, 1)
    if region_based:
        expected = F.binary_cross_entropy_with_logits(logits, target.float(), weights)
    else:
        expected = F.binary_cross_entropy(logits.softmax(1), one_hot(target), weights)
    loss = make_loss(region_based, bce_weight=1, dice_weight=0, class_weights=class_weights)(logits, target)

    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(
        *(torch.autograd.grad(value, logits)[0] for value in (loss, expected)), rtol=1e-4, atol=1e-7
    )


@pytest.mark.parametrize("region_based", [True, False], ids=["regions", "labels"])
@pytest.mark.parametrize("batch_dice", [True, False], ids=["batch", "sample"])
def test_weighted_dice_is_the_weighted_mean_of_dice_by_class(region_based, batch_dice):
    logits, target = make_logits(), make_target(region_based)
    probability, truth = (logits.sigmoid(), target.float()) if region_based else (logits.softmax(1), one_hot(target))
    channels = range(C) if region_based else range(1, C)  # no background, as in nnU-Net
    oracle = MemoryEfficientSoftDiceLoss(None, batch_dice, do_bg=True, smooth=1e-5, ddp=False)
    by_class = [WEIGHTS[c] * oracle(probability[:, c : c + 1], truth[:, c : c + 1]) for c in channels]
    expected = sum(by_class) / sum(WEIGHTS[c] for c in channels)
    kwargs = {"bce_weight": 0, "dice_weight": 1, "class_weights": WEIGHTS, "batch_dice": batch_dice}

    torch.testing.assert_close(make_loss(region_based, **kwargs)(logits, target), expected)


@pytest.mark.parametrize("region_based", [True, False], ids=["regions", "labels"])
def test_equal_weights_equal_none_whatever_their_size(region_based):
    logits, target = make_logits(), make_target(region_based)
    expected = make_loss(region_based)(logits, target)
    torch.testing.assert_close(make_loss(region_based, class_weights=[7] * C)(logits, target), expected)


@pytest.mark.parametrize("region_based", [True, False], ids=["regions", "labels"])
@pytest.mark.parametrize("class_weights", [None, WEIGHTS], ids=["equal", "weighted"])
def test_ignored_voxels_do_not_exist(region_based, class_weights):
    logits, target = make_logits(), make_target(region_based, ignore=True)
    loss = make_loss(region_based, ignore=True, class_weights=class_weights, batch_dice=True)(logits, target)

    kept = ~target[:, C] if region_based else target[:, 0] != IGNORE
    kept_logits = logits.movedim(1, -1)[kept].T[None]
    kept_target = target.movedim(1, -1)[kept].T[None][:, :C]
    without = make_loss(region_based, class_weights=class_weights, batch_dice=True)
    torch.testing.assert_close(loss, without(kept_logits, kept_target))


@pytest.mark.parametrize("region_based", [True, False], ids=["regions", "labels"])
@pytest.mark.parametrize("batch_dice", [True, False], ids=["batch", "sample"])
def test_ignored_samples_and_batches_contribute_nothing(region_based, batch_dice):
    logits, target = make_logits().requires_grad_(), make_target(region_based)
    if region_based:
        target = torch.cat([target, torch.zeros_like(target[:, :1])], 1)
    loss = make_loss(region_based, ignore=True, batch_dice=batch_dice)
    first_alone = loss(logits[:1], target[:1])
    target[1, -1] = True if region_based else IGNORE
    torch.testing.assert_close(loss(logits, target), first_alone)

    target[:, -1] = True if region_based else IGNORE
    nothing = loss(logits, target)
    assert nothing.item() == 0
    assert not torch.autograd.grad(nothing, logits)[0].any()


@pytest.mark.parametrize("region_based", [True, False], ids=["regions", "labels"])
@pytest.mark.parametrize("ignore", [True, False], ids=["ignore", "no ignore"])
def test_every_type_of_target_gives_the_same(region_based, ignore):
    logits, target = make_logits(), make_target(region_based, ignore)
    loss = make_loss(region_based, ignore)
    expected = loss(logits, target)
    for dtype in (torch.float32, torch.int16, torch.uint8, torch.int64):
        torch.testing.assert_close(loss(logits, target.to(dtype)), expected, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("region_based", [True, False], ids=["regions", "labels"])
def test_half_precision_is_computed_in_float32(region_based, dtype):
    logits, target = make_logits().to(dtype), make_target(region_based)
    loss = make_loss(region_based)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = loss(logits, target)
    assert inside.dtype == torch.float32
    torch.testing.assert_close(inside, loss(logits.float(), target), rtol=0, atol=0)


@pytest.mark.parametrize("region_based", [True, False], ids=["regions", "labels"])
def test_huge_logits_give_finite_losses_and_gradients_that_point_down(region_based):
    logits = (1e4 * torch.randn(B, C, *SIZE).sign()).requires_grad_()
    target = make_target(region_based)
    loss = make_loss(region_based, bce_weight=1, dice_weight=1)(logits, target)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert loss.isfinite()
    assert loss > 100
    assert gradient.isfinite().all()
    truth = target if region_based else one_hot(target).bool()
    assert gradient[truth & (logits < 0)].max() < 0


def test_wrong_number_of_class_weights_names_key_and_numbers():
    with pytest.raises(ConfigurationError, match=r"class_weights has 2 numbers.*needs 3"):
        make_loss(True, class_weights=[1, 2])


SECOND_PROCESS = """
import sys, torch
from nnunet_autosam2.trainers.loss import WeightedBCEDiceLoss
folder = sys.argv[1]
torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=1, world_size=2)
logits, target = torch.load(f"{folder}/case.pt")
logits = logits[1:].requires_grad_()
loss = WeightedBCEDiceLoss(3, region_based=True, bce_weight=0, dice_weight=1, batch_dice=True, ddp=True)
loss(logits, target[1:]).backward()
"""


def test_batch_dice_is_one_over_all_processes(tmp_path):
    logits, target = make_logits().requires_grad_(), make_regions()
    kwargs = {"bce_weight": 0, "dice_weight": 1, "batch_dice": True}
    expected = make_loss(True, **kwargs)(logits, target)
    (expected_gradient,) = torch.autograd.grad(expected, logits)
    torch.save((logits.detach(), target), tmp_path / "case.pt")
    second = subprocess.Popen([sys.executable, "-c", SECOND_PROCESS, str(tmp_path)])
    torch.distributed.init_process_group(
        "gloo",
        init_method=f"file://{tmp_path}/rendezvous",
        rank=0,
        world_size=2,
        timeout=timedelta(seconds=120),
    )
    try:
        loss = make_loss(True, **kwargs, ddp=True)(logits[:1], target[:1])
        (gradient,) = torch.autograd.grad(loss, logits)
    finally:
        torch.distributed.destroy_process_group()
        second.wait(timeout=60)

    assert second.returncode == 0
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradient[0] / 2, expected_gradient[0])  # DDP averages over processes


# The whole output of the network

K = 2
SLICES = torch.tensor([[0, 2], [1, 3]])


def make_output(region_based: bool, scales: int = 3) -> tuple[AutoSAM2Output, list[torch.Tensor]]:
    """Leaves that require gradients, and nnU-Net's list of targets."""
    sizes = [tuple(max(s // 2**i, 1) for s in SIZE) for i in range(scales)]
    unet = tuple((3 * torch.randn(B, C, *size)).requires_grad_() for size in sizes)
    full = make_target(region_based)
    targets = [F.interpolate(full.float(), size, mode="nearest-exact").to(full.dtype) for size in sizes]
    num_regions = C if region_based else C - 1
    masks = SampleMasks(
        logits=torch.randn(B, num_regions, K, *SIZE[1:], requires_grad=True),
        predicted_iou=torch.rand(B, num_regions, K, requires_grad=True),
        object_score=torch.randn(B, num_regions, K, requires_grad=True),
        slices=SLICES,
        prompted=torch.ones(B, K, dtype=torch.bool),
        points=torch.zeros(B, num_regions, K, 1, 2),
        labels=torch.full((B, num_regions, K, 1), -1),
    )
    return AutoSAM2Output(make_logits().requires_grad_(), unet, masks), targets


@pytest.mark.parametrize("region_based", [True, False], ids=["regions", "labels"])
def test_total_is_the_sum_of_its_parts(region_based):
    output, targets = make_output(region_based)
    loss = make_loss(region_based)
    scales = [loss(logits, target) for logits, target in zip(output.unet, targets, strict=True)]
    unet = (4 * scales[0] + 2 * scales[1] + scales[2]) / 7
    at_slices = torch.stack([targets[0][b][:, SLICES[b]] for b in range(B)])
    truth = at_slices.float() if region_based else one_hot(at_slices)[:, 1:]
    masks = output.sam2
    background = torch.zeros(B, 0 if region_based else 1, K, *SIZE[1:])
    everything = torch.ones(B, 1, K, *SIZE[1:])
    sam2 = (
        loss(torch.cat([background, masks.logits], dim=1), at_slices)
        + 0.05 * iou_loss(masks.predicted_iou, masks.logits, truth, everything)
        + 0.05 * object_loss(masks.object_score, truth, everything)
    )
    expected = loss(output.logits, targets[0]) + 0.5 * unet + 2 * sam2
    torch.testing.assert_close(AutoSAM2Loss(loss, 0.5, 2.0)(output, targets), expected)


@pytest.mark.parametrize("region_based", [True, False], ids=["regions", "labels"])
def test_every_output_gets_a_gradient(region_based):
    output, targets = make_output(region_based, scales=2)
    AutoSAM2Loss(make_loss(region_based))(output, targets).backward()
    leaves = [output.logits, *output.unet, *output.sam2[:3]]
    assert all(leaf.grad is not None and leaf.grad.abs().sum() > 0 for leaf in leaves)


def test_deep_supervision_halves_weights_as_nnunet_does():
    output, targets = make_output(True)
    loss = make_loss(True)
    oracle = DeepSupervisionWrapper(loss, [4 / 7, 2 / 7, 1 / 7])
    torch.testing.assert_close(AutoSAM2Loss(loss).deep_supervision(output.unet, targets), oracle(output.unet, targets))


def test_unet_alone_is_deep_supervision_whatever_the_weights():
    output, targets = make_output(True)
    loss = AutoSAM2Loss(make_loss(True), unet_loss_weight=0, sam2_loss_weight=3)
    unet_only = AutoSAM2Output(output.unet[0], output.unet, None)
    torch.testing.assert_close(loss(unet_only, targets), loss.deep_supervision(output.unet, targets))


def test_coarse_targets_beyond_the_outputs_are_left_out():
    output, targets = make_output(True)
    loss = AutoSAM2Loss(make_loss(True))
    single = output._replace(unet=output.unet[:1])
    torch.testing.assert_close(loss(single, targets), loss(single, targets[:1]))


def test_plain_logits_need_no_list():
    logits, target = make_logits(), make_regions()
    loss = AutoSAM2Loss(make_loss(True))
    expected = loss.segmentation(logits, target)
    assert loss(logits, target) == loss(logits, [target]) == expected


def test_iou_head_learns_the_iou_of_the_mask_where_the_region_is():
    truth = torch.zeros(1, 2, 2, 2, 2)
    truth[0, 0, 0, 0] = 1  # region 0 has two voxels on slice 0; nothing else anywhere
    logits = torch.full((1, 2, 2, 2, 2), -5.0)
    logits[0, 0, 0, :, 0] = 5.0  # one of them is hit, one other voxel too: IoU 1/3
    logits.requires_grad_()
    predicted = torch.tensor([[[0.5, 0.9], [0.9, 0.9]]])
    everything = torch.ones(1, 1, 2, 2, 2)
    loss = iou_loss(predicted, logits, truth, everything)
    assert not loss.requires_grad
    assert loss.item() == pytest.approx(0.5 - 1 / 3)

    without_false_positive = everything.clone()
    without_false_positive[0, 0, 0, 1, 0] = 0
    assert iou_loss(predicted, logits, truth, without_false_positive).item() == pytest.approx(0.0)
    assert iou_loss(predicted, logits, truth * 0, everything).item() == 0


def test_object_head_learns_presence_on_slices_that_count():
    truth = torch.zeros(1, 2, 2, 2, 2)
    truth[0, 0, 0, 0, 0] = 1
    score = torch.tensor([[[1.0, -2.0], [3.0, -4.0]]])
    everything = torch.ones(1, 1, 2, 2, 2)
    present = torch.tensor([[[1.0, 0.0], [0.0, 0.0]]])
    expected = F.binary_cross_entropy_with_logits(score, present)
    torch.testing.assert_close(object_loss(score, truth, everything), expected)

    first_slice = everything.clone()
    first_slice[:, :, 1] = 0
    expected = F.binary_cross_entropy_with_logits(score[..., 0], present[..., 0])
    torch.testing.assert_close(object_loss(score, truth, first_slice), expected)
    assert object_loss(score, truth, everything * 0).item() == 0


REGIONS = LabelManager({"background": 0, "WT": (1, 2, 3), "TC": (2, 3), "ET": 3, "ignore": 4}, (1, 2, 3))
LABELS = LabelManager({"background": 0, "a": 1, "b": 2, "ignore": 3}, None)


def make_fused(weight: torch.Tensor | float, unet: torch.Tensor, logits: torch.Tensor | None = None) -> Fused:
    covered = torch.arange(SIZE[0]).view(1, 1, -1, 1, 1).expand(B, 1, SIZE[0], 1, 1) > 0
    sam2 = make_logits().requires_grad_()
    logits = sam2.detach() if logits is None else logits
    return Fused(logits, unet, sam2, weight * torch.ones(B, C, *SIZE), covered)


@pytest.mark.parametrize("region_based", [True, False], ids=["regions", "labels"])
def test_gate_learns_how_often_sam2_is_right_where_the_two_disagree(region_based):
    unet, truth = make_logits().requires_grad_(), make_target(True).float()
    counted = (torch.rand(B, 1, *SIZE) > 0.3).float()
    weight = torch.full((1, C, 1, 1, 1), 0.5, requires_grad=True)
    sam2 = make_fused(weight, unet).sam2
    logits = unet.detach() + sam2.detach()
    unet_says, sam2_says, all_say = (
        x > 0 if region_based else F.one_hot(x.argmax(1), C).movedim(-1, 1).bool() for x in (unet, sam2, logits)
    )
    disputed = (unet_says != sam2_says) & (counted > 0) & make_fused(weight, unet).covered
    cost = disputed * cost_in_dice(all_say, truth, counted)
    right = (cost * (sam2_says == truth.bool())).sum((2, 3, 4)) / cost.sum((2, 3, 4))
    for _ in range(200):
        loss = gate_loss(make_fused(weight, unet, logits)._replace(sam2=sam2), truth, counted, region_based)
        (gradient,) = torch.autograd.grad(loss, weight)
        with torch.no_grad():
            weight -= gradient
    assert weight.flatten().tolist() == pytest.approx(right.mean(0).tolist(), abs=1e-3)
    loss = gate_loss(make_fused(weight, unet, logits)._replace(sam2=sam2), truth, counted, region_based)
    loss.backward()
    assert unet.grad is None
    assert sam2.grad is None


def test_a_voxel_costs_what_dice_loses_by_it():
    shape = (1, 1, 20, 40, 40)
    truth, foreground = (torch.rand(2, *shape[1:]) < 0.2).float().split(1)
    foreground = torch.maximum(foreground, truth * (torch.rand(shape) < 0.7))
    counted = (torch.rand(shape) < 0.8).float()
    cost = cost_in_dice(foreground.bool(), truth, counted)

    def dice(decided: torch.Tensor) -> float:
        return float(2 * (decided * truth * counted).sum() / ((decided + truth) * counted).sum())

    def what_a_wrong_decision_costs(true: float) -> float:
        voxel = tuple(((truth == true) & (counted > 0)).nonzero()[0])
        right, wrong = foreground.clone(), foreground.clone()
        right[voxel], wrong[voxel] = true, 1 - true
        return (dice(right) - dice(wrong)) / float(cost[voxel])

    assert len(cost.unique()) == 2
    assert what_a_wrong_decision_costs(1) == pytest.approx(what_a_wrong_decision_costs(0), rel=0.01)


@pytest.mark.parametrize("found", [True, False])
def test_without_truth_all_voxels_cost_the_same(found):
    foreground = torch.zeros(1, 1, *SIZE, dtype=torch.bool)
    foreground[..., 0] = found
    cost = cost_in_dice(foreground, torch.zeros(1, 1, *SIZE), torch.ones(1, 1, *SIZE))
    assert cost.unique().tolist() == [0.5]


def test_gate_has_nothing_to_learn_where_the_two_agree():
    weight = torch.full((1, C, 1, 1, 1), 0.5, requires_grad=True)
    fused = make_fused(weight, make_logits())
    same = fused.sam2.detach() * 3
    loss = gate_loss(fused._replace(logits=same, unet=same), make_target(True).float(), torch.ones(B, 1, *SIZE), True)
    loss.backward()
    assert loss == 0
    assert not weight.grad.any()


@pytest.mark.parametrize("region_based", [True, False], ids=["regions", "labels"])
def test_gates_term_counts_if_there_is_a_gate(region_based):
    output, targets = make_output(region_based)
    segmentation = make_loss(region_based)
    fused = make_fused(0.3, output.unet[0], output.logits)
    term = gate_loss(fused, *segmentation.encode(targets[0]), region_based)
    assert term > 0
    without, fixed, gated = (
        AutoSAM2Loss(segmentation, gated=gated)(output._replace(fused=given), targets)
        for gated, given in ((True, None), (False, fused), (True, fused))
    )
    torch.testing.assert_close(fixed, without)
    torch.testing.assert_close(gated, without + term)


@pytest.mark.parametrize("axis", [0, 2])
@pytest.mark.parametrize("joint", [True, False])
@pytest.mark.parametrize("region_based", [True, False], ids=["regions", "labels"])
def test_what_the_fusion_leaves_out_counts_as_the_unets(region_based, joint, axis):
    output, targets = make_output(region_based)
    masks = torch.randn(B, C if region_based else C - 1, K, *size_along(SIZE, axis)[1:])
    output = output._replace(slice_axis=axis, sam2=output.sam2._replace(logits=masks))
    unet = sliced_along(output.unet[0] if joint else output.unet[0].detach(), axis)
    slices = torch.tensor([[1, 2], [0, 1]])
    part = (3 * torch.randn(B, C, *unet.shape[3:], 2)).movedim(-1, 2).requires_grad_()
    whole = unet.scatter(2, slices[:, None, :, None, None].expand_as(part), part)
    loss = AutoSAM2Loss(make_loss(region_based), joint=joint, gated=False)
    output = output._replace(logits=sliced_along(whole, axis))
    results = []
    for fused in (Fused(part, part, part, part, part[:, :1] > 0, slices), None):  # None: by the logits, whole
        value = loss(output._replace(fused=fused), targets)
        results.append([value, *torch.autograd.grad(value, (*output.unet, part), retain_graph=True)])
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("ignore", [True, False])
@pytest.mark.parametrize("region_based", [True, False], ids=["regions", "labels"])
def test_part_by_part_it_is_the_same(region_based, ignore, monkeypatch):
    loss, logits, target = (
        make_loss(region_based, ignore),
        make_logits().requires_grad_(),
        make_target(region_based, ignore),
    )
    whole = loss(logits, target)
    (gradient,) = torch.autograd.grad(whole, logits)
    monkeypatch.setattr(loss_module, "VALUES_AT_ONCE", logits.numel() // 3 + 1)
    encode = mock.Mock(side_effect=loss.encode)
    monkeypatch.setattr(loss, "encode", encode)
    in_parts = loss(logits, target)
    torch.testing.assert_close(in_parts, whole)
    torch.testing.assert_close(torch.autograd.grad(in_parts, logits), (gradient,))
    assert encode.call_count == 2 * 3  # forwards, and again backwards
    with torch.no_grad():
        torch.testing.assert_close(loss(logits, target), whole)


@pytest.mark.slow
@pytest.mark.parametrize("region_based", [True, False], ids=["regions", "labels"])
def test_compiled_it_is_the_same(region_based):
    output, targets = make_output(region_based)
    weight = torch.rand(B, C, *SIZE, requires_grad=True)
    output = output._replace(fused=make_fused(0, output.unet[0], output.logits)._replace(sam2_weight=weight))
    leaves = [output.logits, *output.unet, *output.sam2[:3], weight]
    loss = AutoSAM2Loss(make_loss(region_based))
    expected = loss(output, targets)
    gradients = torch.autograd.grad(expected, leaves)
    loss.compile()
    value = loss(output, targets)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(torch.autograd.grad(value, leaves), gradients)


@pytest.mark.parametrize("label_manager", [REGIONS, LABELS], ids=["regions", "labels"])
def test_from_config_follows_data_set_and_parameters(label_manager):
    config = AutoSAM2Config(
        bce_weight=0.4,
        dice_weight=0.6,
        class_weights=WEIGHTS,
        unet_loss_weight=0.5,
        sam2_loss_weight=2.0,
    )
    loss = AutoSAM2Loss.from_config(config, label_manager, batch_dice=True, ddp=False)
    region_based = label_manager.has_regions
    expected = AutoSAM2Loss(
        make_loss(
            region_based,
            ignore=True,
            bce_weight=0.4,
            dice_weight=0.6,
            class_weights=WEIGHTS,
            batch_dice=True,
        ),
        unet_loss_weight=0.5,
        sam2_loss_weight=2.0,
    )
    output, _ = make_output(region_based, scales=1)
    targets = [make_target(region_based, ignore=True)]
    torch.testing.assert_close(loss(output, targets), expected(output, targets), rtol=0, atol=0)


def test_from_config_refuses_a_wrong_number_of_class_weights():
    config = AutoSAM2Config(class_weights=(1, 2))
    with pytest.raises(ConfigurationError, match="class_weights"):
        AutoSAM2Loss.from_config(config, LABELS, batch_dice=False, ddp=False)
