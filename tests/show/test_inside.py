"""What happens inside a network on one case, seen from outside: a real network, untrained, on real files."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from nnunet_autosam2.errors import ConfigurationError, DatasetError
from nnunet_autosam2.show.inside import find_device, look_inside
from nnunet_autosam2.show.loading import LoadedModel, Volume, find_shown_case, preprocess
from nnunet_autosam2.show.pictures import SliceView

CPU = torch.device("cpu")
SELECTED = 8
"""0.3 of the 24 slices of a patch"""


@pytest.fixture(scope="module", autouse=True)
def single_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def volume(case, loaded: LoadedModel) -> Volume:
    return preprocess(find_shown_case(case.prefix, None, loaded), loaded)


def box(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(x, y) of the first and the last pixel of a mask [H, W]."""
    y, x = np.nonzero(mask)
    return np.array([x.min(), y.min()]), np.array([x.max(), y.max()])


def test_prompted_by_the_truth_sam2_is_asked_where_that_is(case, loaded: LoadedModel, volume: Volume):
    views = look_inside(loaded, volume, True, None, CPU)
    numbers = [view.number for view in views]
    assert len(views) == SELECTED
    assert numbers == sorted(set(numbers))
    assert set(numbers) <= set(np.nonzero(case.labels.any((1, 2)))[0])  # as the file counts
    for view in views:
        assert view.regions == ["whole tumor", "tumor core", "enhancing tumor"]
        assert list(view.masks) == ["SAM2", "UNet", "fused", "truth"]
        assert list(view.dice) == ["SAM2", "UNet", "fused"]
        assert view.rgb.shape == (64, 64, 3)
        assert view.rgb.min() >= 0
        assert view.rgb.max() <= 1
        assert ((view.predicted_iou >= 0) & (view.predicted_iou <= 1)).all()


def test_truth_and_prompts_lie_where_the_case_has_its_tumour(case, loaded: LoadedModel, volume: Volume):
    """The patch of 24 × 32 × 32 is cut out around it, and cuts nothing off."""
    for view in look_inside(loaded, volume, True, None, CPU):
        for region, least in enumerate((1, 2, 3)):
            expected, shown = case.labels[view.number] >= least, view.masks["truth"][region]
            assert shown.sum() == expected.sum()
            if not expected.any():
                assert (view.labels[region] == -1).all()
                continue
            assert list(view.labels[region, :2]) == [2, 3]
            low, high = view.points[region, :2]
            first, last = box(shown)
            margin = 0.1 * (last - first + 1) + 1
            assert ((first - margin <= low) & (low <= first) & (last <= high) & (high <= last + margin)).all()
            positives = view.points[region][view.labels[region] == 1].round().astype(int)
            assert shown[positives[:, 1], positives[:, 0]].all()


def test_dice_is_that_of_the_masks(loaded: LoadedModel, volume: Volume):
    for view in look_inside(loaded, volume, True, None, CPU):
        for title, scores in view.dice.items():
            for region, score in enumerate(scores):
                mask, truth = view.masks[title][region], view.masks["truth"][region]
                size = mask.sum() + truth.sum()
                expected = 2 * (mask & truth).sum() / size if size else np.nan
                assert score == pytest.approx(expected, nan_ok=True)


def test_of_few_slices_those_with_the_largest_foreground_remain(case, loaded: LoadedModel, volume: Volume):
    every = look_inside(loaded, volume, True, None, CPU)
    two = look_inside(loaded, volume, True, 2, CPU)

    def area(view: SliceView) -> int:
        return int((case.labels[view.number] > 0).sum())

    assert len(two) == 2
    assert {view.number for view in two} <= {view.number for view in every}
    assert min(map(area, two)) >= sorted(map(area, every))[-2]


def test_an_untrained_network_has_no_opinion_to_show(loaded: LoadedModel, volume: Volume):
    """SAM2's masks alone, and the truth."""
    (view,) = look_inside(loaded._replace(is_trained=False), volume, True, 1, CPU)
    assert list(view.masks) == ["SAM2", "truth"]
    assert list(view.dice) == ["SAM2"]


def test_labels_to_be_ignored_leave_the_dice_out(loaded: LoadedModel, volume: Volume):
    labels = {**loaded.dataset_json["labels"], "ignore": 4}
    (view,) = look_inside(loaded._replace(dataset_json={**loaded.dataset_json, "labels": labels}), volume, True, 1, CPU)
    assert view.dice == {}
    assert "truth" in view.masks


@pytest.mark.parametrize("bias", [100.0, -100.0])
def test_without_a_truth_the_unet_says_where(loaded: LoadedModel, volume: Volume, bias: float):
    """Everywhere, or nowhere."""
    layers = [parameter for name, parameter in loaded.network.named_parameters() if name.endswith("seg_layers.1.bias")]
    assert layers
    before = [layer.detach().clone() for layer in layers]
    try:
        for layer in layers:
            layer.data.fill_(bias)
        if bias < 0:
            with pytest.raises(DatasetError, match=r"^The UNet sees no foreground, so SAM2 is not prompted"):
                look_inside(loaded, volume._replace(truth=None), False, None, CPU)
            return
        views = look_inside(loaded, volume._replace(truth=None), False, None, CPU)
        assert len(views) == SELECTED
        assert all("truth" not in view.masks and view.dice == {} for view in views)
        assert all(view.masks["UNet"].all() for view in views)
    finally:
        for layer, value in zip(layers, before, strict=True):
            layer.data.copy_(value)


def test_a_truth_without_foreground(loaded: LoadedModel, volume: Volume):
    assert volume.truth is not None
    with pytest.raises(DatasetError, match=r"^The truth has no foreground, so SAM2 is not prompted"):
        look_inside(loaded, volume._replace(truth=volume.truth & False), True, None, CPU)


def test_a_volume_that_is_smaller_than_the_patch_lies_in_its_middle(loaded: LoadedModel, volume: Volume):
    """Slices beside it are not shown."""
    assert volume.truth is not None
    thin = volume._replace(data=volume.data[:, 8:16, :20], truth=volume.truth[:, 8:16, :20], first_slice=100)
    views = look_inside(loaded, thin, True, None, CPU)
    assert 0 < len(views) <= 8
    assert all(100 <= view.number < 108 for view in views)


def test_a_tumour_at_the_border(loaded: LoadedModel, volume: Volume):
    assert volume.truth is not None
    truth = torch.zeros_like(volume.truth)
    truth[:, :2, :2, :2] = True
    views = look_inside(loaded, volume._replace(truth=truth), True, None, CPU)
    assert [(view.number, bool(view.masks["truth"][:, :2, :2].all())) for view in views] == [
        (3, True), (4, True), (8, False),  # SAM2 is prompted on the selected slice beside the tumour, too
    ]  # fmt: skip


def test_devices():
    assert find_device("cpu") == CPU
    for name in ("abacus", "", "cuda:99"):
        with pytest.raises(ConfigurationError, match=f"^The device {name} cannot be used: ") as error:
            find_device(name)
        assert "\n" not in str(error.value)
