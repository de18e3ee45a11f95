import math
import random

import pytest
from nnunetv2.training.logging.nnunet_logger import MetaLogger

from nnunet_autosam2.trainers.early_stopping import EarlyStopping, defined_ema

NAN = math.nan


def counted_one_by_one(history: list[float], counts_from_epoch: int) -> int:
    best, waited = -math.inf, 0
    for epoch, value in enumerate(history):
        improved = value > best
        if improved:
            best = value
        waited = 0 if improved or epoch < counts_from_epoch else waited + (value == value)
    return waited


@pytest.mark.parametrize(
    ("history", "counts_from_epoch", "expected"),
    [
        ([], 0, 0),
        ([0.1], 0, 0),
        ([0.1, 0.2, 0.3], 0, 0),
        ([0.3, 0.2, 0.1], 0, 2),
        ([0.3, 0.3, 0.3], 0, 2),  # equal is not better
        ([0.3, 0.1, 0.31, 0.2], 0, 1),
        ([0.3, 0.1, 0.1, 0.1, 0.1], 4, 1),  # at a high learning rate nothing counts
        ([0.3, 0.1], 5, 0),
        ([0.1, NAN, NAN], 0, 0),  # undefined is no evidence
        ([NAN, NAN, NAN], 0, 0),
        ([NAN, 0.1, NAN], 0, 0),
        ([0.2, NAN, 0.1, NAN, 0.1], 0, 2),
        ([0.0, 0.0], 0, 1),
    ],
)
def test_counts_after_the_best_epoch(history, counts_from_epoch, expected):
    assert EarlyStopping(10, counts_from_epoch).epochs_without_improvement(history) == expected


def test_stops_exactly_at_patience():
    stopping = EarlyStopping(patience=10, counts_from_epoch=4)
    history = [0.1, 0.5, 0.2, 0.2] + [0.4] * 20
    assert [stopping.should_stop(history[:epochs]) for epochs in (4, 13, 14, 24)] == [
        False,
        False,
        True,
        True,
    ]


def test_history_with_an_improvement_in_time_goes_on():
    stopping = EarlyStopping(patience=3)
    history = [0.1, 0.1, 0.1, 0.2, 0.1, 0.1, 0.3, 0.1, 0.1]
    assert not any(stopping.should_stop(history[:epochs]) for epochs in range(len(history) + 1))


def test_equals_counting_epoch_by_epoch_on_random_histories():
    rng = random.Random(0)
    for _ in range(500):
        history = [rng.choice([NAN, 0.0, 0.1, 0.2, rng.random()]) for _ in range(rng.randrange(30))]
        counts_from_epoch = rng.randrange(12)
        stopping = EarlyStopping(rng.randrange(1, 12), counts_from_epoch)
        for epochs in range(len(history) + 1):
            expected = counted_one_by_one(history[:epochs], counts_from_epoch)
            assert stopping.epochs_without_improvement(history[:epochs]) == expected
            assert stopping.should_stop(history[:epochs]) == (expected >= stopping.patience)


@pytest.mark.filterwarnings("ignore")
def test_the_average_is_nnunets_where_that_is_defined(tmp_path):
    logger = MetaLogger(str(tmp_path), resume=False)
    values = [0.1, 0.5, 0.2, 0.7, 0.7]
    for epoch, value in enumerate(values):
        logger.log("mean_fg_dice", value, epoch)
    assert defined_ema(values) == logger.get_value("ema_fg_dice", step=None)


def test_an_undefined_value_leaves_the_average_as_it_was():
    averages = defined_ema([NAN, 0.5, NAN, NAN, 0.7])
    assert [value == value for value in averages] == [False, True, False, False, True]
    assert averages[1] == 0.5
    assert averages[4] == pytest.approx(0.52)
