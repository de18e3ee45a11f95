import numpy as np
import pytest
import torch

from nnunet_autosam2.architectures.masks import SampleMasks
from nnunet_autosam2.architectures.reconstruction import SlicePositions, interpolate, locate_slices, reconstruct

DEPTH = 12
SLICES = torch.tensor([[0, 3, 4, 11], [2, 5, 7, 8]])
ALL = torch.ones_like(SLICES, dtype=torch.bool)


def test_between_slices_it_is_linear_interpolation():
    values = torch.randn(2, 3, 4, 5, 6, generator=torch.Generator().manual_seed(0))
    volume = interpolate(values, locate_slices(SLICES, ALL, DEPTH))
    assert volume.shape == (2, 3, DEPTH, 5, 6)
    for index in np.ndindex(2, 3, 5, 6):
        b, r, y, x = index
        expected = np.interp(np.arange(DEPTH), SLICES[b], values[b, r, :, y, x])  # constant beyond the ends, as here
        np.testing.assert_allclose(volume[b, r, :, y, x], expected, rtol=0, atol=1e-5)


def test_processed_slices_come_back_exactly():
    values = torch.randn(2, 3, 4, 5, 6)
    volume = interpolate(values, locate_slices(SLICES, ALL, DEPTH))
    for b in range(2):
        assert torch.equal(volume[b, :, SLICES[b]], values[b])


@pytest.mark.parametrize("slices", [SLICES, torch.tensor([[0], [11]]), torch.arange(DEPTH)[None]])
def test_covered_and_distance_as_plain_loops_find_them(slices):
    positions = locate_slices(slices, torch.ones_like(slices, dtype=torch.bool), DEPTH)
    for b, chosen in enumerate(slices.tolist()):
        assert positions.covered[b].tolist() == [chosen[0] <= d <= chosen[-1] for d in range(DEPTH)]
        assert positions.distance[b].tolist() == [min(abs(d - s) for s in chosen) for d in range(DEPTH)]
        for d in range(chosen[0] + 1, chosen[-1]):
            ends = positions.nearest[b, d].item(), positions.opposite[b, d].item()
            if d in chosen:
                assert ends[0] == d
                continue
            below, above = max(s for s in chosen if s < d), min(s for s in chosen if s > d)
            assert set(ends) == {below, above}
            assert abs(ends[0] - d) == positions.distance[b, d]


def test_positions_of_some_slices_are_those_among_all():
    positions = locate_slices(SLICES, torch.ones_like(SLICES, dtype=torch.bool), DEPTH)
    some = torch.tensor([[2, 3, 4], [5, 6, 7]])
    for part, whole in zip(positions.on(some), positions, strict=True):
        assert torch.equal(part, torch.stack([values[at] for values, at in zip(whole, some, strict=True)]))


def test_what_a_slice_that_sam2_was_not_prompted_on_counts_in_is_not_covered():
    prompted = torch.tensor([[False, False, True, True], [True, False, True, False]])
    covered = locate_slices(SLICES, prompted, DEPTH).covered
    assert covered[0].nonzero().flatten().tolist() == list(range(4, 12))
    assert covered[1].nonzero().flatten().tolist() == [2, 7]


@pytest.mark.parametrize("only", [0, 5, DEPTH - 1])
def test_a_single_slice_covers_itself(only):
    positions = locate_slices(torch.tensor([[only]]), torch.tensor([[True]]), DEPTH)
    assert positions.covered[0].nonzero().flatten().tolist() == [only]
    assert torch.equal(positions.weights, torch.ones(1, DEPTH, 1))


def test_one_slice_volume():
    positions = locate_slices(torch.tensor([[0]]), torch.tensor([[True]]), 1)
    assert interpolate(torch.tensor([[[7.0]]]), positions).tolist() == [[[7.0]]]
    assert positions.covered.all()


def test_scores_without_pixels_and_their_gradient():
    scores = torch.randn(2, 3, 4, dtype=torch.double, requires_grad=True)
    positions = locate_slices(SLICES, ALL, DEPTH)
    assert torch.autograd.gradcheck(lambda s: interpolate(s, positions), scores)


