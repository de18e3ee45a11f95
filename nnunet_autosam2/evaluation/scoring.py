"""Scores of cases in processes: of BraTS by the package of its challenges, of other labels by MONAI."""

from __future__ import annotations

import gc
import logging
import math
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import SimpleITK as sitk
from tqdm.contrib.concurrent import thread_map

from nnunet_autosam2.dataset_conversion.nifti import listed_labels, read_volume, unknown_labels
from nnunet_autosam2.errors import DatasetError, OutOfMemoryError
from nnunet_autosam2.evaluation import brats_metrics
from nnunet_autosam2.evaluation.challenges import LARGEST_DISTANCE, TOLERANCE, challenge_for
from nnunet_autosam2.evaluation.numbering import NUMBERINGS, Numbering
from nnunet_autosam2.evaluation.pairs import Pair
from nnunet_autosam2.support.workers import process_map

RegionScores = dict[str, dict[str, "float | None"]]
"""`[region][metric]`; None where it is not defined."""
Scores = dict[str, RegionScores]
"""`[case][region][metric]`"""
Variants = Callable[[Pair, np.ndarray, float], Iterable[np.ndarray]]
"""Case, its prediction [Z, Y, X] and the volume of a voxel in mm³ → predictions in its place"""
logger = logging.getLogger(__name__)


def evaluate(
    pairs: Sequence[Pair],
    challenge: str | None = None,
    numbering: Numbering = NUMBERINGS["nnunet"],
    num_processes: int | None = None,
) -> Scores:
    """Scores of every case: in the regions of BraTS as `brats-evaluate` and `brats-parse-metrics` give them, in the
    labels and regions of another data set by MONAI.

    Args:
        challenge: one of `CHALLENGES`, None: the first that scores the regions; of BraTS alone.
        numbering: of predictions and truths.
        num_processes: cases at a time, None: as many as there are CPU cores.

    Raises:
        AutoSAM2Error: `brats-evaluation` is not installed.
        ConfigurationError: an unknown challenge, or one that scores other regions.
        DatasetError: one line for each file that is unreadable, on another grid than its truth or has unknown labels.
        OutOfMemoryError: a process was ended by the system.
    """
    challenge = challenge_for(numbering.regions, challenge)
    check_pairs(pairs, numbering, num_processes)
    scores = evaluate_variants(pairs, _as_it_is, challenge, numbering, num_processes, "evaluate")
    return {pair.case: score for pair, (score,) in zip(pairs, scores, strict=True)}


def evaluate_variants(
    pairs: Sequence[Pair],
    variants: Variants,
    challenge: str,
    numbering: Numbering,
    num_processes: int | None,
    desc: str,
) -> list[list[RegionScores]]:
    """Scores of several predictions a case, each file read once and what is equal scored once.

    Args:
        pairs: that `check_pairs` has passed.
        variants: can be pickled.
        desc: of the progress bar.

    Raises:
        OutOfMemoryError: a process was ended by the system.
    """
    if not pairs:
        return []
    if numbering.is_brats:
        import brats_evaluation  # noqa: F401  once here, so that forked processes have it
    else:
        from nnunet_autosam2.evaluation import label_metrics  # noqa: F401
    workers = _workers(pairs, num_processes)
    score = partial(_score, variants=variants, challenge=challenge, numbering=numbering)
    try:
        measured: list[list[Any]] = process_map(score, pairs, workers, desc)
    except BrokenProcessPool as error:
        raise OutOfMemoryError(
            f"A process of {workers} was ended by the system, most likely because memory ran out: "
            "lower --num-processes."
        ) from error
    scores = measured
    if numbering.is_brats:
        flat = iter(brats_metrics.parse([raw for case in measured for raw in case], challenge, list(numbering.regions)))
        scores = [[next(flat) for _ in case] for case in measured]
    return [
        [
            {
                region: {metric: _defined(value) for metric, value in of_region.items()}
                for region, of_region in one.items()
            }
            for one in case
        ]
        for case in scores
    ]


