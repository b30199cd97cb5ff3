"""Intervals over encoders and clips against closed forms, how often they hold, and means over sets."""

import numpy as np
import pytest

from almosaic.evaluation.intervals import measure
from almosaic.evaluation.metrics import percentile_interval, resample_counts
from almosaic.evaluation.repetitions import (
    RESAMPLES,
    Outcome,
    SetMeans,
    interval_name,
    over_encoders,
    repeated,
    resampled_scores,
)
from almosaic.evaluation.splits import Labels, rounds

ABOUT = {"protocol": "knn", "layer": None, "pooling": "mean", "seed": None, "k": 3}


def answered(right):
    """Labels, the one round and scores of an encoder that is right where `right` says so."""
    right = np.asarray(right, dtype=bool)
    labels = Labels.of(["a", "b"] * len(right))
    fits = rounds(labels, ["train"] * len(right) + ["test"] * len(right), ["train"], ["test"])
    truth = labels.targets[fits[0].test]
    return labels, fits, [np.where(right[:, None], truth, ~truth).astype(float)]


def test_clips_alone_give_the_binomial_spread():
    labels, fits, scores = answered([True] * 60 + [False] * 40)
    drawn = resampled_scores(labels, fits, [scores], "birds")
    assert drawn.shape == (RESAMPLES,) and drawn.mean() == pytest.approx(0.6, abs=0.005)
    assert drawn.std() == pytest.approx((0.6 * 0.4 / 100) ** 0.5, rel=0.06)


def test_all_encoders_meet_the_same_clips_of_a_set_and_other_sets_other_ones():
    labels, fits, scores = answered(np.random.default_rng(0).random(80) < 0.5)
    drawn = resampled_scores(labels, fits, [scores], "birds")
    assert np.array_equal(drawn, resampled_scores(labels, fits, [scores], "birds"))
    other = resampled_scores(labels, fits, [scores], "bells")
    assert abs(np.corrcoef(drawn, other)[0, 1]) < 0.1


