import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from nnunet_autosam2.dataset_conversion.brats_layout import RELEASES
from nnunet_autosam2.show.legend import CORE, ENHANCING, OEDEMA, legend, region_colours
from nnunet_autosam2.show.pictures import SliceView, draw

THREE = {
    1: ("oedema (WT)", OEDEMA),
    2: ("necrosis, not enhancing (TC, WT)", CORE),
    3: ("enhancing tumour (ET, TC, WT)", ENHANCING),
}
FOURTH = {"2024-gli": "resection cavity", "2025-met": "resection cavity", "2024-ped": "cystic component (TC, WT)"}


def dataset_json(release: str) -> dict:
    """As the conversion has it."""
    regions = RELEASES[release].regions
    order = list(range(1, len(regions) + 1))
    return {"labels": {"background": 0, **regions}, "regions_class_order": order}


@pytest.mark.parametrize("release", [name for name in RELEASES if name != "2024-men-rt"])
def test_what_a_label_is_called_follows_from_the_release(release: str):
    found = {entry.value: (entry.title, entry.colour) for entry in legend(dataset_json(release))}
    fourth = found.pop(4, None)
    assert found == THREE
    assert (fourth and fourth[0]) == FOURTH.get(release)
    assert fourth is None or fourth[1] not in {colour for _, colour in THREE.values()}


@pytest.mark.parametrize("release", RELEASES)
def test_a_region_has_the_colour_of_the_label_that_is_written_for_it(release: str):
    colours = region_colours(dataset_json(release))
    of_labels = {entry.value: entry.colour for entry in legend(dataset_json(release))}
    assert colours == dict(
        zip(RELEASES[release].regions, (of_labels[i] for i in range(1, 5) if i in of_labels), strict=True)
    )


def test_the_numbers_of_brats_themselves():
    """4 is the enhancing tumour up to 2021, and 2 is the oedema."""
    regions = {"whole tumor": [1, 2, 4], "tumor core": [1, 4], "enhancing tumor": 4}
    found = {entry.value: entry.colour for entry in legend({"labels": {"background": 0, **regions}})}
    assert found == {1: CORE, 2: OEDEMA, 4: ENHANCING}


def test_labels_and_regions_of_any_dataset():
    kidney = {"background": 0, "kidney": [1, 2, 3], "mass": [2, 3], "tumour": 2, "vein": 7, "ignore": 9}
    assert [(entry.value, entry.title) for entry in legend({"labels": kidney})] == [
        (1, "kidney"), (2, "tumour (mass, kidney)"), (3, "mass (kidney)"), (7, "vein"),
    ]  # fmt: skip
    many = {"background": 0, **{f"organ {number}": number for number in range(1, 105)}}
    found = legend({"labels": many})
    assert [label.title for label in found] == [name for name in many if name != "background"]
    assert len({label.colour for label in found}) == 104
    assert list(region_colours({"labels": many}).values()) == [label.colour for label in found]


def test_pictures_have_these_colours():
    """As lines around the masks, one a region."""
    colours = region_colours(dataset_json("2024-gli"))
    masks = np.zeros((4, 20, 24), bool)
    masks[:, 5:15, 6:18] = True
    view = SliceView(
        3, list(colours), [tuple(channel / 255 for channel in colour) for colour in colours.values()],
        np.zeros((32, 32, 3)), np.zeros((4, 5, 2)), np.full((4, 5), -1), np.ones(4), {"SAM2": masks}, {},
    )  # fmt: skip
    canvas = FigureCanvasAgg(draw(view, "title"))
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())[..., :3].reshape(-1, 3)
    for colour in colours.values():
        assert (pixels == colour).all(1).any()
