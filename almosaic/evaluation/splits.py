"""Which rows a classifier is fitted on and which it is tested on, for one label per row or several."""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from almosaic.errors import AlmosaicError

Features = NDArray[np.floating]
Targets = NDArray[np.bool_]
Scores = NDArray[np.floating]
Fit = Callable[[Features, Targets, Features], Scores]
"""(train features [n, ...], train targets [n, C], test features [m, ...]) -> scores [m, C]."""
Label = str | Collection[str]


@dataclass(frozen=True)
class Labels:
    """Labels of n rows as targets [n, C]; `several` where a row may have any number of them."""

    classes: tuple[str, ...]
    targets: Targets
    several: bool

    @classmethod
    def of(cls, labels: Sequence[Label]) -> "Labels":
        """One text per row, or a collection of texts per row; collections of one each count as texts."""
        own = [(label,) if isinstance(label, str) else tuple(label) for label in labels]
        classes = sorted({label for row in own for label in row})
        index = {label: number for number, label in enumerate(classes)}
        targets = np.zeros((len(own), len(classes)), dtype=np.bool_)
        for number, row in enumerate(own):
            targets[number, [index[label] for label in row]] = True
        return cls(tuple(classes), targets, any(len(row) != 1 for row in own))

    @property
    def metric(self) -> str:
        """What is measured: accuracy, or mean average precision over classes where a row may have several."""
        return "mAP" if self.several else "accuracy"


@dataclass(frozen=True)
class Round:
    """One fit: where its rows are [n] and [m], and the names of their parts."""

    train: NDArray[np.intp]
    test: NDArray[np.intp]
    fitted: tuple[str, ...]
    tested: tuple[str, ...]


def rounds(
    labels: Labels,
    parts: Sequence[str],
    train: Collection[str] | None = None,
    test: Collection[str] | None = None,
) -> list[Round]:
    """The fits of an evaluation.

    Args:
        labels: Of all rows.
        parts: The split or fold of every row.
        train: Parts to fit on.
        test: Parts to test on; both None or empty = every part in turn against a fit of all others.

    Raises:
        AlmosaicError: A part without rows, parts that overlap, or other labels in training than in the test.
    """
    groups = np.asarray(parts, dtype=np.str_)
    if len(groups) != len(labels.targets):
        raise AlmosaicError(
            f"expected a part for each of {len(labels.targets)} labels, found {len(groups)} parts"
        )
    found: list[Round] = []
    for fitted, tested in _part_names(groups, train, test):
        inside, outside = (np.flatnonzero(np.isin(groups, names)) for names in (fitted, tested))
        _check_labels(labels, inside, outside, fitted, tested, strict=bool(train or test))
        found.append(Round(inside, outside, tuple(fitted), tuple(tested)))
    return found


def checked(features: ArrayLike, rows: int) -> Features:
    """Features [n, ...] of so many rows as float32; AlmosaicError where they do not fit or are not finite."""
    found = np.asarray(features, dtype=np.float32)
    if found.ndim < 2 or len(found) != rows:
        raise AlmosaicError(f"expected features [n, D] with n labels, found {found.shape} and {rows}")
    if not np.isfinite(found).all():
        bad = int((~np.isfinite(found).reshape(rows, -1).all(axis=1)).sum())
        raise AlmosaicError(f"expected finite features, found {bad} of {rows} rows with NaN or infinity")
    return found


def run_rounds(features: ArrayLike, labels: Labels, fits: Sequence[Round], fit: Fit) -> list[Scores]:
    """Scores [m, C] of the test rows of every round."""
    rows = checked(features, len(labels.targets))
    return [fit(rows[one.train], labels.targets[one.train], rows[one.test]) for one in fits]


def counts(labels: Labels, fits: Sequence[Round]) -> dict[str, Any]:
    """`n_train` of one fit, `n_test` over all, and `classes`."""
    return {
        "n_train": len(fits[-1].train),
        "n_test": sum(len(one.test) for one in fits),
        "classes": len(labels.classes),
    }


def _check_labels(
    labels: Labels,
    inside: NDArray[np.intp],
    outside: NDArray[np.intp],
    fitted: Sequence[str],
    tested: Sequence[str],
    *,
    strict: bool,
) -> None:
    """Tested labels must be trained; with `strict` also the other way round: folds may lack a rare label."""
    trained, asked = (
        {labels.classes[place] for place in np.flatnonzero(labels.targets[rows].any(axis=0))}
        for rows in (inside, outside)
    )
    only_train, only_test = sorted(trained - asked), sorted(asked - trained)
    if not only_test and not (strict and only_train):
        return
    said = [
        f"only in {', '.join(names)}: {', '.join(own[:5])}{' ...' if len(own) > 5 else ''}"
        for names, own in ((fitted, only_train if strict else []), (tested, only_test))
        if own
    ]
    raise AlmosaicError(
        f"expected the same labels in training ({', '.join(fitted)}) and test ({', '.join(tested)}), found "
        f"{'; '.join(said)}; choose other parts or mend the labels"
    )


def _part_names(
    groups: NDArray[np.str_], train: Collection[str] | None, test: Collection[str] | None
) -> Iterator[tuple[list[str], list[str]]]:
    """The parts to fit on and to test on, fit by fit."""
    found = sorted({str(part) for part in groups})
    for part in (*(train or ()), *(test or ())):
        if part not in found:
            raise AlmosaicError(
                f"expected rows of part {part!r}, found parts {', '.join(found)}; choose among these"
            )
    if not train and not test:
        if len(found) < 2:
            raise AlmosaicError(f"expected at least 2 parts to test one against the others, found {found}")
        for part in found:
            yield [other for other in found if other != part], [part]
        return
    fitted = [part for part in found if (part in train if train else part not in (test or ()))]
    tested = [part for part in found if (part in test if test else part not in (train or ()))]
    shared = sorted(set(fitted) & set(tested))
    if shared or not fitted or not tested:
        raise AlmosaicError(
            f"expected parts to fit on and other parts to test on, found {fitted} and {tested}; "
            "choose parts that do not overlap"
        )
    yield fitted, tested
