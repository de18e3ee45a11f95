"""Both UNets in two halves."""

from collections.abc import Callable

import pytest
import torch

from nnunet_autosam2.architectures.backbone import Backbone
from nnunet_autosam2.architectures.planned_unet import PlannedUNet
from nnunet_autosam2.architectures.unet import ResidualUNet3d
from tests.architectures.test_planned_unet import SIZE, planned

BACKBONES: dict[str, Callable[[], Backbone]] = {
    "AutoSAM2's": lambda: ResidualUNet3d(2, 3, ((1, 2, 2), (2, 2, 2), (2, 2, 2), (1, 1, 1))),
    "planned": lambda: PlannedUNet(planned()),
}


@pytest.fixture(params=BACKBONES)
def backbone(request) -> Backbone:
    torch.manual_seed(0)
    return BACKBONES[request.param]().eval()


@torch.no_grad()
def test_the_halves_are_the_whole(backbone):
    volume = torch.randn(1, 2, *SIZE)
    whole, half = backbone(volume), backbone.coarse_half(volume)
    in_halves = backbone.fine_half(half)
    assert all(map(torch.equal, in_halves.logits, whole.logits))
    assert torch.equal(in_halves.middle_features, whole.middle_features)
    assert torch.equal(backbone.coarse_logits(half), whole.logits[backbone.middle])


@torch.no_grad()
def test_its_finest_features_are_what_its_finest_logits_are_made_of(backbone):
    volume = torch.randn(1, 2, *SIZE)
    assert backbone(volume).finest_features is None
    backbone.gives_finest_features = True
    output = backbone(volume).detach()
    assert output.finest_features.shape == (1, backbone.decoder_channels(0), *SIZE)
    assert torch.equal(backbone.head(0)(output.finest_features), output.logits[0])
    assert backbone(volume, full_resolution=False).finest_features is None


@torch.no_grad()
def test_a_residual_counts_from_its_level_on(backbone):
    half = backbone.coarse_half(torch.randn(1, 2, *SIZE))
    before = backbone.fine_half(half)
    for level in range(backbone.middle + 1):
        shape = before.logits[level].shape
        residual = torch.randn(1, backbone.decoder_channels(level), *shape[2:])
        after = backbone.fine_half(half, {level: residual})
        same = [torch.equal(ours, theirs) for ours, theirs in zip(before.logits, after.logits, strict=True)]
        assert same == [coarser > level for coarser in range(len(same))]
        head = backbone.head(level)
        torch.testing.assert_close(
            after.logits[level] - before.logits[level], head(residual) - head(torch.zeros_like(residual))
        )


def test_its_parts_are_all_that_it_computes_with_but_its_heads(backbone):
    """Upsampling by transposed convolutions apart."""
    parts = {id(p) for part in backbone.parts() for p in part.parameters()}
    rest = [name for name, p in backbone.named_parameters() if id(p) not in parts]
    assert parts
    assert all("seg_layers" in name or "transpconvs" in name for name in rest)
