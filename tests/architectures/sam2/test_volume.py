import pytest
import torch
from torch.nn import functional as F

from nnunet_autosam2.architectures.backbone import UNetOutput
from nnunet_autosam2.architectures.sam2.branch import SAM2Branch
from nnunet_autosam2.architectures.sam2.volume import cudnn_benchmark, encode_volume, segment_volume, take_slices
from nnunet_autosam2.architectures.slice_selection import select_slices
from nnunet_autosam2.config import AutoSAM2Config
from nnunet_autosam2.errors import WeightsError

B, C, R, SIZE = 2, 2, 2, (10, 16, 24)
CONFIG = AutoSAM2Config(sam2_image_size=64, sam2_precision="float32", region_based=True, slice_fraction=0.5)
SEEN = [5, 6]
"""Slices with foreground, in the first sample alone"""
PROMPTED = [4, 5, 6, 7]
"""With the selected ones beside them"""


@pytest.fixture(scope="module")
def branch() -> SAM2Branch:
    torch.manual_seed(0)
    branch = SAM2Branch(C, 32, R, CONFIG)
    branch.awaits_weights = False  # random ones are what is wanted
    return branch


def make_inputs() -> tuple[torch.Tensor, UNetOutput, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    volume = torch.randn(B, C, *SIZE, generator=generator)
    unet = UNetOutput(
        (torch.randn(B, R, *SIZE, generator=generator),), torch.randn(B, 32, 5, 4, 6, generator=generator)
    )
    foreground = torch.zeros(B, R, *SIZE)
    foreground[0, :, SEEN, 4:9, 5:15] = 0.9
    return volume, unet, foreground


def segment(branch: SAM2Branch, trains: bool, size: tuple[int, ...] = SIZE, config: AutoSAM2Config = CONFIG):
    with torch.no_grad():
        return segment_volume(branch.train(trains), *make_inputs(), size, config)


def test_in_training_every_selected_slice_is_prompted(branch):
    masks, _ = segment(branch, trains=True, config=CONFIG.updated({"training_slices": None}))
    assert masks.prompted.all()
    assert torch.equal(masks.slices, select_slices(make_inputs()[2], 5))
    assert masks.logits.shape == (B, R, 5, *SIZE[1:])


def test_a_prediction_skips_slices_without_foreground_in_reach_and_keeps_the_unets_masks(branch):
    masks, in_volume = segment(branch, trains=False)
    _, unet, _ = make_inputs()
    prompted = [
        [int(s) for s, p in zip(*rows, strict=True) if p] for rows in zip(masks.slices, masks.prompted, strict=True)
    ]
    assert prompted == [PROMPTED, []]
    of_unet = take_slices(unet.logits[0], masks.slices).unflatten(0, (B, -1)).transpose(1, 2)
    skipped = ~masks.prompted[:, None, :, None, None].expand_as(of_unet)
    assert torch.equal(masks.logits[skipped], of_unet[skipped])
    assert not torch.isclose(masks.logits[~skipped], of_unet[~skipped]).all()
    assert (masks.labels[1] == -1).all()
    assert in_volume.covered[0].nonzero().flatten().tolist() == list(range(PROMPTED[0], PROMPTED[-1] + 1))
    assert not in_volume.covered[1].any()


def test_masks_are_the_branchs_own(branch):
    volume, unet, foreground = make_inputs()
    masks, in_volume = segment(branch, trains=False)
    features = F.interpolate(unet.middle_features, (SIZE[0], 4, 6), mode="trilinear", align_corners=False)
    with torch.no_grad():
        alone, prompts, _ = branch(*(x[0, :, PROMPTED].transpose(0, 1) for x in (volume, features, foreground)), CONFIG)
        logits = F.interpolate(alone.logits, SIZE[1:], mode="bilinear", align_corners=False)
    on_seen = masks.prompted[0]
    torch.testing.assert_close(masks.logits[0, :, on_seen].transpose(0, 1), logits, rtol=0, atol=1e-4)
    torch.testing.assert_close(in_volume.logits[0, :, PROMPTED].transpose(0, 1), logits, rtol=0, atol=1e-4)
    assert torch.equal(masks.points[0, :, on_seen].transpose(0, 1), prompts.points)
    torch.testing.assert_close(in_volume.presence[0, :, PROMPTED].T, alone.object_score.sigmoid(), rtol=0, atol=1e-5)


def test_no_slice_of_the_padding_is_selected(branch):
    masks, in_volume = segment(branch, trains=True, size=(7, 15, 20))
    assert masks.slices.max() < 7
    assert in_volume.logits.shape == (B, R, 7, 15, 20)
    assert in_volume.covered.shape == (B, 7)


def test_weights_are_asked_for_where_they_are_needed(tmp_path):
    """Not by a volume of which no slice is prompted."""
    config = CONFIG.updated({"sam2_checkpoint": str(tmp_path / "missing.pt")})
    without = SAM2Branch(C, 32, R, config).eval()
    volume, unet, foreground = make_inputs()
    segment_volume(without, volume, unet, torch.zeros_like(foreground), SIZE, config)
    with pytest.raises(WeightsError, match=r"missing\.pt"):
        segment_volume(without, volume, unet, foreground, SIZE, config)


def test_gradients_reach_the_unets_features_through_the_prompted_slices(branch):
    volume, unet, foreground = make_inputs()
    unet.middle_features.requires_grad_()
    masks, _ = segment_volume(branch.eval(), volume, unet, foreground, SIZE, CONFIG)
    masks.logits.square().mean().backward()
    assert unet.middle_features.grad[0].any()
    assert not unet.middle_features.grad[1].any()


def test_take_slices():
    volume = torch.arange(2 * 3 * 4).view(2, 3, 4, 1, 1)
    taken = take_slices(volume, torch.tensor([[0, 2], [1, 3]]))
    assert taken[..., 0, 0].tolist() == [[0, 4, 8], [2, 6, 10], [13, 17, 21], [15, 19, 23]]


@pytest.mark.parametrize("before", [True, False])
def test_what_cudnn_may_do_is_restored(monkeypatch, before):
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", before)
    for allowed in (True, False):
        with cudnn_benchmark(allowed):
            assert torch.backends.cudnn.benchmark == (before and allowed)
        assert torch.backends.cudnn.benchmark == before


def test_a_tumours_ends_are_what_they_are_in_training(branch):
    """Logits and scores, from the selected slice before the tumour to the one behind it."""
    _, in_training = segment(branch, trains=True, config=CONFIG.updated({"training_slices": None}))
    _, in_prediction = segment(branch, trains=False)
    where = in_prediction.covered[0]
    for ours, theirs in zip(in_prediction[:3], in_training[:3], strict=True):
        torch.testing.assert_close(ours[0, :, where], theirs[0, :, where], rtol=0, atol=1e-4)
    assert in_training.covered[0, where].all()


def test_prompts_of_parts_are_kept_where_sam2_is_not_asked_too(branch):
    config = CONFIG.updated({"boxes_per_region": 3})
    masks, _ = segment(branch, trains=False, config=config)
    assert masks.points.shape == (B, R, 5, 3 * 15, 2)
    assert masks.labels.shape == (B, R, 5, 3 * 15)
    assert (masks.labels[1] == -1).all()
    for ours, theirs in zip(masks[:3], segment(branch, trains=False)[0][:3], strict=True):
        assert torch.equal(ours, theirs)  # there is one part


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("threshold", [0.5, 0.3, 0.05])
def test_a_region_that_the_unet_is_unsure_of_is_asked_about_from_a_lower_threshold(branch, threshold, known):
    volume, unet, foreground = make_inputs()
    foreground[:, 0, 3:5, 4:9, 5:15] = 0.06 if threshold < 0.1 else 0.4
    config = CONFIG.updated({"prompt_threshold": threshold, "slice_fraction": 1.0})
    inputs = volume, unet, foreground, SIZE, config
    with torch.no_grad():
        embeddings = encode_volume(branch.eval(), volume, foreground, SIZE, config) if known else None
        masks, _ = segment_volume(branch, *inputs, known=embeddings)
    prompts = (masks.labels[0] == 2).any(2)
    seen = [s for s, there in zip(masks.slices[0].tolist(), prompts[0].tolist(), strict=True) if there]
    assert seen == sorted({*SEEN, *([3, 4] if threshold < 0.5 else [])})
    assert prompts[1].sum() == len(SEEN)
    assert masks.prompted[0].sum() == len(seen) + 2
    assert masks.prompted[1].sum() == (4 if threshold < 0.5 else 0)
