"""Patients, told by the names of their cases, and folds that keep the cases of a patient together."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from nnunetv2.paths import nnUNet_preprocessed

from nnunet_autosam2.errors import DatasetError, listed
from nnunet_autosam2.support.json_files import read_json

Splits = list[dict[str, list[str]]]
"""Folds as nnU-Net has them: `[fold]["train" or "val"]` → cases"""
SPLITS = "splits_final.json"
FOLDS, SEED = 5, 12345
"""Number of folds and seed of nnU-Net's cross-validation"""
SCANS = (
    re.compile(r"(brats(?:-[a-z]+)+-\d+)-\d+", re.IGNORECASE),  # from 2023 on: BraTS-GLI-00001-100
    re.compile(r"(brats(?:1\d)?_(?:2013|cbica|mda|tcia\d*|tmc|uab|washu)_[a-z0-9]+)_\d+", re.IGNORECASE),  # before 2020
)
"""Names of cases that end in the number of the patient's scan"""


def patient_of(case: str) -> str:
    """Patient of a case: `BraTS-GLI-00001` of `BraTS-GLI-00001-100`, and `Brats17_TCIA_430` of `Brats17_TCIA_430_1`.

    The case itself, where its name does not tell the patient from the scan.
    """
    return next((match[1] for pattern in SCANS if (match := pattern.fullmatch(case))), case)


def by_patient(cases: Iterable[str]) -> dict[str, list[str]]:
    """Patient → cases, both sorted."""
    found = defaultdict(list)
    for case in sorted(cases):
        found[patient_of(case)].append(case)
    return dict(sorted(found.items()))


def split_by_patient(cases: Iterable[str]) -> Splits:
    """nnU-Net's split, of patients in the place of cases; the same where each patient has one case.

    Returns:
        5 folds, or as many as there are patients; none with fewer than two.
    """
    patients = by_patient(cases)
    if len(patients) < 2:
        return []
    from nnunetv2.utilities.crossval_split import generate_crossval_split  # with scikit-learn, which takes a second

    folds = generate_crossval_split(list(patients), seed=SEED, n_splits=min(FOLDS, len(patients)))
    return [
        {side: [case for name in names for case in patients[str(name)]] for side, names in fold.items()}
        for fold in folds
    ]


def leaks(splits: Splits, folds: Sequence[int]) -> Iterator[str]:
    """A line for each fold that validates on scans of patients whom it trains on."""
    for fold in folds:
        trained = {patient_of(case) for case in splits[fold]["train"]}
        seen = by_patient(case for case in splits[fold]["val"] if patient_of(case) in trained)
        if seen:
            number = sum(map(len, seen.values()))
            yield (
                f"Fold {fold}: {number} of {len(splits[fold]['val'])} validation cases are of patients whose other "
                f"scans it trains on ({listed(list(seen))}), so that its scores are too high."
            )


def plan_folds(training: Sequence[str], folder: Path) -> tuple[Splits, list[str]]:
    """Folds for a raw dataset. nnU-Net's planning copies them to `$nnUNet_preprocessed`, where trainings read them.

    Returns:
        Folds to write into `folder`, none where nnU-Net's own are as good or nothing can be done, and what to say.
    """
    patients = by_patient(training)
    if len(patients) == len(training):
        return [], []
    splits, number = split_by_patient(training), f"{len(patients)} patients with {len(training)} training cases"
    if not splits:
        return [], ["WARNING: all training cases are of one patient. Every fold will validate on whom it trains on."]
    messages = [
        f"Folds by patient, for {number}: {len(splits)}, in {folder / SPLITS}. nnUNetv2_plan_and_preprocess copies it "
        "to nnUNet_preprocessed, where trainings read it."
    ]
    if len(splits) < FOLDS:
        messages.append(f"WARNING: train folds 0 to {len(splits) - 1} alone. nnU-Net makes others at random, by case.")
    there = Path(nnUNet_preprocessed, folder.name, SPLITS) if nnUNet_preprocessed else None
    if there is None or not os.path.lexists(there) or (problems := _problems(there, splits)) is None:
        return splits, messages
    if not problems:
        return [], [f"Folds: those in {there}, which keep the cases of a patient together, too ({number})."]
    remedy = f"WARNING: {there} exists and is left alone. Remove it, or planning stops, because it differs from ours."
    return splits, [*messages, remedy, *problems]


def _problems(file: Path, splits: Splits) -> list[str] | None:
    """Faults of the folds that `file` has already; None: they are the same."""
    try:
        found = read_json(file)
        return None if found == splits else list(leaks(found, range(len(found))))
    except (DatasetError, LookupError, TypeError, AttributeError):
        return ["It cannot be read as nnU-Net's folds."]
