"""Through nnU-Net's own predictor: what it predicts with mirroring, and what is left afterwards."""

import copy
import gc
import io
import itertools
from collections.abc import Callable
from functools import partial

import pytest
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from torch import Tensor, nn

from nnunet_autosam2 import AutoSAM2
from nnunet_autosam2.architectures.masks import SAM2Output
from nnunet_autosam2.trainers import test_time_augmentation
from tests.counted_slices import counted_slices

pytestmark = pytest.mark.filterwarnings("ignore:sam2_checkpoint is random")
SIZE = (16, 16, 32)
PADDED = (15, 20, 25)
PASSES = [axes for count in range(4) for axes in itertools.combinations((2, 3, 4), count)]


def make_volume(size: tuple[int, ...] = SIZE, seed: int = 1) -> Tensor:
    return torch.randn(1, 2, *size, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def make_network() -> Callable[..., AutoSAM2]:
    """A network with a UNet that has strong opinions, as after training; parameters as of AutoSAM2."""
    small = {"sam2_image_size": 64, "sam2_checkpoint": "random", "sam2_precision": "float32", "slice_fraction": 0.5}
    built: dict[str, AutoSAM2] = {}

    def build(seed: int = 0, **parameters) -> AutoSAM2:
        key = repr((seed, sorted(parameters.items())))
        if key not in built:
            torch.manual_seed(seed)
            network = built[key] = AutoSAM2(3, 2, **{**small, "fusion": "fixed", "region_based": True, **parameters})
            with torch.no_grad():
                for head in network.unet.decoder.seg_layers.values():
                    head.weight *= 20
        return copy.deepcopy(built[key]).eval()

    return build


def make_predictor(network: nn.Module) -> nnUNetPredictor:
    predictor = nnUNetPredictor(device=torch.device("cpu"))
    predictor.network, predictor.allowed_mirroring_axes = network, (0, 1, 2)
    return predictor


def predict(network: nn.Module, volume: Tensor) -> Tensor:
    """A tile with its seven mirror images."""
    return make_predictor(network)._internal_maybe_mirror_and_predict(volume)


def passes(network: AutoSAM2, volume: Tensor, sam2: SAM2Output | None = None) -> Tensor:
    """[8, B, C, D, H, W]: each pass as a prediction of its own, or with what SAM2 makes of the first."""
    with torch.inference_mode():
        return torch.stack(
            [network(volume.flip(axes), sam2=sam2 and sam2.mirrored(axes)).flip(axes) for axes in PASSES]
        )


@pytest.mark.parametrize("allowed", [(0, 1, 2), (1, 2), (0,)])
def test_a_mirror_image_is_recognised_by_one_comparison(make_network, monkeypatch, allowed):
    compared: list[tuple[Tensor, ...]] = []
    equal = torch.equal

    def counted(*volumes: Tensor) -> bool:
        if volumes[0].ndim == 5:
            compared.append(volumes)
        return equal(*volumes)

    monkeypatch.setattr(torch, "equal", counted)
    predictor = make_predictor(make_network())
    predictor.allowed_mirroring_axes = allowed
    predictor._internal_maybe_mirror_and_predict(make_volume())
    others = 2 ** len(allowed) - 1
    assert others <= len(compared) <= (others if len(allowed) == 3 else 8)


@pytest.mark.parametrize(
    ("region_based", "size", "propagation"),
    [(True, SIZE, "linear"), (False, PADDED, "linear"), (True, PADDED, "memory")],
    ids=["regions", "labels, padded", "memory, padded"],
)
def test_sam2_is_prompted_on_a_tile_once(make_network, region_based, size, propagation):
    network, volume = make_network(region_based=region_based, propagation=propagation), make_volume(size)
    with counted_slices(network) as once, torch.inference_mode():
        _, sam2 = network(volume, return_sam2=True)
    with counted_slices(network) as calls:
        predicted = predict(network, volume)
    assert calls == once
    expected = passes(network, volume, sam2)
    torch.testing.assert_close(predicted, expected.mean(0), rtol=1e-4, atol=1e-4)

    # The blend is one of probabilities, half and half where SAM2's masks reach.
    network.set_mode(enable_sam2=False)
    probability = torch.sigmoid if region_based else partial(torch.softmax, dim=1)
    fused, unet = (list(map(probability, logits)) for logits in (expected, passes(network, volume)))
    reaches = (fused[0] != unet[0]).flatten(3).any(3).any(1)[:, None, :, None, None]
    assert reaches.any()
    for fused_pass, unet_pass in zip(fused, unet, strict=True):
        blended = torch.where(reaches, fused[0] + (unet_pass - unet[0]) / 2, unet_pass)
        torch.testing.assert_close(fused_pass, blended, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("fusion", ["fixed", "off"])
def test_embeddings_of_a_tile_are_mirrored_like_masks(make_network, fusion):
    network, volume = make_network(feature_fusion=True, fusion=fusion), make_volume()
    for level in network.feature_fusion.levels:
        nn.init.normal_(level.mix.weight, std=0.3)
    with counted_slices(network) as once, torch.inference_mode():
        _, sam2 = network(volume, return_sam2=True)
    with counted_slices(network) as calls:
        predicted = predict(network, volume)
    assert len(calls) == 1
    assert calls == once
    torch.testing.assert_close(predicted, passes(network, volume, sam2).mean(0), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(predicted, passes(network, volume).mean(0), atol=1e-2)


@pytest.mark.parametrize("fusion", ["fixed", "off"])
def test_each_axis_is_asked_along_once(make_network, fusion):
    network, volume = make_network(feature_fusion=True, fusion=fusion, slice_axes=3), make_volume((16, 32, 48))
    for level in network.feature_fusion.levels:
        nn.init.normal_(level.mix.weight, std=0.3)
    with counted_slices(network) as calls:
        predicted = predict(network, volume)
    assert len(calls) == 3
    known, expected = {}, []
    with torch.inference_mode():
        for number, axes in enumerate(PASSES):
            shown, axis = volume.flip(axes), number % 3
            if axis not in known:
                _, known[axis] = network(shown, return_sam2=True, slice_axis=axis)
                known[axis] = known[axis].mirrored(axes)
            expected.append(network(shown, sam2=known[axis].mirrored(axes)).flip(axes))
    torch.testing.assert_close(predicted, torch.stack(expected).mean(0), rtol=1e-4, atol=1e-4)


def test_each_pass_may_ask_along_its_axis(make_network):
    network, volume = make_network(slice_axes=2, sam2_mirroring=True), make_volume()
    with counted_slices(network) as calls:
        predicted = predict(network, volume)
    assert len(calls) == 8
    with torch.inference_mode():
        expected = [network(volume.flip(axes), slice_axis=number % 2).flip(axes) for number, axes in enumerate(PASSES)]
    torch.testing.assert_close(predicted, torch.stack(expected).mean(0), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "parameters",
    [{"sam2_mirroring": True}, {"enable_unet_decoder": False}, {"enable_sam2": False}],
    ids=["sam2_mirroring", "SAM2 only", "UNet only"],
)
def test_otherwise_each_pass_is_a_prediction_of_its_own(make_network, parameters):
    network, volume = make_network(**parameters), make_volume()
    torch.testing.assert_close(predict(network, volume), passes(network, volume).mean(0), rtol=1e-4, atol=1e-4)


def test_networks_of_others_are_predicted_as_before():
    network, volume = nn.Conv3d(2, 3, 3, padding=1), make_volume()
    expected = nnUNetPredictor._internal_maybe_mirror_and_predict.without_autosam2(make_predictor(network), volume)
    assert torch.equal(predict(network, volume), expected)


def test_a_symmetric_tile_is_its_own_mirror_image(make_network):
    network = make_network()
    half = make_volume()
    volume = half + half.flip(2)
    with counted_slices(network) as calls:
        predict(network, volume)
    assert len(calls) == 1


class Wrapped(nn.Module):
    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *args, **kwargs):
        return self.module(*args, **kwargs)


def test_it_is_found_within_wrappers(make_network):
    """As of distributed data parallel in a validation."""
    network, volume = make_network(), make_volume()
    with counted_slices(network) as calls:
        predicted = predict(Wrapped(network), volume)
    assert len(calls) == 1
    torch.testing.assert_close(predicted, predict(network, volume))


CHANGES = {
    "the weights of another fold": lambda network, other: network.load_state_dict(other.state_dict()),
    "weights of a part": lambda network, other: network.sam2_branch.sam2.sam_mask_decoder.load_state_dict(
        other.sam2_branch.sam2.sam_mask_decoder.state_dict()
    ),
    "weights in inference mode": lambda network, _: network.sam2_branch.sam2.sam_mask_decoder.mask_tokens.weight.neg_(),
    "the configuration": lambda network, _: network.set_mode(slice_fraction=0.9),
    "the mode": lambda network, _: network.set_mode(enable_sam2=False),
}


@pytest.mark.parametrize("change", CHANGES)
def test_masks_outlive_no_change(make_network, change):
    """A tile, the change, and a mirror image of the tile, which is predicted like any other volume."""
    network, other, volume = make_network(), make_network(seed=1), make_volume()
    predict(network, volume)
    with torch.inference_mode():
        network(volume)
        CHANGES[change](network, other)
        fresh = copy.deepcopy(network)
        assert not torch.equal(fresh(volume.flip(2)), make_network()(volume.flip(2))), "it changes nothing"
        torch.testing.assert_close(network(volume.flip(2)), fresh(volume.flip(2)))
        torch.testing.assert_close(predict(network, volume.flip(2)), predict(fresh, volume.flip(2)))


def test_an_ensemble_from_outside_has_masks_of_its_own_members(make_network):
    network, members, volume = make_network(), [make_network(seed) for seed in (0, 1)], make_volume()
    with torch.inference_mode():
        for member, shown in zip(members, (volume, volume.flip(2)), strict=True):
            state = dict(itertools.chain(member.named_parameters(), member.named_buffers()))
            logits = torch.func.functional_call(network, state, (shown,))
            torch.testing.assert_close(logits, member(shown))


def test_nothing_of_a_patient_stays(make_network):
    size = (16, 32, 48)  # of no other volume in these tests
    network, volume = make_network(), make_volume(size)
    predictor = make_predictor(network)
    before, after = io.BytesIO(), io.BytesIO()
    torch.save(network, before)
    predictor._internal_maybe_mirror_and_predict(volume)
    torch.save(network, after)
    assert abs(len(after.getvalue()) - len(before.getvalue())) < volume.nbytes / 100  # numbers, of chunks
    assert predictor.network is network
    assert tensors_of(size) == 1
    del volume
    assert tensors_of(size) == 0


def tensors_of(size: tuple[int, ...]) -> int:
    gc.collect()
    return sum(isinstance(each, Tensor) and each.shape[2:] == size for each in gc.get_objects())


def test_an_error_within_a_tile_leaves_the_predictor_as_it_was(make_network):
    network = make_network()
    predictor = make_predictor(network)
    with pytest.raises(RuntimeError, match="channels"):
        predictor._internal_maybe_mirror_and_predict(torch.zeros(1, 5, *SIZE))
    assert predictor.network is network


def test_a_predictor_that_is_unknown_is_told_of(monkeypatch):
    monkeypatch.delattr(nnUNetPredictor, test_time_augmentation.PREDICT_TILE)
    with pytest.warns(UserWarning, match="take longer"):
        test_time_augmentation.install()


def test_installing_it_again_changes_nothing():
    before = nnUNetPredictor._internal_maybe_mirror_and_predict
    test_time_augmentation.install()
    assert nnUNetPredictor._internal_maybe_mirror_and_predict is before
