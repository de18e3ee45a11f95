"""A BraTS folder → an nnU-Net raw dataset with the regions WT, TC and ET, and a fourth where the release has it."""

from __future__ import annotations

import gzip
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from nnunetv2.dataset_conversion.generate_dataset_json import generate_dataset_json
from nnunetv2.paths import nnUNet_raw
from nnunetv2.utilities.dataset_name_id_conversion import find_candidate_datasets
from tqdm.contrib.concurrent import thread_map

from nnunet_autosam2.dataset_conversion.brats_layout import Release, release_named
from nnunet_autosam2.dataset_conversion.cases import (
    SourceCase,
    find_empty,
    find_source_cases,
    read_tree,
    releases_by_names,
)
from nnunet_autosam2.dataset_conversion.checks import WORKERS, check_cases, stamp
from nnunet_autosam2.dataset_conversion.nifti import relabel, take_channel
from nnunet_autosam2.dataset_conversion.patients import SPLITS, plan_folds
from nnunet_autosam2.errors import ConfigurationError, DatasetError, require_distinct
from nnunet_autosam2.support.staging import locked, open_unfinished, resumable_folder

RELEASE_KEY = "brats_release"
"""Key of dataset.json, which nnU-Net passes over and carries along to models and predictions"""
LONGEST_NAME = 200
"""Bytes of a dataset's name. File systems take 255 for a name, and folders beside the data set's have longer ones."""


class ConvertedDataset(NamedTuple):
    folder: Path
    release: Release
    channels: list[str]
    training_cases: list[str]
    test_cases: list[str]
    left_out: dict[str, list[str]]
    """Case → what is wrong with it."""
    empty: list[Path]
    """Folders without files, which mean nothing."""
    folds: list[str]
    """Messages about folds; empty: no patient has several cases, and nnU-Net's own folds are as good."""


def convert_brats(
    source: Path,
    dataset_id: int,
    name: str,
    modalities: Sequence[str] | None = None,
    output: Path | None = None,
    *,
    release: str | None = None,
    link: bool = False,
    skip_invalid: bool = False,
) -> ConvertedDataset:
    """Writes `DatasetIII_NAME` into `output`, by default `$nnUNet_raw`, after everything has been checked.

    Cases with a segmentation go to imagesTr and labelsTr, cases without one to imagesTs. Where patients have several,
    `splits_final.json` keeps them together; nnU-Net's planning copies it to `$nnUNet_preprocessed`. After an
    interruption the same call goes on with the files that are missing, unless a source file has changed. What was found
    in the source files is kept as well: a case is read again only where a file of it has changed.

    Args:
        source: holds the case folders, directly or one folder deeper (HGG and LGG of BraTS 2018 to 2020).
        modalities: file suffixes to use, None: all of the release. Channels keep the release's order.
        release: key of `RELEASES`, None: by the names of the cases and the labels that occur.
        link: images that nnU-Net can read as they are become symbolic links.
        skip_invalid: leave out cases with a problem.

    Raises:
        ConfigurationError: an impossible ID, name, release or modality, or no place to write to.
        DatasetError: one line for each problem, and no data set is written, or another process converts into this ID.
    """
    folder = _dataset_folder(dataset_id, name, output)
    tree = read_tree(source)
    candidates = [release_named(release)] if release else releases_by_names(source, tree)
    wanted = _ordered(modalities, candidates[0])
    found = find_source_cases(tree, candidates[0])
    cases = [replace(case, images={key: case.images[key] for key in wanted}) for case in found]
    if not cases:
        raise DatasetError(f"{source} holds no case in the layout of {candidates[0].title}.")
    lost, empty = ([], []) if candidates[0].stack else find_empty(tree, cases)
    request = {
        "release": release,
        "modalities": wanted,
        "link": link,
        "skip_invalid": skip_invalid,
        "files": {str(file): stamp(file) for case in cases for file in (*case.files, *case.surplus)},
        "lost": [str(path) for path in lost],
    }
    with locked(folder, f"Dataset{dataset_id:03d}"):
        _require_free(folder, dataset_id, output)
        unfinished = open_unfinished(folder)
        try:
            checked = check_cases(cases, lost, candidates, skip_invalid, unfinished / "checks.jsonl")
        except OSError as error:
            raise DatasetError(f"{folder} cannot be written: {error}.") from error
        cases = [case for case in cases if case.name not in checked.left_out]
        state = {"request": request, "release": checked.release.name, "left_out": checked.left_out}
        training = [case.name for case in cases if case.segmentation]
        splits, folds = plan_folds(training, folder)
        dataset = ConvertedDataset(
            folder,
            checked.release,
            [checked.release.modalities[key] for key in wanted],
            training,
            [case.name for case in cases if not case.segmentation],
            checked.left_out,
            empty,
            folds,
        )
        _write(dataset, cases, splits, state, link)
    return dataset


