"""Cases and folds of a dataset, as nnU-Net has them."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Sequence
from itertools import combinations
from pathlib import Path

from nnunetv2.paths import nnUNet_preprocessed, nnUNet_raw
from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

from nnunet_autosam2.benchmark.models import ComparedModel
from nnunet_autosam2.benchmark.results import CaseFiles
from nnunet_autosam2.dataset_conversion.patients import FOLDS, by_patient, split_by_patient
from nnunet_autosam2.errors import ConfigurationError, DatasetError, listed
from nnunet_autosam2.evaluation.numbering import Numbering, choose_numbering, numbering_of_dataset
from nnunet_autosam2.evaluation.pairs import ENDING
from nnunet_autosam2.show.legend import LegendEntry, legend
from nnunet_autosam2.support.access import entries, is_data
from nnunet_autosam2.support.dataset_json import read_dataset_json, read_splits
from nnunet_autosam2.support.json_files import read_json
from nnunet_autosam2.support.staging import replace_file


def find_training_cases(dataset: str) -> dict[str, CaseFiles]:
    """Training cases of the raw dataset → their files.

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
        if is_data(str(case))
    }


def find_numbering(models: Sequence[ComparedModel]) -> Numbering:
    """Meaning of the labels of their data set, if what they predict can be evaluated.

    Raises:
        DatasetError: it cannot, or one of them was trained when they meant something else.
    """
    path = Path(nnUNet_preprocessed) / models[0].dataset / "dataset.json"
    numbering = numbering_of_dataset(path)
    if (ending := read_json(path).get("file_ending")) != ENDING:
        raise DatasetError(f"{path}: files that end in {ending} cannot be evaluated here, only those in {ENDING}.")
    for trained in (model.folder / "dataset.json" for model in models):
        if trained.exists():
            choose_numbering(None, [path, trained], [])
    return numbering


def find_legend(dataset: str) -> list[LegendEntry]:
    """Names and colours of its labels."""
    return legend(read_json(Path(nnUNet_preprocessed) / dataset / "dataset.json"))


def find_splits(dataset: str, folds: Sequence[int], cases: Collection[str]) -> list[dict[str, list[str]]]:
    """nnU-Net's folds. If no training has made them yet, they are made here as it makes them, but by patient, so that
    no two trainings do it at once.

    Raises:
        ConfigurationError: there are fewer folds.
        DatasetError: there are too few cases for five folds, or the folds are not sets of `cases` that can be scored.
    """
    folder = Path(nnUNet_preprocessed) / dataset
    path = folder / "splits_final.json"
    if not path.exists():
        truths = folder / "gt_segmentations"
        names = [file.name for file in entries(truths)] if truths.is_dir() else []
        preprocessed = sorted(name.removesuffix(ENDING) for name in names if name.endswith(ENDING))
        splits = split_by_patient(preprocessed)
        if len(splits) < FOLDS:
            raise DatasetError(
                f"{dataset} has {len(preprocessed)} cases of {len(by_patient(preprocessed))} patients, and nnU-Net's "
                "cross-validation needs 5. "
                f"Write the folds that you want into {path}."
            )
        replace_file(path, json.dumps(splits, indent=4))
    splits = read_splits(path)
    if too_high := [str(fold) for fold in folds if fold >= len(splits)]:
        raise ConfigurationError(f"Fold {', '.join(too_high)} is not there: {path} has folds 0 to {len(splits) - 1}.")
    if problems := list(_problems(splits, folds, cases)):
        raise DatasetError("\n".join(f"{path}: {problem}" for problem in problems))
    return splits


def _problems(splits: list[dict[str, list[str]]], folds: Sequence[int], cases: Collection[str]) -> Iterator[str]:
    """Faults of folds as sets, each of which would make scores wrong or leave none."""
    for fold in folds:
        train, val = splits[fold]["train"], splits[fold]["val"]
        for side, names in (("training", train), ("validation", val)):
            if unknown := sorted(set(names) - set(cases)):
                yield f"fold {fold} has {side} cases that the data set does not have: {listed(unknown)}."
            if twice := sorted({name for name in names if names.count(name) > 1}):
                yield f"fold {fold} has {side} cases more than once: {listed(twice)}."
        if both := sorted(set(train) & set(val)):
            yield f"fold {fold} validates on cases that it trains on: {listed(both)}."
        if not val:
            yield f"fold {fold} has no validation cases."
    for one, other in combinations(folds, 2):
        if shared := sorted(set(splits[one]["val"]) & set(splits[other]["val"])):
            yield (
                f"folds {one} and {other} share validation cases, which would count twice: {listed(shared)}. "
                "Benchmark one of them."
            )
