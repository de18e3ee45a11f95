import numpy as np
import pytest
from scipy import stats

from nnunet_autosam2.benchmark.comparison import compare


def scores(values, region: str = "WT", metric: str = "Dice"):
    return {f"case_{i}": {region: {metric: value}} for i, value in enumerate(values)}


def test_wilcoxon_is_r_and_textbook():
    """Hollander & Wolfe (1973), table 3.1, depression scale: the example of R's wilcox.test, p = 0.03906."""
    before = [1.83, 0.50, 1.62, 2.48, 1.68, 1.88, 1.55, 3.06, 1.30]
    after = [0.878, 0.647, 0.598, 2.05, 1.06, 1.29, 1.06, 3.14, 1.29]
    found = compare(scores(before), scores(after), "WT", "Dice")
    assert found.n == 9
    assert found.p == pytest.approx(0.0390625, abs=1e-6)
    assert found.difference == pytest.approx(np.mean(before) - np.mean(after))


def test_interval_covers_the_true_difference_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(60):
        differences = rng.normal(0.02, 0.05, 40)
        reference = rng.uniform(0.5, 0.9, 40)
        found = compare(scores(reference + differences), scores(reference), "WT", "Dice")
        covered += found.low <= 0.02 <= found.high
        half_width = stats.t.ppf(0.975, 39) * differences.std(ddof=1) / np.sqrt(40)
        assert found.high - found.low == pytest.approx(2 * half_width, rel=0.25)
    assert 50 <= covered <= 60


def test_only_cases_that_both_have_count():
    mine = {**scores([0.5, 0.6, None, 0.9]), "other": {"WT": {"Dice": 0.0}}}
    theirs = scores([0.4, 0.4, 0.2, None])
    found = compare(mine, theirs, "WT", "Dice")
    assert found.n == 2
    assert found.difference == pytest.approx(0.15)
    assert compare(scores([0.5]), scores([0.4]), "WT", "Dice") is None
    assert compare(mine, theirs, "ET", "Dice") is None


def test_mean_is_over_the_regions_that_a_case_has():
    mine = {"a": {"WT": {"Dice": 0.8}, "ET": {"Dice": None}}, "b": {"WT": {"Dice": 0.6}, "ET": {"Dice": 0.2}}}
    theirs = {"a": {"WT": {"Dice": 0.7}, "ET": {"Dice": None}}, "b": {"WT": {"Dice": 0.4}, "ET": {"Dice": 0.2}}}
    assert compare(mine, theirs, "mean", "Dice").difference == pytest.approx(0.1)


def test_no_difference_has_no_p():
    assert compare(scores([0.5, 0.6]), scores([0.5, 0.6]), "WT", "Dice") == (2, 0.0, 0.0, 0.0, None)


def test_the_same_twice():
    rng = np.random.default_rng(1)
    mine, theirs = (scores(rng.uniform(size=20)) for _ in range(2))
    assert compare(mine, theirs, "WT", "Dice") == compare(mine, theirs, "WT", "Dice")
