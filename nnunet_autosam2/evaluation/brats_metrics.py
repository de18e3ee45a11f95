"""Scores: of BraTS by `brats-evaluation`, the package of the challenges, of other labels by `label_metrics`.

The regions are cut out and renumbered, then everything is the package's: its configuration of the challenge, panoptica,
and its parser, which also says what an empty region counts. IoU and sensitivity, which it lacks, are voxel counts, and
the lesion-wise Dice of all lesions, as published tables of the challenges have it, is of panoptica's numbers.
"""

from __future__ import annotations

import csv
import io
import json
import logging
import math
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, redirect_stdout
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import SimpleITK as sitk
from tqdm.contrib.concurrent import thread_map

from nnunet_autosam2.dataset_conversion.nifti import listed_labels, read_volume, unknown_labels
from nnunet_autosam2.dataset_conversion.regions import TISSUES
from nnunet_autosam2.errors import AutoSAM2Error, DatasetError, OutOfMemoryError
from nnunet_autosam2.evaluation.challenges import (
    CHALLENGES,
    FOUND_LESION,
    LARGEST_DISTANCE,
    SMALL_LESION,
    TOLERANCE,
    challenge_for,
)
from nnunet_autosam2.evaluation.numbering import NUMBERINGS, Numbering
from nnunet_autosam2.evaluation.pairs import Pair
from nnunet_autosam2.support.workers import process_map

Scores = dict[str, dict[str, dict[str, "float | None"]]]
"""`[case][region][metric]`; None where it is not defined."""
ALL_LESIONS = "Lesion-wise Dice, all"
METRICS = (
    "Dice", "IoU", "HD95", "NSD", "Sensitivity", "Lesion-wise Dice", ALL_LESIONS, "Lesion-wise NSD", "Lesion-wise HD95",
)  # fmt: skip
"""HD95 in mm, the others from 0 to 1. Labels other than BraTS's have the first four."""
COLUMNS_OF_PARSER = {
    "Dice": "global_dsc",
    "HD95": "global_hd95",
    "NSD": "global_nsd",
    "Lesion-wise Dice": "lesionwise_dsc_mean",
    "Lesion-wise NSD": "lesionwise_nsd_mean",
    "Lesion-wise HD95": "lesionwise_hd95_mean",
}
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
    if numbering.is_brats:
        require_brats_evaluation()
    if not pairs:
        return {}
    workers = min(num_processes or os.cpu_count() or 1, len(pairs))
    checks = thread_map(partial(_check, numbering=numbering), pairs, desc="check", max_workers=workers)
    if problems := [problem for check in checks for problem in check.problems]:
        raise DatasetError("\n".join(problems))
    others = [check for check in checks if not np.allclose(check.spacing, 1, atol=1e-3)]
    if others and numbering.is_brats:
        logger.warning(
            f"{len(others)} of {len(pairs)} cases have a spacing other than 1 mm, {others[0].spacing} for one: "
            "brats-evaluation counts HD95 and NSD of a region in voxels, and swaps x and z in the lesion-wise ones. "
            "Resample to 1 mm, as BraTS is, for distances in mm."
        )
    # Imported once here, so that forked processes have it.
    score: Callable[[Pair], Any]
    if numbering.is_brats:
        import brats_evaluation  # noqa: F401

        score = partial(_score, challenge=challenge, numbering=numbering)
    else:
        from nnunet_autosam2.evaluation import label_metrics

        score = partial(label_metrics.score, numbering=numbering, tolerance=TOLERANCE)
    try:
        measured: list[Any] = process_map(score, pairs, workers, "evaluate")
    except BrokenProcessPool as error:
        raise OutOfMemoryError(
            f"A process of {workers} was ended by the system, most likely because memory ran out: "
            "lower --num-processes."
        ) from error
    if not numbering.is_brats:
        return {
            pair.case: {
                region: {metric: _defined(value) for metric, value in scores.items()} for region, scores in case.items()
            }
            for pair, case in zip(pairs, measured, strict=True)
        }
    parsed = _parse([results for results, _ in measured], challenge, list(numbering.regions))
    return {
        pair.case: {
            region: {metric: _defined({**row[region], **counted[region]}[metric]) for metric in METRICS}
            for region in numbering.regions
        }
        for pair, row, (_, counted) in zip(pairs, parsed, measured, strict=True)
    }


