"""SAM2's embeddings in the decoder: as they come from the image encoder, on the slices and between them."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from nnunet_autosam2.architectures.autosam2 import AutoSAM2
from nnunet_autosam2.architectures.feature_fusion import FeatureFusion
from nnunet_autosam2.architectures.masks import ImageEmbeddings, SAM2Output, SliceEmbeddings
from nnunet_autosam2.architectures.sam2.volume import SUSPICION
from nnunet_autosam2.trainers.loss import AutoSAM2Loss
from tests.architectures.test_planned_unet import SIZE as PLANNED_SIZE
from tests.architectures.test_planned_unet import make_hybrid, state_of_backbone, take_two_steps
from tests.counted_slices import counted_slices

pytestmark = pytest.mark.filterwarnings("ignore:sam2_checkpoint is random")
SIZE = (16, 16, 32)
FROZEN = {"backbone_checkpoint": "auto", "freeze_backbone": True}
FUSIONS = pytest.mark.parametrize("fusion", ["gated", "convolutional", "fixed", "off"])


def make_volume(batch: int = 1, size: tuple[int, ...] = SIZE) -> Tensor:
    return torch.randn(batch, 2, *size, generator=torch.Generator().manual_seed(1))


def started(fusion: FeatureFusion) -> None:
    """As after some training."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for level in fusion.levels:
            level.mix.weight.copy_(0.3 * torch.randn(level.mix.weight.shape, generator=generator))


def decided(network: AutoSAM2) -> AutoSAM2:
    with torch.no_grad():
        for head in network.unet.decoder.seg_layers.values():
            head.weight *= 20
    return network


