import json
import os
import re
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_autosam2.cli.configure import refit_architecture
from nnunet_autosam2.cli.main import main
from nnunet_autosam2.config import AutoSAM2Config
from tests.fork_server import run

DATASET = "Dataset007_Tiny"
SHAPE = (64, 80, 72)
PLAIN, RESENC = "nnUNetPlans", "nnUNetResEncUNetMPlans"
PLANNING = """
from nnunetv2.experiment_planning.plan_and_preprocess_api import extract_fingerprints, plan_experiments

if __name__ == "__main__":  # nnU-Net's workers import this
    extract_fingerprints([7], num_processes=1)
    plan_experiments([7])
    plan_experiments([7], experiment_planner_class_name="nnUNetPlannerResEncM")
"""


@pytest.fixture(scope="module")
def planned(tmp_path_factory) -> Path:
    """nnUNet_preprocessed with one dataset, planned by nnU-Net for both of its U-Nets."""
    root = tmp_path_factory.mktemp("planned")
    raw = root / "raw" / DATASET
    random = np.random.default_rng(0)
    for folder in ("imagesTr", "labelsTr"):
        (raw / folder).mkdir(parents=True)
    for case in ("a", "b"):
        label = np.zeros(SHAPE, np.uint8)
        label[20:40, 20:40, 20:40] = 1
        nibabel.save(nibabel.Nifti1Image(label, np.eye(4)), raw / "labelsTr" / f"{case}.nii.gz")
        image = random.normal(100, 20, SHAPE).astype(np.float32) + 50 * label
        nibabel.save(nibabel.Nifti1Image(image, np.eye(4)), raw / "imagesTr" / f"{case}_0000.nii.gz")
    description = {
        "channel_names": {"0": "FLAIR"},
        "labels": {"background": 0, "tumor": 1},
        "numTraining": 2,
        "file_ending": ".nii.gz",
    }
    (raw / "dataset.json").write_text(json.dumps(description))
    folders = {f"nnUNet_{name}": str(root / name) for name in ("raw", "preprocessed", "results")}
    (root / "plan.py").write_text(PLANNING)
    planning = run(root / "plan.py", variables={**os.environ, **folders})
    assert planning.returncode == 0, planning.stderr
    return root / "preprocessed"


@pytest.fixture
def dataset(planned, tmp_path, monkeypatch) -> Path:
    """A fresh copy of the planned dataset's folder."""
    preprocessed = tmp_path / "preprocessed"
    shutil.copytree(planned, preprocessed)
    monkeypatch.setenv("nnUNet_preprocessed", str(preprocessed))
    monkeypatch.delenv("nnUNet_raw", raising=False)
    monkeypatch.delenv("nnUNet_results", raising=False)
    return preprocessed / DATASET


def configure(*arguments: str):
    return CliRunner().invoke(main, ["configure", *arguments])


def resolved(dataset: Path, name: str, plans: str = PLAIN) -> dict:
    """As nnU-Net reads it."""
    return PlansManager(str(dataset / f"{plans}.json")).get_configuration(name).configuration


def test_adds_an_inheriting_configuration_and_nothing_else(dataset):
    path = dataset / f"{PLAIN}.json"
    before = json.loads(path.read_text())
    path.chmod(0o640)
    result = configure("7", "--name", "3d_fullres_60", "slice_fraction=0.6", "num_epochs=5.0")
    assert result.exit_code == 0, result.output
    text = path.read_text()
    after = json.loads(text)
    assert text == json.dumps(after, indent=4)
    assert after["configurations"].pop("3d_fullres_60") == {
        "inherits_from": "3d_fullres",
        "autosam2": {"slice_fraction": 0.6, "num_epochs": 5},
    }
    assert json.dumps(after) == json.dumps(before)
    assert path.stat().st_mode & 0o777 == 0o640
    assert sorted(file.name for file in dataset.glob("*Plans*")) == sorted([f"{PLAIN}.json", f"{RESENC}.json"])


def test_the_block_of_the_base_is_kept(dataset):
    assert configure(DATASET, "--name", "sixty", "slice_fraction=0.6", "fusion=fixed").exit_code == 0
    assert configure(DATASET, "--base", "sixty", "--name", "gated", "fusion=gated").exit_code == 0
    assert resolved(dataset, "gated")["autosam2"] == {"slice_fraction": 0.6, "fusion": "gated"}
    assert resolved(dataset, "gated")["patch_size"] == resolved(dataset, "3d_fullres")["patch_size"]


