"""Each variant is the trainer with one thing changed, and nnU-Net finds it by its name."""

from __future__ import annotations

import pytest

from nnunet_autosam2 import trainers
from nnunet_autosam2.show.loading import find_trainer
from nnunet_autosam2.trainers import nnUNetTrainerAutoSAM2

CHANGED = {
    "nnUNetTrainerAutoSAM2": {},
    "nnUNetTrainerAutoSAM2_60": {"slice_fraction": 0.6},
    "nnUNetTrainerAutoSAM2_UNetOnly": {"enable_sam2": False},
    "nnUNetTrainerAutoSAM2_SAM2Only": {"enable_unet_decoder": False},
    "nnUNetTrainerAutoSAM2_Features": {"feature_fusion": True},
    "nnUNetTrainerAutoSAM2_Fixed": {"fusion": "fixed"},
    "nnUNetTrainerAutoSAM2_Plans": {"backbone": "plans"},
    "nnUNetTrainerAutoSAM2_OnBaseline": {
        "backbone": "plans",
        "backbone_checkpoint": "auto",
        "freeze_backbone": True,
        "num_epochs": 50,
    },
    "nnUNetTrainerAutoSAM2_5epochs": {"num_epochs": 5},
    "nnUNetTrainerAutoSAM2_10epochs": {"num_epochs": 10},
    "nnUNetTrainerAutoSAM2_TestRun": {"test_run": True},
}


def test_these_are_all():
    assert set(trainers.__all__) == set(CHANGED)


@pytest.mark.parametrize("name", CHANGED)
def test_a_variant_changes_what_its_name_says_and_nothing_else(plans, dataset_json, name: str):
    plans["configurations"]["tiny"]["autosam2"] = {}
    plain = nnUNetTrainerAutoSAM2.resolve_config(plans, "tiny", dataset_json)
    variant = getattr(trainers, name).resolve_config(plans, "tiny", dataset_json)
    assert {key: now for key, (_, now) in plain.differences(variant).items()} == CHANGED[name]


@pytest.mark.parametrize("name", CHANGED)
def test_it_counts_more_than_the_plans(plans, dataset_json, name: str):
    written = {"slice_fraction": 0.1, "num_epochs": 3, "initial_lr": 0.5}
    plans["configurations"]["tiny"]["autosam2"] = written
    trainer = getattr(trainers, name)
    config = trainer.resolve_config(plans, "tiny", dataset_json)
    expected = {**trainer.defaults, **written, **trainer.parameters}
    assert {key: getattr(config, key) for key in expected} == expected


def test_nnunet_finds_them():
    for name in CHANGED:
        assert issubclass(find_trainer(name), nnUNetTrainerAutoSAM2)


def test_a_default_of_the_trainer_counts_where_the_plans_have_null(plans, dataset_json):
    trainer = trainers.nnUNetTrainerAutoSAM2_OnBaseline
    plans["configurations"]["tiny"]["autosam2"] = {"backbone_checkpoint": None, "num_epochs": None}
    config = trainer.resolve_config(plans, "tiny", dataset_json)
    assert (config.backbone_checkpoint, config.num_epochs) == ("auto", 50)