def test_the_probes_own_seeds_and_the_folds_are_averaged():
    labels = Labels.of(["a", "b"] * 20)
    folds = rounds(labels, [str(number // 10) for number in range(40)])
    by_seed = [[labels.targets[one.test].astype(float) for one in folds] for _ in range(2)]
    by_seed[1][0] = by_seed[1][0][:, ::-1]  # one fold of one seed all wrong
    assert resampled_scores(labels, folds, by_seed, "s") == pytest.approx(np.full(RESAMPLES, 7 / 8))


def test_map_is_resampled_as_it_is_measured():
    rng = np.random.default_rng(1)
    labels = Labels.of([("a", "b") if one else ("a",) for one in rng.random(90) < 0.5])
    fits = rounds(labels, ["train"] * 30 + ["test"] * 60, ["train"], ["test"])
    scores = rng.random((60, 2))
    drawn = resampled_scores(labels, fits, [[scores]], "s")
    assert drawn.mean() == pytest.approx(measure(labels, scores, labels.targets[30:]), abs=0.02)
    assert drawn.std() > 0.01


@pytest.mark.parametrize("count", [2, 3, 5])
def test_drawing_few_encoders_again_has_the_variance_of_their_mean(count):
    """The plain bootstrap would have (n - 1) / n of it."""
    own = np.random.default_rng(count).normal(0.5, 0.1, count)
    drawn = over_encoders(np.tile(own, (40_000, 1)))
    assert drawn.mean() == pytest.approx(own.mean(), abs=0.002)
    assert drawn.var() == pytest.approx(own.var(ddof=1) / count, rel=0.03)


def test_one_encoder_is_not_drawn():
    scores = np.random.default_rng(0).random((50, 1))
    assert np.array_equal(over_encoders(scores), scores[:, 0])
    assert interval_name(1) == "bootstrap over clips"
    assert interval_name(2) == "bootstrap over 2 encoders and clips"


def test_the_interval_of_two_encoders_is_wider_than_that_of_either():
    """Two that answer differently: 60 % and 80 % of 100 clips."""
    encoders, columns = {}, []
    for name, share in (("x_7", 0.6), ("x_8", 0.8)):
        labels, fits, scores = answered(np.arange(100) < 100 * share)
        encoders[name] = Outcome({**ABOUT, "regularisation": [share]}, [scores])
        columns.append(resampled_scores(labels, fits, [scores], "s"))
    row = repeated(labels, fits, encoders, np.stack(columns, axis=1))
    assert row["score"] == pytest.approx(0.7) and row["range"] == [0.6, 0.8]
    assert row["protocol"] == "knn" and row["k"] == 3 and row["interval"] == interval_name(2)
    assert [(run["encoder"], run["score"], run["regularisation"]) for run in row["runs"]] == [
        ("x_7", 0.6, [0.6]),
        ("x_8", 0.8, [0.8]),
    ]
    assert all(row["high"] - row["low"] > run["high"] - run["low"] for run in row["runs"])
    assert row["low"] < 0.6 and row["high"] > 0.8, "it reaches beyond both"
    same = repeated(
        labels,
        fits,
        dict(list(encoders.items())[:1]) | {"y": encoders["x_7"]},
        columns[0][:, None].repeat(2, 1),
    )
    assert (same["low"], same["high"]) == pytest.approx(percentile_interval(columns[0]))


@pytest.mark.parametrize(("count", "least", "most"), [(1, 0.6, 0.8), (2, 0.88, 0.97), (5, 0.92, 0.99)])
def test_the_interval_holds_about_as_often_as_it_says(count, least, most):
    """150 clips, encoders whose skill varies by 6 points: that of one encoder knows nothing of others."""
    rng, held = np.random.default_rng(count), []
    weights = resample_counts(150, 1000, 0)
    for _ in range(400):
        hard = np.clip(rng.normal(0.6, 0.25, 150), 0.05, 0.95)
        skill = rng.normal(0, 0.06, count)
        right = rng.random((count, 150)) < np.clip(hard + skill[:, None], 0, 1)
        low, high = percentile_interval(over_encoders(weights @ right.T / 150))
        held.append(low < 0.6 < high)
    assert least < np.mean(held) < most


def set_row(name, features, score, **more):
    return {"set": name, "features": features, "score": score, **ABOUT, **more}


def test_a_mean_over_sets_is_narrower_and_needs_every_set():
    means, rng = SetMeans(["birds", "bells"]), np.random.default_rng(0)
    scores = {name: rng.normal(0.5, 0.04, (RESAMPLES, 1)) for name in ("birds", "bells")}
    for name, score in (("birds", 0.4), ("bells", 0.6)):
        means.add(set_row(name, "x", score), scores[name])
    means.add(set_row("birds", "once", 0.3), scores["birds"])
    means.add(set_row("birds", "x", 0.9, layer=2, protocol="per_layer"), scores["birds"])
    (row,) = means.rows()
    assert row["features"] == "x" and row["score"] == 0.5 and row["sets"] == ["birds", "bells"]
    assert row["k"] == 3 and row["layer"] is None and "runs" not in row
    assert row["high"] - row["low"] == pytest.approx(2 * 1.96 * 0.04 / 2**0.5, rel=0.05)


def test_an_encoder_is_drawn_on_all_sets_together():
    """One is better everywhere: on five sets its luck does not average out as that of clips does."""
    means = SetMeans(["a", "b", "c", "d", "e"])
    column = np.tile([0.4, 0.6], (RESAMPLES, 1))
    for name in means.sets:
        runs = [{"encoder": "x_7", "score": 0.4}, {"encoder": "x_8", "score": 0.6}]
        means.add(set_row(name, "x", 0.5, runs=runs), column)
    (row,) = means.rows()
    assert row["range"] == pytest.approx([0.4, 0.6])
    assert row["runs"][1] == {"encoder": "x_8", "score": pytest.approx(0.6)}
    half = 2**0.5 * 0.1
    assert (row["low"], row["high"]) == pytest.approx((0.5 - half, 0.5 + half))


def test_sets_of_map_and_accuracy_meet_in_one_mean():
    means = SetMeans(["birds", "bells"])
    means.add(set_row("birds", "x", 0.4), np.full((RESAMPLES, 1), 0.4))
    means.add(set_row("bells", "x", 0.6), np.full((500, 1), 0.6))
    assert means.rows()[0]["low"] == means.rows()[0]["high"] == 0.5


def test_differences_are_of_the_same_clips_and_of_encoders_drawn_apart():
    """Both go up and down with the clips: their difference does not, and is surer than either."""
    rng, means = np.random.default_rng(0), SetMeans(["birds", "bells"])
    for name in means.sets:
        clips = rng.normal(0, 0.05, (RESAMPLES, 1))
        for thing, base in (("x", [0.5, 0.5]), ("y", [0.55, 0.55]), ("z", [0.4, 0.6])):
            runs = [
                {"encoder": f"{thing}_{seed}", "score": score}
                for seed, score in zip((7, 8), base, strict=True)
            ]
            means.add(set_row(name, thing, np.mean(base), runs=runs), np.array(base)[None] + clips)
    means.add(set_row("birds", "x", 0.1, protocol="linear", k=None), np.full((RESAMPLES, 2), 0.1))
    first, second, third = means.rows()
    assert "difference" not in first and second["low"] < first["high"], "the intervals overlap"
    sure = second["difference"]
    assert sure == {
        "to": "x",
        "score": pytest.approx(0.05),
        "low": pytest.approx(0.05),
        "high": pytest.approx(0.05),
    }
    apart = third["difference"]
    assert apart["score"] == pytest.approx(0.0)
    assert (apart["low"], apart["high"]) == pytest.approx((-(2**0.5) * 0.1, 2**0.5 * 0.1))


def test_encoders_of_two_things_are_drawn_apart():
    """The same scores under two names: what is drawn of one says nothing of the other."""
    column = np.tile([0.4, 0.6], (RESAMPLES, 1))
    assert np.array_equal(over_encoders(column, "x"), over_encoders(column, "x"))
    together = np.corrcoef(over_encoders(column, "x"), over_encoders(column, "y"))[0, 1]
    assert abs(together) < 0.1
