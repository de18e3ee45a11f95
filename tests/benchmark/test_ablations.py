"""What `--ablations` compares: upgrades of one trained nnU-Net, each by a configuration of its own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nnunet_autosam2.benchmark.ablations import ABLATIONS, ALL, find_ablations
from nnunet_autosam2.benchmark.models import ComparedModel, find_models, titles
from nnunet_autosam2.config import AutoSAM2Config
from nnunet_autosam2.errors import ConfigurationError
from nnunet_autosam2.support.plans import read_plans
from nnunet_autosam2.trainers.backbone import BASELINE
from nnunet_autosam2.trainers.variants import nnUNetTrainerAutoSAM2_OnBaseline


@pytest.fixture
def path(planned: Path) -> Path:
    """Plans of a data set."""
    return planned / "nnUNetPlans.json"


def find(*names: str) -> list[ComparedModel]:
    return find_ablations("900", names, "nnUNetPlans", "tiny")


def config_of(path: Path, name: str) -> AutoSAM2Config:
    dataset_json = json.loads((path.parent / "dataset.json").read_text())
    return nnUNetTrainerAutoSAM2_OnBaseline.resolve_config(read_plans(path), f"tiny_{name}", dataset_json)


def test_each_upgrades_the_nnunet_of_the_configuration_that_it_inherits_from(path: Path):
    models = find(ALL)
    assert len(models) == len(ABLATIONS)
    (baseline,) = find_models("900", [BASELINE], "nnUNetPlans", "tiny")
    assert all(model.needs(baseline) for model in models)
    assert titles([baseline, *models]) == [BASELINE, *(each.title for each in ABLATIONS.values())]
    of_base = AutoSAM2Config.from_dict(read_plans(path)["configurations"]["tiny"]["autosam2"])
    for name, (_, parameters) in ABLATIONS.items():
        config = config_of(path, name)
        assert config.backbone_checkpoint == "auto"
        assert {key: getattr(config, key) for key in parameters} == parameters
        assert config.sam2_image_size == of_base.sam2_image_size


def test_some_of_them_are_configured_once(path: Path):
    before = read_plans(path)["configurations"]
    first = find("features", "alone")
    assert [model.configuration for model in first] == ["tiny_alone", "tiny_features"]
    content = path.read_bytes()
    assert read_plans(path)["configurations"].keys() - before.keys() == {"tiny_alone", "tiny_features"}
    assert find("alone", "features", "features") == first
    assert path.read_bytes() == content


def test_a_configuration_of_that_name_with_something_else_in_it_stays(path: Path):
    find("features")
    plans = read_plans(path)
    plans["configurations"]["tiny_features"]["autosam2"]["fusion"] = "gated"
    path.write_text(json.dumps(plans))
    with pytest.raises(ConfigurationError, match=r"tiny_features in .*nnUNetPlans\.json is not what --ablations"):
        find("masks", "features")
    assert read_plans(path) == plans


def test_all_are_those_that_the_voxels_allow(path: Path):
    plans = read_plans(path)
    plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]["strides"][1] = [1, 2, 2]
    path.write_text(json.dumps(plans))
    assert {*ABLATIONS} - {model.configuration.removeprefix("tiny_") for model in find(ALL)} == {"axes"}
