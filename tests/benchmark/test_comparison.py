import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestPower

from nnunet_autosam2.benchmark.comparison import (
    cases_needed,
    compare,
    crossed_interval,
    holm,
    interval,
    paired_differences,
    rank_biserial,
)
from nnunet_autosam2.benchmark.results import LEAST_CASES
from nnunet_autosam2.evaluation.scoring import Scores


def scores(values, region: str = "WT", metric: str = "Dice"):
    return {f"case_{i}": {region: {metric: value}} for i, value in enumerate(values)}


def test_wilcoxon_is_r_and_textbook():
    """Hollander & Wolfe (1973), table 3.1, depression scale: the example of R's wilcox.test, p = 0.03906."""
    before = [1.83, 0.50, 1.62, 2.48, 1.68, 1.88, 1.55, 3.06, 1.30]
    after = [0.878, 0.647, 0.598, 2.05, 1.06, 1.29, 1.06, 3.14, 1.29]
    found = compare([scores(before)], [scores(after)], "WT", "Dice")
    assert found.n == 9
    assert found.p == pytest.approx(0.0390625, abs=1e-6)
    assert found.difference == pytest.approx(np.mean(before) - np.mean(after))


def even(rng: np.random.Generator, n: int) -> np.ndarray:
    return rng.normal(0.02, 0.05, n)


def heavy_tailed(rng: np.random.Generator, n: int) -> np.ndarray:
    return 0.02 + 0.05 * rng.standard_t(3, n)


def between_two_dices(rng: np.random.Generator, n: int) -> np.ndarray:
    return rng.beta(9, 1, n) - rng.beta(8, 1.2, n) + 0.02 - (9 / 10 - 8 / 9.2)


def with_invented_regions(rng: np.random.Generator, n: int) -> np.ndarray:
    """A whole Dice less in three of ten cases."""
    return rng.normal(0.32, 0.03, n) - (rng.random(n) < 0.3)


@pytest.mark.parametrize("draw", [even, heavy_tailed, between_two_dices, with_invented_regions])
@pytest.mark.parametrize("n", [LEAST_CASES, 2 * LEAST_CASES, 5 * LEAST_CASES])
def test_interval_covers_the_true_difference_as_often_as_it_says(draw, n: int):
    """A true one of 0.02, 1000 times; chance alone moves the share by 0.7 % or less."""
    rng = np.random.default_rng(n)
    intervals = [interval(draw(rng, n)) for _ in range(1000)]
    assert 0.93 <= np.mean([low <= 0.02 <= high for low, high in intervals]) <= 0.98


def test_interval_is_that_of_the_comparison():
    differences = even(np.random.default_rng(0), 20)
    found = compare([scores(differences)], [scores(np.zeros(20))], "WT", "Dice")
    expected = stats.ttest_1samp(differences, 0).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))


@pytest.mark.parametrize("seed", range(5))
def test_correction_is_that_of_statsmodels(seed: int):
    values = np.random.default_rng(seed).uniform(0, 0.3, 12)
    np.testing.assert_allclose(holm(values.tolist()), multipletests(values, method="holm")[1])
    with_undefined = [None, *values.tolist(), None]
    assert holm(with_undefined)[1:-1] == holm(values.tolist())
    assert (holm(with_undefined)[0], holm(with_undefined)[-1]) == (None, None)


@pytest.mark.parametrize("mean", [0.003, 0.01, 0.03, 0.2])
def test_number_of_cases_is_that_of_statsmodels(mean: float):
    differences = np.random.default_rng(1).normal(0, 0.05, 30)
    differences += mean - differences.mean()
    effect = mean / differences.std(ddof=1)
    expected = TTestPower().solve_power(effect_size=effect, alpha=0.05, power=0.8)
    assert cases_needed(differences) == pytest.approx(np.ceil(expected), abs=0.5)


def test_no_number_of_cases_shows_what_is_not_there():
    differences = np.random.default_rng(1).normal(0, 0.05, 30)
    assert cases_needed(differences - differences.mean()) is None


