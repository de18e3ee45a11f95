"""The cases that the viewer shows, packed so that a browser can open them without a server.

A page that was opened as a file may not fetch other files, but it may load scripts: each volume is one.
"""

from __future__ import annotations

import base64
import gzip
import itertools
import json
import zlib
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from nibabel.filebasedimages import ImageFileError
from tqdm import tqdm

from nnunet_autosam2.benchmark.results import DICE, Benchmark, CaseResults
from nnunet_autosam2.errors import DatasetError
from nnunet_autosam2.support.access import require_file

FOLDER = "volumes"


def choose_cases(benchmark: Benchmark, count: int) -> dict[str, str]:
    """Case → what it stands for: evenly spaced from the worst to the best, by the mean Dice over all models."""
    dices: dict[str, list[float]] = {}
    for model in benchmark.models:
        for result in model.results():
            if (dice := result.mean_dice()) is not None:
                dices.setdefault(result.case, []).append(dice)
    ranked = sorted(dices, key=lambda case: float(np.mean(dices[case])))
    last, count = len(ranked) - 1, min(count, len(ranked))
    places = [last // 2] if count == 1 else [number * last // (count - 1) for number in range(count)]
    names = {last // 2: "median", last: "best", 0: "worst"}
    return {ranked[place]: names.get(place, f"rank {place + 1} of {len(ranked)}") for place in places}


def pack_cases(benchmark: Benchmark, folder: Path, count: int, output: Path) -> list[dict[str, Any]]:
    """Writes the volumes of `count` cases into `output`, and tells the viewer what there is.

    Args:
        folder: the benchmark's, to which predictions are relative.

    Raises:
        DatasetError: a file is missing, no NIfTI, or of another size than the rest of its case.
    """
    packed = []
    (output / FOLDER).mkdir()
    for number, (case, rank) in enumerate(tqdm(choose_cases(benchmark, count).items(), desc="viewer")):
        files = benchmark.cases[case]
        names = (f"{FOLDER}/{number}-{volume}.js" for volume in itertools.count())
        results = {
            model.title: next((result for result in model.results() if result.case == case), None)
            for model in benchmark.ordered_models
        }
        truth, values = _open(files.truth, None), [label.value for label in benchmark.labels]
        channels = []
        for channel, path in files.images.items():
            image = _open(path, truth.shape)
            channels.append({"title": channel, "file": _write(output, next(names), _compressed(path, image))})
        overlays: list[dict[str, Any]] = [
            {"title": "Truth", "file": _write(output, next(names), _labels(truth, values)), "dice": None}
        ]
        for title, result in results.items():
            name = None
            if result is not None:
                prediction = _open(folder / result.prediction, truth.shape)
                name = _write(output, next(names), _labels(prediction, values))
            overlays.append({"title": title, "file": name, "dice": _dice(result, benchmark.regions)})
        packed.append(
            {"title": case, "rank": rank, "channels": channels, "overlays": overlays, "centre": _centre(truth)}
        )
    return packed


def _dice(result: CaseResults | None, regions: list[str]) -> dict[str, float | None] | None:
    return None if result is None else {region: result.score(region, DICE) for region in regions}


def _open(path: Path, shape: tuple[int, ...] | None) -> nibabel.Nifti1Image:
    require_file(path)
    try:
        image = nibabel.load(path)
        if isinstance(image, nibabel.Nifti1Image):
            image.get_fdata()  # kept, so that later reads cannot fail
    except FileNotFoundError:
        raise DatasetError(f"{path} is missing: put it back, or leave the viewer out by --viewer-cases 0.") from None
    except (ImageFileError, OSError, EOFError, zlib.error) as error:
        raise DatasetError(f"{path} cannot be read: {error}. Leave the viewer out by --viewer-cases 0.") from error
    if not isinstance(image, nibabel.Nifti1Image):
        raise DatasetError(f"{path} is no NIfTI file, which the viewer needs: leave it out by --viewer-cases 0.")
    if shape is not None and image.shape != shape:
        raise DatasetError(f"{path} has size {image.shape}, the case's truth {shape}: they have to be the same.")
    return image


def _compressed(path: Path, image: nibabel.Nifti1Image) -> bytes:
    """Compressed content: the file as it is, where that is compressed already."""
    return path.read_bytes() if path.name.endswith(".gz") else gzip.compress(image.to_bytes())


def _labels(image: nibabel.Nifti1Image, values: list[int]) -> bytes:
    """Write each label as its number in the legend, from 1 on; the one after the last for those that are not in it.

    As 8-bit integers where they suffice, the only kind that every label map can be shown as.
    """
    labels = image.get_fdata().round()
    numbers = np.where(labels == 0, 0, len(values) + 1).astype(np.uint8 if len(values) < 255 else np.uint16)
    for number, value in enumerate(values, start=1):
        numbers[labels == value] = number
    return gzip.compress(nibabel.Nifti1Image(numbers, image.affine).to_bytes())


def _centre(truth: nibabel.Nifti1Image) -> list[float] | None:
    """Centre of the tumour, in mm."""
    voxels = np.argwhere(truth.get_fdata() > 0)
    return None if not len(voxels) else nibabel.affines.apply_affine(truth.affine, voxels.mean(0)).tolist()


def _write(output: Path, name: str, volume: bytes) -> str:
    (output / name).write_text(f"receive({json.dumps(name)}, {json.dumps(base64.b64encode(volume).decode())});\n")
    return name
