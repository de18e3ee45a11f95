"""Regions that the truth lacks: who leaves them out is right, and all are compared over the same cases."""

from __future__ import annotations

import itertools

from nnunet_autosam2.evaluation.empty_regions import comparable_scores

UNDEFINED = {"Dice": None, "HD95": None}
INVENTED = {"Dice": 0.0, "HD95": 373.0}
FOUND = {"Dice": 0.5, "HD95": 4.0}


def of(*models: dict) -> list[dict]:
    return [scores["ET"] for scores in comparable_scores([{"ET": scores} for scores in models])]


def test_what_is_defined_for_all_stays_as_it_is():
    assert of(FOUND, INVENTED) == [FOUND, INVENTED]


def test_who_rightly_leaves_a_region_out_has_the_best_there_is():
    assert of(UNDEFINED, INVENTED) == [{"Dice": 1.0, "HD95": 0.0}, INVENTED]
    assert of(INVENTED, UNDEFINED, UNDEFINED) == [INVENTED, {"Dice": 1.0, "HD95": 0.0}, {"Dice": 1.0, "HD95": 0.0}]


def test_where_nobody_has_the_region_it_counts_for_nobody():
    assert of(UNDEFINED, UNDEFINED) == [UNDEFINED, UNDEFINED]


def test_a_metric_that_one_of_them_lacks_counts_for_none():
    """As sensitivity, which has no value without truth, and lengths of files from an older version."""
    assert of({"Dice": 0.5, "NSD": 0.4}, {"Dice": 0.25}) == [{"Dice": 0.5, "NSD": None}, {"Dice": 0.25, "NSD": None}]
    without_truth = {"Dice": 0.0, "Sensitivity": None}
    assert of(without_truth, without_truth) == [without_truth, without_truth]


def test_a_region_that_one_model_does_not_predict_is_compared_for_none():
    one, other = comparable_scores([{"WT": FOUND, "ET": FOUND}, {"WT": INVENTED}])
    assert (one["WT"], other["WT"]) == (FOUND, INVENTED)
    assert one["ET"] == other["ET"] == UNDEFINED


def test_one_model_alone_and_none():
    assert of(FOUND) == [FOUND]
    assert of(UNDEFINED) == [UNDEFINED]
    assert comparable_scores([]) == []
    assert comparable_scores([{}, {}]) == [{}, {}]


def test_the_order_of_the_models_decides_nothing():
    given = [FOUND, INVENTED, UNDEFINED]
    expected = of(*given)
    for order in itertools.permutations(range(3)):
        assert of(*(given[number] for number in order)) == [expected[number] for number in order]


def test_what_was_given_is_not_changed():
    given = {"ET": dict(UNDEFINED)}
    comparable_scores([given, {"ET": dict(INVENTED)}])
    assert given == {"ET": UNDEFINED}