def check_pairs(pairs: Sequence[Pair], numbering: Numbering, num_processes: int | None = None) -> None:
    """Read all files, and warn of grids on which distances are not in mm.

    Raises:
        AutoSAM2Error: `brats-evaluation` is not installed.
        DatasetError: one line for each file that is unreadable, on another grid than its truth or has unknown labels.
    """
    if numbering.is_brats:
        brats_metrics.require_brats_evaluation()
    checks = thread_map(
        partial(_check, numbering=numbering), pairs, desc="check", max_workers=_workers(pairs, num_processes)
    )
    if problems := [problem for check in checks for problem in check.problems]:
        raise DatasetError("\n".join(problems))
    others = [check for check in checks if not np.allclose(check.spacing, 1, atol=1e-3)]
    if others and numbering.is_brats:
        logger.warning(
            f"{len(others)} of {len(pairs)} cases have a spacing other than 1 mm, {others[0].spacing} for one: "
            "brats-evaluation counts HD95 and NSD of a region in voxels, and swaps x and z in the lesion-wise ones. "
            "Resample to 1 mm, as BraTS is, for distances in mm."
        )


def _workers(pairs: Sequence[Pair], num_processes: int | None) -> int:
    return max(1, min(num_processes or os.cpu_count() or 1, len(pairs)))


class Check(NamedTuple):
    problems: list[str]
    spacing: tuple[float, ...]


def _check(pair: Pair, numbering: Numbering) -> Check:
    problems, grids = [], []
    other_numbering = " Give --labels if its numbering is another one." * numbering.is_brats
    for file in (pair.prediction, pair.truth):
        try:
            grid, voxels = read_volume(file)
        except DatasetError as error:
            problems.append(str(error))
            continue
        grids.append(grid)
        if unknown := unknown_labels(voxels, numbering.labels):
            problems.append(
                f"{file} has the labels {listed_labels(unknown)}: expected "
                f"{', '.join(map(str, sorted(numbering.labels)))}.{other_numbering}"
            )
    if len(grids) == 2 and (differences := grids[0].differences(grids[1])):
        problems.append(
            f"{pair.prediction} is not on the grid of {pair.truth}: {'; '.join(differences)}. "
            "Resample the prediction to the truth."
        )
    return Check(problems, grids[-1].spacing if grids else ())


def _as_it_is(pair: Pair, prediction: np.ndarray, volume: float) -> list[np.ndarray]:
    return [prediction]


def _score(pair: Pair, variants: Variants, challenge: str, numbering: Numbering) -> list[Any]:
    """Findings of the module of the metrics, one for each variant."""
    image = sitk.ReadImage(pair.truth)
    truth = sitk.GetArrayFromImage(image)
    prediction = sitk.GetArrayFromImage(sitk.ReadImage(pair.prediction))
    found: list[Any] = []
    scored: list[tuple[np.ndarray, Any]] = []
    for variant in variants(pair, prediction, math.prod(image.GetSpacing())):
        known = next((score for voxels, score in scored if np.array_equal(voxels, variant)), None)
        if known is None:
            if numbering.is_brats:
                known = brats_metrics.score_brats(variant, truth, image, challenge, numbering)
            else:
                from nnunet_autosam2.evaluation import label_metrics  # with MONAI, which takes seconds

                known = label_metrics.score_labels(variant, truth, image.GetSpacing()[::-1], numbering, TOLERANCE)
            scored.append((variant, known))
            gc.collect()  # panoptica's results refer to each other, and to arrays of a whole image
        found.append(known)
    return found


def _defined(value: float) -> float | None:
    # The parser has 373 for the infinite HD95 of a region and leaves the lesion-wise one, whose mean then says nothing.
    if math.isinf(value):
        return LARGEST_DISTANCE
    return None if math.isnan(value) else value
