import json
from pathlib import Path

import numpy as np
import pytest

from nnunet_autosam2.dataset_conversion.brats import convert_brats
from nnunet_autosam2.dataset_conversion.phantom import write_phantom
from nnunet_autosam2.errors import DatasetError
from nnunet_autosam2.evaluation.regions import NUMBERINGS, numbering_of_dataset


@pytest.mark.parametrize(
    ("name", "labels", "tissues"),
    [
        ("nnunet", (0, 1, 2, 3), "-onE"),
        ("brats2021", (0, 1, 2, 4), "-noE"),
        ("brats2023", (0, 1, 2, 3, 4), "-noE-"),
        ("ped2024", (0, 1, 2, 3, 4), "-Enno"),
    ],
)
def test_oedema_core_and_enhancing_in_each_numbering(name: str, labels: tuple[int, ...], tissues: str):
    assert sorted(NUMBERINGS[name].labels) == list(labels)
    new = NUMBERINGS[name].renumbered(np.array(labels, float), oedema=7, core=8, enhancing=9)
    assert new.tolist() == [{"-": 0, "o": 7, "n": 8, "E": 9}[tissue] for tissue in tissues]


def test_dataset_json_of_a_converted_dataset(tmp_path: Path):
    write_phantom(tmp_path / "brats", num_cases=1, size=(24, 24, 24), seed=0)
    dataset = convert_brats(tmp_path / "brats", 5, "Phantom", output=tmp_path)
    numbering = numbering_of_dataset(dataset.folder / "dataset.json")
    assert numbering.regions == NUMBERINGS["nnunet"].regions
    assert sorted(numbering.labels) == [0, 1, 2, 3]


def test_further_labels_are_outside_of_the_regions(tmp_path: Path):
    labels = {
        "background": 0, "resection cavity": 7, "whole tumor": [1, 2, 4], "tumor core": [2, 4], "enhancing tumor": 4,
    }  # fmt: skip
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": labels}))
    numbering = numbering_of_dataset(tmp_path / "dataset.json")
    assert sorted(numbering.labels) == [0, 1, 2, 4, 7]
    new = numbering.renumbered(np.array([0, 1, 2, 4, 7]), oedema=2, core=1, enhancing=3)
    assert new.tolist() == [0, 2, 1, 3, 0]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "has no labels of nnU-Net's that can be read"),
        ("{}", "has no labels of nnU-Net's that can be read"),
        ('{"labels": {"background": 0, "tumour": 1}}', "defines no region named whole tumor, tumor core, enhancing"),
        (
            '{"labels": {"background": 0, "whole tumor": [1, 2], "tumor core": [2, 3], "enhancing tumor": [3]}}',
            r"not nested: enhancing tumor \[3\] has to be within tumor core \[2, 3\], and that within .* \[1, 2\]",
        ),
    ],
)
def test_dataset_json_that_does_not_fit(tmp_path: Path, content: str, message: str):
    (tmp_path / "dataset.json").write_text(content)
    with pytest.raises(DatasetError, match=message):
        numbering_of_dataset(tmp_path / "dataset.json")
