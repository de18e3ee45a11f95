"""Applies rules to a folder of segmentations."""

from __future__ import annotations

import math
import shutil
from functools import partial
from pathlib import Path
from typing import cast

import nibabel
import numpy as np
from tqdm.contrib.concurrent import thread_map

from nnunet_autosam2.dataset_conversion.checks import WORKERS
from nnunet_autosam2.dataset_conversion.nifti import save_like, whole_labels
from nnunet_autosam2.dataset_conversion.predictions import find_predictions, require_labels
from nnunet_autosam2.errors import DatasetError
from nnunet_autosam2.evaluation.numbering import numbering_of_dataset
from nnunet_autosam2.postprocessing.rules import clean
from nnunet_autosam2.postprocessing.settings import Settings
from nnunet_autosam2.support.staging import staged_folder

BESIDE = ("dataset.json", "plans.json", "predict_from_raw_data_args.json", "autosam2_run.json")
"""Files beside predictions that are copied where they are there"""


def postprocess(predictions: Path, output: Path, settings: Settings) -> dict[str, int]:
    """Writes every `.nii.gz` of `predictions` into the new folder `output`, without what the rules take out.

    Returns:
        Case → voxels with another label.

    Raises:
        DatasetError: one line a problem; nothing is written then.
    """
    files = find_predictions(predictions)
    described = predictions / "dataset.json"
    numbering = settings.numbering
    if described.is_file() and not numbering.means_the_same(
        other := numbering_of_dataset(described), {*numbering.labels, *other.labels}
    ):
        raise DatasetError(f"{described} says that labels mean {other}, and the rules are for {numbering}.")
    with staged_folder(output) as staged:
        require_labels(files, numbering.labels, "the rules are for")
        write = partial(_write, staged=staged, settings=settings)
        changed = thread_map(write, files, desc="postprocess", max_workers=WORKERS)
        for name in BESIDE:
            if (predictions / name).is_file():
                shutil.copyfile(predictions / name, staged / name)
    return {file.name.removesuffix(".nii.gz"): number for file, number in zip(files, changed, strict=True)}


def _write(file: Path, staged: Path, settings: Settings) -> int:
    image = cast(nibabel.Nifti1Image, nibabel.load(file))
    voxels = np.asanyarray(image.dataobj)
    labels = whole_labels(voxels)
    cleaned = clean(labels, math.prod(image.header.get_zooms()[:3]), settings.labels, settings.rules)
    save_like(image, cleaned.astype(voxels.dtype), staged / file.name)
    return int((cleaned != labels).sum())
