import os
import pickle

import numpy as np
import pytest
import torch

from nnunet_autosam2.errors import WeightsError
from nnunet_autosam2.support.checkpoint import (
    init_args,
    load_network,
    read_nnunet_checkpoint,
    require_nnunet_checkpoint,
    training_log,
)


class RunsCode:
    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return os.mkdir, (str(self.trace),)


def make_checkpoint() -> dict:
    """With all that nnU-Net's own have in them (see tests/end_to_end, where real ones are read)."""
    return {
        "network_weights": {"layer.weight": torch.arange(6.0).reshape(2, 3)},
        "init_args": {"fold": 0, "plans": {"spacing": [1.0, 1.0]}},
        "trainer_name": "nnUNetTrainer",
        "logging": {"ema_fg_dice": [np.float64(0.5)], "dice": [[np.float32(0.25), np.float32(np.nan)]]},
    }


@pytest.mark.parametrize("core", ["numpy.core", "numpy._core"])
def test_a_log_with_numpys_scalars_is_read_whatever_numpy_wrote_it(tmp_path, core):
    path = tmp_path / "checkpoint.pth"
    torch.save(make_checkpoint(), path)
    written = path.read_bytes()
    assert b"numpy._core.multiarray" in written or b"numpy.core.multiarray" in written
    content = read_nnunet_checkpoint(path)
    assert content["logging"]["ema_fg_dice"] == [0.5]
    assert content["logging"]["dice"][0][0] == 0.25
    assert torch.equal(content["network_weights"]["layer.weight"], torch.arange(6.0).reshape(2, 3))

    class Other(pickle._Pickler):
        def save_global(self, obj, name=None):
            if getattr(obj, "__name__", "") == "scalar":
                self.write(pickle.GLOBAL + f"{core}.multiarray\nscalar\n".encode())
                self.memoize(obj)
            else:
                super().save_global(obj, name)

    module = type("PickleModule", (), {"Pickler": Other, "dump": pickle.dump})
    torch.save(make_checkpoint(), path, pickle_module=module)
    assert f"{core}.multiarray\nscalar".encode() in path.read_bytes()
    assert read_nnunet_checkpoint(path)["logging"]["ema_fg_dice"] == [0.5]


@pytest.mark.parametrize("zipped", [True, False])
def test_code_is_refused_and_not_run(tmp_path, zipped):
    path, trace = tmp_path / "checkpoint.pth", tmp_path / "trace"
    torch.save({**make_checkpoint(), "logging": RunsCode(trace)}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(WeightsError, match=r"checkpoint.pth is refused: found a pickle that could run code"):
        read_nnunet_checkpoint(path)
    assert not trace.exists()
    torch.load(path, weights_only=False)  # the trap works
    assert trace.exists()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: path.unlink(), "does not exist"),
        (lambda path: (path.unlink(), path.mkdir()), "is a folder, where a file has to be"),
        (lambda path: path.write_bytes(b""), "found an empty file"),
        (lambda path: path.write_bytes(b"damaged"), "that torch.save did not write"),
        (lambda path: path.write_bytes(path.read_bytes()[:-300]), "found a truncated or damaged file"),
        (lambda path: torch.save({"model": {}}, path), "has no network_weights, init_args and trainer_name"),
        (lambda path: torch.save([1, 2], path), "has no network_weights"),
    ],
)
def test_other_files_are_refused_by_name(tmp_path, spoil, message):
    path = tmp_path / "checkpoint.pth"
    torch.save(make_checkpoint(), path)
    spoil(path)
    with pytest.raises(WeightsError, match=message) as caught:
        read_nnunet_checkpoint(path)
    assert str(path) in str(caught.value)
    assert "Expected a checkpoint that nnU-Net has written." in str(caught.value)


def test_of_a_damaged_checkpoint_the_good_ones_beside_it_are_named(tmp_path):
    path = tmp_path / "checkpoint_latest.pth"
    path.write_bytes(b"")
    with pytest.raises(WeightsError, match=r"found an empty file.* There is no other: start afresh\."):
        require_nnunet_checkpoint(path)
    (tmp_path / "checkpoint_final.pth").write_bytes(b"damaged, too")
    torch.save(make_checkpoint(), tmp_path / "checkpoint_best.pth")
    with pytest.raises(WeightsError, match=r"Remove it to go on from checkpoint_best\.pth\."):
        require_nnunet_checkpoint(path)
    assert require_nnunet_checkpoint(tmp_path / "checkpoint_best.pth")["trainer_name"] == "nnUNetTrainer"