def test_says_what_to_run_next(dataset):
    train = f"nnUNetv2_train 7 small 0 -p {RESENC} -tr nnUNetTrainerAutoSAM2"
    without_data = configure("7", "-p", RESENC, "--name", "small", "--batch-size", "1")
    assert f"nnUNetv2_preprocess -d 7 -c small -plans_name {RESENC}" in without_data.output
    assert train in without_data.output
    (dataset / resolved(dataset, "3d_fullres", RESENC)["data_identifier"]).mkdir()
    with_data = configure("7", "-p", RESENC, "--name", "smaller", "--batch-size", "1", "--max-features", "64")
    assert "nothing has to be preprocessed again" in with_data.output
    assert resolved(dataset, "smaller", RESENC)["batch_size"] == 1


@pytest.mark.parametrize("plans", [PLAIN, RESENC])
@pytest.mark.parametrize("patch", [(32, 32, 32), (16, 64, 48), (24, 40, 20), (64, 96, 128)])
def test_network_of_a_changed_patch_builds_and_runs(dataset, plans, patch):
    size = [str(length) for length in patch]
    limits = ["--base-features", "4", "--max-features", "16", "--batch-size", "1"]
    result = configure("7", "-p", plans, "--name", "small", "--patch-size", *size, *limits)
    assert result.exit_code == 0, result.output
    configuration = PlansManager(str(dataset / f"{plans}.json")).get_configuration("small")
    assert tuple(configuration.patch_size) == patch
    arguments = configuration.network_arch_init_kwargs
    assert arguments["features_per_stage"] == [4, 8, 16, 16, 16][: arguments["n_stages"]]
    network = get_network_from_plans(
        configuration.network_arch_class_name,
        arguments,
        configuration.network_arch_init_kwargs_req_import,
        input_channels=1,
        output_channels=2,
        deep_supervision=True,
    )
    outputs = network(torch.zeros(1, 1, *patch))
    assert [len(output.shape) for output in outputs] == [5] * (arguments["n_stages"] - 1)
    assert outputs[0].shape == (1, 2, *patch)


@pytest.mark.parametrize("plans", [PLAIN, RESENC])
def test_the_planned_patch_gives_the_planned_network(dataset, plans):
    configuration = resolved(dataset, "3d_fullres", plans)
    assert refit_architecture(configuration, configuration["patch_size"]) == configuration["architecture"]
    fewer = refit_architecture(configuration, None, max_features=64)["arch_kwargs"]
    assert fewer["features_per_stage"] == [32, 64, 64, 64, 64]
    assert fewer["strides"] == configuration["architecture"]["arch_kwargs"]["strides"]