def _write(
    dataset: ConvertedDataset, cases: Sequence[SourceCase], splits: Any, state: Mapping[str, Any], link: bool
) -> None:
    release, training = dataset.release, dataset.training_cases
    images = {target: file for case in cases for target, (_, file) in _images(case).items()}
    links = {target: str(file.resolve()) for target, file in images.items() if link}
    with resumable_folder(dataset.folder, state, links) as (staged, temporary):
        for subfolder in ["imagesTr", "labelsTr"] * bool(training) + ["imagesTs"] * bool(dataset.test_cases):
            (staged / subfolder).mkdir(exist_ok=True)
        write = partial(_write_case, release=release, link=link, folder=staged, temporary=temporary)
        thread_map(write, cases, desc="convert", max_workers=WORKERS)
        generate_dataset_json(
            str(temporary),
            channel_names=dict(enumerate(dataset.channels)),
            labels={"background": 0, **_labels(release)},
            num_training_cases=len(training),
            file_ending=".nii.gz",
            regions_class_order=tuple(range(1, len(release.regions) + 1)),
            dataset_name=dataset.folder.name,
            description=release.title,
            license="that of the data set which the cases come from",
            converted_by="autosam2 convert-brats",
            **{RELEASE_KEY: release.name},
        )
        (temporary / "dataset.json").rename(staged / "dataset.json")
        if splits:
            (temporary / SPLITS).write_text(json.dumps(splits, indent=4), encoding="utf-8")
            (temporary / SPLITS).rename(staged / SPLITS)


def _labels(release: Release) -> dict[str, int | tuple[int, ...]]:
    """Regions for dataset.json; where none has two labels, nnU-Net trains them as labels that exclude each other."""
    alone = all(len(labels) == 1 for labels in release.regions.values())
    return {name: labels[0] if alone else labels for name, labels in release.regions.items()}


def _dataset_folder(dataset_id: int, name: str, output: Path | None) -> Path:
    if not 1 <= dataset_id <= 999:
        raise ConfigurationError(f"Dataset ID {dataset_id} is not possible: it has to be from 1 to 999.")
    if not re.fullmatch(r"[\w.-]+", name):
        raise ConfigurationError(
            f"Dataset name {name!r} is not possible: use letters, digits, underscore, hyphen and dot."
        )
    if (size := len(os.fsencode(name))) > LONGEST_NAME:
        raise ConfigurationError(
            f"Dataset name {name[:20]}… is not possible: it has {size} bytes, and {LONGEST_NAME} is the most (letters "
            "beyond ASCII have 2 to 4 each)."
        )
    if output is None and not nnUNet_raw:
        raise ConfigurationError("nnUNet_raw is not set: export it as nnU-Net's raw data folder, or give --output.")
    parent = Path(nnUNet_raw) if output is None else output
    folder = parent / f"Dataset{dataset_id:03d}_{name}"
    _require_free(folder, dataset_id, output)
    return folder


def _require_free(folder: Path, dataset_id: int, output: Path | None) -> None:
    taken = {path.name for path in folder.parent.glob(f"Dataset{dataset_id:03d}_*") if path.is_dir()}
    if output is None:
        taken |= set(find_candidate_datasets(dataset_id))
    if os.path.lexists(folder):
        raise DatasetError(f"{folder} exists: remove it or choose another ID.")
    if others := sorted(taken - {folder.name}):
        raise DatasetError(f"Dataset ID {dataset_id} belongs to {others[0]} already: choose another ID.")


def _ordered(modalities: Sequence[str] | None, release: Release) -> list[str]:
    if modalities is None:
        return list(release.modalities)
    require_distinct(modalities, "--modalities")
    unknown = [key for key in modalities if key not in release.modalities]
    if unknown or not modalities:
        raise ConfigurationError(
            f"Modality {', '.join(unknown)!r} is not possible: choose from {', '.join(release.modalities)}."
        )
    return [key for key in release.modalities if key in modalities]


def _images(case: SourceCase) -> dict[str, tuple[str, Path]]:
    """Path in the data set → modality and its file."""
    folder = "imagesTr" if case.segmentation else "imagesTs"
    return {f"{folder}/{case.name}_{channel:04d}.nii.gz": item for channel, item in enumerate(case.images.items())}


def _write_case(case: SourceCase, release: Release, link: bool, folder: Path, temporary: Path) -> None:
    writers: dict[Path, Callable[[Path], object]] = {
        folder / target: _image_writer(file, key, release, link) for target, (key, file) in _images(case).items()
    }
    if case.segmentation:
        writers[folder / "labelsTr" / f"{case.name}.nii.gz"] = partial(
            relabel, case.segmentation, labels=release.labels
        )
    for target, write in writers.items():
        if not os.path.lexists(target):
            draft = temporary / f"{target.parent.name}_{target.name}"
            write(draft)
            draft.rename(target)


def _image_writer(file: Path, modality: str, release: Release, link: bool) -> Callable[[Path], object]:
    if release.stack:
        return partial(take_channel, file, release.stack.index(modality))
    if file.suffix != ".gz":
        return partial(_compress, file)
    return partial(os.symlink, file.resolve()) if link else partial(shutil.copyfile, file)


def _compress(file: Path, target: Path) -> None:
    with open(file, "rb") as plain, gzip.open(target, "wb") as compressed:
        shutil.copyfileobj(plain, compressed)
