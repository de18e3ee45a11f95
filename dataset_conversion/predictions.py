"""Predictions in nnU-Net's labels → the labels of the release that the training cases came from."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, StrictStr
from tqdm.contrib.concurrent import thread_map

from nnunet_autosam2.dataset_conversion.brats_layout import RELEASES, Release, release_named
from nnunet_autosam2.dataset_conversion.checks import WORKERS
from nnunet_autosam2.dataset_conversion.nifti import fault_of_labels, relabel
from nnunet_autosam2.errors import DatasetError
from nnunet_autosam2.support.access import entries
from nnunet_autosam2.support.json_files import checked, read_json
from nnunet_autosam2.support.staging import staged_folder
from nnunet_autosam2.support.text import printable

CONVERTED_KEY = "brats_labels_of"
"""Key of dataset.json beside converted predictions: the release whose labels they have"""


class RecordedRelease(BaseModel):
    """Entries of dataset.json that name releases."""

    brats_release: StrictStr | None = None
    """The one that the training cases came from"""
    brats_labels_of: StrictStr | None = None
    """The one whose labels converted predictions have; CONVERTED_KEY"""


class ConvertedPredictions(NamedTuple):
    number: int
    release: Release


def predictions_to_brats(predictions: Path, output: Path, release: str | None = None) -> ConvertedPredictions:
    """Writes every `.nii.gz` of `predictions` into `output` under its name, which is how the challenges take it.

    A `dataset.json` beside them says what the labels mean, in nnU-Net's format.

    Args:
        release: key of `RELEASES`, None: see `recorded_release`.

    Raises:
        DatasetError: one line a problem; nothing is written then.
    """
    files = find_predictions(predictions)
    chosen = _given_release(release, predictions / "dataset.json") if release else recorded_release(predictions)
    original = chosen.original
    with staged_folder(output) as staged:
        require_labels(files, tuple(original), "a model of the converted data set has")
        thread_map(lambda file: relabel(file, staged / file.name, original), files, desc="convert", max_workers=WORKERS)
        (staged / "dataset.json").write_text(json.dumps(_labels_of(chosen), indent=4) + "\n")
    return ConvertedPredictions(len(files), chosen)


def find_predictions(folder: Path) -> list[Path]:
    """Files of a folder that nnU-Net has written predictions into.

    Raises:
        DatasetError: it is no folder, or has none.
    """
    if not folder.is_dir():
        raise DatasetError(f"{folder} is not a folder.")
    files = [file for file in entries(folder) if file.name.endswith(".nii.gz")]
    if not files:
        raise DatasetError(f"{folder} holds no .nii.gz file: give the folder that nnUNetv2_predict wrote.")
    return files


def require_labels(files: Sequence[Path], labels: tuple[int, ...], those_of: str) -> None:
    """Read all files, with a bar of progress.

    Args:
        those_of: as of `fault_of_labels`.

    Raises:
        DatasetError: one line for each that is unreadable or has other labels.
    """
    check = partial(fault_of_labels, labels=labels, those_of=those_of)
    problems = thread_map(check, files, desc="check", max_workers=WORKERS)
    if any(problems):
        raise DatasetError("\n".join(filter(None, problems)))


def recorded_release(folder: Path) -> Release:
    """Release that `convert_brats` wrote into dataset.json; nnU-Net copies it beside predictions and into models.

    Searched in `folder` and the two above it, which covers labelsTr of a dataset and fold_0/validation of a model.
    """
    places = [place / "dataset.json" for place in (folder.absolute(), *folder.absolute().parents[:2])]
    there = [file for file in places if file.exists()]
    for file in there:
        recorded = _read(file)
        _require_unconverted(recorded, file)
        if recorded.brats_release:
            return release_named(recorded.brats_release)
    said = f"{there[0]} does not say" if there else f"{folder} has no dataset.json that would say"
    raise DatasetError(
        f"{said} which release the labels came from: give --release, one of {', '.join(RELEASES)}. "
        "nnU-Net's postprocessing leaves dataset.json behind, beside the predictions that it has read."
    )


def _given_release(name: str, dataset_json: Path) -> Release:
    """The release of that name; a file that cannot be read does not matter then."""
    try:
        recorded = _read(dataset_json)
    except DatasetError:
        return release_named(name)
    _require_unconverted(recorded, dataset_json)
    return release_named(name)


def _read(dataset_json: Path) -> RecordedRelease:
    return checked(read_json(dataset_json), RecordedRelease, dataset_json)


def _require_unconverted(recorded: RecordedRelease, dataset_json: Path) -> None:
    """Refuse a second conversion, in which labels would change places and nobody would notice."""
    if recorded.brats_labels_of is not None:
        raise DatasetError(
            f"{dataset_json} says that the labels beside it are those of {printable(recorded.brats_labels_of)} "
            "already: there is nothing to convert."
        )


def _labels_of(release: Release) -> dict[str, Any]:
    """Content of a dataset.json in the release's labels, for `autosam2 evaluate` and nnUNetv2_evaluate_folder."""
    original = release.original
    regions = {name: sorted(original[label] for label in labels) for name, labels in release.regions.items()}
    return {
        "labels": {"background": original[0], **regions},
        "regions_class_order": [original[label] for label in range(1, len(regions) + 1)],
        "file_ending": ".nii.gz",
        CONVERTED_KEY: release.name,
    }
