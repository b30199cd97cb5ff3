import numpy as np
import pytest
from helpers_tiny import WINDOW_FRAMES, tiny_encoder

from almosaic.data.manifest import ManifestRow
from almosaic.errors import AlmosaicError
from almosaic.evaluation.knn import knn
from almosaic.evaluation.probe import (
    HAND_FEATURES,
    ProbeClips,
    ProbeSettings,
    encoder_rows,
    hand_features,
    linear_probe,
)
from almosaic.evaluation.splits import accuracy_over_parts
from almosaic.features import AudioMosaicFeatureExtractor, log_mel_fbank


def clusters(spread=0.3, rows=30, size=8, seed=0):
    """Three labels around three centres; the parts are a, b, c in turn."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(["dog", "cat", "rain"], rows)
    centres = {name: 3 * rng.standard_normal(size) for name in ("dog", "cat", "rain")}
    features = np.stack([centres[name] for name in labels]) + spread * rng.standard_normal((3 * rows, size))
    return features, list(labels), ["abc"[i % 3] for i in range(3 * rows)]


@pytest.mark.parametrize("probe", [linear_probe, knn])
def test_separable_labels_are_found_and_random_ones_are_not(probe):
    features, labels, parts = clusters()
    good = probe(features, labels, parts, train=["a", "b"], test=["c"])
    assert good["accuracy"] == 1.0 and good["high"] == 1.0
    assert (good["n_train"], good["n_test"]) == (60, 30)
    shuffled = np.random.default_rng(1).permutation(labels)
    chance = probe(features, list(shuffled), parts, train=["a", "b"], test=["c"])
    assert chance["low"] < 1 / 3 < chance["high"] + 0.1 and chance["accuracy"] < 0.65


@pytest.mark.parametrize("probe", [linear_probe, knn])
def test_without_parts_every_fold_is_tested_once(probe):
    features, labels, parts = clusters()
    result = probe(features, labels, parts)
    assert set(result["parts"]) == {"a", "b", "c"}
    assert result["n_test"] == 90 and result["n_train"] == 60


def test_each_tested_part_has_an_accuracy_of_its_own():
    features, labels, parts = clusters()
    wrong = [label if part != "c" else "dog" for label, part in zip(labels, parts, strict=True)]
    result = knn(features, wrong, parts, train=["a"], test=["b", "c"])
    assert result["parts"] == {"b": 1.0, "c": pytest.approx(1 / 3)}
    assert result["accuracy"] == pytest.approx(2 / 3) and result["n_test"] == 60


def test_standardisation_makes_the_scale_of_a_feature_irrelevant():
    features, labels, parts = clusters(spread=2.0)
    scaled = features * np.logspace(-4, 4, features.shape[1]) + 100
    plain, other = (linear_probe(x, labels, parts, train=["a", "b"], test=["c"]) for x in (features, scaled))
    assert other["accuracy"] == pytest.approx(plain["accuracy"], abs=0.04)


def test_the_strength_is_chosen_inside_the_training_rows():
    """Test rows that contradict the training rows must not move the choice."""
    features, labels, parts = clusters(spread=3.0)
    wrong = [label if part != "c" else "dog" for label, part in zip(labels, parts, strict=True)]
    first = linear_probe(features, labels, parts, train=["a", "b"], test=["c"])
    second = linear_probe(features, wrong, parts, train=["a", "b"], test=["c"])
    assert first["regularisation"] == second["regularisation"]


def test_one_row_per_label_still_fits():
    result = linear_probe(
        [[0.0, 1], [1, 0], [0, 1], [1, 0]],
        ["a", "b", "a", "b"],
        ["x", "x", "y", "y"],
        train=["x"],
        test=["y"],
    )
    assert result["accuracy"] == 1.0 and result["regularisation"] == [1.0]


def test_knn_is_cosine_and_votes():
    train = [[1, 0], [2, 0.1], [0.1, 5], [0, 9], [0.2, 7]]
    labels = ["x", "x", "y", "y", "y"]
    features, parts = [*train, [100.0, 1], [0.01, 0.01]], ["a"] * 5 + ["b"] * 2
    assert knn(features, [*labels, "x", "x"], parts, train=["a"], test=["b"], k=2)["accuracy"] == 1.0
    # Five neighbours are the whole training set: the majority wins whatever the direction.
    assert knn(features, [*labels, "y", "y"], parts, train=["a"], test=["b"], k=5)["accuracy"] == 1.0
    with pytest.raises(AlmosaicError, match="k of at least 1"):
        knn(features, [*labels, "y", "y"], parts, train=["a"], test=["b"], k=0)


def test_equal_votes_go_to_the_nearer_neighbours():
    features = [[1, 0], [1, 0.1], [0.5, 1], [0.4, 1], [1, 0.05]]
    for near, far in (("x", "y"), ("y", "x")):
        labels = [near, near, far, far, near]
        assert knn(features, labels, ["a"] * 4 + ["b"], train=["a"], test=["b"], k=4)["accuracy"] == 1.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train": ["z"]}, "expected rows of part 'z', found parts a, b, c"),
        ({"train": ["a"], "test": ["a"]}, "do not overlap"),
        ({"train": ["a", "b", "c"]}, "do not overlap"),
        ({"features": np.ones((90, 2, 2))}, "features \\[n, D\\]"),
        ({"labels": ["dog"]}, "features \\[n, D\\]"),
        ({"features": np.full((90, 2), np.nan)}, "90 of 90 rows"),
        ({"parts": ["a"] * 90}, "at least 2 parts"),
        ({"labels": ["dog"] * 89 + ["new"], "train": ["a", "b"]}, "none of new in a, b"),
    ],
)
def test_wrong_input_is_one_clear_line(change, message):
    features, labels, parts = clusters()
    arguments = {"features": features, "labels": labels, "parts": parts, **change}
    with pytest.raises(AlmosaicError, match=message) as caught:
        accuracy_over_parts(**arguments, fit_predict=lambda x, y, z: np.repeat(y[:1], len(z)))
    assert "\n" not in str(caught.value)


def tones(count=24):
    """Short clips of two labels: low and high tones."""
    rng = np.random.default_rng(0)
    time = np.arange(8000) / 16_000
    waves, labels = [], []
    for number in range(count):
        hertz = rng.uniform(200, 300) if number % 2 else rng.uniform(2000, 3000)
        waves.append((0.3 * np.sin(2 * np.pi * hertz * time)).astype(np.float32))
        labels.append("low" if number % 2 else "high")
    parts = ["train"] * (count - 10) + ["test"] * 8 + ["other"] * 2
    return ProbeClips(tuple(labels), tuple(parts), waves.__getitem__)


def test_hand_features_are_mean_and_deviation_per_band():
    import torch

    wave = tones().waveform(0)
    log_mel = log_mel_fbank(torch.from_numpy(wave)[None])[0][0].numpy()
    vector = hand_features(wave)
    assert vector.shape == (256,) and vector.dtype == np.float32
    assert vector[:128] == pytest.approx(log_mel.mean(0)) and vector[128:] == pytest.approx(log_mel.std(0))


def test_encoder_rows_probe_every_encoder_beside_hand_features(tmp_path):
    extractor = AudioMosaicFeatureExtractor(window_frames=WINDOW_FRAMES)
    tiny_encoder(1).save_pretrained(tmp_path)
    extractor.save_pretrained(tmp_path)
    calls = []
    rows = encoder_rows(
        {"pretrained": tmp_path, "untrained": (tiny_encoder(2), extractor)},
        tones(),
        ProbeSettings(layers=(0, None), neighbours=3),
        lambda done, total: calls.append((done, total)),
    )
    assert [(row["features"], row["layer"], row["protocol"]) for row in rows] == [
        ("pretrained", 0, "linear"),
        ("pretrained", 0, "knn"),
        ("pretrained", None, "linear"),
        ("pretrained", None, "knn"),
        ("untrained", 0, "linear"),
        ("untrained", 0, "knn"),
        ("untrained", None, "linear"),
        ("untrained", None, "knn"),
        (HAND_FEATURES, None, "linear SVM"),
    ]
    assert all(row["n_train"] == 14 and row["n_test"] == 8 for row in rows)
    assert rows[-1]["accuracy"] == 1.0
    assert calls[-1] == (5 * 22, 5 * 22) and len(calls) == 5 * 22


def test_clips_of_a_manifest_need_one_label(tmp_path):
    row = ManifestRow("a", "a.wav", tmp_path / "a.wav", split="train", labels=("dog",))
    assert ProbeClips.from_manifest([row]).labels == ("dog",)
    with pytest.raises(AlmosaicError, match=r"clip 'a': a probe needs one label and a fold, found labels"):
        ProbeClips.from_manifest([row], "fold")
