"""Cases and folds of a dataset, as nnU-Net has them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from nnunetv2.paths import nnUNet_preprocessed, nnUNet_raw
from nnunetv2.utilities.crossval_split import generate_crossval_split
from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

from nnunet_autosam2.benchmark.models import Model
from nnunet_autosam2.errors import ConfigurationError, DatasetError
from nnunet_autosam2.evaluation.pairs import ENDING
from nnunet_autosam2.evaluation.regions import Numbering, choose_numbering, numbering_of_dataset
from nnunet_autosam2.plans import read_json
from nnunet_autosam2.report.benchmark import CaseFiles
from nnunet_autosam2.staging import replace_file


def find_cases(dataset: str) -> dict[str, CaseFiles]:
    """
    Raises:
        DatasetError: the raw dataset is not there.
    """
    folder = Path(nnUNet_raw) / dataset
    content = read_json(folder / "dataset.json")
    channels = content["channel_names"].values()
    files = get_filenames_of_train_images_and_targets(str(folder), content)
    return {
        str(case): CaseFiles(images=dict(zip(channels, of_case["images"], strict=True)), truth=of_case["label"])
        for case, of_case in files.items()
    }


def find_numbering(models: Sequence[Model]) -> Numbering:
    """What the labels of their data set mean, if what they predict can be evaluated.

    Raises:
        DatasetError: it cannot, or one of them was trained when they meant something else.
    """
    path = Path(nnUNet_preprocessed) / models[0].dataset / "dataset.json"
    if (ending := read_json(path).get("file_ending")) != ENDING:
        raise DatasetError(f"{path}: files that end in {ending} cannot be evaluated here, only those in {ENDING}.")
    numbering = numbering_of_dataset(path)
    for trained in (model.folder / "dataset.json" for model in models):
        if trained.exists():
            choose_numbering(None, [path, trained], [])
    return numbering


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
    splits = read_json(path)
    if too_high := [str(fold) for fold in folds if fold >= len(splits)]:
        raise ConfigurationError(f"Fold {', '.join(too_high)} is not there: {path} has folds 0 to {len(splits) - 1}.")
    return splits
