"""Of many regions those that are there: what SAM2 is prompted for, and what becomes of the others."""

import pytest
import torch

from nnunet_autosam2.architectures.region_selection import select_regions
from nnunet_autosam2.architectures.training_window import TrainingWindow
from nnunet_autosam2.config import AutoSAM2Config
from nnunet_autosam2.trainers.loss import AutoSAM2Loss

pytestmark = pytest.mark.filterwarnings("ignore:sam2_checkpoint is random")
R, SIZE = 7, (16, 16, 16)


def make_probabilities() -> torch.Tensor:
    """Slice 0 has regions 1 (small), 3 and 6 (large); slice 1 has none, region 2 nearly."""
    probabilities = torch.full((2, R, 8, 8), 0.01)
    probabilities[0, 1, 0, 0] = 0.9
    probabilities[0, 3, 2:4] = 0.8
    probabilities[0, 6, 4:] = 0.8
    probabilities[0, 5] = 0.4
    probabilities[1, 2] = 0.3
    return probabilities


def select(training: bool, **parameters) -> list[list[int]] | None:
    window = TrainingWindow() if training else None
    regions = select_regions(make_probabilities(), AutoSAM2Config(**parameters), window)
    return None if regions is None else regions.tolist()


def test_a_prediction_has_those_that_are_there():
    first, second = select(training=False, regions_per_slice=2)
    assert first == [1, 3, 6]
    assert len(second) == 3
    assert 2 in second


def test_a_training_has_a_fixed_number_of_those_that_are_there():
    torch.manual_seed(0)
    window, config = TrainingWindow(), AutoSAM2Config(regions_per_slice=2)
    drawn = [select_regions(make_probabilities(), config, window).tolist() for _ in range(60)]
    assert {tuple(first) for first, _ in drawn} == {(1, 3), (1, 6), (3, 6)}
    often = sum(first == [1, 3] for first, _ in drawn)
    assert 10 <= often <= 30, "each as often as the others, whatever its size"
    assert all(len(second) == 2 and 2 in second for _, second in drawn)
    assert select(training=True, regions_per_slice=4)[0] == [1, 3, 5, 6]


def test_draws_are_of_the_windows_generator():
    window, probabilities = TrainingWindow(), torch.rand(6, R, 4, 4)
    config = AutoSAM2Config(regions_per_slice=2)
    first = select_regions(probabilities, config, window)
    window.generator = None
    torch.rand(7)  # of others
    assert torch.equal(select_regions(probabilities, config, window), first)


def test_a_lower_threshold_finds_more():
    assert select(training=False, regions_per_slice=2, prompt_threshold=0.35)[0] == [1, 3, 5, 6]


@pytest.mark.parametrize(
    "parameters", [{"regions_per_slice": 7}, {"regions_per_slice": None}, {"propagation": "memory"}], ids=str
)
@pytest.mark.parametrize("training", [True, False])
def test_where_they_are_few_or_all_are_wanted_there_is_no_choice(parameters, training):
    assert select(training, **parameters) is None


def make_volume() -> tuple[torch.Tensor, torch.Tensor]:
    foreground = torch.zeros(1, R, *SIZE)
    foreground[:, 1, :, 2:8, 2:8] = 0.9
    foreground[:, 4, :, 9:14, 9:14] = 0.9
    return torch.randn(1, 2, *SIZE, generator=torch.Generator().manual_seed(1)), foreground


@pytest.mark.parametrize("parameters", [{}, {"mask_prompt": True}, {"sam2_chunk_size": 1}], ids=str)
@torch.inference_mode()
def test_a_prediction_asks_as_it_would_about_all(make_network, parameters):
    """Masks of regions that are there do not depend on whether others are asked about; for these the UNet speaks."""
    network = make_network(R, region_based=True, regions_per_slice=2, fusion="fixed", **parameters).eval()
    network.sam2_branch.bridge.region_embedding.normal_()
    volume, foreground = make_volume()
    _, few = network(volume, foreground, return_sam2=True)
    unet = network.unet(volume).logits[0]
    network.set_mode(regions_per_slice=None)
    _, all_of_them = network(volume, foreground, return_sam2=True)
    there = [1, 4]
    torch.testing.assert_close(few.masks.logits[:, there], all_of_them.masks.logits[:, there], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(few.masks.predicted_iou[:, there], all_of_them.masks.predicted_iou[:, there])
    others = [r for r in range(R) if r not in there]
    on_slices = few.masks.covered[0] & (few.masks.distance[0] == 0)
    torch.testing.assert_close(few.masks.logits[0, others][:, on_slices], unet[0, others][:, on_slices])
    assert (few.masks.predicted_iou[0, others][:, on_slices] == 1).all()


@pytest.mark.parametrize("region_based", [True, False], ids=["regions", "labels"])
def test_a_training_decodes_a_fixed_number_of_masks(make_network, region_based):
    classes = R if region_based else R + 1
    network = make_network(classes, region_based=region_based, regions_per_slice=3, training_slices=2).train()
    decoded = []
    network.sam2_branch.sam2.sam_mask_decoder.register_forward_hook(
        lambda _module, _inputs, output: decoded.append(len(output[0]) if isinstance(output, tuple) else len(output))
    )
    volume, foreground = make_volume()
    network.set_deep_supervision(True)
    output = network(volume, foreground)
    assert sum(decoded) in (2, 2 * 3)
    assert ((output.sam2.labels[0] >= 0).any(2).sum(0) <= 3).all()
    truth = (foreground > 0.5).float() if region_based else foreground.argmax(1, keepdim=True).float()
    AutoSAM2Loss.for_network(network)(output, truth).backward()
    embedding = network.sam2_branch.bridge.region_embedding.grad
    assert embedding[[1, 4]].any(1).all()
    assert embedding.any(1).sum() <= 2 * 3
