"""SAM2 along other axes: a UNet that does not tell them apart makes a transposed volume's result of it."""

import itertools

import pytest
import torch
from torch import Tensor, nn

from nnunet_autosam2.architectures.autosam2 import AutoSAM2
from nnunet_autosam2.architectures.slice_axes import sliced_along
from nnunet_autosam2.errors import ConfigurationError
from nnunet_autosam2.trainers.loss import AutoSAM2Loss

pytestmark = pytest.mark.filterwarnings("ignore:sam2_checkpoint is random")
SIZE = (16, 24, 20)
WHOLE = (16, 32, 48)
"""The UNet's strides divide it."""
OTHERS = pytest.mark.parametrize("axis", [1, 2])
FEATURES = {"feature_fusion": True, "fusion": "convolutional"}
OPTIONS = {
    "masks": {},
    "labels": {"region_based": False},
    "SAM2 only": {"enable_unet_decoder": False},
    "memory": {"propagation": "memory"},
    "features": FEATURES,
    "features alone": {"feature_fusion": True, "fusion": "off"},
}


def make_volume(size: tuple[int, ...] = SIZE) -> Tensor:
    return torch.randn(2, 2, *size, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def make_symmetric(make_network):
    """A network whose UNet does not tell two of its axes apart, with strong opinions, as after training."""

    def make(axis: int, **options) -> AutoSAM2:
        network = make_network(**{"region_based": True, "slice_fraction": 0.5, "slice_axes": 3, **options})
        with torch.no_grad():
            for layer in network.unet.modules():
                if isinstance(layer, nn.Conv3d | nn.ConvTranspose3d):
                    layer.weight.copy_((layer.weight + sliced_along(layer.weight, axis)) / 2)
            for head in network.unet.decoder.seg_layers.values():
                head.weight *= 20
            for level in network.feature_fusion.levels if network.feature_fusion else ():
                nn.init.normal_(level.mix.weight, std=0.1)
        return network.eval()

    return make


@OTHERS
@pytest.mark.parametrize("options", OPTIONS)
@torch.inference_mode()
def test_it_is_as_if_the_volume_were_transposed(make_symmetric, options, axis):
    network, volume = make_symmetric(axis, **OPTIONS[options]), make_volume()
    expected = sliced_along(network(sliced_along(volume, axis)), axis)
    along = network(volume, slice_axis=axis)
    torch.testing.assert_close(along, expected, rtol=1e-3, atol=1e-3)
    assert not torch.allclose(along, network(volume), atol=1e-1), "SAM2 has nothing to say"


@OTHERS
@pytest.mark.parametrize("options", [{}, FEATURES], ids=["masks", "features"])
@torch.inference_mode()
def test_what_is_known_serves_mirror_images(make_symmetric, options, axis):
    network, volume = make_symmetric(axis, **options), make_volume(WHOLE)
    for level in network.feature_fusion.levels if options else ():
        level.mix.weight.copy_((level.mix.weight + level.mix.weight.flip(2)) / 2)  # it knows no direction
    _, known = network(volume, return_sam2=True, slice_axis=axis)
    assert known.axis == axis
    for axes in itertools.chain.from_iterable(itertools.combinations((2, 3, 4), count) for count in range(4)):
        masks = known.mirrored(axes).masks
        expected = sliced_along(known.masks.logits, axis).flip(axes)
        assert torch.equal(sliced_along(masks.logits, axis), expected)
        flips = [0] if 2 + axis in axes else []
        assert torch.equal(masks.covered, known.masks.covered.flip([each + 1 for each in flips]))
        if known.embeddings is None:
            continue
        own, mirrored = (
            network.feature_fusion(each.embeddings, WHOLE, axis)[0] for each in (known, known.mirrored(axes))
        )
        torch.testing.assert_close(mirrored, own.flip(axes))


def test_trainings_draw_another_axis_in_each_step(make_symmetric):
    network, volume = make_symmetric(1, slice_axes=2, training_slices=2).train(), make_volume(WHOLE)
    truth = (torch.rand(2, 3, *WHOLE, generator=torch.Generator().manual_seed(2)) > 0.5).float()
    loss = AutoSAM2Loss.for_network(network)
    axes = []
    for _ in range(8):
        output = network.training_outputs(volume)
        axes.append(output.slice_axis)
        assert output.sam2.logits.shape[3:] == sliced_along(volume, output.slice_axis).shape[3:]
        losses = []
        for weight in (1, 0):
            loss.sam2_loss_weight = weight
            losses.append(loss(output, truth))
        slices = [truth, truth.permute(0, 1, 3, 2, 4)][output.slice_axis]
        torch.testing.assert_close(losses[0] - losses[1], loss.sam2(output.sam2, slices), rtol=1e-3, atol=1e-4)
    assert set(axes) == {0, 1}


def test_a_prediction_has_the_first_axis_unless_it_is_told(make_symmetric):
    network, volume = make_symmetric(1), make_volume()
    with torch.inference_mode():
        several = network(volume)
        network.set_mode(slice_axes=1, slice_fraction=network.config.slice_fraction_of_axis)
        assert torch.equal(several, network(volume))


@pytest.mark.parametrize(("axes", "counts"), [(1, (8, 12, 10)), (2, (4, 6, 5)), (3, (3, 4, 4))])
@torch.inference_mode()
def test_axes_share_the_slices(make_network, axes, counts):
    network = make_network(feature_fusion=True, slice_fraction=0.5, slice_axes=axes).eval()
    for axis, count in enumerate(counts):
        _, known = network(make_volume(), return_sam2=True, slice_axis=axis)
        assert known.embeddings.slices.shape[1] == count


def test_strides_have_to_be_the_same_along_all_axes(make_network):
    thin = ((1, 2, 2), (2, 2, 2), (2, 2, 2), (2, 2, 2))
    with pytest.raises(ConfigurationError, match=r"slice_axes = 2 .*\(1, 2, 2\)"):
        make_network(strides=thin, slice_axes=2)
    network = make_network(strides=thin)
    with pytest.raises(ConfigurationError, match="Set slice_axes = 1"):
        network.set_mode(slice_axes=3)
    assert network.config.slice_axes == 1