def test_anisotropic_spacing_is_halved_in_plane_first(dataset):
    configuration = {**resolved(dataset, "3d_fullres"), "spacing": [5.0, 1.0, 1.0]}
    arguments = refit_architecture(configuration, (12, 64, 64))["arch_kwargs"]
    assert arguments["strides"][:3] == [[1, 1, 1], [1, 2, 2], [1, 2, 2]]
    assert arguments["kernel_sizes"][0] == [1, 3, 3]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["7", "--name", "new", "slice_fraction=1.5"], "slice_fraction = 1.5 is not possible"),
        (["7", "--name", "new", "slice_fractoin=0.5"], "Did you mean slice_fraction"),
        (
            ["7", "--name", "new", "rgb_channels=[0,0,1]"],
            "rgb_channels = (0, 0, 1) is not possible: it has to be channel",
        ),
        (["7", "--name", "new", "class_weights=[1,2,3]"], "has to be null, or 2 numbers, one for each region"),
        (["7", "--name", "new", "slice_fraction"], "not of the form key=value"),
        (["7", "--name", "new", "enable_sam2=false", "enable_unet_decoder=false"], "nothing is left"),
        (["7", "--name", "3d_fullres", "fusion=fixed"], "exists already"),
        (["7", "--name", "a__b"], "'a__b' is not possible"),
        (["7", "--name", "../up"], "'../up' is not possible"),
        (["7", "--name", "new", "--base", "3d_full"], "It has: 2d, 3d_fullres, cascade"),
        (["7", "--name", "new", "--base", "2d", "--patch-size", "32", "32", "32"], "--base 2d is 2D"),
        (["7", "--name", "new", "--base", "orphan"], "configurations.orphan is incomplete"),
        (
            ["7", "--name", "new", "--base", "odd"],
            "configurations.odd: autosam2: Input should be a valid dictionary, found 5",
        ),
        (["7", "--name", "new", "--patch-size", "30", "32", "32"], "32 32 32 is the next size up"),
        (["7", "--name", "new", "--patch-size", "8", "8", "8"], "too small"),
        (["7", "--name", "new", "--patch-size", "0", "64", "64"], "too small"),
        (["7", "--name", "new", "--batch-size", "0"], "--batch-size = 0"),
        (["7", "--name", "new", "--max-features", "-3"], "--max-features = -3"),
        (["8", "--name", "new"], "8 is not the ID or name"),
        (["Tiny", "--name", "new"], "Tiny is not the ID or name"),
        (["Dataset008_Other", "--name", "new"], "Plan the dataset first"),
        (["7", "--name", "new", "-p", "OtherPlans"], "OtherPlans.json does not exist"),
    ],
)
def test_refused_in_one_line_with_the_plans_untouched(dataset, arguments, message):
    path = dataset / f"{PLAIN}.json"
    content = json.loads(path.read_text())
    content["configurations"] |= {
        "cascade": {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"},
        "orphan": {"inherits_from": "gone"},
        "odd": {"inherits_from": "3d_fullres", "autosam2": 5},
    }
    path.write_text(json.dumps(content))
    before = path.read_bytes(), sorted(os.listdir(dataset))
    result = configure(*arguments)
    assert result.exit_code == 1
    assert message in result.output
    assert result.output.startswith("Error: ")
    assert result.output.count("\n") == 1
    assert (path.read_bytes(), sorted(os.listdir(dataset))) == before


@pytest.mark.parametrize("key", ["sam2_checkpoint", "backbone_checkpoint"])
def test_a_named_file_has_to_be_there_and_is_stored_with_its_whole_path(dataset, tmp_path, monkeypatch, key):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    Path("there.pt").touch()
    for number, given in enumerate(
        ("there.pt", "./preprocessed/../there.pt", "~/there.pt", str(tmp_path / "there.pt"))
    ):
        result = configure("7", "--name", f"new_{number}", f"{key}={given}", "backbone=plans")
        assert result.exit_code == 0, result.output
        assert resolved(dataset, f"new_{number}")["autosam2"][key] == str(tmp_path / "there.pt")
    before = (dataset / f"{PLAIN}.json").read_bytes()
    for given in ("gone.pt", "preprocessed", "~nobody-of-this-name/x.pt", "x" * 300, "a\\u0000b"):
        result = configure("7", "--name", "new", f'{key}="{given}"', "backbone=plans")
        assert result.exit_code == 1, result.output
        assert isinstance(result.exception, SystemExit)
        assert result.output.startswith(f"Error: {key} = ")
        assert result.output.count("\n") == 1
    assert (dataset / f"{PLAIN}.json").read_bytes() == before


@pytest.mark.parametrize("width", [60, 100])
def test_the_help_lists_every_parameter_within_the_width(width):
    result = CliRunner().invoke(main, ["configure", "--help"], terminal_width=width)
    assert result.exit_code == 0
    listed = result.output.split("Parameters of AutoSAM2:\n")[1]
    assert re.findall(r"^  (\w+)  ", listed, re.MULTILINE) == list(AutoSAM2Config.model_fields)
    assert max(map(len, result.output.splitlines())) <= width
    assert "[a whole number from 1 to 1024; default: 8]" in " ".join(listed.split())


@pytest.mark.parametrize("text", ["{", "[]", '{"configurations": 3}'])
def test_a_file_that_is_no_plans_file(dataset, text):
    path = dataset / f"{PLAIN}.json"
    path.write_text(text)
    result = configure("7", "--name", "new")
    assert result.exit_code == 1
    assert str(path) in result.output
    assert path.read_text() == text


def test_without_nnunet_folders():
    environment = {key: value for key, value in os.environ.items() if not key.startswith("nnUNet_")}
    refused = run("autosam2", "configure", "7", "--name", "new", variables=environment, afresh=True)
    assert refused.returncode == 1
    assert "nnUNet_preprocessed is not set" in refused.stderr
    assert "Traceback" not in refused.stderr
