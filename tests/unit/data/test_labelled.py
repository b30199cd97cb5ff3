"""Labelled rows by fold and split: what trains, what is held out, what is refused."""

import json
import re
from collections import Counter

import numpy as np
import pytest
from pydantic import ValidationError

from almosaic.data.labelled import LabelledData, Targets, open_labelled
from almosaic.errors import AlmosaicError
from tests.unit.data.labelled_manifest import LABELS, folds, write_tones


def opened(manifest, hold_out=True, single=True, key=1, **data):
    settings = LabelledData.model_validate({"manifest": str(manifest), **data})
    return open_labelled(settings, hold_out=hold_out, single=single, key=key)


@pytest.fixture
def manifest(tmp_path):
    lines = [
        json.dumps({"id": str(i), "audio": f"{i}.wav", "labels": labels, **columns})
        for i, (labels, columns) in enumerate(folds(per_label=10))
    ]
    path = tmp_path / "manifest.jsonl"
    path.write_text("\n".join(lines))
    return path


def edited(manifest, **changes):
    """The manifest with its last row changed."""
    *lines, last = manifest.read_text().splitlines()
    manifest.write_text("\n".join([*lines, json.dumps({**json.loads(last), **changes})]))
    return manifest


def ids(rows):
    return {row.id for row in rows}


def test_a_fold_is_scored_and_a_share_of_the_others_is_held_out_by_label(manifest):
    rows = opened(manifest, fold=3, validation_share=0.2)
    assert rows.classes == LABELS
    assert {row.fold for row in rows.test["fold 3"]} == {"3"} and len(rows.test["fold 3"]) == 30
    assert Counter(row.labels[0] for row in rows.validation) == dict.fromkeys(LABELS, 4)
    assert len(rows.train) == 48 and not ids(rows.train) & ids(rows.validation)
    assert not (ids(rows.train) | ids(rows.validation)) & ids(rows.test["fold 3"])


def test_the_held_out_rows_depend_on_the_key_alone(manifest):
    first, again, other = (opened(manifest, fold=3, key=key).validation for key in (1, 1, 2))
    assert ids(first) == ids(again) != ids(other)
    lines = manifest.read_text().splitlines()
    manifest.write_text("\n".join(reversed(lines)))
    assert ids(opened(manifest, fold=3, key=1).validation) == ids(first)


def test_a_group_stays_on_one_side(manifest):
    rows = opened(manifest, fold=3, group="take", validation_share=0.3)
    held, kept = ({row.extra["take"] for row in part} for part in (rows.validation, rows.train))
    assert held and not held & kept
    with pytest.raises(AlmosaicError, match=r"row 0 has no column source .*it has: take"):
        opened(manifest, fold=3, group="source")


def test_rows_of_several_labels_are_held_out_once(manifest):
    rows = [["rare", "common"]] * 10 + [["common"]] * 10
    lines = [
        json.dumps({"id": str(i), "audio": f"{i}.wav", "labels": labels, "fold": "1"})
        for i, labels in enumerate(rows)
    ]
    test = json.dumps({"id": "t", "audio": "t.wav", "labels": ["rare", "common"], "fold": "2"})
    manifest.write_text("\n".join([*lines, test]))
    for key in range(5):
        held = opened(manifest, fold=2, single=False, validation_share=0.2, key=key).validation
        counts = Counter(label for row in held for label in row.labels)
        assert counts["common"] == 4 and counts["rare"] >= 2


def test_splits_and_named_validation_parts(manifest):
    rows = opened(manifest, train=["train"], test=["test"], validation_fold=2)
    assert {row.fold for row in rows.train} == {"1"} and {row.fold for row in rows.validation} == {"2"}
    assert {row.fold for row in rows.test["test"]} == {"3"}
    everything = opened(manifest, train=["train"], test=["test"], hold_out=False)
    assert len(everything.train) == 60 and not everything.validation


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"fold": 7}, r"has no fold 7; there are: 1, 2, 3"),
        ({"train": ["train"], "test": ["eval"]}, r"has no split eval; there are: test, train"),
        ({"fold": 3, "validation_fold": 9}, r"has no fold 9"),
        ({"fold": 3, "validation_split": "test"}, r"30 rows are in both validation and test, 60 among them"),
        ({"train": ["train", "test"], "test": ["test"]}, r"30 rows are in both train and test"),
    ],
)
def test_parts_that_do_not_exist_or_overlap(manifest, data, message):
    with pytest.raises(AlmosaicError, match=message):
        opened(manifest, **data)


@pytest.mark.parametrize("data", [{}, {"fold": 1, "test": ["test"], "train": ["train"]}, {"test": ["test"]}])
def test_a_fold_or_splits_are_given(manifest, data):
    with pytest.raises((AlmosaicError, ValidationError), match=r"data\.fold.*data\.train and data\.test"):
        opened(manifest, **data)


def test_rows_without_a_label_or_with_too_many(manifest):
    edited(manifest, labels=["high", "low"])
    assert len(opened(manifest, fold=3, single=False).test["fold 3"]) == 30
    with pytest.raises(AlmosaicError, match=r"row 89 \(fold 3\) has 2 labels \(high, low\).*loss: bce"):
        opened(manifest, fold=3)
    edited(manifest, labels=[])
    with pytest.raises(AlmosaicError, match=r"row 89 \(fold 3\) has no labels"):
        opened(manifest, fold=3, single=False)


def test_unequal_label_sets_are_listed(manifest, tmp_path):
    edited(manifest, labels=["whistle"])
    with pytest.raises(AlmosaicError, match=r"labels of fold 3 and of train differ: only in fold 3: whistle"):
        opened(manifest, fold=3)
    classes = tmp_path / "classes.csv"
    classes.write_text("label,index\nlow,0\nmiddle,1\nhigh,2\ngong,3\n")
    message = re.escape(f"labels of train and of {classes} differ: only in {classes}: gong")
    with pytest.raises(AlmosaicError, match=message):
        opened(manifest, fold=3, classes=str(classes))


def test_the_classes_file_orders_the_classes(manifest, tmp_path):
    classes = tmp_path / "classes.csv"
    classes.write_text("index,label\n0,middle\n1,low\n2,high\n")
    rows = opened(manifest, fold=3, classes=str(classes))
    assert rows.classes == ("middle", "low", "high")
    assert Targets(rows.test["fold 3"][:1], rows.classes).multi_hot([0]).tolist() == [[0.0, 0.0, 1.0]]
    classes.write_text("name\nlow\n")
    with pytest.raises(AlmosaicError, match="expected a column `label`"):
        opened(manifest, fold=3, classes=str(classes))


def test_weights_favour_rare_labels(tmp_path):
    rows = [(["low"], {})] * 6 + [(["high"], {})] * 2 + [(["low", "high"], {})]
    manifest = write_tones(tmp_path, [(labels, {"fold": str(i % 2)}) for i, (labels, _) in enumerate(rows)])
    all_rows = opened(manifest, fold=1, hold_out=False, single=False)
    targets = Targets([*all_rows.train, *all_rows.test["fold 1"]], all_rows.classes)
    by_labels = dict(zip(targets.labels, targets.weights(), strict=True))
    np.testing.assert_allclose([by_labels[(1,)], by_labels[(0,)], by_labels[(0, 1)]], [1 / 7, 1 / 3, 10 / 21])
