"""Further trainings of the same models, each by a configuration of its own."""

from __future__ import annotations

from pathlib import Path

from nnunet_autosam2.benchmark.models import find_models, titles
from nnunet_autosam2.benchmark.repeats import find_repeats
from nnunet_autosam2.support.plans import read_plans
from nnunet_autosam2.trainers.backbone import BASELINE

TRAINERS = [BASELINE, "nnUNetTrainerAutoSAM2_OnBaseline"]


def test_each_is_configured_as_the_first(planned: Path):
    models = find_models("900", TRAINERS, "nnUNetPlans", "tiny")
    before = read_plans(planned / "nnUNetPlans.json")["configurations"]
    repeats = find_repeats(models, 3)
    assert [repeat.configuration for repeat in repeats] == ["tiny_repeat2"] * 2 + ["tiny_repeat3"] * 2
    assert [repeat.repeat_of for repeat in repeats] == [*TRAINERS, *TRAINERS]
    assert titles(repeats) == [f"{trainer}, repeat {number}" for number in (2, 3) for trainer in TRAINERS]
    added = read_plans(planned / "nnUNetPlans.json")["configurations"]
    assert {name: added[name] for name in added.keys() - before.keys()} == {
        f"tiny_repeat{number}": {"inherits_from": "tiny", "autosam2": before["tiny"]["autosam2"]} for number in (2, 3)
    }
    assert len({model.folder for model in (*models, *repeats)}) == 6


def test_an_upgrade_starts_from_the_baseline_of_its_own_repeat(planned: Path):
    models = find_models("900", TRAINERS, "nnUNetPlans", "tiny")
    baseline, upgrade = find_repeats(models, 2)
    assert upgrade.needs(baseline)
    assert not models[1].needs(baseline)
    assert find_repeats(models, 1) == []
