"""Through nnU-Net's own predictor: tiles of a volume, which share slices."""

from collections.abc import Iterator

import pytest
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager
from torch import Tensor

from nnunet_autosam2 import AutoSAM2
from nnunet_autosam2.architectures.sam2 import volume
from nnunet_autosam2.trainers import sliding_window
from tests.counted_slices import counted_slices

pytestmark = pytest.mark.filterwarnings("ignore:sam2_checkpoint is random")
PATCH = (16, 16, 32)
VOLUME = (24, 16, 48)
"""Two tiles along its first axis, and two along its last"""
LABELS = LabelManager({"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": 3}, [1, 2, 3])
PREDICT_TILES = "_internal_predict_sliding_window_return_logits"


def make_volume() -> Tensor:
    return torch.randn(2, *VOLUME, generator=torch.Generator().manual_seed(1))


def make_network(**parameters) -> AutoSAM2:
    torch.manual_seed(0)
    small = {"sam2_image_size": 64, "sam2_checkpoint": "random", "sam2_precision": "float32", "slice_fraction": 1.0}
    network = AutoSAM2(3, 2, **{**small, "fusion": "fixed", "region_based": True, **parameters}).eval()
    with torch.no_grad():
        for head in network.unet.decoder.seg_layers.values():
            head.weight *= 20  # strong opinions, as after training
    return network


def make_predictor(network: torch.nn.Module) -> nnUNetPredictor:
    predictor = nnUNetPredictor(device=torch.device("cpu"), use_mirroring=False, allow_tqdm=False)
    predictor.network, predictor.allowed_mirroring_axes, predictor.label_manager = network, (0, 1, 2), LABELS
    predictor.configuration_manager = ConfigurationManager({"patch_size": PATCH, "architecture": {}})
    return predictor


@pytest.fixture
def as_before(monkeypatch) -> Iterator[None]:
    """The predictor that encodes each tile's slices."""
    function = getattr(nnUNetPredictor, PREDICT_TILES).without_autosam2
    with monkeypatch.context() as patched:
        patched.setattr(nnUNetPredictor, PREDICT_TILES, function)
        yield


def predict(network: torch.nn.Module) -> Tensor:
    return make_predictor(network).predict_sliding_window_return_logits(make_volume()).float()


@pytest.mark.parametrize("parameters", [{}, {"feature_fusion": True}], ids=["masks", "features"])
def test_tiles_share_slices_and_the_prediction_is_the_same(parameters, request):
    network = make_network(**parameters)
    with counted_slices(network) as calls:
        shared = predict(network)
    request.getfixturevalue("as_before")
    with counted_slices(network) as all_calls:
        expected = predict(network)
    assert sum(calls) < sum(all_calls)
    torch.testing.assert_close(shared, expected, rtol=1e-3, atol=1e-3)
    if not parameters:
        # Of each place in the plane two tiles, whose 16 slices are 24 together.
        assert (sum(calls), sum(all_calls)) == (2 * 24, 2 * 2 * 16)


@pytest.mark.parametrize("parameters", [{}, {"feature_fusion": True, "slice_axes": 3}], ids=str)
def test_of_few_slices_those_are_selected_that_have_been_encoded(parameters, monkeypatch):
    network = make_network(slice_fraction=0.25, **parameters)
    with counted_slices(network) as calls:
        predict(network)
    monkeypatch.setattr(volume, "moved_to_known", lambda slices, known: slices)
    with counted_slices(network) as without:
        predict(network)
    assert sum(calls) < sum(without)


def test_tracking_between_slices_encodes_each_slice_once(request):
    network = make_network(propagation="memory", slice_fraction=0.25)
    with counted_slices(network) as calls:
        predict(network)
    request.getfixturevalue("as_before")
    with counted_slices(network) as all_calls:
        predict(network)
    assert sum(calls) <= 2 * 24 < sum(all_calls)


def test_nothing_is_left_of_it_after_a_volume():
    network = make_network()
    predict(network)
    assert network.sam2_branch.encoded_before is None
    with counted_slices(network) as calls:
        predict(network)
    assert sum(calls) == 48, "another volume, as of another fold with other weights, starts afresh"


def test_nothing_is_left_of_it_after_an_error(monkeypatch):
    network = make_network()
    monkeypatch.setattr(network, "forward", lambda volume, **_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        predict(network)
    assert network.sam2_branch.encoded_before is None


@pytest.mark.parametrize("parameters", [{"enable_sam2": False}, None], ids=["UNet only", "another network"])
def test_others_are_predicted_as_before(parameters, request):
    network = torch.nn.Conv3d(2, 3, 3, padding=1) if parameters is None else make_network(**parameters)
    shared = predict(network)
    request.getfixturevalue("as_before")
    assert torch.equal(shared, predict(network))


def test_it_is_installed_once():
    before = getattr(nnUNetPredictor, PREDICT_TILES)
    sliding_window.encode_shared_slices_once()
    assert getattr(nnUNetPredictor, PREDICT_TILES) is before


def test_another_version_of_nnunet_is_warned_of(monkeypatch):
    monkeypatch.delattr(nnUNetPredictor, PREDICT_TILES)
    with pytest.warns(UserWarning, match="predictions encode slices anew"):
        sliding_window.encode_shared_slices_once()
