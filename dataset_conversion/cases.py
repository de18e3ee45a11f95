"""Finds the cases of a BraTS folder, and the releases that their names fit. Reads names only."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from nnunet_autosam2.dataset_conversion.brats_layout import MODALITIES_2018, MODALITIES_2023, RELEASES, Release
from nnunet_autosam2.errors import ConfigurationError, DatasetError, listed
from nnunet_autosam2.support.access import entries

ENDINGS = (".nii.gz", ".nii")
NIFTI = re.compile(r"(.+?)\.nii(\.gz)?")

Tree = dict[Path, list[str]]


@dataclass(frozen=True)
class SourceCase:
    """Files of one case in a release; without a segmentation it is a test case."""

    name: str
    images: Mapping[str, Path]
    """Modality → its file, which does not have to exist."""
    segmentation: Path | None
    surplus: tuple[Path, ...]
    """Files with the same volumes and another ending"""

    @property
    def files(self) -> list[Path]:
        """Each once: of stacked modalities, all are in one."""
        return list(dict.fromkeys([*self.images.values(), *([self.segmentation] if self.segmentation else [])]))


def read_tree(source: Path) -> Tree:
    """The folders one and two levels below `source` → the names in them, of what is looked at.

    Raises:
        DatasetError: `source` is no folder, or a folder cannot be read.
    """
    if not source.is_dir():
        raise DatasetError(f"{source} is not a folder.")
    try:
        first = [path for path in entries(source) if path.is_dir()]
        second = [path for folder in first for path in entries(folder) if path.is_dir()]
        return {folder: [path.name for path in entries(folder)] for folder in [*first, *second]}
    except OSError as error:
        raise DatasetError(f"{source} cannot be read: {error}.") from error


def releases_by_names(source: Path, tree: Tree) -> list[Release]:
    """Releases with the same layout, one or more, whose names all cases have.

    Raises:
        DatasetError: there is no case.
        ConfigurationError: the names do not decide.
    """
    found = {release.name: find_source_cases(tree, release) for release in RELEASES.values()}
    fitting = [
        RELEASES[name]
        for name, cases in found.items()
        if cases and all(re.fullmatch(RELEASES[name].case_pattern, case.name, re.DOTALL) for case in cases)
    ]
    names = sorted({case.name for case in chain.from_iterable(found.values())})
    if not names:
        suffixes = " or ".join(
            f"<case>/<case>{separator}{{{','.join((*modalities, 'seg'))}}}"
            for separator, modalities in (("_", MODALITIES_2018), ("-", MODALITIES_2023))
        )
        raise DatasetError(
            f"{source} holds no case: expected {suffixes} with .nii.gz or .nii in it, or the Decathlon's imagesTr."
        )
    if len({release.layout for release in fitting}) != 1:
        several = f" fit {' and '.join(release.title for release in fitting)}" if fitting else " fit no release"
        raise ConfigurationError(
            f"{source}: the names of the cases ({listed(names)}){several}: give --release, one of "
            f"{', '.join(RELEASES)}."
        )
    return fitting


def find_source_cases(tree: Tree, release: Release) -> list[SourceCase]:
    """Cases in the release's layout, sorted by name; a name may be there more than once."""
    cases = _stacked(tree, release) if release.stack else _separate(tree, release)
    return sorted(cases, key=lambda case: case.name)


def find_empty(tree: Tree, cases: Sequence[SourceCase]) -> tuple[list[Path], list[Path]]:
    """Folders without files: first those that a case has lost its files from, then the others, which mean nothing.

    A case is expected where a name is built like that of a case and its files are nowhere else, as in `case_002` beside
    `case_001`. A folder `logs` is none.
    """
    complete = {case.name for case in cases}
    forms = {_form(name) for name in complete}
    empty = [folder for folder, names in tree.items() if not names]
    lost = [folder for folder in empty if _form(folder.name) in forms and folder.name not in complete]
    return lost, [folder for folder in empty if folder not in lost]


def _form(name: str) -> str:
    return re.sub(r"\d+", "0", name)


def _separate(tree: Tree, release: Release) -> list[SourceCase]:
    cases = []
    for folder, names in tree.items():
        stems = {key: f"{folder.name}{release.separator}{key}" for key in (*release.modalities, release.segmentation)}
        files = {key: _files(folder, names, stem) for key, stem in stems.items()}
        if any(files.values()):
            images = {key: [*files[key], folder / f"{stems[key]}{ENDINGS[0]}"][0] for key in release.modalities}
            surplus = tuple(chain.from_iterable(found[1:] for found in files.values()))
            cases.append(SourceCase(folder.name, images, next(iter(files[release.segmentation]), None), surplus))
    return cases


def _stacked(tree: Tree, release: Release) -> list[SourceCase]:
    cases = []
    for folder, names in tree.items():
        if folder.name not in ("imagesTr", "imagesTs"):
            continue
        label_folder = folder.with_name(folder.name.replace("images", "labels"))
        label_names = tree.get(label_folder, [])
        for stem in {match[1] for name in (*names, *label_names) if (match := NIFTI.fullmatch(name))}:
            images, labels = _files(folder, names, stem), _files(label_folder, label_names, stem)
            image = [*images, folder / f"{stem}{ENDINGS[0]}"][0]
            surplus = (*images[1:], *labels[1:])
            cases.append(SourceCase(stem, dict.fromkeys(release.modalities, image), next(iter(labels), None), surplus))
    return cases


def _files(folder: Path, names: Sequence[str], stem: str) -> list[Path]:
    return [folder / f"{stem}{ending}" for ending in ENDINGS if f"{stem}{ending}" in names]
