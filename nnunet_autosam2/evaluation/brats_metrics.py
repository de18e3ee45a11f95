"""Scores of BraTS by `brats-evaluation`, the package of its challenges.

The regions are cut out and renumbered, then everything is the package's: its configuration of the challenge, panoptica,
and its parser, which also says what an empty region counts. IoU and sensitivity, which it lacks, are voxel counts, and
the lesion-wise Dice of all lesions, as published tables of the challenges have it, is of panoptica's numbers.
"""

from __future__ import annotations

import csv
import io
import json
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import SimpleITK as sitk

from nnunet_autosam2.dataset_conversion.regions import TISSUES
from nnunet_autosam2.errors import AutoSAM2Error
from nnunet_autosam2.evaluation.challenges import CHALLENGES, FOUND_LESION, SMALL_LESION
from nnunet_autosam2.evaluation.numbering import Numbering

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


class Found(NamedTuple):
    """Findings in a case."""

    results: dict[str, Any]
    """Results that `brats-evaluate` writes"""
    counted: dict[str, dict[str, float]]
    """`[region][metric]` of what the package does not have"""


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


def score_brats(
    prediction: np.ndarray, truth: np.ndarray, grid: sitk.Image, challenge: str, numbering: Numbering
) -> Found:
    """Run the package on one case.

    Args:
        prediction: labels [Z, Y, X], as are those of the truth.
        grid: an image with its spacing.
    """
    from brats_evaluation import config_path
    from panoptica import Panoptica_Evaluator

    labels = [CHALLENGES[challenge].original[tissue] for tissue in TISSUES[: len(numbering.regions)]]
    box = _box_around((prediction != 0) | (truth != 0))  # all else is background, which no metric counts
    ignored = truth[box] == numbering.ignored
    voxels = [numbering.renumbered(array[box], labels) for array in (prediction, truth)]
    images = []
    for array in voxels:
        array[ignored] = 0
        images.append(sitk.GetImageFromArray(array))
        images[-1].SetSpacing(grid.GetSpacing())
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
    return Found({group: result.to_dict(True) for group, result in results.items()}, counted)


def _box_around(mask: np.ndarray) -> tuple[slice, ...]:
    """All of the mask and a voxel more where there is one, so that its borders stay borders; everything if empty."""
    if not mask.any():
        return (slice(None),) * mask.ndim
    return tuple(slice(max(0, axis.min() - 1), axis.max() + 2) for axis in mask.nonzero())


def _over_all_lesions(result: Any) -> float:
    """Mean Dice of the lesions of truth and prediction, in which missed and false ones count 0; NaN without any."""
    lesions = result.tp + result.fp + result.fn
    found = result.tp * result.sq_dsc if result.tp else 0.0
    return found / lesions if lesions else math.nan


def parse(found: Sequence[Found], challenge: str, regions: Sequence[str]) -> list[dict[str, dict[str, float]]]:
    """`[region][metric]` for each case, NaN where it is not defined; by the package's parser, which goes by files."""
    from brats_evaluation import parse_mets_results, parse_seg_results

    metrics = [{"subject_name": str(number), **case.results} for number, case in enumerate(found)]
    with TemporaryDirectory() as folder, _silence():
        summary, table = Path(folder, "summary.json"), Path(folder, "table.csv")
        summary.write_text(json.dumps({"metrics": metrics, "missings": []}), encoding="utf-8")
        if challenge == "mets":
            parse_mets_results(summary, SMALL_LESION, FOUND_LESION, table)
        else:
            parse_seg_results(summary, table)
        with table.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))[: len(found)]  # mean, std and median follow
    parsed = []
    for case, row in zip(found, rows, strict=True):
        scores = {}
        for region in regions:
            cells = {metric: row[f"{column}_{region.lower()}"] for metric, column in COLUMNS_OF_PARSER.items()}
            values = {**{metric: float(cell or math.nan) for metric, cell in cells.items()}, **case.counted[region]}
            scores[region] = {metric: values[metric] for metric in METRICS}
        parsed.append(scores)
    return parsed


@contextmanager
def _silence() -> Iterator[None]:
    """No progress messages of the package, no warnings about its own defaults and about means of infinite values."""
    with redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _ratio(part: np.ndarray, whole: np.ndarray) -> float:
    """Voxels in `part`, as a fraction of those in `whole`; NaN without any."""
    return float(part.sum() / whole.sum()) if whole.any() else math.nan
