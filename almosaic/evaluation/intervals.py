"""How sure a score is: a t interval over folds or seeds, else a bootstrap over the test clips."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from almosaic.errors import AlmosaicError
from almosaic.evaluation.metrics import (
    bootstrap_interval,
    mean_average_precision,
    percentile_interval,
    resample_counts,
)
from almosaic.evaluation.splits import Labels, Round, Scores, Targets

MAP_RESAMPLES = 500


def measure(labels: Labels, scores: Scores, targets: Targets) -> float:
    """Accuracy, or mAP over the classes that occur in the test rows, of scores [m, C]."""
    if not labels.several:
        return float((scores.argmax(axis=1) == targets.argmax(axis=1)).mean())
    there = targets.any(axis=0)
    return mean_average_precision(scores[:, there], targets[:, there])


def summary(labels: Labels, fits: Sequence[Round], by_seed: Sequence[Sequence[Scores]]) -> dict[str, Any]:
    """Mean score with its 95 % interval, and what the interval is over.

    Args:
        labels: Of all rows.
        fits: The rounds; several = folds.
        by_seed: Scores [m, C] of every round, once for each seed; a convex fit has one.

    Returns:
        `metric, score, low, high, interval` and `parts {name: score}`. The interval is that of Student's t
        over the folds (each the mean over its seeds), else over the seeds, else a bootstrap over the clips.
    """
    table = np.array(
        [
            [measure(labels, scores, labels.targets[one.test]) for one, scores in zip(fits, own, strict=True)]
            for own in by_seed
        ]
    )
    if len(fits) > 1:
        low, high = t_interval(table.mean(axis=0))
        over = f"t over {len(fits)} folds"
    elif len(by_seed) > 1:
        low, high = t_interval(table[:, 0])
        over = f"t over {len(by_seed)} seeds"
    else:
        low, high = _bootstrap(labels, by_seed[0][0], labels.targets[fits[0].test])
        over = "bootstrap over clips"
    means = table.mean(axis=0).tolist()
    return {
        "metric": labels.metric,
        "score": float(table.mean()),
        "low": low,
        "high": high,
        "interval": over,
        "parts": {"+".join(one.tested): score for one, score in zip(fits, means, strict=True)},
    }


def t_interval(values: Sequence[float] | NDArray[np.float64], level: float = 0.95) -> tuple[float, float]:
    """Student's interval of the mean of independent values.

    Raises:
        AlmosaicError: Fewer than two values.
    """
    from scipy.stats import t

    rows = np.asarray(values, dtype=np.float64)
    if len(rows) < 2:
        raise AlmosaicError(f"an interval over folds or seeds needs at least 2 of them, found {len(rows)}")
    half = float(t.ppf((1 + level) / 2, len(rows) - 1)) * rows.std(ddof=1) / len(rows) ** 0.5
    return float(rows.mean() - half), float(rows.mean() + half)


def _bootstrap(labels: Labels, scores: Scores, targets: Targets) -> tuple[float, float]:
    if not labels.several:
        return bootstrap_interval(scores.argmax(axis=1) == targets.argmax(axis=1))
    there = targets.any(axis=0)
    weights = resample_counts(len(targets), MAP_RESAMPLES, 0)
    return percentile_interval(weighted_mean_average_precision(scores[:, there], targets[:, there], weights))


def weighted_mean_average_precision(
    scores: Scores, targets: Targets, weights: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Mean AP [R] of scores [m, C] where row i counts weights[r, i] times; absent classes are left out."""
    sums, there = np.zeros(len(weights)), np.zeros(len(weights))
    for own, truth in zip(scores.T, targets.T, strict=True):
        order = np.argsort(-own, kind="stable")
        # Equal scores share one threshold: the precision is read behind the last of them.
        last = np.searchsorted(-own[order], -own[order], side="right") - 1
        counted = weights[:, order].astype(np.float64)
        right = counted * truth[order]
        precision = np.cumsum(right, axis=1) / np.maximum(np.cumsum(counted, axis=1), 1)
        positives = right.sum(axis=1)
        sums += (right * precision[:, last]).sum(axis=1) / np.maximum(positives, 1)
        there += positives > 0
    found: NDArray[np.float64] = sums / np.maximum(there, 1)
    return found
