"""What we say about the challenges, against the package that scores them."""

from __future__ import annotations

import inspect
import re

import brats_evaluation
import pytest
from brats_evaluation import metrics_parser

from nnunet_autosam2.errors import ConfigurationError
from nnunet_autosam2.evaluation.challenges import (
    CHALLENGES,
    FOUND_LESION,
    LARGEST_DISTANCE,
    SMALL_LESION,
    challenge_for,
    rules,
)


def regions_of(challenge: str) -> dict[str, set[int]]:
    """As the package's configuration has them."""
    text = brats_evaluation.config_path(challenge).read_text()
    found = re.findall(r"(\w+): !Label\w*Group\n(?:.*\n)*?\s*value_labels: \[(.*?)\]", text)
    return {name: set(map(int, labels.split(","))) for name, labels in found}


@pytest.mark.parametrize("challenge", [name for name in CHALLENGES if name != "MenRT"])
def test_labels_lie_in_the_regions_that_they_stand_for(challenge: str):
    """nnU-Net's 1, 2 and 3 are oedema, core and enhancing tumour."""
    labels, regions = CHALLENGES[challenge].original, regions_of(challenge)
    assert labels[3] in regions["et"]
    assert labels[2] in regions["tc"] - regions["et"]
    assert labels[1] in regions["wt"] - regions["tc"]


def test_radiotherapy_planning_has_one_region():
    assert regions_of("MenRT") == {"gtv": {CHALLENGES["MenRT"].original[1]}}


def test_the_challenge_is_one_that_scores_the_regions():
    assert challenge_for(["WT", "TC", "ET"]) == challenge_for(["liver", "tumour"]) == "gli"
    assert challenge_for(["GTV"]) == "MenRT"
    assert challenge_for(["WT", "TC", "ET"], "mets") == challenge_for(["liver"], "mets") == "mets"
    with pytest.raises(ConfigurationError, match=r"Challenge gli does not score GTV.*: choose from MenRT"):
        challenge_for(["GTV"], "gli")
    with pytest.raises(ConfigurationError, match=r"MenRT does not score WT, TC, ET.*: choose from gli, mets"):
        challenge_for(["WT", "TC", "ET"], "MenRT")
    with pytest.raises(ConfigurationError, match="'2012' is not possible: choose from gli, mets"):
        challenge_for(["GTV"], "2012")


def test_thresholds_are_the_packages_own_defaults():
    source = inspect.getsource(metrics_parser)
    for option, value in (("vol_threshold", SMALL_LESION), ("overlap_threshold", FOUND_LESION)):
        (default,) = re.findall(rf'"--{option}", type=float, default=([\d.]+)', source)
        assert float(default) == value
    assert set(re.findall(r"global_hd95 = (\d+)", source)) == {f"{LARGEST_DISTANCE:g}"}


@pytest.mark.parametrize("challenge", CHALLENGES)
def test_only_metastases_leave_small_lesions_out(challenge: str):
    said = " ".join(rules(challenge))
    assert ("20 mm³" in said) == (challenge == "mets")
    assert "373 mm" in said


def test_other_labels_have_rules_of_their_own_whatever_the_challenge():
    assert rules("gli", is_brats=False) == rules("mets", is_brats=False)
    said = " ".join(rules("gli", is_brats=False))
    assert "1 mm" in said
    assert "esion" not in said
