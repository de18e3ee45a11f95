"""Masks of the parts of a region become one."""

import pytest
import torch

from nnunet_autosam2.architectures.masks import SliceMasks
from nnunet_autosam2.architectures.sam2.union import united

N, R, SIDE = 3, 2, 8
AT_SLICE, REGION = torch.tensor([0, 0, 2]), torch.tensor([1, 1, 0])
"""Two further parts of one region, one of another"""


def make_masks(*shape: int, seed: int) -> SliceMasks:
    generator = torch.Generator().manual_seed(seed)
    logits = 4 * torch.randn(*shape, SIDE, SIDE, generator=generator)
    scores = torch.rand(*shape, generator=generator), torch.randn(*shape, generator=generator)
    return SliceMasks(logits, *scores, torch.randn(*shape, 256, generator=generator))


@pytest.fixture
def first() -> SliceMasks:
    return make_masks(N, R, seed=0)


@pytest.fixture
def further() -> SliceMasks:
    return make_masks(len(REGION), 1, seed=1)


def test_united_as_written_out(first, further):
    found = united(first, further, AT_SLICE, REGION)
    for n in range(N):
        for r in range(R):
            of_region = [i for i in range(len(REGION)) if (AT_SLICE[i], REGION[i]) == (n, r)]
            logits = torch.stack([first.logits[n, r], *(further.logits[i, 0] for i in of_region)])
            assert torch.equal(found.logits[n, r], logits.amax(0))
            scores = torch.stack([first.object_score[n, r], *(further.object_score[i, 0] for i in of_region)])
            assert found.object_score[n, r] == scores.max()
            areas = logits.sigmoid().sum((1, 2))
            ious = torch.stack([first.predicted_iou[n, r], *(further.predicted_iou[i, 0] for i in of_region)])
            torch.testing.assert_close(found.predicted_iou[n, r], (areas * ious).sum() / areas.sum())
    assert torch.equal(found.token, first.token)
    alone = [0, 1, 1, 2], [0, 0, 1, 1]
    for ours, theirs in zip(found, first, strict=True):
        assert torch.equal(ours[alone], theirs[alone])


def test_the_iou_of_a_union_is_that_of_its_parts_by_area():
    """Parts apart, each found in part: what their IoU are together."""
    truth, masks = torch.zeros(2, SIDE, SIDE), torch.zeros(2, SIDE, SIDE)
    truth[0, :4, :3], masks[0, :2, :3] = 1, 1  # one half of a large part
    truth[1, 6:, 6:], masks[1, 6:, 6:] = 1, 1
    iou = (truth * masks).sum((1, 2)) / torch.maximum(truth, masks).sum((1, 2))
    first, further = (
        SliceMasks(40 * masks[i, None, None] - 20, iou[i, None, None], torch.zeros(1, 1), torch.zeros(1, 1, 256))
        for i in range(2)
    )
    found = united(first, further, torch.tensor([0]), torch.tensor([0]))
    assert found.predicted_iou[0, 0] == pytest.approx((0.5 * 6 + 1.0 * 4) / 10, abs=1e-4)
    assert torch.equal(found.logits[0, 0] > 0, masks.amax(0) > 0)


def test_masks_without_anything_have_finite_scores(first, further):
    first, further = (each._replace(logits=torch.full_like(each.logits, -1e4)) for each in (first, further))
    assert all(values.isfinite().all() for values in united(first, further, AT_SLICE, REGION))


def test_every_part_learns_where_it_is_what_is_seen(first, further):
    for each in (first, further):
        each.logits.requires_grad_()
        each.predicted_iou.requires_grad_()
    found = united(first, further, AT_SLICE, REGION)
    (found.logits.sum() + found.predicted_iou.sum()).backward()
    whole = first.logits.grad.clone()
    whole[0, 1] += further.logits.grad[:2, 0].sum(0)
    whole[2, 0] += further.logits.grad[2, 0]
    torch.testing.assert_close(whole, torch.ones_like(whole))
    assert (further.predicted_iou.grad > 0).all()
