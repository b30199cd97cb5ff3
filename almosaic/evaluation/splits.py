"""Which rows a classifier is fitted on and which it is tested on, and how its accuracy is stated."""

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from almosaic.errors import AlmosaicError
from almosaic.evaluation.metrics import wilson_interval

Features = NDArray[np.floating]
Labels = NDArray[np.str_]
FitPredict = Callable[[Features, Labels, Features], Labels]
"""(train features [n, D], train labels [n], test features [m, D]) -> predicted labels [m]."""


def accuracy_over_parts(
    features: ArrayLike,
    labels: Sequence[str],
    parts: Sequence[str],
    fit_predict: FitPredict,
    *,
    train: Collection[str] | None = None,
    test: Collection[str] | None = None,
) -> dict[str, Any]:
    """Fit on some parts of the rows and test on others.

    Args:
        features: [n, D].
        labels: One label per row.
        parts: The split or fold of every row.
        fit_predict: The classifier.
        train: Parts to fit on.
        test: Parts to test on; both None = every part in turn against a fit of all others.

    Returns:
        `accuracy` over all tested rows, its 95 % Wilson interval `low, high`, `n_train` of one fit, `n_test`
        over all, `classes` and `parts {name: accuracy}`.

    Raises:
        AlmosaicError: Shapes that do not fit, non-finite features, parts without rows or that overlap, or a
            tested label that no training row has.
    """
    rows, names, groups = _checked(features, labels, parts)
    right: dict[str, NDArray[np.bool_]] = {}
    n_train = 0
    for fitted, tested in _rounds(groups, train, test):
        inside = np.isin(groups, list(fitted))
        unseen = sorted(set(names[np.isin(groups, list(tested))]) - set(names[inside]))
        if unseen:
            raise AlmosaicError(
                f"expected training clips of every tested label, found none of {', '.join(unseen[:5])} in "
                f"{', '.join(fitted)}; choose other parts"
            )
        n_train = int(inside.sum())
        where = np.isin(groups, list(tested))
        predicted = fit_predict(rows[inside], names[inside], rows[where])
        correct = predicted == names[where]
        right.update({part: correct[groups[where] == part] for part in tested})
    total = sum(len(part) for part in right.values())
    hits = sum(int(part.sum()) for part in right.values())
    low, high = wilson_interval(hits, total)
    return {
        "accuracy": hits / total,
        "low": low,
        "high": high,
        "n_train": n_train,
        "n_test": total,
        "classes": len(set(names)),
        "parts": {part: float(correct.mean()) for part, correct in right.items()},
    }


def _checked(
    features: ArrayLike, labels: Sequence[str], parts: Sequence[str]
) -> tuple[Features, Labels, Labels]:
    rows = np.asarray(features, dtype=np.float32)
    if rows.ndim != 2 or not len(rows) == len(labels) == len(parts):
        found = f"{rows.shape}, {len(labels)} and {len(parts)}"
        raise AlmosaicError(f"expected features [n, D] with n labels and n parts, found {found}")
    if not np.isfinite(rows).all():
        bad = int((~np.isfinite(rows).all(axis=1)).sum())
        raise AlmosaicError(f"expected finite features, found {bad} of {len(rows)} rows with NaN or infinity")
    return rows, np.asarray(labels, dtype=np.str_), np.asarray(parts, dtype=np.str_)


def _rounds(
    groups: Labels, train: Collection[str] | None, test: Collection[str] | None
) -> Iterator[tuple[list[str], list[str]]]:
    """The parts to fit on and to test on, fit by fit."""
    found = sorted({str(part) for part in groups})
    for part in (*(train or ()), *(test or ())):
        if part not in found:
            raise AlmosaicError(f"expected rows of part {part!r}, found parts {', '.join(found)}")
    if train is None and test is None:
        if len(found) < 2:
            raise AlmosaicError(f"expected at least 2 parts to test one against the others, found {found}")
        for part in found:
            yield [other for other in found if other != part], [part]
        return
    fitted = (
        [part for part in found if part in train] if train else [p for p in found if p not in (test or ())]
    )
    tested = (
        [part for part in found if part in test] if test else [p for p in found if p not in (train or ())]
    )
    shared = sorted(set(fitted) & set(tested))
    if shared or not fitted or not tested:
        raise AlmosaicError(
            f"expected parts to fit on and other parts to test on, found {fitted} and {tested}; "
            "choose parts that do not overlap"
        )
    yield fitted, tested
