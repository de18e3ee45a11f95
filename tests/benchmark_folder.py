"""A benchmark's folder as `autosam2 benchmark` writes it: a plugin of pytest, for tests of benchmark and of report."""

import copy
import json
import shutil
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import nibabel
import numpy as np
import pytest
from scipy import ndimage

from nnunet_autosam2.dataset_conversion.phantom import ENHANCING, NECROSIS, OEDEMA, make_case

AFFINE = np.diag([-1.0, -1.0, 1.0, 1.0])  # as BraTS: the first voxel is at the left, the front, the bottom
CHANNELS = {"t1ce": "T1ce", "flair": "FLAIR"}
LABELS = {OEDEMA: 1, NECROSIS: 2, ENHANCING: 3}
REGIONS = {"WT": (1, 2, 3), "TC": (2, 3), "ET": (3,)}
MODELS = {
    # title: trainer, fraction, voxels by which the truth is moved
    "nnU-Net": ("nnUNetTrainer", None, 1.0),
    "UNet only": ("nnUNetTrainerAutoSAM2_UNetOnly", 0.0, 2.5),
    'AutoSAM2 30 % <b>"&$x_1$': ("nnUNetTrainerAutoSAM2", 0.3, 1.5),
}
FOLDS = (("phantom_001", "phantom <2> & 'ä'"), ("phantom_003", "phantom_004"))


class BenchmarkFolder(NamedTuple):
    path: Path
    content: dict
    """What `benchmark.json` says"""

    def write(self) -> None:
        (self.path / "benchmark.json").write_text(json.dumps(self.content))

    def fail(self, title: str, fold: int, error: str) -> None:
        (model,) = [model for model in self.content["models"] if model["title"] == title]
        model["folds"][fold] |= {"error": error, "cases": [], "training_seconds": None, "curves": {}}
        self.write()


def make_benchmark(folder: Path, size: tuple[int, int, int]) -> BenchmarkFolder:
    """Phantoms, and the same tumours with other borders in the place of predictions."""
    data = folder / "data"
    truths, cases = {}, {}
    for number, case in enumerate(chain(*FOLDS)):
        phantom = make_case(size, np.random.default_rng(number))
        truths[case] = sum(label * (phantom.segmentation == brats) for brats, label in LABELS.items()).astype(np.uint8)
        images = {CHANNELS[name]: save(data / f"{number}_{name}.nii.gz", phantom.images[name]) for name in CHANNELS}
        cases[case] = {"images": images, "truth": save(data / f"{number}_truth.nii.gz", truths[case])}
    models = [make_model(folder, title, truths) for title in MODELS]
    content = {
        "dataset": "Dataset005_Phantom",
        "plans": "nnUNetPlans",
        "device": "cpu",
        "created": "2026-01-02T03:04:05+00:00",
        "models": models,
        "cases": cases,
        "comparisons": compare(models),
    }
    made = BenchmarkFolder(folder, content)
    made.write()
    return made


def save(path: Path, volume: np.ndarray) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(volume.T, AFFINE), path)
    return str(path)


def make_model(folder: Path, title: str, truths: dict[str, np.ndarray]) -> dict:
    trainer, fraction, distance = MODELS[title]
    random = np.random.default_rng(list(MODELS).index(title))
    folds = []
    for fold, names in enumerate(FOLDS):
        results: list[dict] = []
        for name in names:
            predicted = disturbed(truths[name], distance, random)
            path = folder / "predictions" / trainer / f"{len(results)}_{fold}.nii.gz"
            save(path, predicted)
            scores = {region: scored(predicted, truths[name], labels) for region, labels in REGIONS.items()}
            results.append(
                {"case": name, "prediction": str(path.relative_to(folder)), "seconds": 2 + distance, "scores": scores}
            )
        decay = np.exp(-np.arange(20) / 6)
        noise = random.normal(0, 0.03, (3, 20))
        folds.append(
            {
                "fold": fold,
                "training_seconds": 4000.0 * distance,
                "peak_memory_bytes": None if fold else 3 * 2**30,
                "error": None,
                "curves": {
                    "train_loss": list(decay - 0.7 + noise[0]),
                    "val_loss": list(decay - 0.6 + noise[1]),
                    "ema_fg_dice": list(0.8 - 0.7 * decay + noise[2] / 4),
                },
                "cases": results,
            }
        )
    parameters = {"all": 5_650_000, "trainable": 1_420_000}
    return {
        "title": title,
        "trainer": trainer,
        "configuration": "3d_fullres",
        "slice_fraction": fraction,
        "parameters": parameters,
        "folds": folds,
    }


def disturbed(truth: np.ndarray, distance: float, random: np.random.Generator) -> np.ndarray:
    """Every voxel from about `distance` voxels away, smoothly."""
    smooth = ndimage.gaussian_filter(random.standard_normal((3, *truth.shape)), (0, 4, 4, 4))
    return ndimage.map_coordinates(truth, np.indices(truth.shape) + distance * smooth / smooth.std(), order=0)


def scored(predicted: np.ndarray, truth: np.ndarray, labels: tuple[int, ...]) -> dict[str, float | None]:
    predicted, truth = np.isin(predicted, labels), np.isin(truth, labels)
    both, either = (predicted & truth).sum(), (predicted | truth).sum()
    distances = ndimage.distance_transform_edt(~truth)[predicted]
    dice = 2 * both / (predicted.sum() + truth.sum())
    return {
        "Dice": dice,
        "IoU": both / either,
        "HD95": np.percentile(distances, 95) if distances.size else None,
        "NSD": min(1.0, dice + 0.1),
        "Sensitivity": both / truth.sum(),
        "Lesion-wise Dice": dice,
        "Lesion-wise Dice, all": dice / 2,
        "Lesion-wise NSD": min(1.0, dice + 0.1),
        "Lesion-wise HD95": None,
    }


def compare(models: list[dict]) -> list[dict]:
    found = []
    reference, *others = models
    for other in others:
        for region in (*REGIONS, "mean"):
            values = [
                np.mean(
                    [
                        [result["scores"][name]["Dice"] for name in (REGIONS if region == "mean" else (region,))]
                        for fold in model["folds"]
                        for result in fold["cases"]
                    ],
                    axis=1,
                )
                for model in (other, reference)
            ]
            differences = values[0] - values[1]
            found.append(
                {
                    "model": other["title"],
                    "reference": reference["title"],
                    "region": region,
                    "metric": "Dice",
                    "n": differences.size,
                    "difference": differences.mean(),
                    "low": differences.min(),
                    "high": differences.max(),
                    "p": 0.125,
                }
            )
    return found


@pytest.fixture(scope="session")
def benchmark_template(tmp_path_factory: pytest.TempPathFactory) -> BenchmarkFolder:
    return make_benchmark(tmp_path_factory.mktemp("benchmark") / "template", (40, 48, 44))


@pytest.fixture
def benchmark(benchmark_template: BenchmarkFolder, tmp_path: Path) -> BenchmarkFolder:
    """Three models, two folds, four cases."""
    return BenchmarkFolder(
        shutil.copytree(benchmark_template.path, tmp_path / "benchmark"), copy.deepcopy(benchmark_template.content)
    )