def fill(**changes) -> torch.nn.Module:
    """A network with a layer and a buffer, from a checkpoint that has them otherwise."""
    network = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
    weights = {name: torch.full_like(tensor, 2) for name, tensor in network.state_dict().items()}
    weights.update(changes)
    load_network(network, {name: tensor for name, tensor in weights.items() if tensor is not None}, "a.pth")
    return network


def test_every_weight_comes_from_the_checkpoint():
    assert all((tensor == 2).all() for tensor in fill().state_dict().values())


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_other_kinds_of_floats_are_taken(kind):
    weight = fill(**{"0.weight": torch.full((3, 2), 0.5, dtype=kind)}).get_parameter("0.weight")
    assert weight.dtype == torch.float32
    assert (weight == 0.5).all()


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"0.weight": None}, "1 missing: 0.weight"),
        ({"more": torch.zeros(1)}, "1 unknown: more"),
        ({"0.bias": torch.zeros(4)}, "1 of another shape: 0.bias (expected [3], found [4])"),
        ({"0.bias": torch.zeros(3, dtype=torch.int64)}, "1 of another kind: 0.bias (int64)"),
        ({"0.bias": torch.zeros(3, dtype=torch.complex64)}, "1 of another kind: 0.bias (complex64)"),
        ({"0.bias": torch.zeros(3).to_sparse()}, "1 of another kind: 0.bias (sparse_coo)"),
        ({"0.bias": torch.zeros(3, device="meta")}, "1 of another kind: 0.bias (meta, without values)"),
        ({"0.bias": [0.0, 0.0, 0.0]}, "1 of another kind: 0.bias (list)"),
        ({"0.bias": torch.tensor([0, torch.nan, 0])}, "1 not finite: 0.bias"),
        ({"1.num_batches_tracked": torch.tensor(0.5)}, "1 of another kind: 1.num_batches_tracked (float32)"),
        (
            {"0.weight": None, "1.weight": None, "more": torch.zeros(1)},
            "2 missing: 0.weight, 1.weight; 1 unknown: more",
        ),
    ],
)
def test_weights_that_do_not_fit_are_named_and_none_is_taken(changes, fault):
    with pytest.raises(WeightsError) as error:
        fill(**changes)
    assert str(error.value) == f"a.pth does not fit the network of the plans: {fault}."


@pytest.mark.parametrize("weights", [None, [], [torch.zeros(1)], {7: torch.zeros(1)}])
def test_weights_without_names(weights):
    with pytest.raises(WeightsError, match=r"^a\.pth: network_weights does not map names to tensors\.$"):
        load_network(torch.nn.Linear(1, 1), weights, "a.pth")


def test_what_the_trainer_was_called_with(tmp_path):
    given = {"plans": {"a": 1}, "configuration": "3d_fullres", "dataset_json": {}, "fold": 0}
    assert init_args({"init_args": given}, tmp_path).configuration == "3d_fullres"
    with pytest.raises(WeightsError, match=r"a\.pth: init_args: plans: Field required \(and 2 more\)\."):
        init_args({"init_args": {}}, tmp_path / "a.pth")


def test_the_time_of_a_training_is_that_of_its_epochs(tmp_path):
    """And not that between them, when it was interrupted."""
    curves = {"train_losses": [1.0, 0.5], "val_losses": [1.0, 0.5], "ema_fg_dice": [0.1, float("nan")]}
    log = {**curves, "epoch_start_timestamps": [100.0, 5000.0], "epoch_end_timestamps": [110.0, 5020.0]}
    assert training_log({"logging": log}, tmp_path).seconds == 30
    with pytest.raises(WeightsError, match=r"a\.pth: logging: val_losses: Field required"):
        training_log({"logging": {"train_losses": [1.0]}}, tmp_path / "a.pth")
    with pytest.raises(WeightsError, match=r"a\.pth: logging: "):
        training_log({}, tmp_path / "a.pth")
