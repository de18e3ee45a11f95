"""Plans of others: what they name is nnU-Net's own, or nothing of it is imported or called."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_autosam2.cli.main import main
from nnunet_autosam2.errors import DatasetError, WeightsError
from nnunet_autosam2.support.plans import require_configuration
from nnunet_autosam2.trainers.backbone import load_backbone

PlansJson = dict[str, Any]


def network(plans: PlansJson) -> dict[str, Any]:
    return plans["configurations"]["3d_fullres"]["architecture"]


def named_class(plans: PlansJson) -> None:
    network(plans)["network_class_name"] = "trap.Network"


def torch_hub(plans: PlansJson) -> None:
    network(plans)["network_class_name"] = "torch.hub.load"
    network(plans)["arch_kwargs"] = {"repo_or_dir": ".", "model": "model", "source": "local"}


def operator(plans: PlansJson) -> None:
    network(plans)["arch_kwargs"]["conv_op"] = "trap.Network"


def another_argument_that_is_imported(plans: PlansJson) -> None:
    network(plans)["arch_kwargs"]["stem"] = "trap"
    network(plans)["_kw_requires_import"].append("stem")


def an_argument_of_an_operator(plans: PlansJson) -> None:
    network(plans)["arch_kwargs"]["nonlin_kwargs"] = {"inplace": "trap.Network"}


def imported_kernels(plans: PlansJson) -> None:
    network(plans)["arch_kwargs"]["kernel_sizes"] = "trap"
    network(plans)["_kw_requires_import"] += ["kernel_sizes"]


def in_the_hybrids_own_entry(plans: PlansJson) -> None:
    plans["configurations"]["tiny"]["architecture"] = {**network(plans), "network_class_name": "trap.Network"}


def reader(plans: PlansJson) -> None:
    plans["image_reader_writer"] = "determine_reader_writer_from_file_ending"


def label_manager(plans: PlansJson) -> None:
    plans["label_manager"] = "time"


def preprocessor(plans: PlansJson) -> None:
    plans["configurations"]["3d_fullres"]["preprocessor_name"] = "example_test_case_preprocessing"


def resampling(plans: PlansJson) -> None:
    plans["configurations"]["3d_fullres"]["resampling_fn_data"] = "sleep"


def argument_of_resampling(plans: PlansJson) -> None:
    plans["configurations"]["3d_fullres"]["resampling_fn_data_kwargs"]["out"] = "/tmp/x"


def normalisation(plans: PlansJson) -> None:
    plans["configurations"]["3d_fullres"]["normalization_schemes"][1] = "ABC"


ATTACKS: list[Callable[[PlansJson], None]] = [
    named_class, torch_hub, operator, another_argument_that_is_imported, an_argument_of_an_operator, imported_kernels,
    in_the_hybrids_own_entry, reader, label_manager, preprocessor, resampling, argument_of_resampling, normalisation,
]  # fmt: skip


def run(*arguments: str | Path, **environment: str) -> Result:
    return CliRunner().invoke(main, list(map(str, arguments)), env=environment)


def rewrite(checkpoint: Path, **changes: Any) -> None:
    content = {**torch.load(checkpoint, weights_only=True, mmap=True), **changes}
    checkpoint.unlink()
    torch.save(content, checkpoint)


def refused(result: Result, trap: Path) -> str:
    """The line, after a look at whether anything was run."""
    assert result.exit_code == 1, result.output
    assert isinstance(result.exception, SystemExit), result.exc_info
    *_, line = result.output.splitlines()
    assert line.startswith("Error: ")
    assert not trap.exists()
    return line


def test_the_trap_works(plans, trap):
    """In nnU-Net's own hands."""
    operator(plans)
    manager = PlansManager(plans)
    with pytest.raises(TypeError, match=r"trap\.Network is not a Module"):
        nnUNetTrainer.build_network_architecture(manager, manager.get_configuration("tiny"), 4, 3)
    assert trap.exists()
    assert "trap" in sys.modules


