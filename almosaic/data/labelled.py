"""Labelled clips of a manifest: which train, which choose the epoch, which are scored, and their targets."""

import csv
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BeforeValidator, Field, model_validator
from torch import Tensor

from almosaic.data import draws
from almosaic.data.manifest import ManifestRow, read_manifest
from almosaic.errors import AlmosaicError
from almosaic.settings import Settings

Rows = list[ManifestRow]


def _as_text(value: object) -> object:
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


Fold = Annotated[str, BeforeValidator(_as_text)]


class LabelledData(Settings):
    """Rows of a manifest by fold or by split.

    Args:
        manifest: the clips with their labels.
        classes: CSV whose column `label` names the classes in order; else they are the labels, sorted.
        fold: is scored at the end, all other folds are for training; `data.fold=3` on the command line.
        train: splits for training, where no fold is given.
        test: splits that are scored at the end, each by itself.
        validation_share: share of the training clips, by label, that is held out to choose the epoch.
        group: column of which each value stays on one side of that draw, for example the source recording.
        validation_fold: this fold is held out instead.
        validation_split: this split is held out instead.
    """

    manifest: Path
    classes: Path | None = None
    fold: Fold | None = None
    train: tuple[str, ...] = ()
    test: tuple[str, ...] = ()
    validation_share: float = Field(default=0.1, gt=0, lt=1)
    group: str | None = None
    validation_fold: Fold | None = None
    validation_split: str | None = None

    @model_validator(mode="after")
    def _check(self) -> "LabelledData":
        if (self.fold is None) != bool(self.train and self.test):
            raise AlmosaicError(
                "give either data.fold, the fold that is scored, or the splits data.train and data.test"
            )
        if self.validation_fold is not None and self.validation_split is not None:
            raise AlmosaicError("give validation_fold or validation_split, not both")
        if self.fold is not None and self.validation_fold == self.fold:
            raise AlmosaicError(f"validation_fold is {self.fold}, the fold that is scored; choose another")
        return self


@dataclass(frozen=True)
class LabelledRows:
    """Rows by purpose; `test` has one entry per fold or split that is scored."""

    classes: tuple[str, ...]
    train: Rows
    validation: Rows
    test: dict[str, Rows]


class Targets:
    """The classes of every row, as numbers; one multi-hot row at a time, for large sets."""

    def __init__(self, rows: Sequence[ManifestRow], classes: Sequence[str]) -> None:
        number = {label: index for index, label in enumerate(classes)}
        self.classes = len(classes)
        self.labels = [tuple(sorted({number[label] for label in row.labels})) for row in rows]

    def __len__(self) -> int:
        return len(self.labels)

    def multi_hot(self, rows: Iterable[int]) -> Tensor:
        """[B, C] float32, 1.0 at the labels of each row."""
        chosen = list(rows)
        hot = torch.zeros(len(chosen), self.classes)
        for place, row in enumerate(chosen):
            hot[place, list(self.labels[row])] = 1.0
        return hot

    def weights(self) -> NDArray[np.float64]:
        """[n] weight of every row in weighted sampling: the sum of 1 / (rows with that label) of its labels.

        The formula behind the published weights is not known; with this one every label is drawn about
        equally often in the first clips of an epoch.
        """
        counts = np.bincount([label for row in self.labels for label in row], minlength=self.classes)
        return np.array([sum(1.0 / counts[label] for label in row) for row in self.labels])


def open_labelled(data: LabelledData, *, hold_out: bool, single: bool, key: int) -> LabelledRows:
    """Read the manifest and share out its rows.

    Args:
        data: what to read.
        hold_out: keep a validation set away from training.
        single: every row must have exactly one label.
        key: of the draw that chooses the held-out rows.

    Raises:
        AlmosaicError: a fold or split that does not exist, an empty part, rows without labels or with several
            where one is needed, parts that share rows or differ in their labels.
    """
    rows = read_manifest(data.manifest)
    if data.fold is not None:
        _existing(data.manifest, "fold", [data.fold], [row.fold for row in rows])
        test = {f"fold {data.fold}": [row for row in rows if row.fold == data.fold]}
        train = [row for row in rows if row.fold != data.fold]
    else:
        _existing(data.manifest, "split", [*data.train, *data.test], [row.split for row in rows])
        test = {name: [row for row in rows if row.split == name] for name in data.test}
        train = [row for row in rows if row.split in data.train]
    scored = {row.id for part in test.values() for row in part}
    train = _disjoint(train, scored, "train")
    validation: Rows = []
    if hold_out:
        validation = _disjoint(_validation(data, rows, train, key), scored, "validation")
        held = {row.id for row in validation}
        train = [row for row in train if row.id not in held]
    parts = {"train": train, **({"validation": validation} if hold_out else {}), **test}
    for name, part in parts.items():
        _check_labels(data.manifest, name, part, single)
    classes = _classes(data) if data.classes is not None else tuple(sorted(_labels(train)))
    _check_equal(data, classes, parts)
    return LabelledRows(classes, train, validation, test)


