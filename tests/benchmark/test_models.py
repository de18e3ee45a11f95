"""What is compared, as a user names it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nnunet_autosam2.benchmark.models import ComparedModel, find_models, titles
from nnunet_autosam2.errors import ConfigurationError, DatasetError
from nnunet_autosam2.trainers.backbone import BASELINE

DATASET = "Dataset900_Phantom"
pytestmark = pytest.mark.usefixtures("planned")


def find(*names: str, configuration: str = "tiny") -> list[ComparedModel]:
    return find_models("900", names, "nnUNetPlans", configuration)


def test_a_trainer_has_the_plans_and_the_configuration_that_are_given(tmp_path: Path):
    (model,) = find("nnUNetTrainer")
    assert (model.dataset, model.trainer, model.plans, model.configuration) == (
        DATASET, "nnUNetTrainer", "nnUNetPlans", "tiny",
    )  # fmt: skip
    assert model.folder == tmp_path / "results" / DATASET / "nnUNetTrainer__nnUNetPlans__tiny"


def test_or_those_that_it_names():
    (model,) = find("nnUNetTrainerAutoSAM2_60__otherPlans__3d_fullres")
    assert model.name == "nnUNetTrainerAutoSAM2_60__otherPlans__3d_fullres"


@pytest.mark.parametrize(
    ("trainer", "fraction"),
    [("nnUNetTrainer", None), ("nnUNetTrainerAutoSAM2", 0.3), ("nnUNetTrainerAutoSAM2_60", 0.6),
     ("nnUNetTrainerAutoSAM2_UNetOnly", 0.0)],
)  # fmt: skip
def test_how_many_of_the_slices_sam2_sees(trainer: str, fraction: float | None):
    (model,) = find(trainer)
    assert model.slice_fraction == fraction


def test_the_plans_have_a_say_in_it(planned: Path, plans: dict):
    plans["configurations"]["tiny"]["autosam2"]["slice_fraction"] = 0.5
    (planned / "nnUNetPlans.json").write_text(json.dumps(plans))
    (model,) = find("nnUNetTrainerAutoSAM2")
    assert model.slice_fraction == 0.5


def test_a_hybrid_on_a_baseline_waits_for_the_same_plans_and_configuration_of_it():
    on_baseline, same, another, alone = find(
        "nnUNetTrainerAutoSAM2_OnBaseline", BASELINE, f"{BASELINE}__otherPlans__tiny", "nnUNetTrainerAutoSAM2"
    )
    assert on_baseline.needs(same)
    assert not on_baseline.needs(another)
    assert not on_baseline.needs(alone)
    assert not alone.needs(same)


def test_it_waits_for_that_of_a_configuration_it_inherits_from_too(planned: Path, plans: dict):
    plans["configurations"]["mine"] = {"inherits_from": "tiny"}
    (planned / "nnUNetPlans.json").write_text(json.dumps(plans))
    on_baseline, inherited, mine = find(
        "nnUNetTrainerAutoSAM2_OnBaseline__nnUNetPlans__mine", BASELINE, f"{BASELINE}__nnUNetPlans__mine"
    )
    assert on_baseline.needs(inherited)
    assert on_baseline.needs(mine)
    (on_tiny,) = find("nnUNetTrainerAutoSAM2_OnBaseline")
    assert not on_tiny.needs(mine)


def test_titles_are_as_short_as_tells_them_apart():
    assert titles(find("nnUNetTrainer", "nnUNetTrainerAutoSAM2")) == ["nnUNetTrainer", "nnUNetTrainerAutoSAM2"]
    names = ["nnUNetTrainer__nnUNetPlans__tiny", "nnUNetTrainer__otherPlans__tiny"]
    assert titles(find(*names)) == names


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ["nnUNetTrainer__nnUNetPlans"],
            "nnUNetTrainer__nnUNetPlans is neither TRAINER nor TRAINER__PLANS__",
        ),
        (["nnUNetTrainerNobody"], "nnU-Net finds no trainer nnUNetTrainerNobody"),
        (["nnUNetTrainer__nnUNetPlans__3d_lowres"], "3d_lowres is no configuration in"),
        (
            ["nnUNetTrainer", "nnUNetTrainer__nnUNetPlans__tiny"],
            "--trainers: nnUNetTrainer__nnUNetPlans__tiny is named",
        ),
    ],
)
def test_refused_names(names: list[str], message: str):
    with pytest.raises(ConfigurationError) as error:
        find(*names)
    assert str(error.value).startswith(message)


def test_plans_that_are_not_there_and_plans_of_others(planned: Path, plans: dict):
    with pytest.raises(DatasetError, match=r"gonePlans\.json does not exist"):
        find("nnUNetTrainer__gonePlans__tiny")
    plans["configurations"]["3d_fullres"]["preprocessor_name"] = "SomeoneElses"
    (planned / "nnUNetPlans.json").write_text(json.dumps(plans))
    with pytest.raises(DatasetError, match=r"preprocessor_name: .*found SomeoneElses\. Nothing of it was run"):
        find("nnUNetTrainer")