@pytest.mark.parametrize("attack", ATTACKS)
def test_no_command_imports_or_calls_what_a_results_folder_names(
    plans, model, trap, tmp_path, monkeypatch, attack: Callable[[PlansJson], None]
):
    monkeypatch.chdir(tmp_path)
    Path("hubconf.py").write_text(f"import trap\n\ndef model(**_):\n    open({str(trap)!r}, 'a').close()\n")
    attack(plans)
    (model / "plans.json").write_text(json.dumps(plans))
    assert "plans.json: " in refused(run("show", "imagesTs/case", "-m", model, "-o", tmp_path / "pictures"), trap)
    assert "plans.json: " in refused(run("merge-adapters", model, tmp_path / "merged"), trap)
    said = run("inspect", model / "fold_0" / "checkpoint_final.pth")
    assert "plans.json: " in refused(said, trap)
    assert said.output.startswith("trainer ")
    assert not (tmp_path / "merged").exists()
    assert not (tmp_path / "pictures").exists()


@pytest.mark.parametrize("attack", ATTACKS)
def test_nor_what_a_checkpoint_names(plans, dataset_json, model, trap, attack: Callable[[PlansJson], None]):
    settings = PlansManager(plans).get_configuration("tiny").configuration
    checkpoint = model / "fold_0" / "checkpoint_final.pth"
    attack(plans)
    arguments = {"plans": plans, "configuration": "tiny", "dataset_json": dataset_json}
    rewrite(checkpoint, network_weights={}, init_args=arguments)
    with pytest.raises(WeightsError, match=r"backbone_checkpoint: .*checkpoint_final\.pth: plans"):
        load_backbone(torch.nn.Identity(), checkpoint, settings, dataset_json)
    assert "checkpoint_final.pth: plans" in refused(run("inspect", checkpoint), trap)


def test_the_value_is_shown_and_what_would_run_it(plans, model):
    named_class(plans)
    with pytest.raises(DatasetError) as error:
        require_configuration("tiny", plans, "plans.json")
    said = str(error.value)
    assert said.startswith("plans.json: configurations.tiny: architecture.network_class_name: Input should be ")
    assert "found trap.Network. Nothing of it was run. nnU-Net's own commands import and call what plans name." in said


@pytest.mark.parametrize(
    ("text", "name"),
    [("{}", "plans"), ("[]", "plans"), ("null", "plans"), ("[" * 10**5, "plans"), ("{}", "dataset"), ("[]", "dataset"),
     ("null", "dataset"), ('{"labels": {"background": 0, "a": [[1], 2]}}', "dataset"), ("\ufeff{}", "dataset")],
)  # fmt: skip
def test_damaged_model_folders(model, tmp_path, trap, text: str, name: str):
    (model / f"{name}.json").write_text(text)
    line = refused(run("show", "case", "-m", model, "-o", tmp_path / "pictures"), trap)
    assert f"{model / name}.json" in line


def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(model, tmp_path, trap):
    (model / "plans.json").unlink()
    os.mkfifo(model / "plans.json")
    assert "plans.json is a pipe, a socket or a device, where a file has to be" in refused(
        run("show", "case", "-m", model), trap
    )


def changes_of_a_checkpoint() -> Iterator[tuple[str, Mapping[str, Any]]]:
    value: object
    for value in (None, [], {}, {"configuration": "tiny"}, {"configuration": 7, "plans": {}, "dataset_json": {}}):
        yield "init_args", {"init_args": value}
    for value in (None, 7, "os", "nnUNetTrainer", "__file__", "a.b", ["x"], "nnUNetTrainerAutoSAM2Nobody"):
        yield "trainer", {"trainer_name": value}
    for value in (None, {}, [1], {"a": 1}, {7: torch.zeros(1)}, {"a": torch.zeros(1)}):
        yield "checkpoint_final.pth", {"network_weights": value}


@pytest.mark.parametrize(("said", "change"), [*changes_of_a_checkpoint()])
def test_damaged_checkpoints(model, tmp_path, trap, said: str, change: Mapping[str, Any]):
    checkpoint = model / "fold_0" / "checkpoint_final.pth"
    rewrite(checkpoint, **{"network_weights": {}, **change})
    assert said in refused(run("show", "case", "-m", model, "-o", tmp_path / "pictures"), trap)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused_by_name(model, tmp_path, trap, value):
    checkpoint = model / "fold_0" / "checkpoint_final.pth"
    weights = torch.load(checkpoint, weights_only=True)["network_weights"]
    name = "unet.network.encoder.stages.0.0.convs.0.conv.weight"
    weights[name][0, 0, 0, 0, 0] = value
    rewrite(checkpoint, network_weights=weights)
    assert f"not finite: {name}" in refused(run("show", "case", "-m", model), trap)
