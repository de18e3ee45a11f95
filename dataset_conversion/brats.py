"""A folder in BraTS layout → an nnU-Net raw dataset with the regions WT, TC and ET."""

from __future__ import annotations

import gzip
import os
import re
import shutil
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
from nnunetv2.dataset_conversion.Dataset137_BraTS21 import (
    copy_BraTS_segmentation_and_convert_labels_to_nnUNet,
)
from nnunetv2.dataset_conversion.generate_dataset_json import generate_dataset_json
from nnunetv2.paths import nnUNet_raw
from nnunetv2.utilities.dataset_name_id_conversion import find_candidate_datasets
from tqdm.contrib.concurrent import thread_map

from nnunet_autosam2.dataset_conversion.brats_layout import BRATS_2018_2021, BratsLayout
from nnunet_autosam2.dataset_conversion.nifti import Geometry, read_volume, unknown_labels
from nnunet_autosam2.dataset_conversion.staging import staged_folder
from nnunet_autosam2.errors import ConfigurationError, DatasetError

# nnU-Net's numbers: 1 oedema, 2 necrotic and non-enhancing core, 3 enhancing tumour
REGIONS = {
    "background": 0,
    "whole tumor": (1, 2, 3),
    "tumor core": (2, 3),
    "enhancing tumor": (3,),
}
REGIONS_CLASS_ORDER = (1, 2, 3)
NAMES_SHOWN = 5


@dataclass(frozen=True)
class Case:
    """The files of one case; without a segmentation it is a test case."""

    name: str
    images: dict[str, Path]
    segmentation: Path | None


class ConvertedDataset(NamedTuple):
    folder: Path
    channels: list[str]
    training_cases: list[str]
    test_cases: list[str]


def convert_brats(
    source: Path,
    dataset_id: int,
    name: str,
    modalities: Sequence[str] | None = None,
    output: Path | None = None,
    layout: BratsLayout = BRATS_2018_2021,
) -> ConvertedDataset:
    """Writes `DatasetIII_NAME` into `output`, by default `$nnUNet_raw`, after everything has been checked.

    Cases with a segmentation go to imagesTr and labelsTr, cases without one to imagesTs.

    Args:
        source: holds the case folders, directly or one folder deeper (HGG and LGG of BraTS 2018 to 2020).
        modalities: file suffixes to use, None: all of the layout. Channels keep the layout's order.

    Raises:
        ConfigurationError: an impossible ID, name or modality, or no place to write to.
        DatasetError: one line for each problem: first of names and missing files, then of their contents.
    """
    folder = _dataset_folder(dataset_id, name, output)
    wanted = _ordered(modalities, layout)
    cases = _find_cases(source, layout)
    _report(_missing_modalities(cases, wanted, layout))
    cases = [replace(case, images={key: case.images[key] for key in wanted}) for case in cases]
    problems = thread_map(partial(_check_case, layout=layout), cases, desc="check", max_workers=os.cpu_count())
    _report(list(chain.from_iterable(problems)))

    training = [case.name for case in cases if case.segmentation]
    test = [case.name for case in cases if not case.segmentation]
    channels = [layout.modalities[key] for key in wanted]
    with staged_folder(folder) as staged:
        for subfolder in ["imagesTr", "labelsTr"] * bool(training) + ["imagesTs"] * bool(test):
            (staged / subfolder).mkdir()
        thread_map(partial(_write_case, folder=staged), cases, desc="convert", max_workers=os.cpu_count())
        generate_dataset_json(
            str(staged),
            channel_names=dict(enumerate(channels)),
            labels=dict(REGIONS),
            num_training_cases=len(training),
            file_ending=".nii.gz",
            regions_class_order=REGIONS_CLASS_ORDER,
            dataset_name=folder.name,
            description=f"Layout of {layout.release}",
            license="that of the data set which the cases come from",
            converted_by="autosam2 convert-brats",
        )
    return ConvertedDataset(folder, channels, training, test)


def _dataset_folder(dataset_id: int, name: str, output: Path | None) -> Path:
    if not 1 <= dataset_id <= 999:
        raise ConfigurationError(f"Dataset ID {dataset_id} is not possible: it has to be from 1 to 999.")
    if not re.fullmatch(r"[\w.-]+", name):
        raise ConfigurationError(
            f"Dataset name {name!r} is not possible: use letters, digits, underscore, hyphen and dot."
        )
    if output is None and not nnUNet_raw:
        raise ConfigurationError("nnUNet_raw is not set: export it as nnU-Net's raw data folder, or give --output.")
    parent = Path(nnUNet_raw) if output is None else output
    folder = parent / f"Dataset{dataset_id:03d}_{name}"
    taken = {path.name for path in parent.glob(f"Dataset{dataset_id:03d}_*")}
    if output is None:
        taken |= set(find_candidate_datasets(dataset_id))
    if folder.exists():
        raise DatasetError(f"{folder} exists: remove it or choose another ID.")
    if others := sorted(taken - {folder.name}):
        raise DatasetError(f"Dataset ID {dataset_id} belongs to {others[0]} already: choose another ID.")
    return folder


