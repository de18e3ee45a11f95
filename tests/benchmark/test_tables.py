import statistics

import pytest

from nnunet_autosam2.benchmark.results import read_benchmark
from nnunet_autosam2.benchmark.tables import case_table, comparison_tables, cost_table, duration, score_table

METRICS = ("Dice", "HD95", "Lesion-wise HD95")
COLUMNS = ["ET", "TC", "WT", "Mean", "ET", "TC", "WT"]


def written_scores(benchmark, model: int, region: str, metric: str) -> list[float]:
    folds = benchmark.content["models"][model]["folds"]
    return [case["scores"][region][metric] for fold in folds for case in fold["cases"]]


def test_mean_and_sample_deviation_of_each_column(benchmark):
    table = score_table(read_benchmark(benchmark.path), METRICS, "caption")
    assert table.groups == [("Dice (%)", 4), ("HD95 (mm)", 3)]  # the third metric is nowhere defined
    assert table.columns == COLUMNS
    assert [row.note for row in table.rows][1:] == ["SAM2 on 0 % of the slices", "SAM2 on 30 % of the slices"]
    for number, row in enumerate(table.rows):
        for column, metric, scale in ((1, "Dice", 100), (5, "HD95", 1)):
            values = written_scores(benchmark, number, "TC", metric)
            assert row.cells[column].text == f"{scale * statistics.mean(values):.2f}"
            assert row.cells[column].notes == [f"± {scale * statistics.stdev(values):.2f}"]


def test_mean_dice_is_over_the_regions_of_each_case(benchmark):
    table = score_table(read_benchmark(benchmark.path), METRICS, "caption")
    means = [
        statistics.mean(values)
        for values in zip(*(written_scores(benchmark, 1, region, "Dice") for region in ("WT", "TC", "ET")), strict=True)
    ]
    assert table.rows[1].cells[3].text == f"{100 * statistics.mean(means):.2f}"
    assert table.rows[1].cells[3].notes == [f"± {100 * statistics.stdev(means):.2f}"]


def test_best_is_high_for_shares_and_low_for_lengths(benchmark):
    table = score_table(read_benchmark(benchmark.path), METRICS, "caption")
    for column, better in ((0, max), (4, min)):
        means = [float(row.cells[column].text) for row in table.rows]
        assert [row.cells[column].best for row in table.rows] == [mean == better(means) for mean in means]


def test_a_model_that_lacks_a_fold_is_marked_and_never_best(benchmark):
    benchmark.fail("nnU-Net", 1, "out of memory")
    table = score_table(read_benchmark(benchmark.path), METRICS, "caption")
    first, *others = table.rows
    assert first.failed == "1 of 2 folds failed"
    assert not any(cell.best for cell in first.cells)
    assert all(any(row.cells[column].best for row in others) for column in range(len(COLUMNS)))


def test_means_are_over_the_same_cases_and_regions(benchmark):
    """Of four cases, the truth has no enhancing tumour in two. The second model invents one of these."""
    for model, values in enumerate([(None, None, 0.9, 0.7), (0.0, None, 0.9, 0.7), (None, None, 0.7, 0.7)]):
        results = [case for fold in benchmark.content["models"][model]["folds"] for case in fold["cases"]]
        for result, value in zip(results, values, strict=True):
            result["scores"] = {"ET": {"Dice": value}, "WT": {"Dice": 0.5}}
    benchmark.write()
    table = score_table(read_benchmark(benchmark.path), METRICS, "caption")
    et, _, whole, mean = zip(*(row.cells for row in table.rows), strict=True)
    assert [(cell.text, cell.notes[-1]) for cell in et] == [
        ("86.67", "n = 3"), ("53.33", "n = 3"), ("80.00", "n = 3"),
    ]  # fmt: skip
    assert [cell.text for cell in whole] == ["50.00"] * 3
    assert [cell.text for cell in mean] == ["63.75", "51.25", "61.25"]
    cases = case_table(read_benchmark(benchmark.path))
    assert ["75.00", "25.00", "75.00"] in [[cell.text for cell in row.cells] for row in cases.rows]


def test_a_model_that_lacks_a_case_is_marked_and_never_best(benchmark):
    benchmark.content["models"][0]["folds"][0]["cases"].pop()
    benchmark.write()
    first = score_table(read_benchmark(benchmark.path), METRICS, "caption").rows[0]
    assert first.failed == "1 of 4 cases missing"
    assert not any(cell.best for cell in first.cells)


def test_a_model_without_any_result_has_a_row(benchmark):
    for fold in (0, 1):
        benchmark.fail("nnU-Net", fold, "out of memory")
    table = score_table(read_benchmark(benchmark.path), METRICS, "caption")
    assert [cell.text for cell in table.rows[0].cells] == ["–"] * len(COLUMNS)
    assert table.rows[0].failed == "2 of 2 folds failed"


def test_says_how_many_cases_where_some_are_undefined(benchmark):
    benchmark.content["models"][0]["folds"][0]["cases"][0]["scores"]["ET"]["HD95"] = None
    benchmark.write()
    table = score_table(read_benchmark(benchmark.path), METRICS, "caption")
    assert table.rows[0].cells[4].notes[-1] == "n = 3"


def test_differences_have_sign_interval_and_p(benchmark):
    benchmark.content["comparisons"] = [
        {"model": "UNet only", "reference": "nnU-Net", "region": region, "metric": "Dice", "n": n, "dropped": 4,
         "difference": difference, "low": low, "high": 0.02, "p": p}
        for region, n, difference, low, p in (
            ("WT", 12, 0.0123, 0.001, 0.0004), ("mean", 12, -0.05, -0.1, None), ("TC", 9, 0.0123, 0.001, 0.0004),
            ("ET", 0, None, None, None),
        )
    ]  # fmt: skip
    benchmark.write()
    (table,) = comparison_tables(read_benchmark(benchmark.path))
    assert table.columns == ["ET", "TC", "WT", "Mean"]
    (row,) = table.rows
    assert row.title == "UNet only − nnU-Net"
    nowhere, few, whole, mean = row.cells
    assert (nowhere.text, nowhere.notes, nowhere.best) == ("–", ["n = 0, 4 dropped"], False)
    assert (few.text, few.notes, few.best) == ("+1.23", ["p < 0.001, n = 9, 4 dropped"], False)
    assert (whole.text, whole.notes, whole.best) == ("+1.23", ["+0.10 to +2.00", "p < 0.001, n = 12, 4 dropped"], True)
    assert (mean.text, mean.best) == ("−5.00", False)
    assert mean.notes == ["−10.00 to +2.00", "p not defined, n = 12, 4 dropped"]


def test_costs(benchmark):
    benchmark.fail("UNet only", 0, "out of memory")
    table = cost_table(read_benchmark(benchmark.path))
    assert [cell.text for cell in table.rows[0].cells] == ["5.65 M", "1.42 M", "1.1 h", "3.0 s", "3.00 GiB"]
    assert table.rows[1].failed == "1 of 2 folds failed"


def test_cases_from_the_worst_to_the_best(benchmark):
    table = case_table(read_benchmark(benchmark.path))
    means = [statistics.mean(float(cell.text) for cell in row.cells) for row in table.rows]
    assert means == sorted(means)
    assert {row.title for row in table.rows} == set(benchmark.content["cases"])


@pytest.mark.parametrize(("seconds", "text"), [(0.04, "0.0 s"), (59.94, "59.9 s"), (90, "1.5 min"), (9000, "2.5 h")])
def test_duration(seconds, text):
    assert duration(seconds) == text
