"""Plans of others: what they name is nnU-Net's own, or nothing of it is imported or called."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
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


def stages(plans: PlansJson) -> None:
    network(plans)["arch_kwargs"]["features_per_stage"] = [4, 8]


def dimensions(plans: PlansJson) -> None:
    network(plans)["arch_kwargs"]["conv_op"] = "torch.nn.Conv2d"


def even_kernel(plans: PlansJson) -> None:
    network(plans)["arch_kwargs"]["kernel_sizes"][1] = [3, 2, 3]


def too_large(plans: PlansJson) -> None:
    network(plans)["arch_kwargs"]["features_per_stage"] = [8192] * 3


def no_layers(plans: PlansJson) -> None:
    del network(plans)["arch_kwargs"]["n_conv_per_stage"]


def not_imported(plans: PlansJson) -> None:
    network(plans)["_kw_requires_import"].remove("nonlin")


def patch(plans: PlansJson) -> None:
    plans["configurations"]["3d_fullres"]["patch_size"] = [24, 32, 30]


def flat_patch(plans: PlansJson) -> None:
    plans["configurations"]["3d_fullres"]["patch_size"] = [32, 32]


def endless_patch(plans: PlansJson) -> None:
    plans["configurations"]["3d_fullres"]["patch_size"] = [2**10] * 3


def channels(plans: PlansJson) -> None:
    plans["configurations"]["3d_fullres"]["use_mask_for_norm"].pop()


def axes(plans: PlansJson) -> None:
    plans["transpose_forward"] = [0, 1, 1]


def path_for_a_name(plans: PlansJson) -> None:
    plans["dataset_name"] = "Dataset900_../../outside"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (stages, "features_per_stage has 2 entries, and 3 stages need 3"),
        (dimensions, "operators, kernel_sizes and strides are not of one number of dimensions"),
        (even_kernel, "the kernel [3, 2, 3] is even, and the output would not have the size of the input"),
        (too_large, "the network is too large to be one that was trained"),
        (no_layers, "arch_kwargs lacks n_conv_per_stage"),
        (not_imported, "_kw_requires_import lacks nonlin"),
        (patch, "the patch [24, 32, 30] cannot be halved as often as the network's strides do"),
        (flat_patch, "patch_size, spacing and the network are not of one number of dimensions"),
        (endless_patch, "is too large to be one that was trained on"),
        (channels, "use_mask_for_norm and normalization_schemes are not of one number of channels"),
        (axes, "[0, 1, 1] is no order of three axes"),
        (path_for_a_name, "dataset_name: String should match pattern"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_numbers_that_do_not_go_together_are_told_before_a_network_is_built(
    plans, change: Callable[[PlansJson], None], message: str
):
    require_configuration("tiny", plans, "plans.json")
    change(plans)
    with pytest.raises(DatasetError) as error:
        require_configuration("tiny", plans, "plans.json")
    assert str(error.value).startswith("plans.json: ")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


RESIDUAL = "dynamic_network_architectures.architectures.unet.ResidualEncoderUNet"


@pytest.mark.parametrize("dimension", [2, 3])
@pytest.mark.parametrize("residual", [False, True])
def test_networks_that_nnunet_plans_are_known(plans, dimension: int, residual: bool):
    """And are built by nnU-Net."""
    settings, arguments = plans["configurations"]["3d_fullres"], network(plans)["arch_kwargs"]
    for name in ("patch_size", "spacing"):
        settings[name] = settings[name][-dimension:]
    for name in ("kernel_sizes", "strides"):
        arguments[name] = [values[-dimension:] for values in arguments[name]]
    arguments["conv_op"] = f"torch.nn.modules.conv.Conv{dimension}d"
    arguments["norm_op"] = f"torch.nn.modules.instancenorm.InstanceNorm{dimension}d"
    if residual:
        network(plans)["network_class_name"] = RESIDUAL
        arguments["n_blocks_per_stage"] = arguments.pop("n_conv_per_stage")
    require_configuration("3d_fullres", plans, "plans.json")
    manager = PlansManager(plans)
    built = nnUNetTrainer.build_network_architecture(manager, manager.get_configuration("3d_fullres"), 4, 3, False)
    assert built(torch.zeros(1, 4, *settings["patch_size"])).shape == (1, 3, *settings["patch_size"])
