from itertools import pairwise

import numpy as np
import pytest

from almosaic.data.draws import generator
from almosaic.errors import AlmosaicError
from almosaic.scenes.bank import SyntheticBank, open_bank
from almosaic.scenes.synthetic import KINDS, TEXTURE_SECONDS, render_kind


def test_there_are_two_dozen_kinds_in_several_groups_with_phrases_of_their_own():
    classes = [kind.sound_class for kind in KINDS.values()]
    assert len(classes) >= 24
    assert len({kind.group for kind in classes}) >= 5
    assert sum(kind.countable for kind in classes) >= 10
    assert sum(kind.kind == "texture" for kind in classes) >= 10
    for kind in classes:
        assert kind.label in KINDS and set(kind.confusable_with) <= set(KINDS)
        assert kind.noun_phrase and kind.clause and kind.answer == kind.label


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_finite_level_faded_and_varied(kind):
    first, second = (render_kind(kind, generator("sound", kind, i), 0.6) for i in range(2))
    again = render_kind(kind, generator("sound", kind, 0), 0.6)
    np.testing.assert_array_equal(first, again)
    assert first.dtype == np.float32 and len(first) == 9600
    assert np.isfinite(first).all() and 0.3 < np.abs(first).max() < 0.75
    assert abs(first[0]) < 0.02 and abs(first[-1]) < 0.02
    assert np.abs(first - second).max() > 0.05


def test_textures_last_as_long_as_asked():
    for kind, entry in KINDS.items():
        if entry.sound_class.kind == "texture":
            sound = render_kind(kind, generator(kind), 4.0)
            assert len(sound) == 64_000
            seconds = np.sqrt(np.mean(sound.reshape(8, -1) ** 2, axis=1))
            assert seconds.min() > 0.2 * seconds.max(), kind


def test_an_unknown_kind_is_named():
    with pytest.raises(AlmosaicError, match="'moo'"):
        render_kind("moo", generator(0))


def test_the_kinds_are_clearly_different():
    """Nearest centroid on log-band means, spreads and steps finds the kind of fresh draws."""
    train, labels = _features("train", 20)
    fresh, truth = _features("fresh", 15)
    mean, std = train.mean(axis=0), train.std(axis=0)
    centroids = np.stack([((train - mean) / std)[labels == k].mean(axis=0) for k in range(len(KINDS))])
    distances = np.square(((fresh - mean) / std)[:, None] - centroids).sum(axis=2)
    right = distances.argmin(axis=1) == truth
    assert right.mean() >= 0.93
    assert min(right[truth == k].mean() for k in range(len(KINDS))) >= 0.6


def _features(name, draws):
    rows, labels = [], []
    for place, kind in enumerate(KINDS):
        for index in range(draws):
            rng = generator(name, kind, index)
            rows.append(_describe(render_kind(kind, rng, float(rng.uniform(0.4, 0.9)))))
            labels.append(place)
    return np.stack(rows), np.array(labels)


def _describe(sound):
    frames = np.lib.stride_tricks.sliding_window_view(sound / sound.std(), 400)[::160] * np.hanning(400)
    powers = np.abs(np.fft.rfft(frames, 512)) ** 2
    edges = np.unique(np.round(np.geomspace(2, 256, 25)).astype(int))
    bands = [powers[:, low:high].mean(axis=1) for low, high in pairwise(edges)]
    levels = np.log(np.stack(bands, axis=1) + 1e-3)
    return np.concatenate([levels.mean(axis=0), levels.std(axis=0), np.diff(levels, axis=0).std(axis=0)])


def test_a_bank_of_another_split_holds_other_draws_of_the_same_kinds():
    settings = SyntheticBank(clips_per_kind=3)
    train, test = open_bank(settings, "train"), open_bank(settings, "test")
    assert train.labels == test.labels and len(train) == 3 * len(KINDS)
    assert not {c.id for c in train.clips} & {c.id for c in test.clips}
    for first, second in zip(train.clips, test.clips, strict=True):
        if first.label == "beep":
            assert len(train.waveform(first)) != len(test.waveform(second))


def test_clips_have_the_lengths_that_the_bank_says():
    bank = open_bank(SyntheticBank(clips_per_kind=2), "dev")
    for clip in bank.clips:
        seconds = clip.regions[0][1]
        assert len(bank.waveform(clip)) == round(seconds * 16_000)
        texture = bank.classes[clip.label].kind == "texture"
        assert seconds == TEXTURE_SECONDS if texture else 0.4 <= seconds <= 0.9
        assert bool(clip.events) == bank.classes[clip.label].countable
