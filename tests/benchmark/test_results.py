from collections.abc import Callable

import numpy as np
import pytest

from nnunet_autosam2.benchmark.results import read_benchmark
from nnunet_autosam2.errors import DatasetError


def test_reads_what_was_written(benchmark):
    read = read_benchmark(benchmark.path)
    assert [model.title for model in read.models] == [model["title"] for model in benchmark.content["models"]]
    written = benchmark.content["models"][1]["folds"]
    expected = [case["scores"]["TC"]["Dice"] for fold in written for case in fold["cases"]]
    assert np.array_equal(read.models[1].scores("TC", "Dice"), expected)
    assert read.models[1].peak_memory_bytes() == 3 * 2**30


def test_nnunet_comes_first_then_by_fraction(benchmark):
    benchmark.content["models"].reverse()
    benchmark.write()
    fractions = [model.slice_fraction for model in read_benchmark(benchmark.path).ordered_models]
    assert fractions == [None, 0.0, 0.3]


@pytest.mark.parametrize("undefined", [None, float("nan"), float("inf")])
def test_an_undefined_score_is_left_out(benchmark, undefined):
    for model in benchmark.content["models"]:
        case = model["folds"][0]["cases"][0]
        case["scores"]["ET"]["Dice"] = undefined
        del case["scores"]["TC"]["Dice"]
    case = benchmark.content["models"][0]["folds"][0]["cases"][0]
    benchmark.write()
    (first, *_) = read_benchmark(benchmark.path).models[0].results()
    assert first.mean_dice() == case["scores"]["WT"]["Dice"]
    assert read_benchmark(benchmark.path).models[0].scores("ET", "Dice").size == 3


def drop_plans(content: dict) -> None:
    del content["plans"]


def no_models(content: dict) -> None:
    content["models"] = []


def text_for_a_score(content: dict) -> None:
    content["models"][0]["folds"][1]["cases"][0]["scores"]["WT"]["Dice"] = "high"


def same_title(content: dict) -> None:
    content["models"][1]["title"] = "nnU-Net"


def case_twice(content: dict) -> None:
    content["models"][0]["folds"][0]["cases"] *= 2


def fold_twice(content: dict) -> None:
    content["models"][2]["folds"].append({**content["models"][2]["folds"][1], "cases": []})


def unknown_case(content: dict) -> None:
    del content["cases"]["phantom_003"]


@pytest.mark.parametrize(
    ("break_content", "expected"),
    [
        (drop_plans, "plans: Field required"),
        (no_models, "models: List should have at least 1 item"),
        (text_for_a_score, "models.0.folds.1.cases.0.scores.WT.Dice: Input should be a valid number"),
        (same_title, "models: the title 'nnU-Net' is there 2 times"),
        (case_twice, "models: 'nnU-Net' has the case 'phantom_001' more than once"),
        (fold_twice, "models: 'AutoSAM2 30 % <b>\"&$x_1$' has the fold '1' more than once"),
        (unknown_case, "cases: 'phantom_003' is missing, of which 'nnU-Net' has a result"),
    ],
)
def test_says_what_is_wrong_in_the_file(benchmark, break_content: Callable[[dict], None], expected: str):
    break_content(benchmark.content)
    benchmark.write()
    with pytest.raises(DatasetError) as error:
        read_benchmark(benchmark.path)
    assert f"{benchmark.path / 'benchmark.json'}: {expected}" in str(error.value)
    assert "\n" not in str(error.value)


def test_says_that_there_is_no_benchmark(tmp_path):
    with pytest.raises(DatasetError, match=r"benchmark\.json is missing: give the folder"):
        read_benchmark(tmp_path)


def test_says_that_it_is_no_json(tmp_path):
    (tmp_path / "benchmark.json").write_text("{")
    with pytest.raises(DatasetError, match="Invalid JSON"):
        read_benchmark(tmp_path)
