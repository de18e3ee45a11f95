import importlib.util
import re
from pathlib import Path

import pytest

from nnunet_autosam2.dataset_conversion.brats_layout import RELEASES, release_by_labels, release_named
from nnunet_autosam2.errors import ConfigurationError


@pytest.mark.parametrize(
    ("release", "config"),
    [
        ("2023-gli", "gli"),
        ("2024-gli", "gli"),
        ("2023-met", "mets"),
        ("2025-met", "mets"),
        ("2024-ped", "ped"),
        ("2023-men", "MenPre"),
        ("2024-goat", "GoAT"),
        ("2024-men-rt", "MenRT"),
    ],
)
def test_regions_are_those_of_the_official_evaluation(release: str, config: str):
    package = importlib.util.find_spec("brats_evaluation")
    if package is None or package.origin is None:
        pytest.skip("brats-evaluation is not installed")
    text = (Path(package.origin).parent / "configs" / f"config_{config}.yaml").read_text()
    official = {
        name: {int(label) for label in labels.split(",")}
        for name, labels in re.findall(
            r"(\w+): !Label\w*Group\s+single_instance: false\s+value_labels: \[(.*?)\]", text
        )
    }
    ours = RELEASES[release]
    original = {after: before for before, after in ours.labels.items()}
    names = {"wt": "whole tumor", "tc": "tumor core", "et": "enhancing tumor"}
    names |= {"rc": "resection cavity", "cc": "cystic component", "gtv": "gross tumor volume"}
    compared = {short: long for short, long in names.items() if long in ours.regions}
    assert {short: {original[label] for label in ours.regions[long]} for short, long in compared.items()} == {
        short: official[short] for short in compared
    }


@pytest.mark.parametrize("name", RELEASES)
def test_each_label_has_its_own_number_and_channels_are_those_of_every_release(name: str):
    release = RELEASES[name]
    assert sorted(release.labels.values()) == list(range(len(release.labels)))
    assert list(release.modalities.values()) == (["T1ce"] if name == "2024-men-rt" else ["T1", "T1ce", "T2", "Flair"])
    assert len(release.regions) == len(release.labels) - 1


def chosen(candidates: list[str], *labels: set[float]) -> str:
    return release_by_labels([RELEASES[name] for name in candidates], labels).name


def test_a_fourth_label_decides():
    glioma = ["2023-gli", "2024-gli"]
    assert chosen(glioma, {0, 1, 2, 3}, {0}) == "2023-gli"
    assert chosen(glioma, {0, 1, 2, 3}, {0.0, 4.0}) == "2024-gli"
    assert chosen(glioma, {0, 1}, {0, 7}) == "2023-gli"
    assert chosen(glioma, set(), set()) == "2023-gli"
    assert chosen(["2023-ped", "2024-ped"], {0, 1, 2}, {0, 4}) == "2024-ped"


def test_labels_with_two_meanings_are_left_to_the_user():
    with pytest.raises(ConfigurationError, match="--release 2023-ped or --release 2024-ped"):
        chosen(["2023-ped", "2024-ped"], {0, 1, 2, 3})


def test_an_unknown_release_is_refused():
    with pytest.raises(ConfigurationError, match="'2012' is not possible: choose from 2018-2021, 2023-gli"):
        release_named("2012")
