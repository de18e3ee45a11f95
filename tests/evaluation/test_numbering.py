import json
from pathlib import Path

import nibabel
import numpy as np
import pytest

from nnunet_autosam2.dataset_conversion.brats import convert_brats
from nnunet_autosam2.dataset_conversion.phantom import write_phantom
from nnunet_autosam2.errors import DatasetError
from nnunet_autosam2.evaluation.numbering import NUMBERINGS, choose_numbering, numbering_of_dataset


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
    new = NUMBERINGS[name].renumbered(np.array(labels, float), (7, 8, 9))
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
    new = numbering.renumbered(np.array([0, 1, 2, 4, 7]), (2, 1, 3))
    assert new.tolist() == [0, 2, 1, 3, 0]


def test_labels_and_regions_of_any_dataset(tmp_path: Path):
    file = tmp_path / "dataset.json"
    file.write_text(json.dumps({"labels": {"background": 0, "kidney": [1, 2], "tumour": 2, "vein": 5, "ignore": 6}}))
    numbering = numbering_of_dataset(file)
    assert (dict(numbering.regions), numbering.ignored) == ({"kidney": (1, 2), "tumour": (2,), "vein": (5,)}, 6)
    assert sorted(numbering.labels) == [0, 1, 2, 5, 6]
    assert not numbering.is_brats
    assert NUMBERINGS["nnunet"].is_brats


def write_labels(file: Path, *labels: float) -> Path:
    nibabel.save(nibabel.Nifti1Image(np.array(labels, np.float32).reshape(-1, 1, 1), np.eye(4)), file)
    return file


def write_dataset_json(file: Path, whole: list[int], core: list[int], enhancing: list[int]) -> Path:
    file.parent.mkdir(exist_ok=True)
    regions = {"whole tumor": whole, "tumor core": core, "enhancing tumor": enhancing}
    file.write_text(json.dumps({"labels": {"background": 0, **regions}}))
    return file


@pytest.mark.parametrize("labels", [(0, 1, 2, 3), (0, 1, 2, 4), (0, 4), (3,), (0, 1), (0, 1, 2, 3, 4)])
def test_labels_that_fit_two_numberings_are_refused(tmp_path: Path, labels: tuple[int, ...]):
    file = write_labels(tmp_path / "case.nii.gz", *labels)
    with pytest.raises(DatasetError, match=r"fit .* and .*, where they mean different things, .* give --labels"):
        choose_numbering(None, [], [file])


def test_labels_that_fit_no_numbering_are_refused_in_one_short_line(tmp_path: Path):
    file = write_labels(tmp_path / "case.nii.gz", *np.linspace(0, 1, 1000))
    with pytest.raises(DatasetError, match="fit none of nnunet, brats2021") as caught:
        choose_numbering(None, [], [file])
    assert len(str(caught.value)) < 200


def test_empty_segmentations_mean_the_same_in_every_numbering(tmp_path: Path):
    assert choose_numbering(None, [], [write_labels(tmp_path / "case.nii.gz", 0)]).numbering.is_brats


def test_predictions_and_truths_in_two_numberings_are_refused(tmp_path: Path):
    nnunet = write_dataset_json(tmp_path / "predicted" / "dataset.json", [1, 2, 3], [2, 3], [3])
    brats = write_dataset_json(tmp_path / "truth" / "dataset.json", [1, 2, 3], [1, 3], [3])
    with pytest.raises(DatasetError, match=rf"different things in {nnunet} .* and {brats} .*TC 1 3"):
        choose_numbering(None, [nnunet, brats], [])
    chosen = choose_numbering("brats2023", [nnunet, brats], [])
    assert chosen.numbering == NUMBERINGS["brats2023"]
    assert chosen.reason == f"brats2023, as given; {nnunet} says WT 1 2 3; TC 2 3; ET 3"
    assert choose_numbering(None, [brats, brats], []).numbering.regions["TC"] == (1, 3)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "has no labels of nnU-Net's that can be read"),
        ("{}", "has no labels of nnU-Net's that can be read"),
        ('{"labels": {"background": 0}}', "defines no label but background"),
        ('{"labels": {"0": "background", "1": "edema"}}', "it has no labels of nnU-Net's that can be read"),
        (
            '{"labels": {"background": 0, "whole tumor": [1, 2], "tumor core": [2, 3], "enhancing tumor": [3]}}',
            r"not nested: tumor core \[2, 3\] has to be within whole tumor \[1, 2\]",
        ),
    ],
)
def test_dataset_json_that_does_not_fit(tmp_path: Path, content: str, message: str):
    (tmp_path / "dataset.json").write_text(content)
    with pytest.raises(DatasetError, match=message):
        numbering_of_dataset(tmp_path / "dataset.json")
