"""Where plans are, and what is said when they are not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_autosam2.config import PLANS_KEY
from nnunet_autosam2.errors import ConfigurationError, DatasetError
from nnunet_autosam2.support.plans import find_plans, read_plans, require_configuration, require_known_parts

DATASET = "Dataset900_Phantom"


@pytest.fixture
def preprocessed(tmp_path: Path, plans: dict, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The preprocessed data set, planned, in nnU-Net's folders."""
    for name in ("raw", "preprocessed", "results"):
        monkeypatch.setenv(f"nnUNet_{name}", str(tmp_path / name))
        (tmp_path / name).mkdir()
    folder = tmp_path / "preprocessed" / DATASET
    folder.mkdir()
    (folder / "nnUNetPlans.json").write_text(json.dumps(plans))
    return folder


@pytest.mark.parametrize("dataset", ["900", DATASET])
def test_plans_are_found_by_id_and_by_name(preprocessed: Path, plans: dict, dataset: str):
    path = find_plans(dataset, "nnUNetPlans")
    assert path == preprocessed / "nnUNetPlans.json"
    assert read_plans(path) == plans


@pytest.mark.parametrize("dataset", ["901", "Phantom", "9 00", "", "../900"])
def test_there_is_no_such_dataset(preprocessed: Path, dataset: str):
    with pytest.raises(DatasetError) as error:
        find_plans(dataset, "nnUNetPlans")
    assert str(error.value) == (
        f"{dataset} is not the ID or name of one dataset in {preprocessed.parent}. Plan it first: "
        "nnUNetv2_plan_and_preprocess -d ID."
    )


def test_there_are_no_such_plans(preprocessed: Path):
    with pytest.raises(DatasetError, match=r"nnUNetResEncUNetMPlans\.json does not exist\. Plan the dataset first"):
        find_plans("900", "nnUNetResEncUNetMPlans")


def test_nnunets_folder_is_not_named(preprocessed: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("nnUNet_preprocessed")
    with pytest.raises(DatasetError, match="The environment variable nnUNet_preprocessed is not set"):
        find_plans("900", "nnUNetPlans")


@pytest.mark.parametrize("content", ["{}", "[]", "null", '{"configurations": []}', '{"configurations": {"a": 1}}'])
def test_another_file_is_no_plans_file(tmp_path: Path, content: str):
    path = tmp_path / "plans.json"
    path.write_text(content)
    with pytest.raises(DatasetError) as error:
        read_plans(path)
    assert str(error.value) == f"{path} has no configurations: it is not a plans file of nnU-Net."


def test_a_configuration_has_all_that_it_inherits(plans: dict):
    found = require_configuration("tiny", plans, "plans.json")
    assert found == PlansManager(plans).get_configuration("tiny").configuration
    assert found["patch_size"] == plans["configurations"]["3d_fullres"]["patch_size"]
    assert PLANS_KEY in found
    assert PLANS_KEY not in require_configuration("3d_fullres", plans, "plans.json")


def test_of_an_unknown_configuration_the_known_ones_are_named(plans: dict):
    with pytest.raises(ConfigurationError) as error:
        require_configuration("3d_lowres", plans, "plans.json")
    assert str(error.value) == "3d_lowres is no configuration in plans.json. It has: 3d_fullres, tiny."


def test_a_configuration_whose_parent_is_gone(plans: dict):
    plans["configurations"]["tiny"]["inherits_from"] = "gone"
    with pytest.raises(DatasetError) as error:
        require_configuration("tiny", plans, "plans.json")
    assert str(error.value).startswith("plans.json: configurations.tiny is incomplete (")
    assert str(error.value).endswith("Plan again, or name another configuration.")


def test_a_configuration_that_inherits_from_itself(plans: dict):
    plans["configurations"]["3d_fullres"]["inherits_from"] = "tiny"
    with pytest.raises(DatasetError, match=r"configurations\.tiny is incomplete \(") as error:
        require_configuration("tiny", plans, "plans.json")
    assert "\n" not in str(error.value)


def test_what_nobody_asks_for_may_be_incomplete_but_not_foreign(plans: dict):
    """The plans of a data set have configurations of other tools' making, too."""
    plans["configurations"]["draft"] = {"inherits_from": "tiny"}
    require_configuration("tiny", plans, "plans.json")
    require_known_parts(plans, "plans.json")
    plans["configurations"]["draft"] = {"preprocessor_name": "SomeoneElses"}
    require_configuration("tiny", plans, "plans.json")
    with pytest.raises(DatasetError, match=r"configurations\.draft\.preprocessor_name: .*found SomeoneElses\. Nothing"):
        require_known_parts(plans, "plans.json")
