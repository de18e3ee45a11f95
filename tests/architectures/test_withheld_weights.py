"""Random weights of SAM2 never pass for a checkpoint's, whatever way a state dict takes."""

import copy
import io

import pytest
import torch
from sam2.build_sam import build_sam2

from nnunet_autosam2.architectures.autosam2 import AutoSAM2
from nnunet_autosam2.errors import WeightsError

NAMED = {"sam2_image_size": 64, "sam2_precision": "float32"}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "sam2.pt"
    torch.manual_seed(7)
    torch.save({"model": build_sam2("configs/sam2.1/sam2.1_hiera_t.yaml", device="cpu").state_dict()}, path)
    return path


def make(seed: int, checkpoint: object) -> AutoSAM2:
    torch.manual_seed(seed)
    return AutoSAM2(3, 2, sam2_checkpoint=str(checkpoint), **NAMED).eval()


def saved_before_use(checkpoint: object) -> dict[str, torch.Tensor]:
    """By a network that has predicted without SAM2 alone, through a file."""
    network = make(0, checkpoint)
    network.set_mode(enable_sam2=False)
    with torch.no_grad():
        network(torch.zeros(1, 2, 16, 16, 16))
    file = io.BytesIO()
    torch.save(network.state_dict(), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def volume_and_foreground() -> tuple[torch.Tensor, torch.Tensor]:
    foreground = torch.zeros(1, 2, 16, 16, 16)
    foreground[..., 4:12, 4:12] = 1
    return torch.randn(1, 2, 16, 16, 16, generator=torch.Generator().manual_seed(1)), foreground


def test_it_is_filled_from_the_checkpoint_that_it_names(checkpoint):
    network, expected = make(1, checkpoint), make(2, checkpoint)
    state = saved_before_use(checkpoint)
    network.load_state_dict(state)
    assert not network.sam2_has_weights
    expected.load_state_dict(state)
    expected.load_sam2_weights()
    with torch.no_grad():
        assert torch.equal(network(*volume_and_foreground()), expected(*volume_and_foreground()))
    assert network.sam2_has_weights


def test_it_is_refused_where_that_is_missing(tmp_path, checkpoint):
    network = make(1, tmp_path / "nowhere.pt")
    network.load_state_dict(saved_before_use(checkpoint))
    with pytest.raises(WeightsError, match=r"nowhere\.pt"), torch.no_grad():
        network(*volume_and_foreground())


def test_a_part_of_sam2_is_none(checkpoint, tmp_path):
    complete = make(0, checkpoint)
    complete.load_sam2_weights()
    part = {name: tensor for name, tensor in complete.state_dict().items() if "sam_mask_decoder" not in name}
    network = make(1, tmp_path / "nowhere.pt")
    network.load_state_dict(part, strict=False)
    assert not network.sam2_has_weights
    network.load_state_dict(complete.state_dict())
    assert network.sam2_has_weights
    network.load_state_dict(part, strict=False)
    assert network.sam2_has_weights, "it has had all of them before"


def test_parts_that_are_filled_by_themselves_count(checkpoint, tmp_path):
    complete, network = make(0, checkpoint), make(1, tmp_path / "nowhere.pt")
    complete.load_sam2_weights()
    network.sam2_branch.load_state_dict(complete.sam2_branch.state_dict())
    assert network.sam2_has_weights


def test_used_by_force_it_says_nothing_at_all(checkpoint):
    """Its parameters in another network, past every check."""
    network = make(1, checkpoint)
    network.load_sam2_weights()
    state = saved_before_use(checkpoint)
    volume, foreground = volume_and_foreground()
    with torch.no_grad():
        embeddings = network.sam2_branch.encode(volume[:, :, 0])
        masks, _, _ = torch.func.functional_call(
            network.sam2_branch,
            {name.removeprefix("sam2_branch."): tensor for name, tensor in state.items() if "sam2_branch" in name},
            (volume[:, :, 0], torch.zeros(1, 32, 4, 4), foreground[:, :, 0], network.config),
        )
    assert embeddings.image.isfinite().all()
    assert masks.logits.isnan().all()


@pytest.mark.filterwarnings("ignore:sam2_checkpoint is random")
def test_random_on_purpose_stays_as_it_was_drawn(checkpoint):
    network, again = make(3, "random"), make(3, "random")
    with torch.no_grad():
        expected = network(*volume_and_foreground())
        assert expected.isfinite().all()
        again.load_state_dict(saved_before_use(checkpoint), strict=True)
        assert again(*volume_and_foreground()).isfinite().all()
        assert torch.equal(copy.deepcopy(network)(*volume_and_foreground()), expected)
