"""Reads every file of every case, and reports all problems at once."""

from __future__ import annotations

import json
import os
from collections import Counter, defaultdict
from contextlib import suppress
from itertools import chain
from pathlib import Path
from threading import Lock
from typing import NamedTuple

import numpy as np
from tqdm.contrib.concurrent import thread_map

from nnunet_autosam2.dataset_conversion.brats_layout import Release, release_by_labels
from nnunet_autosam2.dataset_conversion.cases import SourceCase
from nnunet_autosam2.dataset_conversion.nifti import Geometry, listed_labels, occurring_labels, read_volume
from nnunet_autosam2.errors import ConfigurationError, DatasetError, listed
from nnunet_autosam2.support.access import fault_of_file
from nnunet_autosam2.support.text import LINE, printable

WORKERS = min(8, os.cpu_count() or 1)  # each holds a case's largest file


class Findings(NamedTuple):
    problems: list[str]
    labels: frozenset[float]
    """Labels in the segmentation; empty where there is none that can be read"""


class CheckedCases(NamedTuple):
    release: Release
    left_out: dict[str, list[str]]
    """Case → what is wrong with it."""


def check_cases(
    cases: list[SourceCase], empty: list[Path], candidates: list[Release], skip_invalid: bool, kept: Path
) -> CheckedCases:
    """Decides for one of the candidates, which share their layout, and on the cases that can be used.

    Args:
        empty: case folders without a file.
        kept: a file for what is found in each case, which is not read again there unless it has changed.

    Raises:
        DatasetError: one line a problem and a last one with the remedies; with `skip_invalid`, when no case remains
            or the files do not decide for a release.
        OSError: `kept` cannot be written.
    """
    findings = _findings(cases, candidates[0], kept)
    undecided = []
    try:
        release = release_by_labels(candidates, [found.labels for found in findings])
    except ConfigurationError as error:
        undecided, release = [str(error)], candidates[-1]

    problems: dict[str, list[str]] = defaultdict(list)
    for case, found in zip(cases, findings, strict=True):
        problems[case.name] += found.problems
        if unknown := sorted(found.labels - release.labels.keys()):
            problems[case.name].append(
                f"{case.segmentation} has labels that {release.title} does not know: "
                f"{listed_labels(unknown)}. It knows {listed(list(release.labels))}."
            )
    for name, number in Counter(case.name for case in cases).items():
        if number > 1:
            files = [next(iter(case.files)) for case in cases if case.name == name]
            problems[name].append(f"{name} is there {number} times: {', '.join(map(str, files))}; keep one.")
    for folder in empty:
        problems[folder.name].append(f"{printable(folder, LINE)} is empty.")

    left_out = {name: lines for name, lines in problems.items() if lines}
    valid = {case.name for case in cases} - left_out.keys()
    if undecided or not valid or (left_out and not skip_invalid):
        remedies = [f"--skip-invalid leaves them out, {len(valid)} remain."] * bool(valid and not skip_invalid)
        common = [key for key in cases[0].images if all(os.path.lexists(case.images[key]) for case in cases)]
        if 0 < len(common) < len(cases[0].images):
            remedies.append(f"--modalities {','.join(common)} takes what every case has.")
        remedies.append(f"What was found is kept in {kept.parent}: files that stay as they are are not read again.")
        summary = [f"Cases that cannot be used: {len(left_out)}. {' '.join(remedies)}"] * bool(left_out)
        raise DatasetError("\n".join([*undecided, *chain.from_iterable(left_out.values()), *summary]))
    return CheckedCases(release, left_out)


def _findings(cases: list[SourceCase], release: Release, kept: Path) -> list[Findings]:
    keys = [_key(case, release) for case in cases]
    known = _read_kept(kept)
    kept.unlink(missing_ok=True)  # written anew, so that it is a file of ours
    with kept.open("x", encoding="utf-8") as file:
        one_writer = Lock()

        def keep(key: str, found: Findings) -> None:
            with one_writer:
                file.write(json.dumps([key, found.problems, sorted(found.labels)]) + "\n")
                file.flush()

        def check(number: int) -> None:
            known[keys[number]] = found = check_case(cases[number], release)
            keep(keys[number], found)

        for key in known.keys() & set(keys):
            keep(key, known[key])
        if unknown := [number for number, key in enumerate(keys) if key not in known]:
            thread_map(check, unknown, desc="check", max_workers=WORKERS)
    return [known[key] for key in keys]


def _key(case: SourceCase, release: Release) -> str:
    """Everything that the findings depend on: layout, modalities, and size and time of each file."""
    files = [[str(file), stamp(file)] for file in (*case.files, *case.surplus)]
    return json.dumps([release.layout, list(case.images), str(case.segmentation), files])


def _read_kept(file: Path) -> dict[str, Findings]:
    """Read `checks.jsonl`, whose last line may be cut off."""
    known = {}
    for line in file.read_text(encoding="utf-8").splitlines() if file.is_file() else ():
        with suppress(ValueError, TypeError):
            key, problems, labels = json.loads(line)
            known[key] = Findings([*map(str, problems)], frozenset(map(float, labels)))
    return known


def stamp(file: Path) -> list[int] | None:
    """Size and time of the last change, in bytes and nanoseconds; None without such a file."""
    try:
        status = file.stat()
    except OSError:
        return None
    return [status.st_size, status.st_mtime_ns]


def check_case(case: SourceCase, release: Release) -> Findings:
    """Find what is wrong: nothing if all files can be read, are finite and share one grid, and no image is empty."""
    problems = [f"{file}.gz and {file.name} both exist: remove one." for file in case.surplus]
    grids: dict[Path, Geometry] = {}
    labels: frozenset[float] = frozenset()
    for file in case.files:
        if fault := fault_of_file(file):
            problems.append(f"{printable(file, LINE)} {fault}.")
            continue
        if not os.path.lexists(file):
            problems.append(f"{file} is missing.")
            continue
        is_stack = file != case.segmentation and bool(release.stack)
        try:
            grids[file], voxels = read_volume(file, dimensions=4 if is_stack else 3)
        except DatasetError as error:
            problems.append(str(error))
            continue
        if not np.isfinite(voxels).all():
            problems.append(f"{file} has voxels that are infinite or not a number.")
        elif file == case.segmentation:
            labels = frozenset(occurring_labels(voxels))
        elif is_stack and voxels.shape[3] != len(release.stack):
            problems.append(f"{file} has {voxels.shape[3]} channels, expected {', '.join(release.stack)}.")
        else:
            volumes = (
                {f" of {key}": voxels[..., release.stack.index(key)] for key in case.images}
                if is_stack
                else {"": voxels}
            )
            problems += [
                f"{file} is empty: every voxel{of_modality} is {volume.flat[0]:g}."
                for of_modality, volume in volumes.items()
                if not np.ptp(volume)
            ]
    return Findings([*problems, *_misfits(grids)], labels)


def _misfits(grids: dict[Path, Geometry]) -> list[str]:
    """Compares with the file that fits the most others, so that the line names the odd one."""
    if not grids:
        return []
    reference = max(grids, key=lambda file: sum(not grid.differences(grids[file]) for grid in grids.values()))
    return [
        f"{file} does not fit {reference.name}: {text}."
        for file, grid in grids.items()
        for text in grid.differences(grids[reference])
    ]
