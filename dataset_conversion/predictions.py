"""Predictions in nnU-Net's labels → the labels of BraTS 2018 to 2021."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

from nnunetv2.dataset_conversion.Dataset137_BraTS21 import load_convert_labels_back_to_BraTS
from tqdm.contrib.concurrent import thread_map

from nnunet_autosam2.dataset_conversion.nifti import read_volume, unknown_labels
from nnunet_autosam2.dataset_conversion.staging import staged_folder
from nnunet_autosam2.errors import DatasetError

LABELS = (0, 1, 2, 3)


def predictions_to_brats(predictions: Path, output: Path) -> int:
    """Writes every `.nii.gz` of `predictions` into `output` under its name, with labels 0, 1, 2, 4.

    Returns:
        The number of files.

    Raises:
        DatasetError: one line a problem; nothing is written then.
    """
    if not predictions.is_dir():
        raise DatasetError(f"{predictions} is not a folder.")
    files = sorted(predictions.glob("*.nii.gz"))
    if not files:
        raise DatasetError(f"{predictions} holds no .nii.gz file: give the folder that nnUNetv2_predict wrote.")
    with staged_folder(output) as staged:
        problems = thread_map(_check, files, desc="check", max_workers=os.cpu_count())
        if any(problems):
            raise DatasetError("\n".join(filter(None, problems)))
        convert = partial(load_convert_labels_back_to_BraTS, input_folder=str(predictions), output_folder=str(staged))
        thread_map(convert, [file.name for file in files], desc="convert", max_workers=os.cpu_count())
    return len(files)


def _check(file: Path) -> str | None:
    try:
        _, voxels = read_volume(file)
    except DatasetError as error:
        return str(error)
    if unknown := unknown_labels(voxels, LABELS):
        return (
            f"{file} has the labels {', '.join(map(str, unknown))}: "
            "a prediction of a model trained on a converted BraTS data set has 0, 1, 2 and 3 alone."
        )
    return None