def _existing(manifest: Path, what: str, wanted: Sequence[str], found: Sequence[str | None]) -> None:
    known = sorted({name for name in found if name is not None})
    if missing := [name for name in wanted if name not in known]:
        names = ", ".join(known) or "none"
        raise AlmosaicError(f"{manifest} has no {what} {', '.join(missing)}; there are: {names}")


def _disjoint(part: Rows, scored: set[str], name: str) -> Rows:
    if shared := [row.id for row in part if row.id in scored]:
        raise AlmosaicError(
            f"{len(shared)} rows are in both {name} and test, {shared[0]} among them; name other splits"
        )
    return part


def _validation(data: LabelledData, rows: Rows, train: Rows, key: int) -> Rows:
    """The rows that choose the epoch."""
    if data.validation_fold is not None:
        _existing(data.manifest, "fold", [data.validation_fold], [row.fold for row in rows])
        return [row for row in rows if row.fold == data.validation_fold]
    if data.validation_split is not None:
        _existing(data.manifest, "split", [data.validation_split], [row.split for row in rows])
        return [row for row in rows if row.split == data.validation_split]
    return _held_out(train, data, key)


def _held_out(train: Rows, data: LabelledData, key: int) -> Rows:
    """A share of each label's rows, at least one group of them; rows count by their rarest label.

    The rarest labels come first. Groups are taken in drawn order until the share is reached, never the last
    one that a label has.
    """
    groups = [_group(row, data) for row in train]
    brings: dict[str, Counter[str]] = defaultdict(Counter)
    for row, name in zip(train, groups, strict=True):
        brings[name].update(row.labels)
    holders: dict[str, list[str]] = defaultdict(list)
    for name in sorted(brings, key=lambda name: draws.key(key, name)):
        for label in brings[name]:
            holders[label].append(name)
    counts = Counter(label for row in train for label in row.labels)
    chosen, held = set[str](), Counter[str]()
    for label in sorted(counts, key=lambda label: (counts[label], label)):
        wanted = max(1, round(data.validation_share * counts[label]))
        for name in holders[label]:
            if held[label] >= wanted:
                break
            if name in chosen or any(held[one] + n >= counts[one] for one, n in brings[name].items()):
                continue
            chosen.add(name)
            held.update(brings[name])
    return [row for row, name in zip(train, groups, strict=True) if name in chosen]


def _group(row: ManifestRow, data: LabelledData) -> str:
    """The value of the group's column; every row by itself where none is named."""
    if data.group is None:
        return row.id
    if (value := row.extra.get(data.group)) is None:
        columns = ", ".join(sorted(row.extra)) or "none"
        raise AlmosaicError(
            f"{data.manifest}: row {row.id} has no column {data.group} (data.group); it has: {columns}"
        )
    return str(value)


def _check_labels(manifest: Path, name: str, part: Rows, single: bool) -> None:
    if not part:
        raise AlmosaicError(f"{manifest} leaves no rows for {name}; name other folds or splits")
    for row in part:
        if not row.labels:
            raise AlmosaicError(
                f"{manifest}: row {row.id} ({name}) has no labels; add them or remove the row"
            )
        if single and len(row.labels) > 1:
            raise AlmosaicError(
                f"{manifest}: row {row.id} ({name}) has {len(row.labels)} labels "
                f"({', '.join(row.labels)}), but loss: ce takes one; set loss: bce or mend the row"
            )


def _labels(rows: Rows) -> set[str]:
    return {label for row in rows for label in row.labels}


def _classes(data: LabelledData) -> tuple[str, ...]:
    """The column `label` of the classes file."""
    assert data.classes is not None
    try:
        with data.classes.open(encoding="utf-8-sig", newline="") as file:
            table = list(csv.DictReader(file))
    except OSError as error:
        raise AlmosaicError(f"{data.classes}: cannot be read: {error.strerror or error}") from error
    names = tuple(row["label"] for row in table if row.get("label"))
    if not names or len(set(names)) != len(names):
        found = "no such column or no rows" if not names else "a label twice"
        raise AlmosaicError(f"{data.classes}: expected a column `label` with every class once, found {found}")
    return names


def _check_equal(data: LabelledData, classes: tuple[str, ...], parts: dict[str, Rows]) -> None:
    """One line about the first part whose labels are not the classes."""
    source = "train" if data.classes is None else str(data.classes)
    for name, part in parts.items():
        found = _labels(part)
        extra, missing = sorted(found - set(classes)), sorted(set(classes) - found)
        if extra or missing:
            differences = [f"only in {name}: {_some(extra)}"] if extra else []
            differences += [f"only in {source}: {_some(missing)}"] if missing else []
            raise AlmosaicError(
                f"{data.manifest}: the labels of {name} and of {source} differ: {'; '.join(differences)}; "
                "mend the manifest or choose other parts"
            )


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