def test_effect_is_what_the_ranks_of_the_test_say():
    differences = np.append(even(np.random.default_rng(2), 25), [0, 0])
    ranked = differences[differences != 0]
    smaller = stats.wilcoxon(ranked).statistic
    assert abs(rank_biserial(differences)) == pytest.approx(1 - 2 * smaller / (ranked.size * (ranked.size + 1) / 2))
    assert rank_biserial(np.array([0.1, 0.2])) == 1
    assert rank_biserial(np.array([-0.1, -0.2])) == -1
    assert rank_biserial(np.zeros(3)) is None


def test_no_interval_below_the_least_number_of_cases():
    rng = np.random.default_rng(0)
    for n in range(1, LEAST_CASES):
        found = compare([scores(rng.normal(0.2, 0.001, n))], [scores(np.zeros(n))], "WT", "Dice")
        assert (found.n, found.low, found.high) == (n, None, None)
        assert found.difference == pytest.approx(0.2, abs=0.01)
    assert interval(np.array([0.1, 0.2]), least=3) == (None, None)
    assert interval(np.array([0.1, 0.2]), least=2) == pytest.approx(stats.t.interval(0.95, 1, 0.15, 0.05))
    found = compare([scores(np.full(LEAST_CASES, 0.5))], [scores(np.full(LEAST_CASES, 0.25))], "WT", "Dice")
    assert (found.difference, found.low, found.high) == (0.25, None, None)  # nothing says how much it varies


def test_an_invented_region_counts_0_against_1():
    """In 10 of 20 cases the truth has no enhancing tumour."""
    right: Scores = {
        f"case_{i}": {"ET": {"Dice": None if i < 10 else 0.8, "HD95": None if i < 10 else 2.0}} for i in range(20)
    }
    invented: Scores = {f"case_{i}": {"ET": {"Dice": 0.0, "HD95": 373.0}} for i in range(10)}
    inventing = {**right, **invented}
    for metric, difference in (("Dice", -0.5), ("HD95", 186.5)):
        for region in ("ET", "mean"):
            found = compare([inventing], [right], region, metric)
            assert (found.n, found.dropped, found.difference) == (20, 0, difference)
            assert found.p < 0.01
            assert compare([right], [inventing], region, metric).difference == -difference
        same = compare([right], [right], "ET", metric)
        assert (same.n, same.dropped, same.difference) == (10, 10, 0.0)
    empty: Scores = {case: {"ET": {"Dice": None}} for case in right}
    assert compare([empty], [empty], "ET", "Dice") == (0, 20, None, None, None, None, None, None, 1, None)


def test_means_over_regions_are_over_the_same_ones():
    """Who rightly leaves out the enhancing tumour is not worse than who finds the rest as well and invents one."""
    right: Scores = {f"case_{i}": {"WT": {"Dice": 0.9}, "TC": {"Dice": 0.6}, "ET": {"Dice": None}} for i in range(3)}
    inventing: Scores = {f"case_{i}": {"WT": {"Dice": 0.9}, "TC": {"Dice": 0.6}, "ET": {"Dice": 0.0}} for i in range(3)}
    assert compare([inventing], [right], "mean", "Dice").difference == pytest.approx(-1 / 3)


def test_only_cases_that_both_have_count():
    mine = {**scores([0.5, 0.6, None, 0.9]), "other": {"WT": {"Dice": 0.0}}}
    theirs = scores([0.4, 0.4, 0.2, None])
    found = compare([mine], [theirs], "WT", "Dice")
    assert (found.n, found.dropped) == (4, 0)
    assert found.difference == pytest.approx(np.mean([0.1, 0.2, 1 - 0.2, 0.9 - 1]))
    assert list(paired_differences(mine, theirs, "WT", "Dice")) == [f"case_{i}" for i in range(4)]
    assert compare([mine], [theirs], "ET", "Dice")[:3] == (0, 4, None)
    assert compare([mine], [{"elsewhere": {}}], "WT", "Dice") is None


