"""Convex fits on standardised features; the strength of regularisation is chosen inside the training rows."""

import warnings
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from almosaic.evaluation.intervals import measure
from almosaic.evaluation.splits import Features, Fit, Labels, Scores, Targets

Classifier = Literal["logistic", "svm"]
STRENGTHS = {"logistic": (0.001, 0.01, 0.1, 1.0, 10.0), "svm": (0.01, 0.1, 1.0)}  # candidates for C
FOLDS = 3
MAX_ITERATIONS = 300


def linear(labels: Labels, classifier: Classifier = "logistic", seed: int = 0) -> tuple[Fit, list[float]]:
    """A linear classifier, and a list that receives the C of each fit.

    `logistic` is multinomial logistic regression, one logistic regression per class where a row may have
    several labels; `svm` is a linear support vector machine, one label against the rest. C has the best score
    in cross-validation over the training rows, the smallest of equals.

    Args:
        labels: Of all rows; they say whether a row may have several.
        classifier: Which of the two.
        seed: Of the inner folds.
    """
    chosen: list[float] = []

    def fit(train: Features, targets: Targets, test: Features) -> Scores:
        mean, deviation = train.mean(axis=0), train.std(axis=0)
        scale = np.where(deviation > 0, deviation, 1)
        rows, asked = (train - mean) / scale, (test - mean) / scale
        strength = _best_strength(labels, classifier, rows, targets, seed)
        chosen.append(strength)
        return _scores(labels, classifier, strength, rows, targets, asked)

    return fit, chosen


def majority(train: Features, targets: Targets, test: Features) -> Scores:
    """How often each label occurs in training, whatever the test row: [m, C]."""
    return np.tile(targets.mean(axis=0), (len(test), 1))


def inner_folds(labels: Labels, targets: Targets, folds: int, seed: int) -> NDArray[np.intp]:
    """A fold number for each training row [n]; every label is spread over the folds as evenly as it goes.

    Fewer folds come out where a label has fewer rows; one fold = the rows cannot be split.
    """
    generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence((seed, 3))))
    order = generator.permutation(len(targets))
    if not labels.several:
        folds = min(folds, int(targets.sum(axis=0)[targets.any(axis=0)].min()))
        order = order[np.argsort(targets[order].argmax(axis=1), kind="stable")]
    numbers = np.empty(len(targets), dtype=np.intp)
    numbers[order] = np.arange(len(targets)) % max(1, folds)
    return numbers


def _best_strength(
    labels: Labels, classifier: Classifier, rows: Features, targets: Targets, seed: int
) -> float:
    """The C with the best mean score over the inner folds; 1.0 where a label has a single row."""
    numbers = inner_folds(labels, targets, FOLDS, seed)
    strengths = STRENGTHS[classifier]
    if numbers.max(initial=0) == 0:
        return 1.0
    found = np.zeros(len(strengths))
    for fold in range(numbers.max() + 1):
        inside, outside = numbers != fold, numbers == fold
        # Standardised by all training rows: their scale says nothing about labels.
        for place, strength in enumerate(strengths):
            scores = _scores(labels, classifier, strength, rows[inside], targets[inside], rows[outside])
            found[place] += measure(labels, scores, targets[outside])
    return strengths[int(np.argmax(found > found.max() - 1e-9))]


def _scores(
    labels: Labels, classifier: Classifier, strength: float, rows: Features, targets: Targets, test: Features
) -> Scores:
    """Fit on standardised rows [n, D] and score [m, D]; classes without a row score lowest."""
    if labels.several:
        return _joint_logistic(strength, rows, targets, test)
    index = targets.argmax(axis=1)
    present = np.unique(index)
    found = np.full((len(test), targets.shape[1]), -np.inf)
    if len(present) == 1:
        found[:, present] = 0.0
        return found
    decision = _fitted(classifier, strength, rows, index).decision_function(test)
    found[:, present] = decision if decision.ndim == 2 else np.stack([-decision, decision], axis=1)
    return found


def _fitted(classifier: Classifier, strength: float, rows: Features, index: NDArray[np.intp]) -> Any:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.svm import LinearSVC

    if classifier == "logistic":
        model: Any = LogisticRegression(C=strength, max_iter=MAX_ITERATIONS, tol=1e-3)
    else:
        model = LinearSVC(C=strength, dual=False, tol=1e-2)
    with warnings.catch_warnings():
        # Weak regularisation converges late and rarely wins; the chosen C decides, not the last digit.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return model.fit(rows, index)


def _joint_logistic(strength: float, rows: Features, targets: Targets, test: Features) -> Scores:
    """One logistic regression per class, all at once: sum of the losses + |W|^2 / 2C."""
    from scipy.optimize import minimize

    width, classes = rows.shape[1], targets.shape[1]
    truth, x = targets.astype(np.float64), rows.astype(np.float64)

    def loss(flat: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        weights, bias = flat[:-classes].reshape(width, classes), flat[-classes:]
        logits = x @ weights + bias
        value = float((np.logaddexp(0, logits) - truth * logits).sum() + (weights**2).sum() / (2 * strength))
        error = 1 / (1 + np.exp(-np.clip(logits, -500, 500))) - truth
        return value, np.concatenate([(x.T @ error + weights / strength).ravel(), error.sum(axis=0)])

    options = {"maxiter": MAX_ITERATIONS, "ftol": 1e-7}
    found = minimize(loss, np.zeros((width + 1) * classes), jac=True, method="L-BFGS-B", options=options).x
    scores: Scores = test @ found[:-classes].reshape(width, classes) + found[-classes:]
    return scores
