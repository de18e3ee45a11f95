"""nnU-Net's -pretrained_weights, which starts afresh what has ".seg_layers." in its name and nothing else."""

import pytest
import torch

CLOSED = {"backbone_checkpoint": "auto", "backbone": "plans"}


@pytest.mark.parametrize("parameters", [{}, {"enable_unet_decoder": False}, {"fusion": "fixed"}, {"mask_prompt": True}])
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


def test_they_are_attributes_of_their_module(make_network):
    network = make_network(region_based=True)
    assert network.fusion.bias is network.fusion.seg_layers["bias"]
    with pytest.raises(AttributeError, match="opening"):
        _ = network.fusion.opening