def require_brats_evaluation() -> str:
    """Version of the package.

    Raises:
        AutoSAM2Error: it is not installed.
    """
    try:
        return version("brats-evaluation")
    except PackageNotFoundError as error:
        raise AutoSAM2Error(
            "brats-evaluation is not installed: it comes with the extra `evaluation` of nnunet-autosam2, "
            "as in pip install '.[evaluation]'."
        ) from error


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


def _score(pair: Pair, challenge: str, numbering: Numbering) -> tuple[dict[str, Any], dict[str, dict[str, float]]]:
    """Results that `brats-evaluate` writes of a case, and its voxel counts per region."""
    from brats_evaluation import config_path
    from panoptica import Panoptica_Evaluator

    labels = [CHALLENGES[challenge].original[tissue] for tissue in TISSUES[: len(numbering.regions)]]
    truth = sitk.ReadImage(pair.truth)
    voxels = []
    ignored = sitk.GetArrayFromImage(truth) == numbering.ignored
    for image in (sitk.ReadImage(pair.prediction), truth):
        array = numbering.renumbered(sitk.GetArrayFromImage(image), labels)
        array[ignored] = 0
        voxels.append(array)
    images = [sitk.GetImageFromArray(array) for array in voxels]
    for image in images:
        image.CopyInformation(truth)
    with _silence():
        evaluator = Panoptica_Evaluator.load_from_config(str(config_path(challenge)))
        groups = evaluator.segmentation_class_groups_names
        others = [group for group in groups if group.upper() not in numbering.regions]
        results = evaluator.evaluate(*images, skip_groups=others)
    by_region = {group.upper(): result for group, result in results.items()}
    counted = {}
    for number, region in enumerate(numbering.regions):
        prediction_mask, truth_mask = (np.isin(array, labels[number:]) for array in voxels)
        both = prediction_mask & truth_mask
        counted[region] = {
            "IoU": _ratio(both, prediction_mask | truth_mask),
            "Sensitivity": _ratio(both, truth_mask),
            ALL_LESIONS: _over_all_lesions(by_region[region]),
        }
    return {"subject_name": pair.case, **{group: result.to_dict(True) for group, result in results.items()}}, counted


def _over_all_lesions(result: Any) -> float:
    """Mean Dice of the lesions of truth and prediction, in which missed and false ones count 0; NaN without any."""
    lesions = result.tp + result.fp + result.fn
    found = result.tp * result.sq_dsc if result.tp else 0.0
    return found / lesions if lesions else math.nan


def _parse(results: list[dict[str, Any]], challenge: str, regions: Sequence[str]) -> list[dict[str, dict[str, float]]]:
    """Region → metric for each case, by the package's parser, which reads and writes files."""
    from brats_evaluation import parse_mets_results, parse_seg_results

    with TemporaryDirectory() as folder, _silence():
        summary, table = Path(folder, "summary.json"), Path(folder, "table.csv")
        summary.write_text(json.dumps({"metrics": results, "missings": []}), encoding="utf-8")
        if challenge == "mets":
            parse_mets_results(summary, SMALL_LESION, FOUND_LESION, table)
        else:
            parse_seg_results(summary, table)
        with table.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))[: len(results)]  # mean, std and median follow
    return [
        {
            region: {
                metric: float(row[f"{column}_{region.lower()}"] or math.nan)
                for metric, column in COLUMNS_OF_PARSER.items()
            }
            for region in regions
        }
        for row in rows
    ]


@contextmanager
def _silence() -> Iterator[None]:
    """No progress messages of the package, no warnings about its own defaults and about means of infinite values."""
    with redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _ratio(part: np.ndarray, whole: np.ndarray) -> float:
    """Voxels in `part`, as a fraction of those in `whole`; NaN without any."""
    return float(part.sum() / whole.sum()) if whole.any() else math.nan


def _defined(value: float) -> float | None:
    # The parser has 373 for the infinite HD95 of a region and leaves the lesion-wise one, whose mean then says nothing.
    if math.isinf(value):
        return LARGEST_DISTANCE
    return None if math.isnan(value) else value
