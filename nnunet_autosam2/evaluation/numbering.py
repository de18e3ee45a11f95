"""The meaning of the labels in segmentation files: BraTS's regions, or the labels of any data set."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm.contrib.concurrent import thread_map

from nnunet_autosam2.dataset_conversion.brats_layout import RELEASES, Release
from nnunet_autosam2.dataset_conversion.nifti import occurring_labels, read_volume
from nnunet_autosam2.dataset_conversion.regions import REGIONS, TARGET, Region
from nnunet_autosam2.errors import DatasetError, listed
from nnunet_autosam2.support.dataset_json import DatasetLabels
from nnunet_autosam2.support.json_files import checked, read_json


@dataclass(frozen=True)
class Numbering:
    """Labels of the regions; those of BraTS are under their short names, and each lies within the one before."""

    regions: Mapping[str, tuple[int, ...]]
    outside: tuple[int, ...] = (0,)
    """Labels that are known and in no region: background, resection cavity, what is to be ignored."""
    ignored: int | None = None
    """Label of voxels that do not count."""

    @property
    def is_brats(self) -> bool:
        return set(self.regions) in (set(REGIONS), set(TARGET))

    @property
    def labels(self) -> tuple[int, ...]:
        return (*self.outside, *sorted({label for labels in self.regions.values() for label in labels}))

    def __str__(self) -> str:
        return "; ".join(f"{region} {' '.join(map(str, labels))}" for region, labels in self.regions.items())

    def means_the_same(self, other: Numbering, labels: Collection[int | float]) -> bool:
        """Compare the two as far as these labels go."""

        def of(numbering: Numbering) -> dict[str, set[int]]:
            occurring = {region: set(own).intersection(labels) for region, own in numbering.regions.items()}
            return {region: own for region, own in occurring.items() if own}

        return of(self) == of(other)

    def renumbered(self, voxels: np.ndarray, labels: Sequence[int]) -> np.ndarray:
        """`voxels` of BraTS as uint8, 0 outside of all regions.

        Args:
            labels: new ones, of what each region has and the next one has not.
        """
        table = np.zeros(max(self.labels) + 1, np.uint8)
        for of_region, label in zip(self.regions.values(), labels, strict=True):
            table[list(of_region)] = label
        return table[np.rint(voxels).astype(np.intp)]


def _numbering_of(release: Release) -> Numbering:
    regions = {
        short: tuple(sorted(release.original[label] for label in release.regions[region.name]))
        for short, region in release.scored.items()
    }
    return Numbering(regions, outside=tuple(sorted(release.labels.keys() - set().union(*regions.values()))))


NUMBERINGS = {
    "nnunet": Numbering({short: region.labels for short, region in REGIONS.items()}),
    "brats2021": _numbering_of(RELEASES["2018-2021"]),
    "brats2023": _numbering_of(RELEASES["2024-gli"]),
    "ped2024": _numbering_of(RELEASES["2024-ped"]),
    "men-rt2024": _numbering_of(RELEASES["2024-men-rt"]),
}


class ChosenNumbering(NamedTuple):
    numbering: Numbering
    reason: str
    """Origin, to be read after "Labels: … " """


def choose_numbering(name: str | None, dataset_jsons: Sequence[Path], files: Sequence[Path]) -> ChosenNumbering:
    """Choose what the labels of predictions and truths mean.

    Args:
        name: key of `NUMBERINGS`, None: as `dataset_jsons` say, or without any, as the labels in `files` show.
        dataset_jsons: beside predictions and truths.

    Raises:
        DatasetError: they contradict each other, or the labels that occur fit none or more than one.
    """
    if name is not None:
        return ChosenNumbering(NUMBERINGS[name], f"{name}, as given{_contradicted(NUMBERINGS[name], dataset_jsons)}")
    choices = ", ".join(NUMBERINGS)
    if dataset_jsons:
        first, *others = dataset_jsons
        numbering = numbering_of_dataset(first)
        for file in others:
            other = numbering_of_dataset(file)
            if not numbering.means_the_same(other, {*numbering.labels, *other.labels}):
                raise DatasetError(
                    f"Labels mean different things in {first} ({numbering}) and {file} ({other}): "
                    f"convert one side, or give --labels, one of {choices}, if they do not apply."
                )
        return ChosenNumbering(numbering, f"of {' and '.join(map(str, dataset_jsons))}")
    found = _labels_in(files)
    shown = listed([f"{label:g}" for label in sorted(found)])
    fitting = {name: numbering for name, numbering in NUMBERINGS.items() if found <= set(numbering.labels)}
    if not fitting:
        raise DatasetError(f"The labels that occur, {shown}, fit none of {choices}: put dataset.json beside them.")
    name, numbering = next(iter(fitting.items()))
    if not all(numbering.means_the_same(other, found) for other in fitting.values()):
        raise DatasetError(
            f"The labels that occur, {shown}, fit {' and '.join(fitting)}, where they mean different things, and there "
            "is no dataset.json beside predictions or truths that says which: give --labels."
        )
    return ChosenNumbering(numbering, f"{name}, which alone fits the labels that occur" if len(fitting) == 1 else name)


def _contradicted(given: Numbering, dataset_jsons: Sequence[Path]) -> str:
    for file in dataset_jsons:
        with suppress(DatasetError):
            if not given.means_the_same(other := numbering_of_dataset(file), {*given.labels, *other.labels}):
                return f"; {file} says {other}"
    return ""


def _labels_in(files: Sequence[Path]) -> set[float]:
    """Labels of all files that can be read."""

    def labels_of(file: Path) -> set[float]:
        try:
            return occurring_labels(read_volume(file)[1])
        except DatasetError:
            return set()

    return set().union(*thread_map(labels_of, files, desc="labels", max_workers=os.cpu_count()))


def numbering_of_dataset(dataset_json: Path) -> Numbering:
    """Meaning of labels by `dataset.json`: BraTS's three regions where it has them, else its own labels and regions.

    Raises:
        DatasetError: unreadable, without any label, or with BraTS's regions not each within the one before.
    """
    choices = ", ".join(NUMBERINGS)
    try:
        described = checked(read_json(dataset_json), DatasetLabels, dataset_json)
    except DatasetError as error:
        raise DatasetError(
            f"{str(error).rstrip('.')}: it has no labels of nnU-Net's that can be read. Mend it, or give --labels, one "
            f"of {choices}."
        ) from error
    labels = {name: tuple(np.atleast_1d(value).tolist()) for name, value in described.labels.items()}
    ignored = labels.pop("ignore", (None,))[0]
    outside = {0} if ignored is None else {0, ignored}
    scored = _regions_of_brats(labels)
    if not scored:
        own = {name: values for name, values in labels.items() if name != "background" and values != (0,)}
        if not own:
            raise DatasetError(f"{dataset_json} defines no label but background: there is nothing to evaluate.")
        return Numbering(own, tuple(outside), ignored)
    regions = {short: labels[region.name] for short, region in scored.items()}
    for (inner, its), (outer, around) in pairwise(reversed(regions.items())):
        if not set(its) <= set(around):
            raise DatasetError(
                f"{dataset_json} has regions that are not nested: {scored[inner].name} {sorted(its)} has to be within "
                f"{scored[outer].name} {sorted(around)}."
            )
    outside |= {label for values in labels.values() for label in values} - set(next(iter(regions.values())))
    return Numbering(regions, tuple(outside), ignored)


def _regions_of_brats(labels: Collection[str]) -> Mapping[str, Region]:
    """Short name → region, of a set of regions that is there as a whole; empty without one."""
    sets = (regions for regions in (REGIONS, TARGET) if all(region.name in labels for region in regions.values()))
    return next(sets, {})
