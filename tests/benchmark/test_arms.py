"""Configurations of arms; what they compare is in the tests of ablations and of pretrained encoders."""

from __future__ import annotations

from pathlib import Path

import pytest

from nnunet_autosam2.benchmark.arms import Arm, find_arms
from nnunet_autosam2.errors import ConfigurationError
from nnunet_autosam2.support.plans import read_plans


def test_an_impossible_parameter_leaves_the_plans_as_they_are(planned: Path):
    path = planned / "nnUNetPlans.json"
    before = path.read_bytes()
    arms = [
        Arm(name, name, "nnUNetTrainerAutoSAM2", parameters, "--option")
        for name, parameters in (("good", {"fusion": "fixed"}), ("bad", {"slice_fraction": 2}))
    ]
    with pytest.raises(ConfigurationError, match="slice_fraction = 2 is not possible"):
        find_arms(path, read_plans(path), "tiny", arms)
    assert path.read_bytes() == before
    (model,) = find_arms(path, read_plans(path), "tiny", arms[:1])
    assert model.configuration == "tiny_good"
    assert read_plans(path)["configurations"]["tiny_good"]["inherits_from"] == "tiny"
