"""Rounds of a set, convex fits and neighbours on features whose answer is known."""

import numpy as np
import pytest

from almosaic.errors import AlmosaicError
from almosaic.evaluation.intervals import measure, summary
from almosaic.evaluation.knn import neighbours
from almosaic.evaluation.linear import inner_folds, linear, majority
from almosaic.evaluation.splits import Labels, counts, rounds, run_rounds


def clusters(spread=0.3, rows=30, size=8, seed=0):
    """Three labels around three centres; the parts are a, b, c in turn."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(["dog", "cat", "rain"], rows)
    centres = {name: 3 * rng.standard_normal(size) for name in ("dog", "cat", "rain")}
    features = np.stack([centres[name] for name in labels]) + spread * rng.standard_normal((3 * rows, size))
    return features, list(labels), ["abc"[i % 3] for i in range(3 * rows)]


def fit_of(protocol, labels):
    return neighbours(10) if protocol == "knn" else linear(labels, protocol)[0]


def judged(protocol, features, names, parts, train=("a", "b"), test=("c",), fit=None):
    labels = Labels.of(names)
    fits = rounds(labels, parts, train, test)
    scores = run_rounds(features, labels, fits, fit or fit_of(protocol, labels))
    return {**summary(labels, fits, [scores]), **counts(labels, fits)}


PROTOCOLS = pytest.mark.parametrize("protocol", ["logistic", "svm", "knn"])


@PROTOCOLS
def test_separable_labels_are_found_and_random_ones_are_not(protocol):
    features, labels, parts = clusters()
    good = judged(protocol, features, labels, parts)
    assert good["score"] == 1.0 and good["high"] == 1.0
    assert (good["n_train"], good["n_test"], good["classes"]) == (60, 30, 3)
    shuffled = list(np.random.default_rng(1).permutation(labels))
    chance = judged(protocol, features, shuffled, parts)
    assert chance["low"] < 0.4 and chance["score"] < 0.65


@PROTOCOLS
def test_without_parts_every_fold_is_tested_once(protocol):
    features, labels, parts = clusters()
    result = judged(protocol, features, labels, parts, None, None)
    assert set(result["parts"]) == {"a", "b", "c"}
    assert result["n_test"] == 90 and result["n_train"] == 60 and result["interval"] == "t over 3 folds"


@pytest.mark.parametrize("protocol", ["logistic", "knn"])
def test_a_row_may_have_several_labels(protocol):
    features, names, parts = clusters()
    several = [(name, "animal") if name != "rain" else (name,) for name in names]
    result = judged(protocol, features, several, parts)
    assert result["metric"] == "mAP" and result["score"] == 1.0
    shuffled = [several[i] for i in np.random.default_rng(1).permutation(90)]
    assert judged(protocol, features, shuffled, parts)["score"] < 0.75


def test_standardisation_makes_the_scale_of_a_feature_irrelevant():
    features, labels, parts = clusters(spread=2.0)
    scaled = features * np.logspace(-4, 4, features.shape[1]) + 100
    plain, other = (judged("logistic", x, labels, parts)["score"] for x in (features, scaled))
    assert other == pytest.approx(plain, abs=0.04)


def test_the_strength_is_chosen_inside_the_training_rows():
    """Test rows that contradict the training rows must not move the choice."""
    features, names, parts = clusters(spread=3.0)
    chosen = []
    for own in (names, [name if part != "c" else "dog" for name, part in zip(names, parts, strict=True)]):
        labels = Labels.of(own)
        fit, strengths = linear(labels)
        inside = np.array([part != "c" for part in parts])
        fit(features[inside], labels.targets[inside], features[~inside])
        chosen.append(strengths)
    assert chosen[0] == chosen[1] and len(chosen[0]) == 1


def test_the_strength_that_generalises_wins():
    """Pure noise in many features: weak regularisation overfits, so a strong one must be chosen."""
    rng = np.random.default_rng(0)
    labels = Labels.of([f"l{i % 2}" for i in range(60)])
    features = rng.standard_normal((60, 200)) + 0.4 * labels.targets[:, :1]
    fit, strengths = linear(labels)
    fit(features, labels.targets, features)
    assert strengths[0] <= 0.01


def test_one_row_per_label_still_fits():
    labels = Labels.of(["a", "b", "a", "b"])
    fit, strengths = linear(labels)
    rows = np.array([[0.0, 1], [1, 0], [0, 1], [1, 0]], np.float32)
    scores = fit(rows[:2], labels.targets[:2], rows[2:])
    assert measure(labels, scores, labels.targets[2:]) == 1.0 and strengths == [1.0]


def test_inner_folds_spread_every_label():
    labels = Labels.of(["a"] * 60 + ["b"] * 30)
    numbers = inner_folds(labels, labels.targets, 3, seed=0)
    for rows in (numbers[:60], numbers[60:]):
        assert (np.bincount(rows, minlength=3) == len(rows) // 3).all()
    assert (inner_folds(labels, labels.targets, 3, seed=1) != numbers).any()
    rare = Labels.of(["a"] * 9 + ["b"])
    assert inner_folds(rare, rare.targets, 3, seed=0).max() == 0


def test_the_majority_is_the_most_frequent_training_label():
    labels = Labels.of(["a", "b", "b", "a", "a"])
    scores = majority(np.zeros((3, 1)), labels.targets[:3], np.zeros((2, 1)))
    assert scores.argmax(axis=1).tolist() == [1, 1]


def test_knn_is_cosine_and_votes():
    train = np.array([[1, 0], [2, 0.1], [0.1, 5], [0, 9], [0.2, 7]], np.float32)
    targets = Labels.of(["x", "x", "y", "y", "y"]).targets
    test = np.array([[100.0, 1], [0.01, 0.01]], np.float32)
    assert neighbours(2)(train, targets, test).argmax(axis=1).tolist() == [0, 0]
    # Five neighbours are the whole training set: the majority wins whatever the direction.
    assert neighbours(5)(train, targets, test).argmax(axis=1).tolist() == [1, 1]
    with pytest.raises(AlmosaicError, match="k of at least 1"):
        neighbours(0)


def test_equal_votes_go_to_the_nearer_neighbours():
    train, test = np.array([[1, 0], [1, 0.1], [0.5, 1], [0.4, 1]]), np.array([[1, 0.05]])
    for order in ([0, 0, 1, 1], [1, 1, 0, 0]):
        targets = np.eye(2, dtype=bool)[order]
        assert neighbours(4)(train, targets, test).argmax() == order[0]


def test_many_test_rows_are_taken_in_pieces(monkeypatch):
    features, names, _ = clusters()
    targets = Labels.of(names).targets
    whole = neighbours(3)(features, targets, features)
    monkeypatch.setattr("almosaic.evaluation.knn.ROWS", 7)
    np.testing.assert_allclose(neighbours(3)(features, targets, features), whole)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train": ["z"]}, "expected rows of part 'z', found parts a, b, c; choose among these"),
        ({"train": ["a"], "test": ["a"]}, "do not overlap"),
        ({"train": ["a", "b", "c"], "test": None}, "do not overlap"),
        ({"features": np.ones(90)}, "features \\[n, D\\]"),
        ({"parts": ["a"] * 3}, "a part for each of 90 labels, found 3"),
        ({"features": np.full((90, 2), np.nan)}, "90 of 90 rows"),
        ({"parts": ["a"] * 90, "train": None, "test": None}, "at least 2 parts"),
        ({"names": ["dog"] * 89 + ["new"]}, r"only in c: new; choose other parts"),
        ({"names": ["old"] + ["dog"] * 89}, r"only in a, b: old; choose other parts"),
    ],
)
def test_wrong_input_is_one_clear_line(change, message):
    features, names, parts = clusters()
    arguments = {"features": features, "names": names, "parts": parts, **change}
    with pytest.raises(AlmosaicError, match=message) as caught:
        judged(None, **arguments, fit=majority)
    assert "\n" not in str(caught.value)


def test_a_fold_may_lack_a_label_that_others_have():
    features, names, parts = clusters()
    names = ["new" if i in (0, 1) else name for i, name in enumerate(names)]
    result = judged(None, features, names, parts, None, None, fit=majority)
    assert set(result["parts"]) == {"a", "b", "c"}
