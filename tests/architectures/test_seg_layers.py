"""nnU-Net's -pretrained_weights, which starts afresh what has ".seg_layers." in its name and nothing else."""

import pytest
import torch
from nnunetv2.run.load_pretrained_weights import load_pretrained_weights

from nnunet_autosam2.support.checkpoint import load_network

VETOED = "fusion.seg_layers.vetoed"
CLOSED = {"backbone_checkpoint": "auto", "backbone": "plans"}


@pytest.mark.parametrize(
    "parameters",
    [{}, {"enable_unet_decoder": False}, {"fusion": "fixed"}, {"fusion": "convolutional"}, {"mask_prompt": True}],
)
@pytest.mark.parametrize("region_based", [True, False])
def test_all_that_depends_on_the_labels_starts_afresh(make_network, parameters, region_based):
    few, many = (make_network(classes, region_based=region_based, **parameters).state_dict() for classes in (3, 7))
    assert few.keys() == many.keys()
    different = {name for name in few if few[name].shape != many[name].shape}
    assert different
    assert different == {name for name in few if ".seg_layers." in name}


def test_state_dicts_with_the_names_of_before_are_read(make_network):
    network, other = make_network(region_based=True), make_network(region_based=True, seed=1)
    state = network.state_dict()
    names = {name: name.replace(".seg_layers.", ".") if "unet" not in name else name for name in state}
    before = {old: state[new].clone() for new, old in names.items()}
    assert {"fusion.bias", "sam2_branch.bridge.region_embedding"} <= before.keys()
    other.load_state_dict(before)
    assert all(torch.equal(tensor, state[name]) for name, tensor in other.state_dict().items() if "no_mem" not in name)


def test_they_are_read_within_another_module_too(make_network):
    network, other = make_network(region_based=True), make_network(region_based=True, seed=1)
    state = network.state_dict()
    before = {f"1.{name.replace('fusion.seg_layers.', 'fusion.')}": tensor.clone() for name, tensor in state.items()}
    outside = {"0.weight": torch.ones(1, 1), "0.bias": torch.ones(1)}
    torch.nn.Sequential(torch.nn.Linear(1, 1), other).load_state_dict(before | outside)
    assert torch.equal(other.fusion.bias, network.fusion.bias)
    assert other.state_was_loaded


def test_they_are_attributes_of_their_module(make_network):
    network = make_network(region_based=True)
    assert network.fusion.bias is network.fusion.seg_layers["bias"]
    with pytest.raises(AttributeError, match="opening"):
        _ = network.fusion.opening


@pytest.fixture
def vetoed(make_network):
    network = make_network(region_based=True)
    network.fusion.veto([True, False, True])
    return network


def test_a_veto_is_saved_and_loaded(make_network, vetoed):
    network = make_network(region_based=True)
    network.load_state_dict(vetoed.state_dict())
    assert network.state_dict()[VETOED].tolist() == [True, False, True]


@pytest.mark.parametrize("load", ["load_state_dict", "load_network"])
def test_a_state_dict_from_before_there_were_vetoes_has_none(make_network, vetoed, load):
    before = make_network(region_based=True, seed=1).state_dict()
    del before[VETOED]
    if load == "load_network":
        load_network(vetoed, before, "checkpoint.pth")
    else:
        assert not any(vetoed.load_state_dict(before))  # neither missing nor unexpected
    assert vetoed.state_dict()[VETOED].tolist() == [False] * 3
    assert all(
        torch.equal(vetoed.state_dict()[name], tensor) for name, tensor in before.items() if "no_mem" not in name
    )


@pytest.mark.parametrize("age", ["before there were vetoes", "with one"])
def test_nnunets_pretrained_weights_bring_no_veto(make_network, vetoed, tmp_path, age):
    weights = vetoed.state_dict()
    if age == "before there were vetoes":
        del weights[VETOED]
    torch.save({"network_weights": weights}, tmp_path / "checkpoint.pth")
    network = make_network(region_based=True, seed=1)
    load_pretrained_weights(network, tmp_path / "checkpoint.pth")
    assert network.state_dict()[VETOED].tolist() == [False] * 3
    assert torch.equal(network.state_dict()["sam2_branch.bridge.scale"], weights["sam2_branch.bridge.scale"])
