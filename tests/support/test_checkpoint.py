import os
import pickle

import numpy as np
import pytest
import torch

from nnunet_autosam2.errors import WeightsError
from nnunet_autosam2.support.checkpoint import read_nnunet_checkpoint


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
