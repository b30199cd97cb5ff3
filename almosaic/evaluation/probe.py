"""Linear probes on frozen features, beside hand-made features: what an encoder knows without fine-tuning."""

import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from almosaic.audio import SAMPLING_RATE, load_audio
from almosaic.data.manifest import ManifestRow
from almosaic.errors import AlmosaicError
from almosaic.evaluation.knn import knn
from almosaic.evaluation.splits import Features, Labels, accuracy_over_parts
from almosaic.features import log_mel_fbank
from almosaic.inference import embed, load_model
from almosaic.scenes.bank import Bank
from almosaic.settings import Settings

STRENGTHS = {"logistic": (0.001, 0.01, 0.1, 1.0, 10.0), "svm": (0.01, 0.1, 1.0)}  # candidates for C
HAND_FEATURES = "hand features"

Encoder = str | Path | tuple[Any, Any]
"""A model or run folder, or a model with its processor; of an audio-language model its encoder is probed."""


class ProbeSettings(Settings):
    """Probes of frozen encoders on labelled clips.

    `layers` are blocks counted from 0, None is the last; `train` and `test` name splits or folds.
    """

    name: Literal["probe"] = "probe"
    protocols: tuple[Literal["linear", "knn"], ...] = ("linear", "knn")
    layers: tuple[int | None, ...] = (None,)
    hand_features: bool = True
    neighbours: int = 10
    train: tuple[str, ...] = ("train",)
    test: tuple[str, ...] = ("test",)
    seed: int = 0
    batch_size: int = 16


@dataclass(frozen=True)
class ProbeClips:
    """Labelled clips in order: `labels` and `parts` (split or fold) [n], and the waveform [S] of each."""

    labels: tuple[str, ...]
    parts: tuple[str, ...]
    waveform: Callable[[int], NDArray[np.float32]]

    @classmethod
    def from_banks(cls, banks: Mapping[str, Bank]) -> "ProbeClips":
        """The clips of several banks; each bank is the part of its name."""
        clips = [(part, bank, clip) for part, bank in banks.items() for clip in bank.clips]
        return cls(
            labels=tuple(clip.label for _, _, clip in clips),
            parts=tuple(part for part, _, _ in clips),
            waveform=lambda index: clips[index][1].waveform(clips[index][2]),
        )

    @classmethod
    def from_manifest(
        cls, rows: Sequence[ManifestRow], column: Literal["split", "fold"] = "split"
    ) -> "ProbeClips":
        """The rows of a manifest, each with one label; AlmosaicError names a row that has not."""
        for row in rows:
            if len(row.labels) != 1 or getattr(row, column) is None:
                found = f"labels {list(row.labels)} and {column} {getattr(row, column)!r}"
                raise AlmosaicError(f"clip {row.id!r}: a probe needs one label and a {column}, found {found}")
        return cls(
            labels=tuple(row.labels[0] for row in rows),
            parts=tuple(str(getattr(row, column)) for row in rows),
            waveform=lambda index: load_audio(rows[index].path),
        )


def linear_probe(
    features: ArrayLike,
    labels: Sequence[str],
    parts: Sequence[str],
    *,
    train: Collection[str] | None = None,
    test: Collection[str] | None = None,
    seed: int = 0,
    classifier: Literal["logistic", "svm"] = "logistic",
) -> dict[str, Any]:
    """Accuracy of a linear classifier on standardised features; C is chosen inside the training rows.

    `logistic` is multinomial logistic regression, `svm` a linear support vector machine, one label against
    the rest. C has the best accuracy in stratified cross-validation over the training rows. The other
    arguments, the result and the errors are those of `splits.accuracy_over_parts`; the result adds `protocol`
    and `regularisation`, the chosen C of each fit.
    """
    chosen: list[float] = []

    def fit_predict(train_rows: Features, train_labels: Labels, test_rows: Features) -> Labels:
        strength = _best_strength(train_rows, train_labels, seed, classifier)
        chosen.append(strength)
        predicted: Labels = _fitted(classifier, strength, train_rows, train_labels).predict(test_rows)
        return predicted

    result = accuracy_over_parts(features, labels, parts, fit_predict, train=train, test=test)
    protocol = "linear" if classifier == "logistic" else "linear SVM"
    return {"protocol": protocol, "regularisation": chosen, **result}


def hand_features(waveform: NDArray[np.float32]) -> NDArray[np.float32]:
    """Mean and deviation of the log-mel of a clip [S] at 16 kHz over time, per band: [2F]."""
    log_mel, _ = log_mel_fbank(torch.from_numpy(np.ascontiguousarray(waveform, np.float32))[None])
    frames = log_mel[0].numpy()
    return np.concatenate([frames.mean(axis=0), frames.std(axis=0)])