def make_embeddings(count: int, side: int = 8) -> ImageEmbeddings:
    generator = torch.Generator().manual_seed(2)
    sizes = ((256, side // 4), (32, side), (64, side // 2))
    return ImageEmbeddings(*(torch.randn(count, c, s, s, generator=generator) for c, s in sizes))


# One residual


@pytest.fixture
def known() -> SliceEmbeddings:
    """Two samples of eight slices: four selected in each, not all of them encoded."""
    slices = torch.tensor([[0, 2, 3, 6], [1, 2, 5, 7]])
    encoded = torch.tensor([[True, True, False, True], [True, False, False, True]])
    return SliceEmbeddings(make_embeddings(int(encoded.sum())), slices, encoded, 8)


STRIDES = [(1, 1, 1), (1, 2, 2), (2, 4, 4)]


@pytest.fixture
def fusion() -> FeatureFusion:
    torch.manual_seed(0)
    fusion = FeatureFusion([8, 12, 16], STRIDES)
    started(fusion)
    return fusion


def slice_by_slice(fusion: FeatureFusion, known: SliceEmbeddings, level: int, size: tuple[int, int, int]) -> Tensor:
    """The same residual by loops over samples and slices."""
    residual, scale = fusion.levels[level], ("fine", "middle", "image")[level]
    group = STRIDES[level][0]
    height, width = size[1] // STRIDES[level][1], size[2] // STRIDES[level][2]
    projected = residual.project(getattr(known.embeddings, scale))
    projected = iter(F.interpolate(projected, (height, width), mode="bilinear", align_corners=False))
    result = torch.zeros(len(known.slices), residual.mix.out_channels, size[0] // group, height, width)
    for sample, (slices, encoded) in enumerate(zip(known.slices.tolist(), known.encoded.tolist(), strict=True)):
        there = [next(projected) if seen else torch.zeros(residual.mix.in_channels, height, width) for seen in encoded]
        every = torch.zeros(size[0], residual.mix.in_channels, height, width)
        for (a, seen_a, x), (b, seen_b, y) in itertools.pairwise(zip(slices, encoded, there, strict=True)):
            for d in range(a, b + 1):
                fraction = (d - a) / (b - a)
                if (seen_a or fraction == 1) and (seen_b or fraction == 0):
                    every[d] = (1 - fraction) * x + fraction * y
        grouped = every.unflatten(0, (-1, group)).mean(1)
        padded = F.pad(grouped, (0, 0, 0, 0, 0, 0, 1, 1))
        for d in range(len(grouped)):
            for k in range(3):
                kernel = residual.mix.weight[:, :, k, 0, 0]
                result[sample, :, d] += torch.einsum("oi,ihw->ohw", kernel, padded[d + k])
    return result


@pytest.mark.parametrize("level", range(3))
@torch.no_grad()
def test_residuals_are_those_of_loops_over_slices(fusion, known, level):
    size = (8, 16, 24)
    ours = fusion(known, size)[level]
    expected = slice_by_slice(fusion, known, level, size)
    assert ours.shape == expected.shape == (2, (8, 12, 16)[level], 8 // STRIDES[level][0], *ours.shape[3:])
    assert ours.shape[3:] == (16 // STRIDES[level][1], 24 // STRIDES[level][2])
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)
    assert expected.any()


def test_it_starts_at_zero_and_its_gradient_does_not(known):
    fusion = FeatureFusion([8, 12, 16], STRIDES)
    for residual in fusion(known, (8, 16, 24)).values():
        assert not residual.any()
        residual.sum().backward()
    assert all(level.mix.weight.grad.any() for level in fusion.levels)


@pytest.mark.parametrize("axes", [(2,), (3,), (4,), (2, 3, 4)])
@torch.no_grad()
def test_mirrored_embeddings_make_mirrored_residuals(fusion, known, axes):
    """Where the kernel along the slices is symmetric."""
    for level in fusion.levels:
        level.mix.weight.add_(level.mix.weight.flip(2))
    mirrored = fusion(known.mirrored(axes), (8, 16, 24))
    for level, residual in fusion(known, (8, 16, 24)).items():
        torch.testing.assert_close(mirrored[level].flip(axes), residual, atol=1e-5, rtol=1e-5)
    back = known.mirrored(axes).mirrored(axes)
    assert torch.equal(back.slices, known.slices)
    assert torch.equal(back.encoded, known.encoded)
    assert all(map(torch.equal, back.embeddings, known.embeddings))


# In the network


@FUSIONS
@pytest.mark.parametrize("region_based", [True, False], ids=["regions", "labels"])
def test_the_unet_starts_as_without_them(make_network, region_based, fusion):
    parameters = {"region_based": region_based, "fusion": fusion, "feature_fusion": True}
    network = decided(make_network(**parameters)).eval()
    alone = make_network(region_based=region_based, enable_sam2=False).eval()
    assert {n for n in network.state_dict() if n.startswith("unet.")} == set(alone.state_dict())
    alone.load_state_dict(network.state_dict())
    volume = make_volume(2, (19, 30, 45))
    with torch.no_grad():
        assert torch.equal(network(volume), alone(volume)) == (fusion == "off")
        started(network.feature_fusion)
        assert not torch.allclose(network(volume), alone(volume), atol=1e-2)
        network.set_mode(enable_sam2=False)
        assert torch.equal(network(volume), alone(volume))


@pytest.mark.parametrize("parameters", [{}, FROZEN], ids=["trains", "frozen"])
@torch.no_grad()
def test_on_a_trained_network_it_starts_as_that(parameters):
    """With SAM2's masks as well: their gate is closed."""
    network = make_hybrid(feature_fusion=True, **{**FROZEN, **parameters}).eval()
    network.unet.network.decoder.seg_layers[-1].weight *= 20
    volume = make_volume(1, PLANNED_SIZE)
    expected = network.unet.network(volume)
    output = network(volume)
    assert torch.equal(output.logits, expected[0])
    assert all(map(torch.equal, output.unet, expected))


@FUSIONS
@pytest.mark.parametrize("backbone", ["trains", "frozen"])
def test_all_that_trains_has_a_gradient_and_what_is_frozen_stays(fusion, backbone):
    network = make_hybrid(
        feature_fusion=True, fusion=fusion, training_slices=2, **(FROZEN if backbone == "frozen" else {})
    )
    network.train()
    before, volume = state_of_backbone(network), make_volume(2, PLANNED_SIZE)
    trained = take_two_steps(network, volume, lr=1e-3)
    assert all(parameter.grad is not None for parameter in trained)
    assert all(parameter.grad.any() for parameter in network.feature_fusion.parameters())
    same = [torch.equal(value, before[name]) for name, value in state_of_backbone(network).items()]
    assert all(same) == (backbone == "frozen")


def test_features_alone_need_neither_prompts_nor_masks(make_network, monkeypatch):
    network = decided(make_network(feature_fusion=True, fusion="off", sam2_tuning="full"))

    def must_not(*_: object) -> None:
        raise AssertionError

    for part in ("prompts", "decode"):
        monkeypatch.setattr(type(network.sam2_branch), part, must_not)
    output = network.train().training_outputs(make_volume(2))
    assert output.sam2 is None
    assert output.fused is None
    AutoSAM2Loss.for_network(network)(output, torch.zeros(2, 3, *SIZE, dtype=torch.long)[:, :1]).backward()
    assert all(p.grad is not None for p in network.parameters() if p.requires_grad)
    assert network.sam2_branch.sam2.image_encoder.trunk.patch_embed.proj.weight.requires_grad


def encoded_slices(network: AutoSAM2, volume: Tensor, **arguments) -> tuple[list[int], Any]:
    """How many slices the image encoder gets, each time, and what the network returns."""
    with counted_slices(network) as seen, torch.no_grad():
        return seen, network(volume, **arguments)


def test_a_slice_is_encoded_once_for_features_and_masks(make_network):
    network = decided(make_network(feature_fusion=True, region_based=True, training_slices=3, slice_fraction=0.5))
    started(network.feature_fusion)
    seen, _ = encoded_slices(network.train(), make_volume(2))
    assert seen == [6]
    network.eval()
    seen, (logits, sam2) = encoded_slices(network, make_volume(2), return_sam2=True)
    assert seen == [int(sam2.embeddings.encoded.sum())]
    again, same = encoded_slices(network, make_volume(2), sam2=sam2)
    assert again == []
    assert torch.equal(same, logits)
    with_masks, same = encoded_slices(network, make_volume(2), sam2=SAM2Output(None, sam2.embeddings))
    assert with_masks == []
    assert torch.equal(same, logits)


def test_a_prediction_encodes_where_the_coarse_half_suspects_something(make_network):
    network = make_network(feature_fusion=True, region_based=True).eval()
    started(network.feature_fusion)
    alone = make_network(region_based=True, enable_sam2=False).eval()
    alone.load_state_dict(network.state_dict())
    for probability, some in ((SUSPICION * 0.9, False), (SUSPICION * 1.1, True)):
        foreground = torch.zeros(1, 3, *SIZE)
        foreground[:, 0, 6:9, 4:8, 4:8] = probability
        seen, logits = encoded_slices(network, make_volume(), foreground=foreground)
        assert bool(seen) == some
        assert torch.equal(logits, alone(make_volume())) != some


@torch.no_grad()
def test_features_count_within_the_window_of_a_step(make_network):
    network = make_network(feature_fusion=True, region_based=True, slice_fraction=1.0, training_slices=2).train()
    started(network.feature_fusion)
    volume = make_volume()
    foreground = torch.rand(1, 3, *SIZE)
    _, sam2 = network(volume, foreground, return_sam2=True)
    residual = network.feature_fusion(sam2.embeddings, SIZE)[0]
    first, last = sam2.embeddings.slices[0].tolist()
    assert last == first + 1
    reached = residual.flatten(3).any(3).any(1)[0].nonzero().flatten().tolist()
    assert reached == [d for d in range(first - 1, last + 2) if 0 <= d < SIZE[0]]
