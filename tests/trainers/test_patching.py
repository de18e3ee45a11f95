from types import SimpleNamespace

import pytest
import torch
from torch import nn

from nnunet_autosam2 import AutoSAM2
from nnunet_autosam2.trainers.patching import autosam2_of, predicting_autosam2_of, put_around


def test_a_function_is_wrapped_once_and_keeps_its_name() -> None:
    def double(value: int) -> int:
        return 2 * value

    owner = SimpleNamespace(double=double)
    for _ in range(2):
        put_around(owner, "double", lambda function: lambda value: function(value) + 1, "it takes longer")
    assert owner.double(3) == 7
    assert owner.double.__name__ == "double"
    assert owner.double.without_autosam2 is double


def test_warns_of_what_is_not_there() -> None:
    owner = SimpleNamespace()
    with pytest.warns(UserWarning, match="has no double, as was known: it takes longer"):
        put_around(owner, "double", lambda function: function, "it takes longer")
    assert not hasattr(owner, "double")


@pytest.mark.filterwarnings("ignore:sam2_checkpoint is random")
def test_the_network_is_found_in_what_is_around_it() -> None:
    network = AutoSAM2(3, 2, slice_fraction=0)
    assert autosam2_of(network) is network
    assert autosam2_of(torch.compile(network)) is network
    assert autosam2_of(nn.DataParallel(network)) is network
    assert autosam2_of(nn.Linear(1, 1)) is None
    assert autosam2_of(None) is None


@pytest.mark.filterwarnings("ignore:sam2_checkpoint is random")
def test_one_that_trains_or_has_no_sam2_does_not_predict_with_it() -> None:
    network = AutoSAM2(3, 2, sam2_image_size=64, sam2_checkpoint="random").eval()
    assert predicting_autosam2_of(torch.compile(network)) is network
    network.set_deep_supervision(True)
    assert predicting_autosam2_of(network) is None
    network.set_deep_supervision(False)
    assert predicting_autosam2_of(network.train()) is None
    assert predicting_autosam2_of(AutoSAM2(3, 2, slice_fraction=0).eval()) is None
    assert predicting_autosam2_of(nn.Linear(1, 1)) is None
