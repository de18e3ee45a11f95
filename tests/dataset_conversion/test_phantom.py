from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from scipy import ndimage

from nnunet_autosam2.dataset_conversion.phantom import APART, MODALITIES, PhantomCase, make_case, write_phantom
from nnunet_autosam2.errors import ConfigurationError

NECROSIS, OEDEMA, ENHANCING = 1, 2, 4


@pytest.fixture(scope="module")
def cases() -> list[PhantomCase]:
    return [make_case((40, 48, 48), np.random.default_rng(number)) for number in range(3)]


@pytest.mark.parametrize("size", [(24, 24, 24), (24, 40, 32), (32, 28, 24)])
def test_every_case_has_every_label(size: tuple[int, int, int]):
    for number in range(8):
        segmentation = make_case(size, np.random.default_rng(number)).segmentation
        assert segmentation.shape == size
        assert set(np.unique(segmentation)) == {0, NECROSIS, OEDEMA, ENHANCING}


def test_background_is_zero_and_brain_positive_in_all_modalities(cases: list[PhantomCase]):
    for case in cases:
        brain = case.images["t1"] > 0
        assert 0.2 < brain.mean() < 0.5
        assert brain[case.segmentation > 0].all()
        for image in case.images.values():
            np.testing.assert_array_equal(image > 0, brain)
            assert image.min() == 0


def test_tumour_contrast_is_that_of_a_glioma(cases: list[PhantomCase]):
    for case in cases:
        healthy = (case.images["t1"] > 0) & (case.segmentation == 0)

        def contrast(modality: str, label: int, case: PhantomCase = case, healthy: np.ndarray = healthy) -> float:
            image = case.images[modality]
            return np.median(image[case.segmentation == label]) / np.median(image[healthy])

        assert contrast("flair", OEDEMA) > 1.3
        assert contrast("t2", OEDEMA) > 1.3
        assert contrast("t1", OEDEMA) < 0.95
        assert contrast("t1ce", ENHANCING) > 1.2
        assert contrast("t1ce", NECROSIS) < 0.9
        assert contrast("t2", NECROSIS) > 1.3


def test_the_enhancing_rim_encloses_the_necrosis_in_one_connected_core(cases: list[PhantomCase]):
    for case in cases:
        necrosis = case.segmentation == NECROSIS
        shell = ndimage.binary_dilation(necrosis) & ~necrosis
        assert (case.segmentation[shell] == ENHANCING).mean() > 0.6
        for part in (case.segmentation > 0, necrosis | (case.segmentation == ENHANCING), necrosis):
            assert ndimage.label(part)[1] == 1


def test_cases_differ_and_the_tumour_moves(cases: list[PhantomCase]):
    centres = [ndimage.center_of_mass(case.segmentation > 0) for case in cases]
    assert min(np.linalg.norm(np.subtract(centres[i], centres[j])) for i, j in ((0, 1), (0, 2), (1, 2))) > 2


def test_files_are_in_brats_layout_and_depend_on_seed_and_number_alone(phantom_template: Path, tmp_path: Path):
    write_phantom(tmp_path / "one", num_cases=1, size=(24, 26, 28), seed=0)
    write_phantom(tmp_path / "other", num_cases=1, size=(24, 26, 28), seed=1)
    names = sorted(f"phantom_001_{suffix}.nii.gz" for suffix in (*MODALITIES, "seg"))
    for folder in (tmp_path / "one", tmp_path / "other", phantom_template):
        assert sorted(file.name for file in (folder / "phantom_001").iterdir()) == names
    for name in names:
        first, second, other = (
            np.asanyarray(nibabel.load(folder / "phantom_001" / name).dataobj)
            for folder in (tmp_path / "one", phantom_template, tmp_path / "other")
        )
        np.testing.assert_array_equal(first, second)
        assert (first != other).any()


def test_axes_and_grid_of_the_files(phantom_template: Path):
    image = sitk.ReadImage(phantom_template / "phantom_001" / "phantom_001_seg.nii.gz")
    assert sitk.GetArrayFromImage(image).shape == (24, 26, 28)
    assert image.GetSpacing() == (1, 1, 1)
    assert image.GetOrigin() == (0, -25, 0)
    assert image.GetPixelID() == sitk.sitkUInt8


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, (24, 24, 24), 0), "0 cases"),
        ((1, (24, 23, 24), 0), r"Size \(24, 23, 24\)"),
        ((1, (24, 24, 24), -1), "-1"),
        ((1, (24, 24, 24), 0, 0), "0 tumours"),
    ],
)
def test_impossible_arguments_are_refused(tmp_path: Path, arguments: tuple, message: str):
    with pytest.raises(ConfigurationError, match=message):
        write_phantom(tmp_path / "phantom", *arguments)
    assert not (tmp_path / "phantom").exists()


class TestSeveralTumours:
    @pytest.mark.parametrize(("size", "tumours"), [((24, 24, 24), 2), ((24, 24, 24), 3), ((40, 48, 48), 3)])
    def test_each_is_whole_and_they_do_not_touch(self, size: tuple[int, int, int], tumours: int):
        for number in range(4):
            segmentation = make_case(size, np.random.default_rng(number), tumours).segmentation
            components, count = ndimage.label(segmentation, np.ones((3, 3, 3)))
            assert count == tumours
            for tumour in range(1, tumours + 1):
                assert set(np.unique(segmentation[components == tumour])) == {NECROSIS, OEDEMA, ENHANCING}
                others = (segmentation > 0) & (components != tumour)
                assert ndimage.distance_transform_edt(~others)[components == tumour].min() > APART

    def test_one_is_what_it_is_without_a_number(self, cases: list[PhantomCase]):
        again = make_case((40, 48, 48), np.random.default_rng(0), 1)
        np.testing.assert_array_equal(again.segmentation, cases[0].segmentation)
        for modality, image in cases[0].images.items():
            np.testing.assert_array_equal(again.images[modality], image)

    def test_together_they_are_about_as_large_as_one(self, cases: list[PhantomCase]):
        three = [make_case((40, 48, 48), np.random.default_rng(number), 3) for number in range(3)]
        one, together = (sum((case.segmentation > 0).sum() for case in each) for each in (cases, three))
        assert 0.6 < together / one < 1.6

    def test_more_than_have_room_are_refused(self, tmp_path: Path):
        with pytest.raises(ConfigurationError, match=r"^9 tumours have no room in \(24, 24, 24\) voxels: "):
            write_phantom(tmp_path / "phantom", 1, (24, 24, 24), 0, tumours=9)
        assert not (tmp_path / "phantom").exists()