def test_object_scores_are_interpolated_as_probabilities():
    slices, prompted = torch.tensor([[0, 2]]), torch.ones(1, 2, dtype=torch.bool)
    points, labels = torch.zeros(1, 1, 2, 0, 2), torch.zeros(1, 1, 2, 0)
    iou, score = torch.tensor([[[0.2, 0.6]]]), torch.tensor([[[-9.0, 9.0]]])
    masks = SampleMasks(torch.zeros(1, 1, 2, 1, 1), iou, score, points, labels, slices, prompted)
    volume = reconstruct(masks, locate_slices(slices, prompted, 3))
    assert volume.predicted_iou[0, 0].tolist() == pytest.approx([0.2, 0.4, 0.6])
    assert volume.presence[0, 0, 1] == pytest.approx(0.5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_mixed_precision_rounds_nothing(dtype):
    masks = torch.randn(2, 3, 4, 5, 6)
    positions = locate_slices(SLICES, ALL, DEPTH)
    with torch.autocast("cpu", dtype=dtype):
        interpolated = interpolate(masks, positions)
    assert torch.equal(interpolated, interpolate(masks, positions))


@pytest.mark.parametrize(
    ("prompted", "expected"),
    [((20, 30), range(8, 40)), ((), range(16)), ((0, 127), None), ((100, 127), range(88, 128))],
    ids=["in the middle", "nowhere", "everywhere", "at the end"],
)
def test_the_span_of_what_is_covered_has_a_margin(prompted, expected):
    slices = torch.tensor([[0, 20, 30, 100, 127]])
    asked = torch.tensor([[bool(prompted) and prompted[0] <= at <= prompted[-1] for at in slices[0]]])
    span = locate_slices(slices, asked, depth=128).span(128)
    assert span is None if expected is None else span.tolist() == [list(expected)]


@pytest.mark.parametrize("axis", range(3))
@pytest.mark.parametrize("fusion", ["fixed", "gated", "convolutional"])
@torch.inference_mode()
def test_beyond_the_span_nothing_is_missing(make_network, monkeypatch, fusion, axis):
    """Logits, and those of mirror images, are those of a fusion on all slices."""
    network = make_network(fusion=fusion, region_based=True).eval()
    for parameter in network.fusion.parameters():
        torch.nn.init.normal_(parameter, std=0.01)
    size = [32, 32, 32]
    size[axis] = 64
    volume = torch.randn(1, 2, *size, generator=torch.Generator().manual_seed(0))
    foreground = torch.zeros(1, 3, *size)
    foreground.narrow(2 + axis, 24, 6)[..., 8:20, 8:20] = 0.9
    mirrorings = [(), (2 + axis,), (2, 3, 4)]

    def predict() -> list[torch.Tensor]:
        _, known = network(volume, foreground, return_sam2=True, slice_axis=axis)
        spans.append(known.masks.logits.shape[2])
        return [network(volume.flip(axes), foreground.flip(axes), known.mirrored(axes)) for axes in mirrorings]

    spans: list[int] = []
    within = predict()
    monkeypatch.setattr(SlicePositions, "span", lambda *_: None)
    for few, every in zip(within, predict(), strict=True):
        torch.testing.assert_close(few, every, rtol=1e-5, atol=1e-5)
    assert spans[0] < spans[1] == 64


@torch.inference_mode()
def test_a_validation_sees_all_slices(make_network):
    """Pseudo Dice of the UNet counts what it has missed beyond SAM2's masks."""
    network = make_network(region_based=True).eval()
    network.set_deep_supervision(True)
    foreground = torch.zeros(1, 3, 64, 32, 32)
    foreground[:, :, 24:30, 8:20, 8:20] = 0.9
    fused = network(torch.randn(1, 2, 64, 32, 32), foreground).fused
    assert fused.slices is None
    assert fused.unet.shape[2] == 64
