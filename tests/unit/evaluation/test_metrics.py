import numpy as np
import pytest

from almosaic.errors import AlmosaicError
from almosaic.evaluation.metrics import (
    bleu,
    bootstrap_interval,
    cider_d,
    equal_error_rate,
    mean_auc,
    mean_average_precision,
    rouge_l,
    tokenize,
    top1_accuracy,
)

WORDS = [
    "a",
    "the",
    "dog",
    "cat",
    "barks",
    "meows",
    "rain",
    "falls",
    "then",
    "while",
    "engine",
    "runs",
    "softly",
    "far",
    "away",
    "3",
    "twice",
]


def corpus(seed, clips=30, most_references=5):
    """Random captions that share words with their references, some of them empty or very short."""
    rng = np.random.default_rng(seed)
    predictions, references = [], []
    for clip in range(clips):
        options = [
            " ".join(rng.choice(WORDS, rng.integers(1, 12)))
            for _ in range(rng.integers(1, most_references + 1))
        ]
        words = options[0].split()[: rng.integers(1, 12)] + list(rng.choice(WORDS, rng.integers(0, 4)))
        predictions.append("" if clip == 3 else " ".join(words))
        references.append(options)
    return predictions, references


@pytest.mark.parametrize("seed", range(4))
def test_caption_metrics_equal_the_coco_toolkit(seed):
    pytest.importorskip("pycocoevalcap")
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge as RougeL  # codespell:ignore rouge

    predictions, references = corpus(seed)
    results = {i: [text] for i, text in enumerate(predictions)}
    truth = dict(enumerate(references))
    expected_bleu, _ = Bleu(4).compute_score(truth, results, verbose=0)
    ours = bleu(predictions, references)
    assert [ours[f"bleu{n}"] for n in range(1, 5)] == pytest.approx(expected_bleu, abs=1e-6)
    assert rouge_l(predictions, references) == pytest.approx(
        RougeL().compute_score(truth, results)[0], abs=1e-6
    )
    assert cider_d(predictions, references) == pytest.approx(
        Cider().compute_score(truth, results)[0], abs=1e-6
    )


def test_a_perfect_caption_scores_the_maximum():
    references = [["a dog barks at a cat"], ["rain falls on the roof"]]
    predictions = [options[0] for options in references]
    assert list(bleu(predictions, references).values()) == pytest.approx([1, 1, 1, 1], abs=1e-6)
    assert rouge_l(predictions, references) == pytest.approx(1)
    assert cider_d(predictions, references) == pytest.approx(10)


def test_nothing_right_and_nothing_said_score_zero():
    references = [["a dog barks at a cat"], ["rain falls on the roof"]]
    for predictions in (["", ""], ["x y", "z"]):
        assert max(bleu(predictions, references).values()) == pytest.approx(0, abs=1e-6)
        assert rouge_l(predictions, references) == 0
        assert cider_d(predictions, references) == 0


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("A dog barks, then rain.", ["a", "dog", "barks", "then", "rain"]),
        (
            "The dog's bowl isn't empty; they don't",
            ["the", "dog", "'s", "bowl", "is", "n't", "empty", "they", "do", "n't"],
        ),
        (
            '"Hello" (a man) -- says: well-known... and/or',
            ["hello", "a", "man", "says", "well-known", "and/or"],
        ),
        ("3.5 seconds, 1,000 times & 50%", ["3.5", "seconds", "1,000", "times", "&", "50", "%"]),
        ("it’s   late\n", ["it", "'s", "late"]),
        ("", []),
    ],
)
def test_tokenize(text, tokens):
    assert tokenize(text) == tokens
    assert tokenize(" ".join(tokens)) == tokens


def test_wrong_shapes_are_named():
    with pytest.raises(AlmosaicError, match="found 1 and 2"):
        bleu(["a"], [["a"], ["b"]])
    with pytest.raises(AlmosaicError, match="at least one reference"):
        rouge_l(["a"], [[]])
    with pytest.raises(AlmosaicError, match="at least one reference"):
        rouge_l(["a"], ["a"])
    with pytest.raises(AlmosaicError, match="at least 2 clips"):
        cider_d(["a"], [["a"]])


def test_mean_average_precision_by_hand():
    scores = [[0.9, 0.1], [0.8, 0.9], [0.1, 0.3]]
    targets = [[1, 0], [0, 1], [1, 0]]
    assert mean_average_precision(scores, targets) == pytest.approx(((1 + 2 / 3) / 2 + 1) / 2)
    with pytest.raises(AlmosaicError, match="none for class 1"):
        mean_average_precision(scores, [[1, 0], [0, 0], [1, 0]])
    with pytest.raises(AlmosaicError, match="found"):
        mean_average_precision(scores, [1, 0, 1])


def test_bootstrap_covers_the_mean_as_often_as_it_says():
    rng = np.random.default_rng(0)
    covered = 0
    for trial in range(200):
        low, high = bootstrap_interval(rng.random(80) < 0.3, resamples=500, seed=trial)
        covered += low <= 0.3 <= high
    assert 0.90 <= covered / 200 <= 0.99


def test_bootstrap_is_seeded_and_tight_for_constants():
    values = np.arange(50)
    assert bootstrap_interval(values, seed=1) == bootstrap_interval(values, seed=1)
    assert bootstrap_interval(values, seed=1) != bootstrap_interval(values, seed=2)
    assert bootstrap_interval(np.ones(5)) == (1, 1)
    with pytest.raises(AlmosaicError):
        bootstrap_interval([])


def test_equal_error_rate_by_hand():
    """At the threshold 0.6 one of three positives is missed and one of three negatives let through."""
    assert equal_error_rate([0.1, 0.2, 0.7, 0.5, 0.6, 0.9], [0, 0, 0, 1, 1, 1]) == pytest.approx(1 / 3)
    assert equal_error_rate([0.1, 0.9], [0, 1]) == 0.0
    with pytest.raises(AlmosaicError, match="expected targets 0 and 1, both of them"):
        equal_error_rate([0.1, 0.9], [1, 1])


def test_mean_auc_and_accuracy_by_hand():
    scores = np.array([[0.9, 0.1], [0.4, 0.3], [0.5, 0.8]])
    targets = np.array([[1, 0], [0, 1], [1, 1]])
    assert mean_auc(scores, targets) == pytest.approx((1.0 + 1.0) / 2)
    assert mean_auc(-scores, targets) == pytest.approx(0.0)
    assert top1_accuracy(scores, [0, 1, 1]) == pytest.approx(2 / 3)
    assert top1_accuracy(scores, targets) == pytest.approx(1 / 3), "the first of several labels counts"
    with pytest.raises(AlmosaicError, match="not so class 1"):
        mean_auc(scores, [[1, 1], [0, 1], [1, 1]])
