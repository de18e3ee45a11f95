import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_autosam2.dataset_conversion.organ_phantom import make_organs, organ_centres, write_organs
from nnunet_autosam2.errors import ConfigurationError

SIZE = (40, 44, 48)


@pytest.mark.parametrize("classes", [1, 4, 25, 117])
def test_every_organ_is_there_and_has_its_intensity(classes):
    centres = organ_centres(np.random.default_rng(0), classes)
    means = []
    for case in (1, 2):
        image, labels = make_organs((64, 64, 64), centres, np.random.default_rng([0, case]))
        assert np.array_equal(np.unique(labels), np.arange(classes + 1))
        means.append([image[labels == number].mean() for number in range(1, classes + 1)])
        assert image.min() < -900
        assert image.max() < 400
    assert np.abs(np.subtract(means[0], means[1])).max() < 80
    assert classes == 1 or np.std(means[0]) > 40


def test_it_is_a_raw_dataset(tmp_path: Path):
    write_organs(tmp_path / "Dataset900_Organs", 2, SIZE, 3, 12)
    folder = tmp_path / "Dataset900_Organs"
    content = json.loads((folder / "dataset.json").read_text())
    assert content["channel_names"] == {"0": "CT"}
    assert sorted(content["labels"].values()) == list(range(13))
    for case in ("organs_001", "organs_002"):
        image = sitk.ReadImage(folder / "imagesTr" / f"{case}_0000.nii.gz")
        labels = sitk.ReadImage(folder / "labelsTr" / f"{case}.nii.gz")
        assert image.GetSize() == labels.GetSize() == SIZE[::-1]
    write_organs(tmp_path / "again", 2, SIZE, 3, 12)
    for file in folder.rglob("*.nii.gz"):
        assert file.read_bytes() == (tmp_path / "again" / file.relative_to(folder)).read_bytes()


@pytest.mark.parametrize(
    ("cases", "size", "seed", "classes", "message"),
    [
        (0, SIZE, 0, 3, "0 cases"),
        (1, SIZE, -1, 3, "seed -1"),
        (1, SIZE, 0, 0, "0 classes"),
        (1, SIZE, 0, 251, "251 classes"),
        (1, (8, 8, 8), 0, 3, "3 organs have no room"),
    ],
)
def test_refused(tmp_path: Path, cases, size, seed, classes, message):
    with pytest.raises(ConfigurationError, match=message):
        write_organs(tmp_path / "organs", cases, size, seed, classes)
    assert not list(tmp_path.iterdir())