def test_mean_is_over_the_regions_that_a_case_has():
    mine: Scores = {"a": {"WT": {"Dice": 0.8}, "ET": {"Dice": None}}, "b": {"WT": {"Dice": 0.6}, "ET": {"Dice": 0.2}}}
    theirs: Scores = {"a": {"WT": {"Dice": 0.7}, "ET": {"Dice": None}}, "b": {"WT": {"Dice": 0.4}, "ET": {"Dice": 0.2}}}
    assert compare([mine], [theirs], "mean", "Dice").difference == pytest.approx(0.1)


def test_no_difference_has_no_p():
    same = scores([0.5, 0.6])
    assert compare([same], [same], "WT", "Dice") == (2, 0, 0.0, None, None, None, None, None, 1, None)


def test_the_same_twice():
    rng = np.random.default_rng(1)
    mine, theirs = (scores(rng.uniform(size=20)) for _ in range(2))
    assert compare([mine], [theirs], "WT", "Dice") == compare([mine], [theirs], "WT", "Dice")


def covered(seeds: float, repeats: int, cases: int, interval_of) -> float:
    """Share of 1000 simulated benchmarks whose interval holds the true difference.

    Args:
        seeds: standard deviation between trainings; between cases it is 1, of what is left 0.5.
    """
    rng = np.random.default_rng(0)
    inside = 0
    for _ in range(1000):
        drawn = rng.normal(0, seeds, (repeats, 1)) + rng.normal(0, 1, cases) + rng.normal(0, 0.5, (repeats, cases))
        low, high = interval_of(drawn)
        inside += low <= 0 <= high
    return inside / 1000


SETTINGS = [(0.0, 3, 20), (0.3, 3, 20), (1.0, 3, 20), (0.3, 2, 50), (0.5, 5, 100)]


@pytest.mark.parametrize(("seeds", "repeats", "cases"), SETTINGS)
def test_an_interval_over_cases_and_trainings_covers_what_it_says(seeds: float, repeats: int, cases: int):
    assert 0.91 <= covered(seeds, repeats, cases, crossed_interval) <= 1


def test_an_interval_over_cases_alone_is_too_short_where_trainings_differ():
    assert covered(1.0, 3, 20, lambda drawn: interval(drawn.mean(axis=0))) < 0.6


def test_trainings_that_differ_by_chance_alone_give_the_interval_over_cases():
    rng = np.random.default_rng(1)
    drawn = rng.normal(0, 1, 20) + rng.normal(0, 0.5, (3, 20))
    drawn -= drawn.mean(axis=1, keepdims=True)
    assert crossed_interval(drawn) == interval(drawn.mean(axis=0))
    assert crossed_interval(drawn[:, : LEAST_CASES - 1]) == (None, None)
    assert crossed_interval(drawn[:, :0]) == (None, None)


def test_trainings_are_paired_and_cases_are_means_over_them():
    first, second = np.linspace(0.1, 0.4, 12), np.linspace(0.2, 0.9, 12)
    zero = scores(np.zeros(12))
    found = compare([scores(first), scores(second)], [zero, zero], "WT", "Dice")
    assert (found.n, found.repeats) == (12, 2)
    assert found.difference == pytest.approx((first + second).mean() / 2)
    assert found.between_repeats == pytest.approx(np.std([first.mean(), second.mean()], ddof=1))
    assert (found.low, found.high) == crossed_interval(np.array([first, second]))
    assert found.p == pytest.approx(stats.wilcoxon((first + second) / 2).pvalue)
    failed = compare([scores(first), {}], [zero, zero], "WT", "Dice")
    assert failed == compare([scores(first)], [zero], "WT", "Dice")
    half = compare([scores(first), scores(second[:3])], [zero, zero], "WT", "Dice")
    assert (half.n, half.low, half.between_repeats is None) == (12, None, False)