def encoder_rows(
    encoders: Mapping[str, Encoder],
    clips: ProbeClips,
    settings: ProbeSettings,
    progress: Callable[[int, int], None] | None = None,
) -> list[dict[str, Any]]:
    """Probe every encoder at every layer, and hand-made features beside them.

    Args:
        encoders: By the name that the report shows, for example `pretrained` and `untrained`.
        clips: The clips of the parts that `settings` names; others are left out before they are embedded.
        settings: Protocols, layers, parts.
        progress: Called with (clips embedded, clips to embed in all).

    Returns:
        Rows of `features, protocol, layer, pooling, seed` and what `splits.accuracy_over_parts` returns.
    """
    used = [i for i, part in enumerate(clips.parts) if part in {*settings.train, *settings.test}]
    labels, parts = [clips.labels[i] for i in used], [clips.parts[i] for i in used]
    passes = len(encoders) * len(settings.layers) + settings.hand_features
    done = 0

    def counted(vectors: Iterator[NDArray[np.float32]]) -> NDArray[np.float32]:
        nonlocal done
        rows = []
        for vector in vectors:
            rows.append(vector)
            done += 1
            if progress is not None:
                progress(done, passes * len(used))
        if not rows:
            raise AlmosaicError(
                f"expected clips of {', '.join({*settings.train, *settings.test})}, found none"
            )
        return np.stack(rows)

    results: list[dict[str, Any]] = []
    for name, encoder in encoders.items():
        for layer in settings.layers:
            features = counted(_embedded(encoder, clips, used, layer, settings))
            about = {"features": name, "layer": layer, "pooling": "mean", "seed": settings.seed}
            for protocol in settings.protocols:
                results.append(about | _probe(protocol, features, labels, parts, settings))
    if settings.hand_features:
        features = counted(hand_features(clips.waveform(i)) for i in used)
        about = {
            "features": HAND_FEATURES,
            "layer": None,
            "pooling": "mean and deviation",
            "seed": settings.seed,
        }
        results.append(about | _probe("svm", features, labels, parts, settings))
    return results


def _probe(
    protocol: Literal["linear", "knn", "svm"],
    features: NDArray[np.float32],
    labels: list[str],
    parts: list[str],
    settings: ProbeSettings,
) -> dict[str, Any]:
    train, test = settings.train, settings.test
    if protocol == "knn":
        return knn(features, labels, parts, train=train, test=test, k=settings.neighbours)
    classifier: Literal["logistic", "svm"] = "svm" if protocol == "svm" else "logistic"
    return linear_probe(
        features, labels, parts, train=train, test=test, seed=settings.seed, classifier=classifier
    )


def _embedded(
    encoder: Encoder, clips: ProbeClips, used: list[int], layer: int | None, settings: ProbeSettings
) -> Iterator[NDArray[np.float32]]:
    """One vector [D] per clip, in order; waveforms are read as they are needed."""
    model, processor = load_model(encoder) if isinstance(encoder, str | Path) else encoder
    extractor = getattr(processor, "feature_extractor", processor)
    sources = ((clips.waveform(i), SAMPLING_RATE) for i in used)
    vectors = embed(model, sources, layer, settings.batch_size, extractor)
    return (vector for _, vector in vectors)


def _fitted(classifier: str, strength: float, rows: Features, labels: Labels) -> Any:
    """A standardising pipeline fitted to rows [n, D]."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import LinearSVC

    if classifier == "logistic":
        model: Any = LogisticRegression(C=strength, max_iter=300, tol=1e-3)
    else:
        model = LinearSVC(C=strength, dual=False, tol=1e-2)
    with warnings.catch_warnings():
        # Weak regularisation converges late and rarely wins; the chosen C decides, not the last digit.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return make_pipeline(StandardScaler(), model).fit(rows, labels)


def _best_strength(rows: Features, labels: Labels, seed: int, classifier: str) -> float:
    """The C with the best cross-validated accuracy, the smallest of equals; 1.0 where a label has one row."""
    from sklearn.model_selection import StratifiedKFold

    folds = min(3, int(np.unique(labels, return_counts=True)[1].min()))
    if folds < 2:
        return 1.0
    strengths = STRENGTHS[classifier]
    scores = np.zeros(len(strengths))
    for inner, outer in StratifiedKFold(folds, shuffle=True, random_state=seed).split(rows, labels):
        for number, strength in enumerate(strengths):
            fitted = _fitted(classifier, strength, rows[inner], labels[inner])
            scores[number] += fitted.score(rows[outer], labels[outer]) / folds
    return strengths[int(np.argmax(scores > scores.max() - 1e-9))]
