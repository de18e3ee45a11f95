"""Blocks of configurations that inherit, and whom they inherit from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nnunet_autosam2.config import PLANS_KEY
from nnunet_autosam2.errors import ConfigurationError
from nnunet_autosam2.support.configurations import changed_block, lineage


@pytest.fixture
def path(tmp_path: Path, dataset_json: dict) -> Path:
    (tmp_path / "dataset.json").write_text(json.dumps(dataset_json))
    return tmp_path / "nnUNetPlans.json"


def test_a_block_repeats_what_that_of_the_other_says(path: Path, plans: dict):
    inherited = {PLANS_KEY: {"slice_fraction": 0.5, "fusion": "fixed"}}
    block = changed_block(inherited, {"fusion": "gated", "class_weights": (1, 2, 3)}, plans, path)
    assert block == {"slice_fraction": 0.5, "fusion": "gated", "class_weights": [1, 2, 3]}
    assert changed_block({}, {}, plans, path) == {}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fusoin": "gated"}, "Did you mean fusion"),
        ({"class_weights": (1, 2)}, "3 numbers"),
        ({"rgb_channels": (0, 1, 9)}, "0 to 3"),
    ],
)
def test_what_does_not_fit_is_refused(path: Path, plans: dict, changes: dict, message: str):
    with pytest.raises(ConfigurationError, match=message):
        changed_block({}, changes, plans, path)


def test_lineage():
    configurations = {"a": {}, "b": {"inherits_from": "a"}, "c": {"inherits_from": "b"}}
    assert list(lineage("c", configurations)) == ["c", "b", "a"]
    assert list(lineage("a", configurations)) == ["a"]
