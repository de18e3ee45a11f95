import base64
import gzip
import json
from pathlib import Path

import nibabel
import numpy as np
import pytest

from nnunet_autosam2.benchmark.results import read_benchmark
from nnunet_autosam2.errors import DatasetError
from nnunet_autosam2.report.volumes import choose_cases, pack_cases


def unpack(script: Path) -> nibabel.Nifti1Image:
    """As a browser would: the arguments of the call are JSON."""
    name, content = json.loads(script.read_text().removeprefix("receive(").removesuffix(");\n").join("[]"))
    assert script.as_posix().endswith(name)
    return nibabel.Nifti1Image.from_bytes(gzip.decompress(base64.b64decode(content)))


def set_dice(benchmark, dices: list[float]) -> None:
    cases = list(benchmark.content["cases"])
    for model in benchmark.content["models"]:
        for fold in model["folds"]:
            for result in fold["cases"]:
                for scores in result["scores"].values():
                    scores["Dice"] = dices[cases.index(result["case"])]
    benchmark.write()


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (1, {2: "median"}),
        (2, {1: "worst", 3: "best"}),
        (3, {1: "worst", 2: "median", 3: "best"}),
        (9, {1: "worst", 2: "median", 0: "rank 3 of 4", 3: "best"}),
    ],
)
def test_chooses_from_the_worst_to_the_best(benchmark, count, expected):
    set_dice(benchmark, [0.8, 0.1, 0.5, 0.9])
    cases = list(benchmark.content["cases"])
    chosen = choose_cases(read_benchmark(benchmark.path), count)
    assert list(chosen.items()) == [(cases[number], rank) for number, rank in expected.items()]


def test_volumes_are_those_of_the_files(benchmark, tmp_path):
    benchmark.fail("UNet only", 1, "out of memory")
    packed = pack_cases(read_benchmark(benchmark.path), benchmark.path, 4, tmp_path)
    assert len(packed) == 4
    for case in packed:
        files = benchmark.content["cases"][case["title"]]
        assert [channel["title"] for channel in case["channels"]] == ["T1ce", "FLAIR"]
        for channel in case["channels"]:
            assert_same(tmp_path / channel["file"], Path(files["images"][channel["title"]]))
        truth, *models = case["overlays"]
        assert_same(tmp_path / truth["file"], Path(files["truth"]))
        for overlay, model in zip(models, benchmark.content["models"], strict=True):
            assert overlay["title"] == model["title"]
            results = [result for fold in model["folds"] for result in fold["cases"] if result["case"] == case["title"]]
            if not results:
                assert (overlay["file"], overlay["dice"]) == (None, None)
                continue
            assert_same(tmp_path / overlay["file"], benchmark.path / results[0]["prediction"])
            assert overlay["dice"]["TC"] == results[0]["scores"]["TC"]["Dice"]


def assert_same(script: Path, file: Path) -> None:
    shown, original = unpack(script), nibabel.load(file)
    assert np.array_equal(shown.get_fdata(), original.get_fdata())
    assert np.array_equal(shown.affine, original.affine)


def test_centre_is_where_the_tumour_is(benchmark, tmp_path):
    (case,) = pack_cases(read_benchmark(benchmark.path), benchmark.path, 1, tmp_path)
    truth = nibabel.load(benchmark.content["cases"][case["title"]]["truth"])
    voxels = np.argwhere(truth.get_fdata() > 0)
    expected = [np.mean([(truth.affine @ [*voxel, 1])[axis] for voxel in voxels]) for axis in range(3)]
    assert np.allclose(case["centre"], expected)


def test_labels_in_floating_point_and_uncompressed_images(benchmark, tmp_path):
    files = benchmark.content["cases"]["phantom_001"]
    truth, image = nibabel.load(files["truth"]), nibabel.load(files["images"]["T1ce"])
    files["truth"] = str(tmp_path / "truth.nii.gz")
    files["images"]["T1ce"] = str(tmp_path / "image.nii")
    nibabel.save(nibabel.Nifti1Image(truth.get_fdata(), truth.affine), files["truth"])
    nibabel.save(image, files["images"]["T1ce"])
    benchmark.write()
    packed = pack_cases(read_benchmark(benchmark.path), benchmark.path, 4, tmp_path)
    (case,) = [case for case in packed if case["title"] == "phantom_001"]
    assert_same(tmp_path / case["channels"][0]["file"], Path(files["images"]["T1ce"]))
    shown = unpack(tmp_path / case["overlays"][0]["file"])
    assert shown.get_data_dtype() == np.uint8
    assert np.array_equal(shown.get_fdata(), truth.get_fdata())


def test_labels_are_numbered_as_in_the_legend(benchmark, tmp_path):
    """Also those of a release with other numbers, and one that the data set does not have."""
    file = Path(benchmark.content["cases"]["phantom_001"]["truth"])
    truth = nibabel.load(file)
    voxels = np.array([0, 2, 1, 4], np.uint8)[np.asanyarray(truth.dataobj)]
    voxels[0, 0, 0] = 7
    nibabel.save(nibabel.Nifti1Image(voxels, truth.affine), file)
    benchmark.content["labels"] = [
        {"value": value, "title": f"label {value}", "colour": [value, 0, 0]} for value in (4, 1, 2)
    ]
    benchmark.write()
    packed = pack_cases(read_benchmark(benchmark.path), benchmark.path, 4, tmp_path)
    (case,) = [case for case in packed if case["title"] == "phantom_001"]
    shown = unpack(tmp_path / case["overlays"][0]["file"]).get_fdata()
    for number, value in enumerate((4, 1, 2, 7), start=1):
        assert np.array_equal(shown == number, voxels == value)


def remove(file: Path) -> None:
    file.unlink()


def fill_with_text(file: Path) -> None:
    file.write_text("no image")


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-50])


def crop(file: Path) -> None:
    image = nibabel.load(file)
    nibabel.save(nibabel.Nifti1Image(np.asanyarray(image.dataobj)[1:], image.affine), file)


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [(remove, "is missing"), (fill_with_text, "cannot be read"), (truncate, "cannot be read"), (crop, "has size")],
)
def test_names_the_file_that_cannot_be_shown(benchmark, tmp_path, spoil, expected):
    file = benchmark.path / benchmark.content["models"][0]["folds"][0]["cases"][0]["prediction"]
    spoil(file)
    with pytest.raises(DatasetError) as error:
        pack_cases(read_benchmark(benchmark.path), benchmark.path, 4, tmp_path)
    assert f"{file} {expected}" in str(error.value)
    assert "\n" not in str(error.value)
