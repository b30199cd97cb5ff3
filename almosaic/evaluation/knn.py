"""k nearest neighbours on frozen features: nothing is fitted, the geometry of the features decides."""

import numpy as np

from almosaic.errors import AlmosaicError
from almosaic.evaluation.splits import Features, Fit, Scores, Targets

ROWS = 512  # test rows at a time, so that the similarities stay small


def neighbours(k: int = 10) -> Fit:
    """Votes of the `k` nearest training rows by cosine, each for its labels.

    Equal votes go to the label whose neighbours are nearer in sum.

    Raises:
        AlmosaicError: `k` is below 1.
    """
    if k < 1:
        raise AlmosaicError(f"expected k of at least 1, found {k}")

    def vote(train: Features, targets: Targets, test: Features) -> Scores:
        known, asked = _unit(train), _unit(test)
        votes = np.zeros((len(test), targets.shape[1]))
        for start in range(0, len(test), ROWS):
            part = slice(start, start + ROWS)
            similarity = asked[part] @ known.T
            nearest = np.argsort(-similarity, axis=1, kind="stable")[:, : min(k, len(train))]
            # A similarity is at most 1, so that 1e-3 of it decides between equal counts alone (k < 500).
            weight = 1 + 1e-3 * np.take_along_axis(similarity, nearest, axis=1)
            votes[part] = np.einsum("mk,mkc->mc", weight.astype(np.float64), targets[nearest])
        return votes

    return vote


def _unit(rows: Features) -> Features:
    """Rows of length 1; a row of zeros stays."""
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    unit: Features = rows / np.maximum(length, np.finfo(np.float32).tiny)
    return unit
