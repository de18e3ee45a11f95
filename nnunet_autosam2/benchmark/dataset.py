"""Cases and folds of a dataset, as nnU-Net has them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from nnunetv2.paths import nnUNet_preprocessed, nnUNet_raw
from nnunetv2.utilities.crossval_split import generate_crossval_split
from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

from nnunet_autosam2.dataset_json import read_dataset_json, read_splits
from nnunet_autosam2.errors import ConfigurationError, DatasetError, listed
from nnunet_autosam2.report.benchmark import CaseFiles
from nnunet_autosam2.staging import replace_file


def find_cases(dataset: str) -> dict[str, CaseFiles]:
    """
    Raises:
        DatasetError: the raw dataset is not there.
    """
    folder = Path(nnUNet_raw) / dataset
    content = read_dataset_json(folder / "dataset.json")
    channels = content.get("modality", content.get("channel_names", {})).values()
    files = get_filenames_of_train_images_and_targets(str(folder), content)
    if other := [str(case) for case, of_case in files.items() if len(of_case["images"]) != len(channels)]:
        raise DatasetError(
            f"{folder} does not have {len(channels)} channels, as its dataset.json says, of {listed(other)}."
        )
    return {
        str(case): CaseFiles(images=dict(zip(channels, of_case["images"], strict=True)), truth=of_case["label"])
        for case, of_case in files.items()
    }


def find_splits(dataset: str, folds: Sequence[int]) -> list[dict[str, list[str]]]:
    """nnU-Net's folds; made as it makes them if no training has done so yet, so that no two trainings do it at once.

    Raises:
        ConfigurationError: there are fewer folds.
        DatasetError: there are too few cases for five folds.
    """
    folder = Path(nnUNet_preprocessed) / dataset
    path = folder / "splits_final.json"
    if not path.exists():
        cases = sorted(file.name.removesuffix(".nii.gz") for file in (folder / "gt_segmentations").glob("*.nii.gz"))
        if len(cases) < 5:
            raise DatasetError(
                f"{dataset} has {len(cases)} cases, and nnU-Net's cross-validation needs 5. "
                f"Write the folds that you want into {path}."
            )
        replace_file(path, json.dumps(generate_crossval_split(cases, seed=12345, n_splits=5), indent=4))
    splits = read_splits(path)
    if too_high := [str(fold) for fold in folds if fold >= len(splits)]:
        raise ConfigurationError(f"Fold {', '.join(too_high)} is not there: {path} has folds 0 to {len(splits) - 1}.")
    return splits
