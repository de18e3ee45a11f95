"""nnU-Net's description of a data set and its folds, checked when they are read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, Field, StrictStr, TypeAdapter, model_validator

from nnunet_autosam2.support.json_files import checked, read_json, shown

LabelValue = Annotated[int, Field(strict=True, ge=0, le=2**15)]
LabelValues = LabelValue | Annotated[list[LabelValue], Field(min_length=1)]
CaseName = Annotated[str, Field(strict=True, min_length=1, max_length=255, pattern=r"^[^/\x00]+$")]
Names = Annotated[dict[StrictStr, StrictStr], Field(min_length=1)]


class ListedCase(BaseModel):
    """A case of a data set that names its files itself."""

    images: Annotated[list[StrictStr], Field(min_length=1)]
    label: StrictStr


class DatasetLabels(BaseModel):
    """Labels of a data set, which are all that an evaluation reads."""

    labels: Annotated[dict[StrictStr, LabelValues], Field(min_length=1)]


class DatasetJson(DatasetLabels):
    channel_names: Names | None = None
    modality: Names | None = None
    """`channel_names` of older data sets"""
    file_ending: Annotated[str, Field(strict=True, pattern=r"^(\.\w+)+$")]
    regions_class_order: list[LabelValue] | None = None
    dataset: dict[StrictStr, ListedCase] | None = None

    @model_validator(mode="after")
    def _as_nnunet_wants_it(self) -> DatasetJson:
        names = self.modality or self.channel_names
        if names is None:
            raise ValueError("channel_names is missing")
        for case, files in (self.dataset or {}).items():
            if len(files.images) != len(names):
                raise ValueError(f"dataset.{shown(case)} has {len(files.images)} images for {len(names)} channels")
        if self.labels.get("background") != 0:
            raise ValueError("labels has no background, which has to be 0")
        regions = {name: labels for name, labels in self.labels.items() if name not in ("background", "ignore")}
        if not regions:
            raise ValueError("labels has nothing but the background")
        of_regions = {label for each in regions.values() for label in (each if isinstance(each, list) else [each])}
        if any(set(each if isinstance(each, list) else [each]) == {0} for each in regions.values()):
            raise ValueError("labels has a region of nothing but the background")
        ignore = self.labels.get("ignore")
        if ignore is not None and ignore != max(of_regions) + 1:
            raise ValueError(
                f"the label ignore has to be {max(of_regions) + 1}, one more than the highest of the others"
            )
        if any(isinstance(labels, list) and len(labels) > 1 for labels in regions.values()):
            if len(self.regions_class_order or ()) != len(regions):
                raise ValueError(f"regions_class_order has to name a label for each of {len(regions)} regions")
        elif len(of_regions) != len(regions):
            raise ValueError("two labels are the same")
        return self


class Split(BaseModel):
    train: list[CaseName]
    val: list[CaseName]


def read_dataset_json(path: Path) -> dict[str, Any]:
    """Read and check nnU-Net's dataset.json.

    Raises:
        DatasetError: no such file, or nnU-Net could not work with it.
    """
    content = read_json(path)
    require_dataset_json(content, path)
    return content


def require_dataset_json(content: Any, source: object) -> None:
    """Check the content of a dataset.json.

    Raises:
        DatasetError: an entry is missing or has another type or value than nnU-Net needs.
    """
    checked(content, DatasetJson, source)


def foreground_labels(dataset_json: Mapping[str, Any]) -> dict[str, Any]:
    """Name → label or labels of the regions or foreground classes, in the order of the network's outputs."""
    labels = {k: v for k, v in dataset_json["labels"].items() if k not in ("background", "ignore")}
    has_regions = any(isinstance(each, list) and len(each) > 1 for each in labels.values())
    # A class may have its label in a list.
    return labels if has_regions else dict(sorted(labels.items(), key=lambda item: np.ravel(item[1])[0]))


def read_splits(path: Path) -> list[dict[str, list[str]]]:
    """Read nnU-Net's folds.

    Raises:
        DatasetError: no such file, or it is not of nnU-Net's form.
    """
    advice = 'It has to be a list of {"train": [case, …], "val": [case, …]}, one for each fold.'
    splits = checked(read_json(path), TypeAdapter(Annotated[list[Split], Field(min_length=1)]), path, advice)
    return [split.model_dump() for split in splits]


def channel_names(dataset_json: Mapping[str, Any]) -> list[str]:
    """Names of a data set's channels, in their order; older data sets call them `modality`."""
    return list(dataset_json.get("channel_names", dataset_json.get("modality", {})).values())
