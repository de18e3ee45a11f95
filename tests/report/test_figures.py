import re
import warnings
from xml.etree import ElementTree

from nnunet_autosam2.benchmark.results import read_benchmark
from nnunet_autosam2.report.figures import INK, SERIES, draw_figures

KEYS = ["dice", "hd95", "differences", "fraction", "time", "training"]
ALLOWED_COLOURS = {"none"}


def test_each_figure_once_as_xml_with_page_colours_and_ids_of_its_own(benchmark):
    drawings = list(draw_figures(read_benchmark(benchmark.path)))
    assert [drawing.key for drawing in drawings] == KEYS
    ids = []
    for drawing in drawings:
        root = ElementTree.fromstring(drawing.svg)
        own = [element.get("id") for element in root.iter() if element.get("id")]
        used = re.findall(r"url\(#([^)]+)\)|href=\"#([^\"]+)\"", drawing.svg)
        assert {name for pair in used for name in pair if name} <= set(own)
        ids += own
        assert root.get("role") == "img"
        assert root.get("aria-label") == drawing.caption
        assert "var(--ink)" in drawing.svg
        assert "var(--series-1)" in drawing.svg
        assert not any(colour in drawing.svg for colour in (INK, *SERIES))
        fixed = set(re.findall(r"(?:fill|stroke): ([^;\"]+)", drawing.svg))
        assert {colour for colour in fixed if not colour.startswith(("var(", "url("))} <= ALLOWED_COLOURS
    assert len(ids) == len(set(ids))


def test_a_figure_without_numbers_is_left_out(benchmark):
    benchmark.content["comparisons"] = []
    for model in benchmark.content["models"]:
        model["slice_fraction"] = 0.3
        for fold in model["folds"]:
            fold["curves"] = {}
            for case in fold["cases"]:
                for scores in case["scores"].values():
                    scores["HD95"] = None
    benchmark.write()
    assert [drawing.key for drawing in draw_figures(read_benchmark(benchmark.path))] == ["dice", "time"]


def test_titles_may_hold_anything(benchmark):
    title = "<script>$\\frac{1}{$ \x01 \n 数 & \"'"
    benchmark.content["models"][1]["title"] = title
    benchmark.content["comparisons"] = []
    benchmark.write()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        drawings = list(draw_figures(read_benchmark(benchmark.path)))
    texts = {element.text for element in ElementTree.fromstring(drawings[0].svg).iter() if element.text}
    assert title.replace("\x01", "�").replace("\n", "�") in texts
