import os

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

from nnunet_autosam2.cli.main import main
from nnunet_autosam2.config import PLANS_KEY


def inspect(*arguments) -> Result:
    return CliRunner().invoke(main, ["inspect", *map(str, arguments)])


def make_checkpoint() -> dict:
    first = torch.zeros(2, 3)
    settings = {"patch_size": [8, 16, 16], "batch_size": 2, PLANS_KEY: {"slice_fraction": 0.45}}
    plans = {"dataset_name": "Dataset900_Phantom", "plans_name": "nnUNetPlans", "configurations": {"tiny": settings}}
    return {
        "trainer_name": "nnUNetTrainerAutoSAM2",
        "init_args": {"plans": plans, "configuration": "tiny", "fold": 3},
        "network_weights": {"unet.stem.weight": first, "unet.stem.bias": torch.zeros(3), "unet.again.weight": first},
        "current_epoch": 7,
        "_best_ema": np.float64(0.25),
        "logging": {},
    }


def test_what_is_in_it(tmp_path):
    torch.save(make_checkpoint(), tmp_path / "checkpoint.pth")
    result = inspect(tmp_path / "checkpoint.pth")
    assert result.exit_code == 0, result.output
    facts, table = result.stdout.split("\n\n")
    lines = {line[:14].strip(): line[14:].strip() for line in facts.splitlines()}
    assert lines == {
        "trainer": "nnUNetTrainerAutoSAM2",
        "data set": "Dataset900_Phantom",
        "plans": "nnUNetPlans",
        "configuration": "tiny, fold 3",
        "patch size": "[8, 16, 16]",
        "batch size": "2",
        "AutoSAM2": "slice_fraction = 0.45",
        "epochs": "7",
        "best EMA": "0.2500, of the pseudo Dice",
        "also in it": "logging",
    }
    assert [line.split() for line in table.splitlines()] == [
        ["part", "tensors", "numbers"],
        ["unet.stem", "2", "9"],  # `again` is the same tensor
        ["all", "2", "9"],
    ]


LABELS = {"background": 0, "core": 2, "oedema": 1}
REGIONS = {"background": 0, "whole tumor": [1, 2], "tumor core": 2}


@pytest.mark.parametrize(
    ("labels", "vetoed", "line"),
    [
        (REGIONS, [False, True], "tumor core"),
        (REGIONS, [True, True], "whole tumor, tumor core"),
        (REGIONS, [False, False], "none"),
        (LABELS, [False, True, False], "oedema"),
        (LABELS, [True, True, True], "oedema, core"),
    ],
    ids=str,
)
def test_closed_gates(tmp_path, labels, vetoed, line):
    checkpoint, region_based = make_checkpoint(), labels is REGIONS
    checkpoint["init_args"]["plans"]["configurations"]["tiny"][PLANS_KEY]["region_based"] = region_based
    checkpoint["init_args"]["dataset_json"] = {
        "channel_names": {"0": "CT"}, "labels": labels, "file_ending": ".nii.gz",
        **({"regions_class_order": [1, 2]} if region_based else {}),
    }  # fmt: skip
    checkpoint["network_weights"]["fusion.seg_layers.vetoed"] = torch.tensor(vetoed)
    torch.save(checkpoint, tmp_path / "checkpoint.pth")
    assert f"\nclosed gates   {line}\n" in inspect(tmp_path / "checkpoint.pth").stdout


@pytest.mark.parametrize("strange", [7, torch.zeros(9), torch.zeros(2, device="meta").bool(), torch.zeros(2)], ids=str)
def test_gates_that_are_none(tmp_path, strange):
    checkpoint = make_checkpoint()
    checkpoint["init_args"]["plans"]["configurations"]["tiny"][PLANS_KEY]["region_based"] = True
    checkpoint["init_args"]["dataset_json"] = {
        "channel_names": {"0": "CT"}, "labels": REGIONS, "file_ending": ".nii.gz", "regions_class_order": [1, 2],
    }  # fmt: skip
    checkpoint["network_weights"]["fusion.seg_layers.vetoed"] = strange
    torch.save(checkpoint, tmp_path / "checkpoint.pth")
    result = inspect(tmp_path / "checkpoint.pth")
    assert result.exit_code == 0, result.exception
    assert "closed gates" not in result.stdout


def test_every_tensor(tmp_path):
    torch.save(make_checkpoint(), tmp_path / "checkpoint.pth")
    table = inspect(tmp_path / "checkpoint.pth", "--tensors").stdout.split("\n\n")[1]
    assert [line.split() for line in table.splitlines()][1:] == [
        ["unet.stem.weight", "2×3", "float32"],
        ["unet.stem.bias", "3", "float32"],
        ["unet.again.weight", "2×3", "float32"],
    ]


@pytest.mark.parametrize("strange", [None, 7, [1], "text"], ids=str)
@pytest.mark.parametrize("key", ["init_args", "network_weights", "_best_ema", "trainer_name", "current_epoch"])
def test_a_file_with_something_else_in_the_place_of_what_is_expected(tmp_path, key, strange):
    torch.save({**make_checkpoint(), key: strange}, tmp_path / "checkpoint.pth")
    result = inspect(tmp_path / "checkpoint.pth")
    assert result.exit_code == 0, result.exception


def test_names_that_are_no_text(tmp_path):
    strange = {**make_checkpoint(), 3: "three", "network_weights": {7: torch.zeros(2)}}
    strange["init_args"] = {**strange["init_args"], "configuration": ["a", "list"]}
    torch.save(strange, tmp_path / "checkpoint.pth")
    for options in ([], ["--tensors"]):
        result = inspect(tmp_path / "checkpoint.pth", *options)
        assert result.exit_code == 0, result.exception
        assert "also in it     3, logging" in result.stdout


class RunsCode:
    def __reduce__(self):
        return os.mkdir, ("trace",)


def test_code_is_refused_and_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({**make_checkpoint(), "logging": RunsCode()}, "checkpoint.pth")
    result = inspect("checkpoint.pth")
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: checkpoint.pth is refused: found a pickle that could run code")
    assert not (tmp_path / "trace").exists()
    torch.load("checkpoint.pth", weights_only=False)  # the trap works
    assert (tmp_path / "trace").exists()


def test_nothing_in_a_file_acts_on_the_terminal_or_floods_it(tmp_path):
    checkpoint = make_checkpoint()
    forged = "x\x1b[2K\x1b[1A\rtrainer        nnUNetTrainer\nSAFE"
    checkpoint["trainer_name"] = forged
    checkpoint["init_args"]["plans"]["dataset_name"] = "D" * 17_000_000
    checkpoint["init_args"]["fold"] = "\u202e0"
    checkpoint[f"key{forged}"] = 1
    checkpoint["network_weights"][f"part.{forged}.weight"] = torch.zeros(1)
    torch.save(checkpoint, tmp_path / "checkpoint_final.pth")
    plain, tensors = (inspect(tmp_path / "checkpoint_final.pth", *options) for options in ([], ["--tensors"]))
    for result in (plain, tensors):
        assert result.exit_code == 0, result.output
        assert all(line.isprintable() for line in result.output.split("\n"))
        assert len(result.output) < 10_000
        assert sum(line.startswith(("trainer", "SAFE")) for line in result.output.splitlines()) == 1
