"""Pairs of prediction and truth: of two folders, of a validation folder of nnU-Net, or of all folds of a model."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from nnunet_autosam2.errors import DatasetError, listed
from nnunet_autosam2.support.access import entries
from nnunet_autosam2.support.dataset_json import read_splits
from nnunet_autosam2.support.json_files import checked, read_json
from nnunet_autosam2.support.known_plans import NamedDataset

ENDING = ".nii.gz"


class Pair(NamedTuple):
    case: str
    prediction: Path
    truth: Path


@dataclass(frozen=True)
class FoundPairs:
    pairs: list[Pair]
    """Sorted by case."""
    folds: list[str]
    """Names of folds, as in `["0", "1"]`; empty for predictions that are of no fold"""
    dataset_jsons: list[Path]
    """nnU-Net's, beside the predictions and the truths."""
    splits: list[dict[str, list[str]]] = field(default_factory=list)
    """nnU-Net's, of the folds; empty where they are not known."""


def find_pairs(predictions: Path, truth: Path | None = None, chill: bool = False) -> FoundPairs:
    """The cases of `predictions`, which is one of

    - a folder of segmentations, for which `truth` has files of the same names,
    - `fold_X/validation` or `fold_X` of a model,
    - the folder that holds `fold_0`, `fold_1`, …: the validation cases of them all.

    Without `truth`, the truths of a validation are those that nnU-Net itself uses: `gt_segmentations` in
    `$nnUNet_preprocessed` or `labelsTr` in `$nnUNet_raw`.

    Args:
        chill: no error for cases that have a truth and no prediction. For folds with a `truth` of their own, nothing
            says which cases these are.

    Raises:
        DatasetError: nothing there, or cases missing on one of the sides.
    """
    if not predictions.is_dir():
        raise DatasetError(f"{predictions} is not a folder.")
    if truth is not None and not truth.is_dir():
        raise DatasetError(f"{truth} is not a folder.")
    folds = _fold_folders(predictions)
    if not folds:
        return _pairs_of_folder(predictions, truth, chill)
    return _pairs_of_folds(folds, truth, chill)


def _pairs_of_folder(predictions: Path, truth: Path | None, chill: bool) -> FoundPairs:
    if truth is None:
        raise DatasetError(
            f"{predictions} is neither nnU-Net's folder of a fold nor one that holds folds: "
            "give the folder of the truths as well."
        )
    predicted, true = _segmentations(predictions), _segmentations(truth)
    pairs = _matched(predicted, true, predictions, truth, set() if chill else true.keys())
    return FoundPairs(pairs, [], _dataset_jsons(predictions, truth))


def _pairs_of_folds(folds: list[Path], truth: Path | None, chill: bool) -> FoundPairs:
    model = folds[0].parent
    splits: list[dict[str, list[str]]] = []
    if truth is None:
        dataset = _dataset_name(model)
        truth = _gt_segmentations(dataset)
        splits = _splits(dataset)
    true = _segmentations(truth)
    predicted: dict[str, Path] = {}
    pairs = []
    for fold in folds:
        validation = fold / "validation"
        if not validation.is_dir():
            raise DatasetError(
                f"{fold} has no folder validation: finish its training, validate it by nnUNetv2_train … --val, "
                "or evaluate other folds one by one."
            )
        of_fold = _segmentations(validation)
        if twice := of_fold.keys() & predicted.keys():
            raise DatasetError(
                f"{validation} has cases that another fold has as well, {predicted[min(twice)]} for one: "
                "in a cross-validation each case is in one fold."
            )
        predicted |= of_fold
        number = _fold_name(fold)
        known = not chill and number.isdecimal() and int(number) < len(splits)
        expected = splits[int(number)]["val"] if known else []
        pairs += _matched(of_fold, true, validation, truth, expected)
    beside = [file for file in _dataset_jsons(truth) if file != model / "dataset.json"]
    return FoundPairs(sorted(pairs), [_fold_name(fold) for fold in folds], [model / "dataset.json", *beside], splits)


def _dataset_jsons(*folders: Path) -> list[Path]:
    """Files in the folders, and where nnU-Net has it: beside labelsTr, labelsTs and gt_segmentations."""
    places = []
    for folder in folders:
        of_nnunet = re.fullmatch(r"labelsT[rs]|gt_segmentations", folder.absolute().name)
        places += [folder, folder.parent] if of_nnunet else [folder]
    return [file for place in places if (file := place / "dataset.json").is_file()]


def _fold_folders(predictions: Path) -> list[Path]:
    """Folders in order of their numbers; `fold_all` alone, because it validates on what it was trained on."""
    folder = predictions.resolve()
    if folder.name == "validation":
        folder = folder.parent
    if re.fullmatch(r"fold_(\d+|all)", folder.name):
        return [folder]
    folds = [path for path in entries(predictions) if re.fullmatch(r"fold_\d+", path.name)]
    return sorted(folds, key=lambda path: int(_fold_name(path)))


def _fold_name(folder: Path) -> str:
    return folder.name.removeprefix("fold_")


def _segmentations(folder: Path) -> dict[str, Path]:
    """Case → file."""
    files = {file.name.removesuffix(ENDING): file for file in entries(folder) if file.name.endswith(ENDING)}
    if not files:
        raise DatasetError(f"{folder} holds no {ENDING} file.")
    return files


def _matched(
    predicted: dict[str, Path], true: dict[str, Path], predictions: Path, truth: Path, expected: Iterable[str]
) -> list[Pair]:
    problems = []
    if without_truth := sorted(predicted.keys() - true.keys()):
        problems.append(
            f"{predictions} has {len(without_truth)} predictions without a file of the same name in {truth}: "
            f"{listed(without_truth)}. Remove them or add their truth."
        )
    if not_predicted := sorted(set(expected) - predicted.keys()):
        problems.append(
            f"{predictions} lacks {len(not_predicted)} cases that have a truth in {truth}: "
            f"{listed(not_predicted)}. Predict them, or evaluate the others with --chill."
        )
    if problems:
        raise DatasetError("\n".join(problems))
    return [Pair(case, file, true[case]) for case, file in predicted.items()]


def _dataset_name(model: Path) -> str:
    plans = model / "plans.json"
    try:
        return checked(read_json(plans), NamedDataset, plans).dataset_name
    except DatasetError as error:
        raise DatasetError(f"{plans} does not name the dataset: give the folder of the truths as well.") from error


def _gt_segmentations(dataset: str) -> Path:
    from nnunetv2.paths import nnUNet_preprocessed, nnUNet_raw  # reports unset variables, so only where they matter

    places = [(nnUNet_preprocessed, "gt_segmentations"), (nnUNet_raw, "labelsTr")]
    folders = [Path(root, dataset, name) for root, name in places if root]
    for folder in folders:
        if folder.is_dir():
            return folder
    looked = " and ".join(map(str, folders)) or "nowhere, for nnUNet_preprocessed and nnUNet_raw are not set"
    raise DatasetError(f"The truth of {dataset} is not found (looked in: {looked}): give its folder after PREDICTIONS.")


def _splits(dataset: str) -> list[dict[str, list[str]]]:
    """nnU-Net's folds, none where its file is missing."""
    from nnunetv2.paths import nnUNet_preprocessed

    file = Path(nnUNet_preprocessed or ".", dataset, "splits_final.json")
    return read_splits(file) if file.exists() else []
