"""dataset.json and splits_final.json: what nnU-Net takes is read, and what it would stumble over is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from nnunet_autosam2.errors import DatasetError
from nnunet_autosam2.support.dataset_json import (
    foreground_labels,
    read_dataset_json,
    read_splits,
    require_dataset_json,
)

OLD = {"modality": {"0": "CT"}, "labels": {"background": 0, "kidney": 1}, "file_ending": ".nii.gz"}
IGNORED = {
    **OLD,
    "labels": {"background": 0, "kidney": [1, 2], "tumour": 2, "ignore": 3},
    "regions_class_order": [1, 2],
}
LISTED = {**OLD, "dataset": {"a": {"images": ["a_ct.nii.gz"], "label": "a_truth.nii.gz"}}}


@pytest.mark.parametrize("content", [OLD, IGNORED, LISTED], ids=["older", "ignored", "listed"])
def test_what_nnunet_takes_is_read_as_it_is(tmp_path: Path, content: dict):
    LabelManager(content["labels"], content.get("regions_class_order"))
    path = tmp_path / "dataset.json"
    path.write_text(json.dumps(content))
    assert read_dataset_json(path) == content


@pytest.mark.parametrize(
    "labels",
    [
        {"background": 0, "tumour": 2, "kidney": 1, "ignore": 3},
        {"background": 0, "tumour": [2], "kidney": 1},
        {"background": 0, "tumour": 2, "kidney": [1, 2], "cyst": [3], "ignore": 4},
    ],
    ids=["labels", "a list of one", "regions"],
)
def test_foreground_in_the_order_of_nnunets_outputs(labels: dict):
    manager = LabelManager(labels, regions_class_order=[2, 1, 3])
    foreground = foreground_labels({"labels": labels})
    expected = manager.foreground_regions if manager.has_regions else manager.foreground_labels
    as_tuples = [tuple(each) if isinstance(each, list) else (each,) for each in foreground.values()]
    assert as_tuples == [tuple(each) if isinstance(each, (list, tuple)) else (each,) for each in expected]


def without(key: str) -> Callable[[dict], None]:
    return lambda content: content.pop(key)


def labels(**changes: Any) -> Callable[[dict], None]:
    return lambda content: content["labels"].update(changes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("channel_names"), "channel_names is missing"),
        (without("labels"), "labels: Field required"),
        (without("file_ending"), "file_ending: Field required"),
        (lambda content: content.update(file_ending="../x"), "file_ending: String should match pattern"),
        (lambda content: content["labels"].pop("background"), "labels has no background, which has to be 0"),
        (labels(background=1), "labels has no background, which has to be 0"),
        (lambda content: content.update(labels={"background": 0}), "labels has nothing but the background"),
        (labels(air=[0]), "labels has a region of nothing but the background"),
        (labels(ignore=9), "the label ignore has to be 4, one more than the highest of the others"),
        (without("regions_class_order"), "regions_class_order has to name a label for each of 3 regions"),
        (lambda content: content.update(regions_class_order=[1]), "regions_class_order has to name a label for each"),
        (lambda content: content.update(labels={"background": 0, "a": 1, "b": 1}), "two labels are the same"),
        (labels(tumour=-1), "labels.tumour.constrained-int: Input should be greater than or equal to 0, found -1"),
        (lambda content: content.update(dataset={"a": {"images": ["1"], "label": "2"}}), "dataset.a has 1 images for"),
    ],
)  # fmt: skip
def test_what_nnunet_would_stumble_over_is_named(tmp_path: Path, dataset_json: dict, change, message: str):
    require_dataset_json(dataset_json, "dataset.json")
    change(dataset_json)
    path = tmp_path / "dataset.json"
    path.write_text(json.dumps(dataset_json))
    with pytest.raises(DatasetError) as error:
        read_dataset_json(path)
    assert str(error.value).startswith(f"{path}: ")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_folds_are_read(tmp_path: Path):
    path = tmp_path / "splits_final.json"
    folds = [{"train": ["b"], "val": ["a"]}, {"train": ["a"], "val": []}]
    path.write_text(json.dumps(folds))
    assert read_splits(path) == folds


@pytest.mark.parametrize(
    "content",
    [[], {}, None, [{"train": ["a"]}], [{"train": "a", "val": []}], [{"train": [1], "val": []}],
     [{"train": ["../a"], "val": []}], [{"train": [""], "val": []}], [["a"], ["b"]]],
)  # fmt: skip
def test_what_are_no_folds_is_told_with_the_form_that_they_have(tmp_path: Path, content: Any):
    path = tmp_path / "splits_final.json"
    path.write_text(json.dumps(content))
    with pytest.raises(DatasetError) as error:
        read_splits(path)
    said = str(error.value)
    assert said.startswith(f"{path}: ")
    assert said.endswith('It has to be a list of {"train": [case, …], "val": [case, …]}, one for each fold.')


def test_folds_that_are_not_there(tmp_path: Path):
    with pytest.raises(DatasetError, match=r"splits_final\.json does not exist\."):
        read_splits(tmp_path / "splits_final.json")