def _ordered(modalities: Sequence[str] | None, layout: BratsLayout) -> list[str]:
    if modalities is None:
        return list(layout.modalities)
    unknown = [key for key in modalities if key not in layout.modalities]
    if unknown or not modalities:
        raise ConfigurationError(
            f"Modality {', '.join(unknown)!r} is not possible: choose from {', '.join(layout.modalities)}."
        )
    return [key for key in layout.modalities if key in modalities]


def _find_cases(source: Path, layout: BratsLayout) -> list[Case]:
    if not source.is_dir():
        raise DatasetError(f"{source} is not a folder.")
    cases, problems = [], []
    for folder in sorted([*source.glob("*"), *source.glob("*/*")], key=lambda path: path.name):
        files = {suffix: found for suffix, found in layout.files(folder).items() if found}
        problems += [f"{found[0]} and {found[1].name} both exist: remove one." for found in files.values() if found[1:]]
        if files:
            segmentation = files.pop(layout.segmentation, [None])[0]
            cases.append(Case(folder.name, {suffix: found[0] for suffix, found in files.items()}, segmentation))
    if not cases:
        suffixes = ",".join((*layout.modalities, layout.segmentation))
        raise DatasetError(f"{source} holds no case: expected <case>/<case>_{{{suffixes}}}.nii.gz or .nii in it.")
    counts = Counter(case.name for case in cases)
    problems += [f"{name} is there {n} times in {source}: keep one." for name, n in counts.items() if n > 1]
    _report(problems)
    return cases


def _missing_modalities(cases: list[Case], wanted: list[str], layout: BratsLayout) -> list[str]:
    """One line for all the cases that lack the same modalities."""
    lacking = defaultdict(list)
    for case in cases:
        if missing := [key for key in wanted if key not in case.images]:
            lacking[", ".join(missing)].append(case.name)
    common = [key for key in layout.modalities if all(key in case.images for case in cases)]
    remedy = (
        f"to use what every case has, give --modalities {','.join(common)}"
        if common
        else "no modality is there for every case, complete the files"
    )
    return [f"{_listed(names)}: {missing} missing; {remedy}." for missing, names in lacking.items()]


def _check_case(case: Case, layout: BratsLayout) -> list[str]:
    """One line a problem, empty when all files can be read, are finite, share one grid and have known labels."""
    problems: list[str] = []
    grids: dict[str, Geometry] = {}
    for file in [*case.images.values(), *([case.segmentation] if case.segmentation else [])]:
        try:
            grids[file.name], voxels = read_volume(file)
        except DatasetError as error:
            problems.append(str(error))
            continue
        first = next(iter(grids))
        problems += [f"{file} does not fit {first}: {text}." for text in grids[file.name].differences(grids[first])]
        if not np.isfinite(voxels).all():
            problems.append(f"{file} has voxels that are infinite or not a number.")
        elif file == case.segmentation and (unknown := unknown_labels(voxels, layout.labels)):
            problems.append(
                f"{file} has labels that {layout.release} does not know: {_listed(unknown)}. "
                f"It knows {_listed(layout.labels)}."
            )
    return problems


def _write_case(case: Case, folder: Path) -> None:
    for channel, file in enumerate(case.images.values()):
        _copy_compressed(
            file,
            folder / ("imagesTr" if case.segmentation else "imagesTs") / f"{case.name}_{channel:04d}.nii.gz",
        )
    if case.segmentation:
        copy_BraTS_segmentation_and_convert_labels_to_nnUNet(
            str(case.segmentation), str(folder / "labelsTr" / f"{case.name}.nii.gz")
        )


def _copy_compressed(file: Path, target: Path) -> None:
    if file.suffix == ".gz":
        shutil.copyfile(file, target)
    else:
        with open(file, "rb") as plain, gzip.open(target, "wb") as compressed:
            shutil.copyfileobj(plain, compressed)


def _listed(items: Sequence[object]) -> str:
    shown = ", ".join(map(str, items[:NAMES_SHOWN]))
    return shown if len(items) <= NAMES_SHOWN else f"{shown} and {len(items) - NAMES_SHOWN} more"


def _report(problems: list[str]) -> None:
    if problems:
        raise DatasetError("\n".join(problems))
