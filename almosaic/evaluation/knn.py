"""k nearest neighbours on frozen features: nothing is fitted, the geometry of the features decides."""

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from almosaic.errors import AlmosaicError
from almosaic.evaluation.splits import Features, Labels, accuracy_over_parts


def knn(
    features: ArrayLike,
    labels: Sequence[str],
    parts: Sequence[str],
    *,
    train: Collection[str] | None = None,
    test: Collection[str] | None = None,
    k: int = 10,
) -> dict[str, Any]:
    """Accuracy of the majority label among the `k` nearest training rows by cosine.

    Equal votes go to the label whose neighbours are nearer in sum. Arguments, result and errors are those of
    `splits.accuracy_over_parts`; the result adds `protocol` and `k`.
    """
    if k < 1:
        raise AlmosaicError(f"expected k of at least 1, found {k}")

    def vote(train_rows: Features, train_labels: Labels, test_rows: Features) -> Labels:
        classes, index = np.unique(train_labels, return_inverse=True)
        similarity = _unit(test_rows) @ _unit(train_rows).T
        nearest = np.argsort(-similarity, axis=1, kind="stable")[:, : min(k, len(train_rows))]
        votes = np.zeros((len(test_rows), len(classes)))
        rows = np.arange(len(test_rows))[:, None]
        # A similarity is at most 1, so that 1e-3 of it decides between equal counts alone (k < 500).
        np.add.at(votes, (rows, index[nearest]), 1 + 1e-3 * similarity[rows, nearest])
        winners: Labels = classes[votes.argmax(axis=1)]
        return winners

    result = accuracy_over_parts(features, labels, parts, vote, train=train, test=test)
    return {"protocol": "knn", "k": k, **result}


def _unit(rows: Features) -> Features:
    """Rows of length 1; a row of zeros stays."""
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    unit: Features = rows / np.maximum(length, np.finfo(np.float32).tiny)
    return unit
