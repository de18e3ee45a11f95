"""Pictures as files, and what their panels say."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import imread

from nnunet_autosam2.errors import DatasetError
from nnunet_autosam2.show.pictures import SliceView, draw, require_replaceable, write_pictures

RED, BLUE = (1.0, 0.0, 0.0), (0.0, 0.0, 1.0)


def make_view(number: int = 7, **changes) -> SliceView:
    """Two regions, of which the second has no prompts, on 20 × 24 pixels."""
    masks = np.zeros((2, 20, 24), bool)
    masks[0, 5:15, 6:18] = True
    points = np.zeros((2, 5, 2))
    points[0] = [[6, 5], [17, 14], [8, 8], [12, 10], [2, 2]]
    labels = np.array([[2, 3, 1, 1, 0], [-1] * 5])
    view = SliceView(
        number, ["whole tumor", "tumor core"], [RED, BLUE], np.full((32, 32, 3), 0.5), points, labels,
        np.array([0.875, 0.25]), {"SAM2": masks, "truth": masks}, {"SAM2": np.array([0.5, np.nan])},
    )  # fmt: skip
    return view._replace(**changes)


def pixels(figure: Figure) -> np.ndarray:
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3]


def captions(figure: Figure) -> list[list[str]]:
    """Below the panels, [row][column]."""
    axes, rows = figure.axes, 2
    width = len(axes) // rows
    return [[panel.get_xlabel() for panel in axes[row * width : (row + 1) * width]] for row in range(rows)]


def test_a_row_for_each_region_and_a_column_for_each_mask():
    figure = draw(make_view(), "case, slice 7")
    assert [panel.get_title() for panel in figure.axes[:3]] == ["SAM2's image and prompts", "SAM2", "truth"]
    assert [figure.axes[0].get_ylabel(), figure.axes[3].get_ylabel()] == ["whole tumor", "tumor core"]
    assert figure.get_suptitle() == "case, slice 7"


def test_captions_say_what_prompts_and_scores_there_are():
    assert captions(draw(make_view(), "")) == [
        ["box, 2 positive and 1 negative points", "predicted IoU 0.88, Dice 0.50", ""],
        ["no prompts", "predicted IoU 0.25", ""],  # a Dice of nothing with nothing is left out
    ]


def test_points_without_a_box():
    labels = np.array([[-1, -1, 1, 0, 0], [-1] * 5])
    assert captions(draw(make_view(labels=labels), ""))[0][0] == "1 positive and 2 negative points"


def test_each_part_has_its_own_box():
    points, labels = np.zeros((2, 8, 2)), np.full((2, 8), -1)
    points[0] = [[1, 2], [5, 6], [3, 4], [0, 0], [11, 12], [15, 16], [13, 14], [18, 13]]
    labels[0] = [2, 3, 1, -1, 2, 3, 1, 0]
    figure = draw(make_view(points=points, labels=labels), "")
    assert captions(figure)[0][0] == "2 boxes, 2 positive and 1 negative points"
    corners = [line.get_xydata()[[0, 2]].tolist() for line in figure.axes[0].lines if len(line.get_xdata()) == 5]
    assert corners == [[[1, 2], [5, 6]], [[11, 12], [15, 16]]]


def test_the_outline_of_the_truth_is_explained_where_there_is_one():
    view = make_view()
    (legend,) = draw(view, "").legends
    assert [text.get_text() for text in legend.get_texts()] == [
        "positive point", "negative point", "outline of the truth",
    ]  # fmt: skip
    (legend,) = draw(view._replace(masks={"SAM2": view.masks["SAM2"]}, dice={}), "").legends
    assert [text.get_text() for text in legend.get_texts()] == ["positive point", "negative point"]


@pytest.mark.parametrize(("colour", "is_there"), [(RED, True), (BLUE, False)])
def test_only_masks_with_something_in_them_are_drawn(colour: tuple[float, ...], is_there: bool):
    """The second region, in blue, is empty."""
    found = (pixels(draw(make_view(), "")) == np.multiply(colour, 255)).all(2)
    assert found.any() == is_there


def test_a_mask_that_fills_the_slice_is_outlined_at_its_border():
    full = np.ones((2, 20, 24), bool)
    found = (pixels(draw(make_view(masks={"SAM2": full}, dice={}), "")) == np.multiply(RED, 255)).all(2)
    assert found.any()


class TestFiles:
    def test_a_picture_a_slice(self, tmp_path: Path):
        write_pictures([make_view(7), make_view(112)], "case_1", "along z", "a model", tmp_path / "pictures")
        names = sorted(path.name for path in (tmp_path / "pictures").iterdir())
        assert names == ["case_1_slice_007.png", "case_1_slice_112.png"]
        one, other = (imread(tmp_path / "pictures" / name) for name in names)
        assert one.shape == other.shape
        assert [path.name for path in tmp_path.iterdir()] == ["pictures"]

    def test_earlier_pictures_are_replaced_as_a_whole(self, tmp_path: Path):
        (tmp_path / "case_1_slice_999.png").write_text("earlier")
        write_pictures([make_view(7)], "case_1", "along z", "a model", tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == ["case_1_slice_007.png"]

    def test_names_are_text_also_where_they_look_like_formulas(self, tmp_path: Path):
        """matplotlib would end with an error at the first."""
        view = make_view(regions=["$\\frac{", "a_$b$"])
        write_pictures([view], "$x_1", "along z", "model $\\alpha", tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == ["$x_1_slice_007.png"]

    @pytest.mark.parametrize(
        "name", ["notes.txt", "case_2_slice_001.png", "case_1_slice_x.png", "case_1_slice_1.png.bak"]
    )
    def test_nothing_else_is_ever_replaced(self, tmp_path: Path, name: str):
        (tmp_path / name).write_text("mine")
        with pytest.raises(DatasetError) as error:
            write_pictures([make_view()], "case_1", "along z", "a model", tmp_path)
        assert str(error.value) == (f"{tmp_path} holds {name}, no earlier picture of case_1: choose another --output.")
        assert os.listdir(tmp_path) == [name]

    def test_letters_with_a_meaning_in_patterns_have_none(self, tmp_path: Path):
        (tmp_path / "caseX1_slice_001.png").touch()
        with pytest.raises(DatasetError, match=r"holds caseX1_slice_001\.png, no earlier picture of case\.1"):
            require_replaceable(tmp_path, "case.1")

    def test_a_file_in_the_place_of_the_folder(self, tmp_path: Path):
        (tmp_path / "pictures").touch()
        with pytest.raises(DatasetError, match=r"pictures is a file: choose another --output\."):
            require_replaceable(tmp_path / "pictures", "case_1")

    def test_a_folder_that_is_not_there_yet_or_empty(self, tmp_path: Path):
        require_replaceable(tmp_path, "case_1")
        require_replaceable(tmp_path / "new", "case_1")
