import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import nibabel
import numpy as np
import pytest

from nnunet_autosam2.dataset_conversion.phantom import write_phantom


class Published(NamedTuple):
    """What a release looks like on disk, written down from its data, not from the code under test."""

    release: str
    training: tuple[str, str]
    test: str
    suffixes: tuple[str, str, str, str]
    """Of T1, T1ce, T2 and FLAIR, with separator; empty: it has none"""
    labels: dict[int, int]
    """The phantom's 1 necrosis, 2 oedema, 4 enhancing, 9 a part of its necrosis → the release's label"""
    ending: str = ".nii.gz"
    segmentation: str = "seg"


OLD, NEW = ("_t1", "_t1ce", "_t2", "_flair"), ("-t1n", "-t1c", "-t2w", "-t2f")
SAME = {1: 1, 9: 1, 2: 2, 4: 4}
THREE = {1: 1, 9: 1, 2: 2, 4: 3}
CAVITY = {1: 1, 9: 4, 2: 2, 4: 3}
CYSTS = {1: 2, 9: 3, 2: 4, 4: 1}
TARGET = {1: 1, 9: 1, 2: 0, 4: 1}
PUBLISHED = {
    "BraTS2018": Published(
        "2018-2021", ("HGG/Brats18_2013_2_1", "LGG/Brats18_TCIA09_141_1"), "Brats18_CBICA_AAM_1", OLD, SAME
    ),
    "BraTS2020": Published(
        "2018-2021", ("BraTS20_Training_001", "BraTS20_Training_002"), "BraTS20_Validation_001", OLD, SAME, ".nii"
    ),
    "BraTS2021": Published("2018-2021", ("BraTS2021_00000", "BraTS2021_00002"), "BraTS2021_00001", OLD, SAME),
    "GLI2023": Published(
        "2023-gli", ("BraTS-GLI-00000-000", "BraTS-GLI-00002-001"), "BraTS-GLI-00001-000", NEW, THREE
    ),
    "GLI2024": Published(
        "2024-gli", ("BraTS-GLI-00005-100", "BraTS-GLI-02062-101"), "BraTS-GLI-02073-100", NEW, CAVITY
    ),
    "MET2023": Published(
        "2023-met", ("BraTS-MET-00002-000", "BraTS-MET-00003-000"), "BraTS-MET-00001-000", NEW, THREE
    ),
    "MET2025": Published(
        "2025-met", ("BraTS-MET-00761-003", "UCSD - Training/BraTS-MET-01094-002"), "BraTS-MET-00833-000", NEW, CAVITY
    ),
    "PED2023": Published(
        "2023-ped", ("BraTS-PED-00002-000", "BraTS-PED-00003-000"), "BraTS-PED-00001-000", NEW, THREE
    ),
    "PED2024": Published(
        "2024-ped", ("Training/BraTS-PED-00001-000", "Training/BraTS-PED-00002-000"),
        "Validation/BraTS-PED-00264-000", NEW, CYSTS,
    ),
    "MEN2023": Published(
        "2023-men", ("BraTS-MEN-00000-000", "BraTS-MEN-00074-001"), "BraTS-MEN-00001-000", NEW, THREE
    ),
    "SSA2023": Published(
        "2023-ssa", ("95_Glioma/BraTS-SSA-00002-000", "51_OtherNeoplasms/BraTS-SSA-00018-000"), "BraTS-SSA-00001-000",
        NEW, THREE,
    ),
    "MENRT2024": Published(
        "2024-men-rt", ("BraTS-MEN-RT-0001-1", "BraTS-MEN-RT-0402-1"), "BraTS-MEN-RT-0501-1", ("", "_t1c", "", ""),
        TARGET, segmentation="gtv",
    ),
    "GoAT2024": Published("2024-goat", ("BraTS-GoAT-00000", "BraTS-GoAT-00063"), "BraTS-GoAT-02489", NEW, THREE),
}  # fmt: skip
DECATHLON = Published("decathlon", ("BRATS_001", "BRATS_002"), "BRATS_485", OLD, {1: 2, 9: 2, 2: 1, 4: 3})


class PublishedFolder(NamedTuple):
    folder: Path
    release: str
    training: list[str]
    test: str
    segmentations: dict[str, Path]
    """Case → file"""


