"""Scores of captions and classifiers, and intervals, from plain arrays.

BLEU, ROUGE-L and CIDEr-D follow the definitions of the COCO caption toolkit (Chen et al. 2015) and agree with
`pycocoevalcap` on tokenised text; no Java is needed. `predictions` holds one text per clip and `references`
one or more texts per clip.
"""

import math
import re
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from almosaic.errors import AlmosaicError

NGRAMS = 4
ROUGE_BETA = 1.2
CIDER_SIGMA = 6.0
RESAMPLES = 2000

Ngrams = Counter[tuple[str, ...]]

_TOKEN = re.compile(
    r"n't\b|'(?:s|re|ve|ll|d|m)\b"  # the second half of a contraction
    r"|\d+(?:[.,:/]\d+)+"  # 3.5, 1,000, 10:30, 1/2
    r"|\w+?(?=n't\b)|\w+(?:[-/]\w+)*"  # words; hyphens and slashes stay inside them
    r"|[%$&#@]"
)


def tokenize(text: str) -> list[str]:
    """Words in lower case, close to the Penn Treebank rules that caption scores are computed with.

    Contractions are split (don't -> do n't, dog's -> dog 's), hyphenated words stay whole, punctuation and
    brackets are dropped. Tokens joined by blanks come back unchanged.
    """
    return _TOKEN.findall(text.lower().replace("’", "'"))


def bleu(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """Corpus BLEU (Papineni et al. 2002) as `bleu1` to `bleu4`; the closest reference length counts."""
    hypotheses, targets = _tokenized(predictions, references)
    correct, guessed = np.zeros(NGRAMS), np.zeros(NGRAMS)
    length, target_length = 0, 0
    for words, options in zip(hypotheses, targets, strict=True):
        length += len(words)
        target_length += min((abs(len(option) - len(words)), len(option)) for option in options)[1]
        for n in range(1, NGRAMS + 1):
            most: Ngrams = Counter()
            for option in options:
                most |= _ngrams(option, n)
            guessed[n - 1] += max(0, len(words) - n + 1)
            correct[n - 1] += (_ngrams(words, n) & most).total()
    # The toolkit's two small numbers: no n-gram at all scores 0 instead of dividing by 0.
    precision = np.cumprod((correct + 1e-15) / (guessed + 1e-9))
    ratio = (length + 1e-15) / (target_length + 1e-9)
    brevity = math.exp(1 - 1 / ratio) if ratio < 1 and length else float(ratio >= 1)
    return {f"bleu{n}": float(precision[n - 1] ** (1 / n) * brevity) for n in range(1, NGRAMS + 1)}


def rouge_l(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Mean ROUGE-L (Lin 2004), beta 1.2: best precision and best recall over the references of a clip."""
    hypotheses, targets = _tokenized(predictions, references)
    scores = []
    for words, options in zip(hypotheses, targets, strict=True):
        common = [_longest_common_subsequence(words, option) for option in options]
        precision = max(common) / max(1, len(words))
        recall = max(shared / max(1, len(option)) for shared, option in zip(common, options, strict=True))
        weight = recall + ROUGE_BETA**2 * precision
        scores.append((1 + ROUGE_BETA**2) * precision * recall / weight if weight else 0.0)
    return float(np.mean(scores))


def cider_d(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Mean CIDEr-D (Vedantam et al. 2015), n-grams 1 to 4, sigma 6, times 10.

    The inverse document frequency is computed over the references given here, so a subset has another scale.

    Raises:
        AlmosaicError: Fewer than two clips, where the measure is undefined.
    """
    hypotheses, targets = _tokenized(predictions, references)
    if len(targets) < 2:
        raise AlmosaicError(f"CIDEr-D needs at least 2 clips, found {len(targets)}; evaluate more clips")
    documents: Ngrams = Counter()
    for options in targets:
        documents.update(
            {gram for option in options for n in range(1, NGRAMS + 1) for gram in _ngrams(option, n)}
        )
    log_clips = math.log(len(targets))
    weight = {gram: log_clips - math.log(count) for gram, count in documents.items()}
    scores = []
    for words, options in zip(hypotheses, targets, strict=True):
        total = 0.0
        for option in options:
            penalty = math.exp(-((len(words) - len(option)) ** 2) / (2 * CIDER_SIGMA**2))
            for n in range(1, NGRAMS + 1):
                total += penalty * _clipped_cosine(_ngrams(words, n), _ngrams(option, n), weight, log_clips)
        scores.append(10 * total / NGRAMS / len(options))
    return float(np.mean(scores))


def mean_average_precision(scores: ArrayLike, targets: ArrayLike) -> float:
    """Mean over classes of the average precision of `scores` [n, C] against 0/1 `targets` [n, C].

    Raises:
        AlmosaicError: The shapes differ, or a class has no positive row.
    """
    from sklearn.metrics import average_precision_score

    ranked, truth = np.asarray(scores, dtype=np.float64), np.asarray(targets)
    if ranked.shape != truth.shape or ranked.ndim != 2:
        raise AlmosaicError(f"expected scores and targets [n, C], found {ranked.shape} and {truth.shape}")
    empty = np.flatnonzero(truth.sum(axis=0) == 0)
    if empty.size:
        raise AlmosaicError(f"expected a positive row for every class, found none for class {empty[0]}")
    return float(average_precision_score(truth, ranked, average="macro"))


def mean_auc(scores: ArrayLike, targets: ArrayLike) -> float:
    """Mean over classes of the area under the ROC curve of `scores` [n, C] against 0/1 `targets` [n, C].

    Raises:
        AlmosaicError: The shapes differ, or a class has no positive or no negative row.
    """
    from sklearn.metrics import roc_auc_score

    ranked, truth = np.asarray(scores, dtype=np.float64), np.asarray(targets)
    if ranked.shape != truth.shape or ranked.ndim != 2:
        raise AlmosaicError(f"expected scores and targets [n, C], found {ranked.shape} and {truth.shape}")
    positive = truth.sum(axis=0)
    uniform = np.flatnonzero((positive == 0) | (positive == len(truth)))
    if uniform.size:
        raise AlmosaicError(f"expected positive and negative rows for every class, not so class {uniform[0]}")
    return float(roc_auc_score(truth, ranked, average="macro"))


def top1_accuracy(scores: ArrayLike, targets: ArrayLike) -> float:
    """Share of the rows of `scores` [n, C] whose highest score is where their target [n] or [n, C] is.

    Of several labels of a row the first counts, as in the published evaluation.
    """
    ranked, truth = np.asarray(scores), np.asarray(targets)
    wanted = truth.argmax(axis=1) if truth.ndim == 2 else truth
    return float(np.mean(ranked.argmax(axis=1) == wanted))


def equal_error_rate(scores: ArrayLike, targets: ArrayLike) -> float:
    """False positives at the threshold where they come closest to the misses, of `scores` [n], `targets` [n].

    Raises:
        AlmosaicError: Not 0/1 targets with both kinds of rows.
    """
    from sklearn.metrics import roc_curve

    ranked, truth = np.asarray(scores, dtype=np.float64), np.asarray(targets)
    if set(np.unique(truth)) != {0, 1}:
        raise AlmosaicError(f"expected targets 0 and 1, both of them, found {np.unique(truth).tolist()[:5]}")
    false_positives, found, _ = roc_curve(truth, ranked, pos_label=1)
    return float(false_positives[np.argmin(np.abs(1.0 - found - false_positives))])


def bootstrap_interval(
    values: ArrayLike, *, resamples: int = RESAMPLES, seed: int = 0, level: float = 0.95
) -> tuple[float, float]:
    """Percentile interval of the mean of `values` [n], resampled by rows."""
    rows = np.asarray(values, dtype=np.float64)
    if rows.ndim != 1 or rows.size == 0:
        raise AlmosaicError(f"expected at least one value in a row, found an array of shape {rows.shape}")
    return percentile_interval(resample_counts(rows.size, resamples, seed) @ rows / rows.size, level)


def resample_counts(rows: int, resamples: int, *seed: int) -> NDArray[np.int64]:
    """How often each of `rows` is drawn in each resample, [resamples, rows]."""
    generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed)))
    return generator.multinomial(rows, np.full(rows, 1 / rows), size=resamples)


