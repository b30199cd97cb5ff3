"""Scores of logits, and which of two epochs is better."""

import numpy as np
import pytest

from almosaic.training.selection import better, classifier_scores


def test_an_error_rate_is_better_when_it_is_lower():
    assert better("accuracy", 0.6, 0.5) and not better("accuracy", 0.5, 0.5)
    assert better("eer", 0.1, 0.2) and not better("eer", 0.3, 0.2)


def test_one_label_gives_accuracy_and_two_classes_an_error_rate():
    logits = np.array([[2.0, 1.0, 0.0], [0.0, 1.0, 2.0], [0.0, 3.0, 2.0]])
    assert classifier_scores(logits, np.eye(3)[[0, 2, 2]], "ce") == {
        "accuracy": pytest.approx(2 / 3),
        "classes": 2.0,
    }
    margins = np.array([[0.0, -2.0], [0.0, -1.0], [0.0, 1.0], [0.0, 2.0]])
    perfect = classifier_scores(margins, np.eye(2)[[0, 0, 1, 1]], "ce")
    assert perfect["eer"] == 0.0 and perfect["auc"] == 1.0


def test_classes_without_both_kinds_of_rows_are_counted_out():
    logits = np.array([[3.0, 0.0, 1.0], [1.0, 2.0, 0.0], [2.0, 1.0, 2.0]])
    hot = np.array([[1.0, 0, 0], [0, 1.0, 0], [1.0, 0, 0]])
    scores = classifier_scores(logits, hot, "bce")
    assert scores["classes"] == 2.0 and scores["map"] == 1.0 and scores["auc"] == 1.0