@pytest.fixture(scope="session")
def phantom_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("phantom") / "brats"
    write_phantom(folder, num_cases=2, size=(24, 26, 28), seed=0)
    return folder


@pytest.fixture
def source(phantom_template: Path, tmp_path: Path) -> Path:
    """`phantom_001` and `phantom_002`, to be changed by the test as it likes."""
    return Path(shutil.copytree(phantom_template, tmp_path / "brats"))


@pytest.fixture
def publish(phantom_template: Path, tmp_path: Path) -> Callable[[str], Path]:
    """Writes the phantom as the folder of a release: two training cases and a test case."""

    def write(name: str) -> Path:
        return (_decathlon if name == "Decathlon" else _brats)(phantom_template, tmp_path / name)

    return write


@pytest.fixture(params=(*PUBLISHED, "Decathlon"))
def published(request: pytest.FixtureRequest, publish: Callable[[str], Path]) -> PublishedFolder:
    """One after the other, the folder of each release."""
    release = PUBLISHED.get(request.param, DECATHLON)
    folder = publish(request.param)
    training = sorted(Path(case).name for case in release.training)
    files = [*folder.glob(f"**/*{release.segmentation}.nii*"), *folder.glob("labelsTr/*")]
    segmentations = {name: file for name in training for file in files if file.name.startswith(name)}
    return PublishedFolder(folder, release.release, training, Path(release.test).name, segmentations)


def _brats(phantom: Path, folder: Path) -> Path:
    release = PUBLISHED[folder.name]
    for number, case in enumerate((*release.training, release.test)):
        target = folder / case
        target.mkdir(parents=True)
        original = _phantom_images(phantom, number)
        for image, suffix in zip(original, release.suffixes, strict=True):
            if suffix:
                nibabel.save(image, target / f"{target.name}{suffix}{release.ending}")
        if case != release.test:
            segmentation = _segmentation(phantom, number, release.labels)
            name = f"{target.name}{release.suffixes[1][0]}{release.segmentation}{release.ending}"
            nibabel.save(segmentation, target / name)
    return folder


def _decathlon(phantom: Path, folder: Path) -> Path:
    for name in ("imagesTr", "labelsTr", "imagesTs"):
        (folder / name).mkdir(parents=True)
    for number, file in enumerate(("imagesTr/BRATS_001", "imagesTr/BRATS_002", "imagesTs/BRATS_485")):
        t1, t1ce, t2, flair = _phantom_images(phantom, number)
        stacked = np.stack([image.dataobj for image in (flair, t1, t1ce, t2)], axis=3).astype(np.float32)
        nibabel.save(nibabel.Nifti1Image(stacked, t1.affine), folder / f"{file}.nii.gz")
        (folder / file).with_name(f"._{Path(file).name}.nii.gz").write_bytes(b"resource fork of macOS")
        if "imagesTr" in file:
            segmentation = _segmentation(phantom, number, DECATHLON.labels)
            nibabel.save(segmentation, folder / "labelsTr" / f"{Path(file).name}.nii.gz")
    modality = {"0": "FLAIR", "1": "T1w", "2": "t1gd", "3": "T2w"}
    (folder / "dataset.json").write_text(json.dumps({"name": "BRATS", "modality": modality}))
    return folder


def _phantom_images(phantom: Path, number: int) -> list[nibabel.Nifti1Image]:
    case = phantom / f"phantom_{number % 2 + 1:03d}"
    return [nibabel.load(case / f"{case.name}{suffix}.nii.gz") for suffix in OLD]


def _segmentation(phantom: Path, number: int, labels: dict[int, int]) -> nibabel.Nifti1Image:
    case = phantom / f"phantom_{number % 2 + 1:03d}"
    image = nibabel.load(case / f"{case.name}_seg.nii.gz")
    tissue = np.asanyarray(image.dataobj).copy()
    necrosis = np.argwhere(tissue == 1)
    tissue[tuple(necrosis[: len(necrosis) // 2].T)] = 9
    lookup = np.zeros(10, np.uint8)
    for before, after in labels.items():
        lookup[before] = after
    return nibabel.Nifti1Image(lookup[tissue], image.affine)