def percentile_interval(means: NDArray[np.float64], level: float = 0.95) -> tuple[float, float]:
    """The central `level` of resampled means [resamples]."""
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _tokenized(
    predictions: Sequence[str], references: Sequence[Sequence[str]]
) -> tuple[list[list[str]], list[list[list[str]]]]:
    if len(predictions) != len(references) or not predictions:
        raise AlmosaicError(
            f"expected as many predictions as reference lists, at least one, "
            f"found {len(predictions)} and {len(references)}"
        )
    if any(isinstance(options, str) or not options for options in references):
        raise AlmosaicError("expected a list of at least one reference for every prediction")
    targets = [[tokenize(option) for option in options] for options in references]
    return [tokenize(text) for text in predictions], targets


def _ngrams(words: list[str], n: int) -> Ngrams:
    return Counter(tuple(words[start : start + n]) for start in range(len(words) - n + 1))


def _longest_common_subsequence(first: list[str], second: list[str]) -> int:
    row = [0] * (len(second) + 1)
    for word in first:
        diagonal = 0
        for column, other in enumerate(second, start=1):
            above = row[column]
            row[column] = diagonal + 1 if word == other else max(above, row[column - 1])
            diagonal = above
    return row[-1]


def _clipped_cosine(
    hypothesis: Ngrams, reference: Ngrams, weight: dict[tuple[str, ...], float], unseen: float
) -> float:
    """Cosine of two tf-idf vectors, the hypothesis' counts clipped to the reference's."""
    tested = {gram: count * weight.get(gram, unseen) for gram, count in hypothesis.items()}
    target = {gram: count * weight[gram] for gram, count in reference.items()}
    norm = math.sqrt(sum(v * v for v in tested.values())) * math.sqrt(sum(v * v for v in target.values()))
    shared = sum(min(value, target[gram]) * target[gram] for gram, value in tested.items() if gram in target)
    return shared / norm if norm else 0.0
