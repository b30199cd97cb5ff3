"""Intervals against closed forms, scipy and scikit-learn, and how often they hold."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from almosaic.errors import AlmosaicError
from almosaic.evaluation.intervals import measure, summary, t_interval, weighted_mean_average_precision
from almosaic.evaluation.splits import Labels, rounds


def test_the_t_interval_is_the_textbook_one():
    low, high = t_interval([0.5, 0.6, 0.7])
    # s = 0.1, t(0.975, 2) = 4.302653
    assert (low, high) == pytest.approx((0.6 - 4.302653 * 0.1 / 3**0.5, 0.6 + 4.302653 * 0.1 / 3**0.5))
    with pytest.raises(AlmosaicError, match="at least 2 of them, found 1"):
        t_interval([0.5])


def test_the_t_interval_holds_95_times_in_a_hundred():
    draws = np.random.default_rng(0).normal(0.3, 2.0, (1500, 4))
    held = np.mean([low < 0.3 < high for low, high in map(t_interval, draws)])
    assert 0.93 < held < 0.97


def single():
    """Ten rows of two labels, the last four tested; three of them are right."""
    labels = Labels.of(["a", "b"] * 5)
    fits = rounds(labels, ["train"] * 6 + ["test"] * 4, ["train"], ["test"])
    scores = labels.targets[6:].astype(float)
    scores[0] = scores[0][::-1]
    return labels, fits, scores


def test_a_convex_fit_on_one_split_is_bootstrapped_over_clips():
    labels, fits, scores = single()
    found = summary(labels, fits, [[scores]])
    assert found["score"] == 0.75 and found["interval"] == "bootstrap over clips"
    assert found["low"] == 0.25 and found["high"] == 1.0 and found["parts"] == {"test": 0.75}


def test_seeds_and_folds_give_t_intervals():
    labels, fits, scores = single()
    right = labels.targets[6:].astype(float)
    seeds = summary(labels, fits, [[scores], [right], [right]])
    assert seeds["interval"] == "t over 3 seeds" and seeds["score"] == pytest.approx(11 / 12)
    assert (seeds["low"], seeds["high"]) == pytest.approx(t_interval([0.75, 1.0, 1.0]))
    folds = rounds(labels, list("aabbccddaa"))
    by_seed = [[labels.targets[one.test].astype(float) for one in folds] for _ in range(2)]
    by_seed[1][0] = by_seed[1][0][:, ::-1]  # the second seed has fold a all wrong
    found = summary(labels, folds, by_seed)
    assert found["interval"] == "t over 4 folds" and found["parts"]["a"] == 0.5
    assert (found["low"], found["high"]) == pytest.approx(t_interval([0.5, 1, 1, 1]))


def test_map_is_over_the_classes_that_occur():
    labels = Labels.of([("a", "b"), ("b",), ("c",), ("a",)])
    scores = np.random.default_rng(0).random((3, 3))
    targets = labels.targets[:2]
    expected = np.mean([average_precision_score(targets[:, c], scores[:2, c]) for c in (0, 1)])
    assert labels.metric == "mAP" and measure(labels, scores[:2], targets) == pytest.approx(expected)


def test_resampled_map_is_that_of_the_repeated_rows():
    rng = np.random.default_rng(1)
    scores, targets = np.round(rng.random((40, 3)), 1), rng.random((40, 3)) < 0.3  # with equal scores
    weights = rng.multinomial(40, np.full(40, 1 / 40), size=5)
    found = weighted_mean_average_precision(scores, targets, weights)
    for row, value in zip(weights, found, strict=True):
        rows = np.repeat(np.arange(40), row)
        own = [average_precision_score(targets[rows, c], scores[rows, c]) for c in range(3)]
        assert value == pytest.approx(np.mean(own))


def test_the_map_of_several_labels_is_bootstrapped():
    rng = np.random.default_rng(2)
    labels = Labels.of([("a", "b") if one else ("a",) for one in rng.random(60) < 0.5])
    fits = rounds(labels, ["train"] * 20 + ["test"] * 40, ["train"], ["test"])
    found = summary(labels, fits, [[rng.random((40, 2))]])
    assert found["metric"] == "mAP" and found["low"] < found["score"] < found["high"]
